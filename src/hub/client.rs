//! Speaking HTTP with the hub.

use super::cache::is_hex;
use super::settings::Settings;
use super::tls;
use anyhow::{Context, Error, Result, anyhow, bail};
use serde::Deserialize;
use std::fmt::Write;
use std::time::Duration;
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

/// A server that is silent for longer is as good as gone.
const SILENCE: Duration = Duration::from_secs(30);

/// Redirections that are followed, as curl and browsers do within this order of magnitude.
const MAX_REDIRECTS: usize = 10;

/// The listing of the largest repositories is a few megabytes.
const MAX_LISTING_BYTES: u64 = 64 << 20;

/// A hub, and what it takes to ask it.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// What a repository has at a commit.
#[derive(Debug)]
pub struct Listing {
    /// The commit.
    pub commit: String,
    /// The files of which size and hash are known.
    pub files: Vec<RemoteFile>,
}

/// A file of a repository.
#[derive(Clone, Debug)]
pub struct RemoteFile {
    /// Its path in the repository.
    pub path: String,
    /// Its bytes.
    pub size: u64,
    /// What it contains.
    pub hash: Hash,
}

/// The hash of a file, in hexadecimal digits: the name of the file in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hash {
    /// Of large files.
    Sha256(String),
    /// Of the others: the name of git's object, SHA-1 over the word `blob`, the size, a zero byte and the contents.
    Git(String),
}

impl Hash {
    /// The digits.
    pub fn digits(&self) -> &str {
        match self {
            Hash::Sha256(digits) | Hash::Git(digits) => digits,
        }
    }
}

/// A request that did not succeed.
pub struct Failure {
    /// Whether it may succeed when it is repeated.
    pub passing: bool,
    /// Why.
    pub cause: Error,
}

impl Failure {
    fn lasting(cause: Error) -> Self {
        Failure { passing: false, cause }
    }
}

