//! `oxgpt pull`, and models named by their repository, with a hub on this machine.

mod common;
#[path = "common/hub.rs"]
mod hub;

use assert_cmd::Command;
use common::{error, json, oxgpt, stdout, testdata};
use hub::{Behaviour, COMMIT, Hub, HubFile, large, sha256, small};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const VARIABLES: [&str; 16] = [
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "XDG_CACHE_HOME",
    "HF_ENDPOINT",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_TOKEN_PATH",
    "HF_HUB_OFFLINE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "SSL_CERT_FILE",
];

/// The program with a hub, and a cache in `home`.
fn with(hub: &Hub, home: &TempDir) -> Command {
    let mut command = oxgpt();
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    command.env("HF_ENDPOINT", &hub.endpoint).env("HF_HOME", home.path());
    command
}

fn home() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// The path that `pull` prints.
fn pulled(hub: &Hub, home: &TempDir, id: &str) -> PathBuf {
    PathBuf::from(stdout(with(hub, home).args(["pull", id])).trim_end())
}

fn repository(home: &TempDir) -> PathBuf {
    home.path().join("hub/models--o--r")
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// Bytes without a pattern that a mistake could hide in.
fn noise(count: usize) -> Vec<u8> {
    let mut word = 1u32;
    let mut next = || {
        word = word.wrapping_mul(1664525).wrapping_add(1013904223);
        (word >> 24) as u8
    };
    (0..count).map(|_| next()).collect()
}

fn one_file(contents: &[u8], behaviour: Behaviour) -> Hub {
    Hub::new(&[("o/r", vec![("m.gguf", large(contents))])], behaviour)
}

#[test]
fn a_file_is_kept_as_huggingface_hub_keeps_it() {
    let model = fs::read(testdata("golden/gpt2-blocks-Q8_0.gguf")).unwrap();
    let files = vec![
        ("README.md", small(b"# A model")),
        ("x/m-Q8_0.gguf", large(&model)),
        ("x/m-Q4_0.gguf", large(b"not asked for")),
    ];
    let (hub, home) = (Hub::new(&[("o/r", files)], Behaviour::default()), home());
    let path = pulled(&hub, &home, "o/r:q8_0");
    assert_eq!(path, repository(&home).join("snapshots").join(COMMIT).join("x/m-Q8_0.gguf"));
    assert_eq!(hub.asked("files"), ["x/m-Q8_0.gguf"]);
    let blob = format!("../../../blobs/{}", sha256(&model));
    if cfg!(unix) {
        assert_eq!(fs::read_link(&path).unwrap(), Path::new(&blob));
    }
    assert!(fs::read(&path).unwrap() == model);
    assert_eq!(names(&repository(&home).join("blobs")), [sha256(&model)]);
    assert_eq!(fs::read_to_string(repository(&home).join("refs/main")).unwrap(), COMMIT);

    // The model runs by its name, without a request.
    hub.now(Behaviour::default());
    for name in ["o/r:Q8_0", "o/r:x/m-Q8_0.gguf", "o/r"] {
        let shown = json(with(&hub, &home).args(["inspect", "--json", "-m", name]));
        assert_eq!(shown["family"], "gpt2", "{shown}");
    }
    assert!(hub.seen().is_empty());
    // What is asked for again is asked about, but not fetched.
    assert_eq!(pulled(&hub, &home, "o/r:Q8_0"), path);
    assert_eq!((hub.seen().len(), hub.asked("hub").len()), (1, 0));
}

#[test]
fn a_directory_comes_with_what_it_takes_and_no_more() {
    let folder = testdata("golden/gpt2-sharded");
    let mut files = hub::folder(&folder);
    files.retain(|(name, _)| name != "golden.safetensors");
    let wanted: Vec<String> = files.iter().map(|(name, _)| name.clone()).collect();
    for extra in ["pytorch_model.bin", "original/params.json", "onnx/model.onnx", "m.gguf"] {
        files.push((extra.to_string(), large(b"not asked for")));
    }
    let files: Vec<(&str, HubFile)> =
        files.iter().map(|(name, file)| (name.as_str(), file.clone())).collect();
    let (hub, home) = (Hub::new(&[("o/r", files)], Behaviour::default()), home());
    let logits = |model: &Path| {
        let out = home.path().join("logits.safetensors");
        let mut command = with(&hub, &home);
        stdout(command.args(["logits", "--tokens", "1,2", "-m"]).arg(model).arg("--out").arg(&out));
        fs::read(out).unwrap()
    };
    // By its name alone; the download is announced on standard error.
    let output = with(&hub, &home).args(["inspect", "-m", "o/r"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("downloading o/r from http://"), "{said}");
    let mut asked = hub.asked("hub");
    asked.sort();
    let mut sorted = wanted.clone();
    sorted.sort();
    assert_eq!(asked, sorted);
    assert!(logits(Path::new("o/r")) == logits(&folder));
    // A shard that is gone is fetched again, and nothing else.
    let shard = wanted.iter().find(|name| name.contains("-00001-of-")).unwrap();
    let snapshot = repository(&home).join("snapshots").join(COMMIT);
    fs::remove_file(fs::canonicalize(snapshot.join(shard)).unwrap()).unwrap();
    hub.now(Behaviour::default());
    assert!(logits(Path::new("o/r")) == logits(&folder));
    assert_eq!(hub.asked("files"), [shard.as_str()]);
}

#[test]
fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    let model = noise(300_000);
    let behaviour = Behaviour { break_after: vec![100_000, 0, 50_000], ..Behaviour::default() };
    let (hub, home) = (one_file(&model, behaviour), home());
    assert!(fs::read(pulled(&hub, &home, "o/r")).unwrap() == model);
    let seen = hub.seen().into_iter().filter(|seen| seen.host == "files");
    let ranges: Vec<_> = seen.map(|seen| seen.range.unwrap_or_default()).collect();
    assert_eq!(ranges, ["", "bytes=100000-", "bytes=100000-", "bytes=150000-"]);
}

#[test]
fn without_ranges_a_download_starts_anew() {
    let model = noise(300_000);
    let behaviour =
        Behaviour { break_after: vec![100_000], no_ranges: true, ..Behaviour::default() };
    let (hub, home) = (one_file(&model, behaviour), home());
    assert!(fs::read(pulled(&hub, &home, "o/r")).unwrap() == model);
}

#[test]
fn a_download_that_was_killed_goes_on() {
    let model = noise(300_000);
    let behaviour = Behaviour { stall_after: Some(120_000), ..Behaviour::default() };
    let (hub, home) = (one_file(&model, behaviour), home());
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_oxgpt"));
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    command.env("HF_ENDPOINT", &hub.endpoint).env("HF_HOME", home.path());
    let mut child = command.args(["pull", "o/r"]).stderr(Stdio::null()).spawn().unwrap();
    let partial = repository(&home).join("blobs").join(format!("{}.incomplete", sha256(&model)));
    let start = Instant::now();
    while fs::metadata(&partial).map_or(0, |metadata| metadata.len()) < 120_000 {
        assert!(start.elapsed() < Duration::from_secs(60), "the download never started");
        sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(names(&repository(&home).join("refs")).is_empty());

    hub.now(Behaviour::default());
    assert!(fs::read(pulled(&hub, &home, "o/r")).unwrap() == model);
    let seen = hub.seen();
    let range = seen.iter().find_map(|seen| seen.range.as_deref());
    assert_eq!(range, Some("bytes=120000-"));
    assert!(!partial.exists());
}

#[test]
fn a_damaged_file_is_refused_and_removed() {
    let model = noise(1000);
    let behaviour = Behaviour { wrong_checksums: true, ..Behaviour::default() };
    let (hub, home) = (one_file(&model, behaviour), home());
    let message = error(with(&hub, &home).args(["pull", "o/r"]), 1);
    assert!(message.contains("damaged") && message.contains(&sha256(&model)), "{message}");
    assert!(names(&repository(&home).join("blobs")).is_empty());
    assert!(!repository(&home).join("snapshots").exists());
    // So is one that another program left.
    hub.now(Behaviour::default());
    let partial = repository(&home).join("blobs").join(format!("{}.incomplete", sha256(&model)));
    fs::write(&partial, noise(400).iter().map(|byte| byte ^ 1).collect::<Vec<_>>()).unwrap();
    assert!(error(with(&hub, &home).args(["pull", "o/r"]), 1).contains("damaged"));
    assert!(fs::read(pulled(&hub, &home, "o/r")).unwrap() == model);
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let model = noise(1000);
    let behaviour = Behaviour { token: Some("hf_secret".into()), ..Behaviour::default() };
    let (hub, home) = (one_file(&model, behaviour), home());
    let none = error(with(&hub, &home).args(["pull", "o/r"]), 1);
    assert!(none.contains("HF_TOKEN") && none.contains("Invalid credentials"), "{none}");
    let wrong = error(with(&hub, &home).env("HF_TOKEN", "hf_other").args(["pull", "o/r"]), 1);
    assert!(wrong.contains("not accepted") && !wrong.contains("hf_other"), "{wrong}");
    fs::write(home.path().join("token"), "hf_secret\n").unwrap();
    assert!(fs::read(pulled(&hub, &home, "o/r")).unwrap() == model);
    let elsewhere = hub.seen().into_iter().filter(|seen| seen.host == "files");
    let elsewhere: Vec<_> = elsewhere.map(|seen| seen.authorization).collect();
    assert_eq!(elsewhere, [None]);
}

#[test]
fn refusals_say_what_to_do() {
    let (hub, home) = (one_file(b"x", Behaviour::default()), home());
    let message = |id: &str| error(with(&hub, &home).args(["pull", id]), 1);
    assert!(message("o/absent").contains("Repository not found"));
    assert!(message("o/r:absent.gguf").contains("expected one of m.gguf"));
    hub.now(Behaviour { status: Some(403), ..Behaviour::default() });
    assert!(message("o/r").contains("access is restricted"));
    let mut granted = with(&hub, &home);
    let message = error(granted.env("HF_TOKEN", "hf_x").args(["pull", "o/r"]), 1);
    assert!(message.contains("granted"), "{message}");
    hub.now(Behaviour { status: Some(500), ..Behaviour::default() });
    let message = error(with(&hub, &home).args(["run", "-m", "o/r", "x"]), 1);
    assert!(message.contains("status 500") && message.contains("no such file"), "{message}");
    assert!(error(with(&hub, &home).args(["pull", "no-slash"]), 2).contains("ORG/REPO"));
    assert!(error(with(&hub, &home).args(["pull", "o/r", "-m", "x"]), 2).contains("--model"));
}

#[test]
fn offline_only_the_cache_is_used() {
    let (hub, home) = (one_file(b"x", Behaviour::default()), home());
    let mut offline = with(&hub, &home);
    let message = error(offline.env("HF_HUB_OFFLINE", "1").args(["pull", "o/r"]), 1);
    assert!(
        message.contains("HF_HUB_OFFLINE") && message.contains("not in the cache"),
        "{message}"
    );
    assert!(hub.seen().is_empty());
    let path = pulled(&hub, &home, "o/r");
    let mut offline = with(&hub, &home);
    let found = stdout(offline.env("HF_HUB_OFFLINE", "1").args(["pull", "o/r"]));
    assert_eq!(Path::new(found.trim_end()), path);
    // A port that nobody listens to.
    let mut nowhere = with(&hub, &home);
    let command = nowhere.env("HF_ENDPOINT", "http://127.0.0.1:9").args(["pull", "o/other"]);
    let message = error(command, 1);
    assert!(message.contains("cannot reach http://127.0.0.1:9"), "{message}");
    assert!(message.contains("offline"), "{message}");
}

#[test]
fn a_path_goes_before_the_hub() {
    let (hub, home) = (one_file(b"x", Behaviour::default()), home());
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("o")).unwrap();
    fs::copy(testdata("golden/gpt2-blocks-Q8_0.gguf"), folder.path().join("o/r")).unwrap();
    let mut command = with(&hub, &home);
    json(command.current_dir(folder.path()).args(["inspect", "--json", "-m", "o/r"]));
    // What ends as a file does is a path.
    let message = error(with(&hub, &home).args(["inspect", "-m", "o/r.gguf"]), 1);
    assert!(message.contains("no such file"), "{message}");
    assert!(hub.seen().is_empty());
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error() {
    let (hub, home) = (one_file(&noise(100_000), Behaviour::default()), home());
    let mut shell = Command::new("sh");
    for variable in VARIABLES {
        shell.env_remove(variable);
    }
    shell.env("HF_ENDPOINT", &hub.endpoint).env("HF_HOME", home.path());
    // A limit on the size of files, reported as an error and not by a signal, is as good as a full disk.
    let script = r#"trap "" XFSZ; ulimit -f 20; exec "$@""#;
    shell.args(["-c", script, "sh", env!("CARGO_BIN_EXE_oxgpt"), "pull", "o/r"]);
    let message = error(&mut shell, 1);
    assert!(message.contains("cannot write") && message.contains(".incomplete"), "{message}");
    assert!(!repository(&home).join("refs").exists());
    assert_eq!(fs::read(pulled(&hub, &home, "o/r")).unwrap(), noise(100_000));
}

#[test]
fn encrypted_connections_are_checked() {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ServerConfig, ServerConnection, StreamOwned};
    use std::sync::Arc;

    let certificate = CertificateDer::from_pem_file(testdata("tls/cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(testdata("tls/key.pem")).unwrap();
    let provider = Arc::new(rustls_graviola::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let model = noise(300_000);
    let files = vec![("m.gguf", large(&model))];
    let hub = Hub::with_encryption(&[("o/r", files)], Behaviour::default(), "https", move |tcp| {
        Box::new(StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), tcp))
    });
    let home = home();
    let message = error(with(&hub, &home).args(["pull", "o/r"]), 1);
    assert!(message.contains("certificate"), "{message}");
    let mut trusting = with(&hub, &home);
    let path =
        stdout(trusting.env("SSL_CERT_FILE", testdata("tls/cert.pem")).args(["pull", "o/r"]));
    assert!(fs::read(path.trim_end()).unwrap() == model);
}
