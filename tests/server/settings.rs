//! Encrypted connections, and options from a file.

use crate::client::{Server, until};
use crate::common::{error, oxgpt, testdata};
use serde_json::json;
use std::fs;
use std::sync::Arc;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

#[test]
fn connections_can_be_encrypted() {
    let (cert, key) = (testdata("tls/cert.pem"), testdata("tls/key.pem"));
    let server = Server::start(
        None,
        &["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()],
    );
    let port = server.address.rsplit(':').next().unwrap();
    let root = Certificate::from_pem(&fs::read(&cert).unwrap()).unwrap();
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls_graviola::default_provider()))
        .root_certs(RootCerts::from([root]))
        .build();
    let agent = ureq::Agent::config_builder().tls_config(tls).build().new_agent();
    let url = |path: &str| format!("https://localhost:{port}{path}");
    until("it is ready", || agent.get(url("/health")).call().is_ok());
    let body = json!({"model": "demo", "prompt": "The sea", "max_tokens": 3}).to_string();
    let mut response = agent.post(url("/v1/completions")).send(body).unwrap();
    assert!(response.body_mut().read_to_string().unwrap().contains("text_completion"));

    let port_0 = ["serve", "--port", "0"];
    let message =
        error(oxgpt().args(port_0).arg("--tls-cert").arg(&key).arg("--tls-key").arg(&key), 1);
    assert!(message.contains("key.pem"), "{message}");
    let message =
        error(oxgpt().args(port_0).arg("--tls-cert").arg(&cert).args(["--tls-key", "no/key"]), 1);
    assert!(message.contains("no/key"), "{message}");
    error(oxgpt().args(port_0).arg("--tls-cert").arg(&cert), 2);
}

#[test]
fn options_come_from_a_file_unless_they_are_typed() {
    let folder = tempfile::tempdir().unwrap();
    let write = |text: &str| {
        let file = folder.path().join("oxgpt.toml");
        fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_string()
    };
    let file = write(
        "alias = \"of-the-file\"\nctx = 64\nsequences = 2\napi-key = [\"one\", \"two\"]\ndeterministic = true\n\
         client-timeout = 1.5\n",
    );
    let server = Server::demo(&["--config", &file, "--ctx", "32"]);
    let key = ["Authorization: Bearer two"];
    let models = server.send("GET", "/v1/models", &key, "").json();
    assert_eq!(models["data"][0]["id"], "of-the-file");
    assert_eq!(models["data"][0]["max_model_len"], 32, "what is typed goes first");
    assert_eq!(server.get("/v1/models").status, 401);
    for (text, part) in [
        ("colour = 1", "serve has no option \"colour\""),
        ("config = \"x\"", "serve has no option \"config\""),
        ("port = [", "oxgpt.toml"),
        ("alias = {}", "table is not a value of it"),
        ("deterministic = 3", "integer is not a value of it"),
    ] {
        let file = write(text);
        let message = error(oxgpt().args(["serve", "--port", "0", "--config", &file]), 1);
        assert!(message.contains(part), "{message}");
    }
    let file = write("sequences = 0");
    error(oxgpt().args(["serve", "--port", "0", "--config", &file]), 2);
    let message = error(oxgpt().args(["serve", "--port", "0", "--config", "no/file"]), 1);
    assert!(message.contains("no/file"), "{message}");
}
