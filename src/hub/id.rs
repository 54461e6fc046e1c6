//! What names a model of the hub.

use std::fmt;
use std::str::FromStr;

/// Names are no longer than this, as `huggingface_hub` has it.
const MAX_NAME: usize = 96;

/// `org/repo`, or `org/repo:file`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    /// Organization or person, and repository.
    pub repo: String,
    /// A file of it, or the type of one, such as `Q4_K_M`.
    pub file: Option<String>,
}

impl HubId {
    /// The model that `-m` may mean where there is no such path: what ends as the name of a file does is a path.
    pub fn of_model(text: &str) -> Option<Self> {
        let id: Self = text.parse().ok()?;
        let is_file = [".gguf", ".safetensors", ".json"]
            .iter()
            .any(|extension| id.repo.to_lowercase().ends_with(extension));
        (!is_file || id.file.is_some()).then_some(id)
    }
}

impl FromStr for HubId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (repo, file) = match text.split_once(':') {
            Some((repo, file)) => (repo, Some(file)),
            None => (text, None),
        };
        let parts: Vec<&str> = repo.split('/').collect();
        let [org, name] = parts.as_slice() else {
            return Err("expected ORG/REPO or ORG/REPO:FILE".to_string());
        };
        if !is_name(org) || !is_name(name) {
            return Err("expected ORG/REPO of letters, digits, `-`, `_` and `.`".to_string());
        }
        if file.is_some_and(str::is_empty) {
            return Err("expected a file or a type after the colon".to_string());
        }
        Ok(HubId { repo: repo.to_string(), file: file.map(str::to_string) })
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        self.file.iter().try_for_each(|file| write!(f, ":{file}"))
    }
}

/// The rules of `huggingface_hub.utils.validate_repo_id`.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with(['-', '.'])
        && !name.ends_with(['-', '.'])
        && !name.contains("--")
        && !name.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read() {
        let id = |text: &str| text.parse::<HubId>();
        let model = HubId { repo: "openai/gpt-oss-20b".into(), file: None };
        assert_eq!(id("openai/gpt-oss-20b"), Ok(model));
        let id = id("a/B.c_d:dir/x-Q4_0.gguf").unwrap();
        assert_eq!((id.repo.as_str(), id.file.as_deref()), ("a/B.c_d", Some("dir/x-Q4_0.gguf")));
        assert_eq!(id.to_string(), "a/B.c_d:dir/x-Q4_0.gguf");
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in [
            "", "gpt2", "a/b/c", "/a", "a/", "./b", "../b", "a/b:", "a b/c", "a/b--c", "-a/b",
            "a/..", "a/b.", "ä/b", ":x", "a:b/c",
        ] {
            assert!(text.parse::<HubId>().is_err(), "{text}");
        }
        assert!(format!("a/{}", "b".repeat(97)).parse::<HubId>().is_err());
    }

    #[test]
    fn mistyped_paths_are_no_models_of_the_hub() {
        assert_eq!(HubId::of_model("models/gpt2.gguf"), None);
        assert_eq!(HubId::of_model("models/GPT2.GGUF"), None);
        assert_eq!(HubId::of_model("./models"), None);
        assert!(HubId::of_model("models/gpt2").is_some());
        assert!(HubId::of_model("models/gpt2.gguf:Q8_0").is_some());
    }
}