#[derive(Deserialize)]
struct ModelInfo {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Client {
    /// A client of the hub that the settings name.
    pub fn new(settings: &Settings) -> Result<Self> {
        let config = Agent::config_builder()
            // Statuses and redirections are looked at here.
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("oxgpt/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE));
        // Without TLS, hubs with http:// can still be used; the others are refused when they are asked.
        let config = match tls::config() {
            Ok(tls) => config.tls_config(tls),
            Err(_) => config,
        };
        let (endpoint, token) = (settings.endpoint.clone(), settings.token.clone());
        Ok(Client { agent: config.build().new_agent(), endpoint, token })
    }

    /// The address of the hub.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The files of a repository's branch.
    pub fn list(&self, repo: &str, branch: &str) -> Result<Listing> {
        let url = format!("{}/api/models/{repo}/revision/{branch}?blobs=true", self.endpoint);
        let mut response = self.get(&url, repo, None).map_err(|failure| failure.cause)?;
        let body = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_vec();
        let body = body.with_context(|| format!("cannot read {url}"))?;
        let info: ModelInfo = serde_json::from_slice(&body)
            .with_context(|| format!("{url}: expected a listing of files"))?;
        if !is_hex(&info.sha) {
            bail!("{url}: expected the hash of a commit, found {:?}", info.sha);
        }
        let files = info.siblings.into_iter().map(remote_file);
        let files = files.collect::<Result<Vec<_>>>().with_context(|| url.clone())?;
        Ok(Listing { commit: info.sha, files: files.into_iter().flatten().collect() })
    }

    /// A file of a repository, from a byte on if one is given.
    pub fn file(
        &self,
        repo: &str,
        commit: &str,
        path: &str,
        first_byte: Option<u64>,
    ) -> Result<Response<Body>, Failure> {
        let path = percent_encoded(path);
        let url = format!("{}/{repo}/resolve/{commit}/{path}", self.endpoint);
        self.get(&url, repo, first_byte)
    }

    /// Asks for `url`, and wherever it leads to.
    fn get(
        &self,
        url: &str,
        repo: &str,
        first_byte: Option<u64>,
    ) -> Result<Response<Body>, Failure> {
        let mut url = url.to_string();
        for _ in 0..=MAX_REDIRECTS {
            if url.starts_with("https:") {
                tls::config().map_err(Failure::lasting)?;
            }
            let mut request = self.agent.get(&url);
            if let Some(first) = first_byte {
                request = request.header("range", format!("bytes={first}-"));
            }
            // The token is for the hub alone, not for where it keeps its files.
            if let Some(token) = &self.token
                && origin(&url) == origin(&self.endpoint)
            {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|cause| self.unreachable(&url, cause))?;
            let status = response.status().as_u16();
            match status {
                200 | 206 => return Ok(response),
                301 | 302 | 303 | 307 | 308 => {
                    url = redirection(&url, response.headers()).map_err(Failure::lasting)?;
                }
                _ => {
                    let passing = matches!(status, 408 | 429 | 500..600);
                    let cause = self.refusal(&url, status, response.headers(), repo);
                    return Err(Failure { passing, cause });
                }
            }
        }
        Err(Failure::lasting(anyhow!("{url}: expected at most {MAX_REDIRECTS} redirections")))
    }

    fn unreachable(&self, url: &str, cause: ureq::Error) -> Failure {
        let host = origin(url).unwrap_or(url);
        let hint = "is this machine offline? HF_ENDPOINT can name a mirror, and a file or folder \
                    that is here already is opened by its path";
        Failure { passing: true, cause: anyhow!("cannot reach {host}: {cause} ({hint})") }
    }

    /// What a status means.
    fn refusal(&self, url: &str, status: u16, headers: &HeaderMap, repo: &str) -> Error {
        let message = headers.get("x-error-message").and_then(|message| message.to_str().ok());
        let said = message.map_or(String::new(), |message| format!(" ({message})"));
        let page = format!("{}/{repo}", self.endpoint);
        let token = "HF_TOKEN, or the file `token` in HF_HOME";
        match (status, &self.token) {
            (401, None) => anyhow!(
                "{page}: there is no such repository, or it needs a token, and there is none in \
                 {token}{said}"
            ),
            (401, Some(_)) => anyhow!("{page}: the token of {token} was not accepted{said}"),
            (403, None) => {
                anyhow!("{page}: access is restricted, and there is no token in {token}{said}")
            }
            (403, Some(_)) => anyhow!(
                "{page}: the token gives no access: its owner has to be granted it, on the page \
                 of the repository{said}"
            ),
            (404, _) => anyhow!("{url}: there is no such repository or file{said}"),
            (429, _) => anyhow!("{url}: the hub was asked too often, try again later{said}"),
            _ => anyhow!("{url}: the hub answered with status {status}{said}"),
        }
    }
}

/// A file of the listing; `None` if the hub does not say what it contains.
fn remote_file(sibling: Sibling) -> Result<Option<RemoteFile>> {
    let path = sibling.rfilename;
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', ':', '\0']);
    if !path.split('/').all(plain) {
        bail!("expected the path of a file, found {path:?}");
    }
    let (size, hash) = match (sibling.lfs, sibling.size, sibling.blob_id) {
        (Some(lfs), ..) => (lfs.size, Hash::Sha256(lfs.sha256)),
        (None, Some(size), Some(blob)) => (size, Hash::Git(blob)),
        _ => return Ok(None),
    };
    if !is_hex(hash.digits()) {
        bail!("{path}: expected a hash, found {:?}", hash.digits());
    }
    Ok(Some(RemoteFile { path, size, hash }))
}

/// Scheme, host and port.
fn origin(url: &str) -> Option<&str> {
    let host = url.find("://")? + 3;
    let end = url[host..].find(['/', '?', '#']).map_or(url.len(), |length| host + length);
    Some(&url[..end])
}

/// Where an answer leads to.
fn redirection(from: &str, headers: &HeaderMap) -> Result<String> {
    let to = headers.get("location").and_then(|location| location.to_str().ok());
    match (to, origin(from)) {
        (Some(to), _) if to.starts_with("https://") || to.starts_with("http://") => {
            if from.starts_with("https://") && !to.starts_with("https://") {
                bail!("{from}: redirected to {to}, which is not encrypted");
            }
            Ok(to.to_string())
        }
        (Some(to), Some(origin)) if to.starts_with('/') && !to.starts_with("//") => {
            Ok(format!("{origin}{to}"))
        }
        _ => bail!("{from}: redirected to {to:?}, which is no address"),
    }
}

/// A path of an address. What RFC 3986 does not reserve stays as it is.
fn percent_encoded(path: &str) -> String {
    let mut encoded = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirections_are_absolute_or_within_the_host() {
        let to = |from, location: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("location", location.parse().unwrap());
            redirection(from, &headers).ok()
        };
        assert_eq!(to("http://h:1/a?b", "/c").as_deref(), Some("http://h:1/c"));
        assert_eq!(to("http://h/a", "https://i/c").as_deref(), Some("https://i/c"));
        for location in ["http://i/c", "//i/c", "c", "file:///etc/passwd"] {
            assert_eq!(to("https://h/a", location), None, "{location}");
        }
        assert!(redirection("https://h/a", &HeaderMap::new()).is_err());
    }

    #[test]
    fn paths_that_lead_out_of_the_repository_are_refused() {
        let file = |path: &str| {
            let blob_id = Some("0".repeat(40));
            remote_file(Sibling { rfilename: path.into(), size: Some(1), blob_id, lfs: None })
        };
        assert!(file("a/b.gguf").unwrap().is_some());
        for path in ["../a", "a/../b", "/etc/passwd", "a//b", "", "a\\b", "C:b", "."] {
            assert!(file(path).is_err(), "{path}");
        }
    }

    #[test]
    fn hashes_that_are_none_are_refused() {
        let lfs = |sha256: &str| Some(Lfs { sha256: sha256.into(), size: 1 });
        for hash in ["", "../../../../../../../../../../../etc/passwd/aaaa", "zz"] {
            let (rfilename, size, blob_id) = ("a".to_string(), None, None);
            let sibling = Sibling { rfilename, size, blob_id, lfs: lfs(hash) };
            assert!(remote_file(sibling).is_err(), "{hash}");
        }
    }

    #[test]
    fn paths_are_encoded() {
        assert_eq!(percent_encoded("a b/ä#?.gguf"), "a%20b/%C3%A4%23%3F.gguf");
    }
}
