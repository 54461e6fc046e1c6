//! A hub for tests: what a Hugging Face hub answers, large files on a host of their own, and what can go wrong with both.

use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use sha2::Sha256;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

/// The commit that every branch is at.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A file of a repository.
#[derive(Clone)]
pub struct HubFile {
    pub contents: Vec<u8>,
    /// Whether it lies on the other host.
    pub large: bool,
}

/// How the hub behaves.
#[derive(Clone, Default)]
pub struct Behaviour {
    /// Every request to the hub needs this token.
    pub token: Option<String>,
    /// Every request to the hub is answered with this status.
    pub status: Option<u16>,
    /// Checksums of large files are wrong.
    pub wrong_checksums: bool,
    /// The other host knows no ranges.
    pub no_ranges: bool,
    /// The other host ends answers early, after so many bytes: one entry an answer, then no more.
    pub break_after: Vec<usize>,
    /// The other host sends so many bytes, then nothing, without ending the connection.
    pub stall_after: Option<usize>,
}

/// One request: what was asked, and the headers that matter.
#[derive(Clone, Debug)]
pub struct Seen {
    pub host: &'static str,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

struct State {
    files: HashMap<String, Vec<(String, HubFile)>>,
    behaviour: Behaviour,
    seen: Vec<Seen>,
    files_address: String,
}

/// A hub on this machine, and the host of its large files.
pub struct Hub {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

/// Connections as they are, or encrypted.
pub trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

type Encrypt = dyn Fn(TcpStream) -> Box<dyn Stream> + Send + Sync;

impl Hub {
    /// A hub with a repository for each entry.
    pub fn new(repositories: &[(&str, Vec<(&str, HubFile)>)], behaviour: Behaviour) -> Self {
        Self::with_encryption(repositories, behaviour, "http", |stream| Box::new(stream))
    }

    /// The same with connections that `encrypt` makes of plain ones.
    pub fn with_encryption(
        repositories: &[(&str, Vec<(&str, HubFile)>)],
        behaviour: Behaviour,
        scheme: &str,
        encrypt: impl Fn(TcpStream) -> Box<dyn Stream> + Send + Sync + 'static,
    ) -> Self {
        let owned = |files: &Vec<(&str, HubFile)>| {
            files.iter().map(|(path, file)| (path.to_string(), file.clone())).collect()
        };
        let files = repositories.iter().map(|(repo, files)| (repo.to_string(), owned(files)));
        let [hub, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let endpoint = format!("{scheme}://127.0.0.1:{}", port(&hub));
        // The same machine by another name, so that it is another host.
        let files_address = format!("{scheme}://localhost:{}", port(&other));
        let state = State { files: files.collect(), behaviour, seen: Vec::new(), files_address };
        let state = Arc::new(Mutex::new(state));
        let encrypt: Arc<Encrypt> = Arc::new(encrypt);
        for (listener, host) in [(hub, "hub"), (other, "files")] {
            let (state, encrypt) = (state.clone(), encrypt.clone());
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (state, encrypt) = (state.clone(), encrypt.clone());
                    thread::spawn(move || answer(encrypt(stream), host, &state));
                }
            });
        }
        Hub { endpoint, state }
    }

    /// Changes how the hub behaves from now on, and forgets what it was asked.
    pub fn now(&self, behaviour: Behaviour) {
        let mut state = self.state.lock().unwrap();
        (state.behaviour, state.seen) = (behaviour, Vec::new());
    }

    /// What was asked.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    /// The paths of the files that were asked for on a host.
    pub fn asked(&self, host: &str) -> Vec<String> {
        let prefix = format!("/resolve/{COMMIT}/");
        let seen = self.seen().into_iter().filter(|seen| seen.host == host);
        seen.filter_map(|seen| Some(seen.path.split_once(&prefix)?.1.to_string())).collect()
    }
}

/// A small file, whose checksum is git's.
pub fn small(contents: &[u8]) -> HubFile {
    HubFile { contents: contents.to_vec(), large: false }
}

/// A large file, whose checksum is its SHA-256.
pub fn large(contents: &[u8]) -> HubFile {
    HubFile { contents: contents.to_vec(), large: true }
}

/// The files of a folder, the weights among them large.
pub fn folder(path: &Path) -> Vec<(String, HubFile)> {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    let files = entries.map(|entry| {
        let name = entry.file_name().into_string().unwrap();
        let large = name.ends_with(".safetensors");
        (name, HubFile { contents: std::fs::read(entry.path()).unwrap(), large })
    });
    files.collect()
}

