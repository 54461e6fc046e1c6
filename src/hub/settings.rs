//! The environment variables of `huggingface_hub`.

use anyhow::{Context, Result, bail};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the hub is, and where its files are kept.
#[derive(Debug)]
pub struct Settings {
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// `HF_HUB_CACHE`, else `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// `HF_TOKEN`, else what is in the file `token` of `HF_HOME`.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`.
    pub offline: bool,
}

const ENDPOINT: &str = "https://huggingface.co";

impl Settings {
    /// Reads the environment. Empty variables are as good as none.
    pub fn from_environment() -> Result<Self> {
        Self::new(&|name| env::var(name).ok().filter(|value| !value.is_empty()), env::home_dir())
    }

    fn new(variable: &dyn Fn(&str) -> Option<String>, user: Option<PathBuf>) -> Result<Self> {
        let path = |name: &str| {
            let path = PathBuf::from(variable(name)?);
            Some(match (path.strip_prefix("~"), &user) {
                (Ok(rest), Some(user)) => user.join(rest),
                _ => path,
            })
        };
        let user_cache = path("XDG_CACHE_HOME").or_else(|| Some(user.as_ref()?.join(".cache")));
        let home = path("HF_HOME").or_else(|| Some(user_cache?.join("huggingface")));
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(home.as_ref()?.join("hub")))
            .context("there is no home directory to keep models in: HF_HOME can name another")?;

        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_string());
        let endpoint = endpoint.trim_end_matches('/').to_string();
        if !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
            bail!("HF_ENDPOINT: expected an address with http:// or https://, found {endpoint:?}");
        }

        let token_file =
            path("HF_TOKEN_PATH").or_else(|| home.map(|home: PathBuf| home.join("token")));
        let token = variable("HF_TOKEN")
            .or_else(|| variable("HUGGING_FACE_HUB_TOKEN"))
            .map(Ok)
            .or_else(|| token_file.and_then(|file| read_token(&file).transpose()))
            .transpose()?
            .map(|token| token.trim().to_string())
            .filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            bail!("the token for the hub has characters that no token has");
        }

        let offline = variable("HF_HUB_OFFLINE").is_some_and(|value| {
            ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
        });
        Ok(Settings { endpoint, cache, token, offline })
    }
}

/// What is in the file of the token; `None` if there is no file.
fn read_token(file: &Path) -> Result<Option<String>> {
    match fs::read_to_string(file) {
        Ok(token) => Ok(Some(token)),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(cause).with_context(|| format!("cannot read {}", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
        let variable = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string())
        };
        Settings::new(&variable, Some("/home/me".into()))
    }

    #[test]
    fn defaults_are_those_of_huggingface_hub() {
        let found = settings(&[]).unwrap();
        assert_eq!(found.cache, Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!(found.endpoint, ENDPOINT);
        assert!(found.token.is_none() && !found.offline);
    }

    #[test]
    fn each_variable_goes_before_the_next() {
        let cache = |variables: &[_]| settings(variables).unwrap().cache;
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/y")]), Path::new("/y/hub"));
        assert_eq!(cache(&[("HF_HOME", "~/y")]), Path::new("/home/me/y/hub"));
        assert_eq!(cache(&[("HF_HOME", "/y"), ("HF_HUB_CACHE", "/z")]), Path::new("/z"));
        let found = settings(&[("HF_ENDPOINT", "http://h:1/"), ("HF_HUB_OFFLINE", "True")]);
        let found = found.unwrap();
        assert_eq!((found.endpoint.as_str(), found.offline), ("http://h:1", true));
        assert!(!settings(&[("HF_HUB_OFFLINE", "0")]).unwrap().offline);
        assert!(settings(&[("HF_ENDPOINT", "h:1")]).is_err());
    }

    #[test]
    fn tokens_come_from_the_environment_or_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let token = |variables: &[_]| settings(variables).unwrap().token;
        assert_eq!(token(&[("HF_HOME", home)]).as_deref(), Some("hf_file"));
        let both = [("HF_HOME", home), ("HF_TOKEN", "hf_own")];
        assert_eq!(token(&both).as_deref(), Some("hf_own"));
        assert!(settings(&[("HF_TOKEN", "a b")]).is_err());
    }
}