/// The SHA-256 of some bytes, in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn git_hash(bytes: &[u8]) -> String {
    let digest = Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes);
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn answer(stream: Box<dyn Stream>, host: &'static str, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_string()),
        }
    }
    let path = lines[0].split(' ').nth(1).unwrap().to_string();
    let header = |name: &str| {
        let line =
            lines[1..].iter().find(|line| line.to_lowercase().starts_with(&format!("{name}:")));
        line.map(|line| line.split_once(':').unwrap().1.trim().to_string())
    };
    let (range, authorization) = (header("range"), header("authorization"));
    let seen = Seen { host, path: path.clone(), range, authorization };
    // A client that is gone is no matter.
    let _ = match host {
        "hub" => answer_hub(reader.get_mut(), seen, state),
        _ => answer_files(reader.get_mut(), seen, state),
    };
}

fn answer_hub(stream: &mut dyn Stream, seen: Seen, state: &Mutex<State>) -> std::io::Result<()> {
    let mut state = state.lock().unwrap();
    state.seen.push(seen.clone());
    if let Some(status) = state.behaviour.status {
        return respond(stream, status, &[], b"");
    }
    if let Some(token) = &state.behaviour.token {
        match &seen.authorization {
            Some(found) if *found == format!("Bearer {token}") => {}
            _ => return respond(stream, 401, &[("x-error-message", "Invalid credentials")], b""),
        }
    }
    let parts: Vec<&str> = seen.path.split('/').collect();
    if let ["", "api", "models", org, repo, "revision", "main?blobs=true"] = parts.as_slice()
        && let Some(files) = state.files.get(&format!("{org}/{repo}"))
    {
        let wrong = state.behaviour.wrong_checksums;
        let siblings: Vec<Value> =
            files.iter().map(|(path, file)| listed(path, file, wrong)).collect();
        let listing = json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return respond(stream, 200, &[], listing.as_bytes());
    }
    if let ["", org, repo, "resolve", COMMIT, path @ ..] = parts.as_slice()
        && let Some(files) = state.files.get(&format!("{org}/{repo}"))
        && let Some((_, file)) = files.iter().find(|(found, _)| *found == path.join("/"))
    {
        if file.large {
            let location = format!("{}{}", state.files_address, seen.path);
            return respond(stream, 302, &[("location", &location)], b"");
        }
        return respond(stream, 200, &[], &file.contents);
    }
    respond(stream, 404, &[("x-error-message", "Repository not found")], b"")
}

fn listed(path: &str, file: &HubFile, wrong: bool) -> Value {
    let size = file.contents.len();
    if !file.large {
        return json!({"rfilename": path, "size": size, "blobId": git_hash(&file.contents)});
    }
    let sha256 = if wrong { sha256(b"something else") } else { sha256(&file.contents) };
    // The hash of the pointer that git has in the file's place.
    let pointer = git_hash(sha256.as_bytes());
    json!({"rfilename": path, "size": size, "blobId": pointer,
           "lfs": {"sha256": sha256, "size": size, "pointerSize": 134}})
}

fn answer_files(stream: &mut dyn Stream, seen: Seen, state: &Mutex<State>) -> std::io::Result<()> {
    let (contents, behaviour) = {
        let mut state = state.lock().unwrap();
        state.seen.push(seen.clone());
        let parts: Vec<&str> = seen.path.split('/').collect();
        let files = &state.files[&format!("{}/{}", parts[1], parts[2])];
        let (_, file) = files.iter().find(|(found, _)| *found == parts[5..].join("/")).unwrap();
        let (contents, behaviour) = (file.contents.clone(), state.behaviour.clone());
        if !state.behaviour.break_after.is_empty() {
            state.behaviour.break_after.remove(0);
        }
        (contents, behaviour)
    };
    let range = seen.range.filter(|_| !behaviour.no_ranges);
    let first = range.map(|range| {
        let first = range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
        first.unwrap().parse::<usize>().unwrap()
    });
    let part = &contents[first.unwrap_or(0)..];
    let mut head = format!(
        "HTTP/1.1 {}\r\nconnection: close\r\ncontent-length: {}\r\n",
        if first.is_some() { "206 Partial Content" } else { "200 OK" },
        part.len()
    );
    if let Some(first) = first {
        let last = contents.len() - 1;
        head += &format!("content-range: bytes {first}-{last}/{}\r\n", contents.len());
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    let early = behaviour.break_after.first().copied().or(behaviour.stall_after);
    stream.write_all(&part[..early.unwrap_or(part.len()).min(part.len())])?;
    stream.flush()?;
    if behaviour.stall_after.is_some() {
        // Until the client is gone.
        let _ = stream.read(&mut [0]);
    }
    Ok(())
}

fn respond(
    stream: &mut dyn Stream,
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<()> {
    let mut head =
        format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(body)?;
    stream.flush()
}
