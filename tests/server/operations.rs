//! Starting, keys, origins, and the end.

use crate::client::{Server, read, until};
use crate::common::{error, oxgpt, testdata};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;

const PATH: &str = "/v1/completions";

#[test]
fn models_are_called_by_their_files_or_an_alias() {
    let file = testdata("golden/gpt2-base-F32.gguf");
    let server = Server::of(&file, &[]);
    assert_eq!(server.get("/v1/models").json()["data"][0]["id"], "gpt2-base-F32");
    // A model without a tokenizer takes ids, and has no text.
    let request = json!({"model": "gpt2-base-F32", "prompt": [1, 2, 3], "max_tokens": 3});
    let answer = server.answer(PATH, &request);
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    assert_eq!(answer["choices"][0]["text"], "");
    let words = json!({"model": "gpt2-base-F32", "prompt": "words"});
    assert!(server.post(PATH, &words).error().contains("no tokenizer"));
    let server = Server::demo(&["--alias", "org/other:1"]);
    assert_eq!(server.get("/v1/models/org/other:1").json()["id"], "org/other:1");
    let request = json!({"model": "org/other:1", "prompt": "a", "max_tokens": 1});
    assert_eq!(server.answer(PATH, &request)["model"], "org/other:1");
}

#[test]
fn it_listens_before_the_model_is_there() {
    // A pipe that nobody writes to yet is a file that takes long to read.
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("slow.jinja");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let server = Server::start(None, &["--chat-template", pipe.to_str().unwrap()]);
    let health = server.get("/health");
    assert_eq!((health.status, health.json()["status"].clone()), (503, json!("starting")));
    let request = json!({"model": "demo", "prompt": "a"});
    let early = server.post(PATH, &request);
    assert_eq!(early.status, 503);
    assert_eq!(early.error(), "the model is being loaded");
    assert_eq!(early.header("retry-after"), Some("1"));
    assert_eq!(server.get("/v1/models").status, 503);
    fs::write(&pipe, "{{ messages[0].content }}").unwrap();
    server.wait();
    assert_eq!(server.get("/health").json()["status"], "ready");
    assert_eq!(server.post(PATH, &request).status, 200);
}

#[test]
fn steps_and_what_they_take_are_counted() {
    let server = Server::demo(&["--device", "cpu"]);
    assert_eq!(server.metric("oxgpt_steps_total"), 0.0);
    server.answer(
        PATH,
        &json!({"model": "demo", "prompt": "a", "max_tokens": 5, "ignore_eos": true}),
    );
    // The prompt gives the first token.
    until("all steps are counted", || server.metric("oxgpt_steps_total") == 5.0);
    let all = server.metric("oxgpt_step_seconds_total");
    let device = server.metric("oxgpt_device_seconds_total");
    assert!(0.0 < device && device < all, "{device} of {all}");
}

#[test]
fn what_cannot_be_served_ends_the_program_with_the_reason() {
    let message = error(oxgpt().args(["serve", "--port", "0", "-m", "no/such/model/file"]), 1);
    assert!(message.contains("no such file"), "{message}");
    let mut server = Server::start(Some(&testdata("golden/index.json")), &[]);
    assert_eq!(server.exit_code(), Some(1));
    until("it says why", || server.stderr().contains("error:"));
    let message =
        error(oxgpt().args(["serve", "--port", "0", "--ctx", "1000000", "--device", "cpu"]), 1);
    assert!(message.contains("1000000"), "{message}");
    let taken = Server::demo(&[]);
    let port = taken.address.rsplit(':').next().unwrap();
    let message = error(oxgpt().args(["serve", "--port", port]), 1);
    assert!(message.contains("cannot listen at 127.0.0.1"), "{message}");
    for wrong in [
        ["--port", "65536"],
        ["--sequences", "0"],
        ["--api-key", ""],
        ["--client-timeout", "NaN"],
        ["--log", "loud"],
    ] {
        error(oxgpt().arg("serve").args(wrong), 2);
    }
    let template = Path::new("no/such/template");
    let message = error(oxgpt().args(["serve", "--port", "0", "--chat-template"]).arg(template), 1);
    assert!(message.contains("no/such/template"), "{message}");
}

#[test]
fn a_key_opens_everything_but_health() {
    let server = Server::demo(&["--api-key", "first", "--api-key", "second"]);
    assert_eq!(server.get("/health").status, 200);
    for path in ["/v1/models", "/metrics", "/version", "/nowhere"] {
        let response = server.get(path);
        assert_eq!(response.status, 401, "{path}");
        assert_eq!(response.json()["error"]["code"], "invalid_api_key");
        assert!(response.header("www-authenticate").is_some());
    }
    for header in [
        "Authorization: Bearer firs",
        "Authorization: Bearer first ",
        "Authorization: first",
        "Authorization: Bearer",
        "X-Api-Key: third",
    ] {
        // Space around a header's value is no part of it.
        let expected = if header.ends_with("first ") { 200 } else { 401 };
        assert_eq!(server.send("GET", "/v1/models", &[header], "").status, expected, "{header}");
    }
    // A browser asks for a password, and sends it with a name before it.
    let page = server.get("/");
    assert_eq!(page.status, 401);
    assert!(page.header("www-authenticate").unwrap().starts_with("Basic"));
    let basic = "Authorization: Basic bWU6c2Vjb25k";
    assert_eq!(server.send("GET", "/", &[basic], "").status, 200);
    assert_eq!(server.send("GET", "/v1/models", &[basic], "").status, 200);
    assert_eq!(server.send("GET", "/", &["Authorization: Basic bWU6d3Jvbmc="], "").status, 401);
    for header in
        ["Authorization: Bearer first", "authorization: bearer second", "X-Api-Key: second"]
    {
        assert_eq!(server.send("GET", "/v1/models", &[header], "").status, 200, "{header}");
    }
    assert!(!server.stderr().contains("first"), "keys are not logged");
}

#[test]
fn the_page_asks_for_nothing_from_elsewhere() {
    let server = Server::demo(&[]);
    let page = server.get("/");
    assert_eq!(page.status, 200);
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'sha256-"));
    for part in ["src=", "@import", "url(", "<link rel=\"stylesheet\""] {
        assert!(!page.body.contains(part), "{part}");
    }
    assert!(!page.body.contains("https://") && !page.body.contains("http://"), "an address");
    assert_eq!(page.body.matches("<script").count(), 1);
    assert!(!page.body.contains("innerHTML"));
}

#[test]
fn pages_of_other_origins_are_let_in_by_name() {
    let server = Server::demo(&["--cors", "https://good.example"]);
    let body = json!({"model": "demo", "prompt": "a", "max_tokens": 1}).to_string();
    let post = |origin: &str| server.send("POST", PATH, &[&format!("Origin: {origin}")], &body);
    let good = post("https://good.example");
    assert_eq!(good.status, 200);
    assert_eq!(good.header("access-control-allow-origin"), Some("https://good.example"));
    let bad = post("https://bad.example");
    assert_eq!(bad.status, 403);
    assert!(bad.error().contains("https://bad.example"));
    assert_eq!(bad.header("access-control-allow-origin"), None);
    assert_eq!(post(&format!("http://{}", server.address)).status, 200, "our own page");
    let preflight = server.send(
        "OPTIONS",
        PATH,
        &[
            "Origin: https://good.example",
            "Access-Control-Request-Method: POST",
            "Access-Control-Request-Headers: authorization,content-type",
        ],
        "",
    );
    assert_eq!(preflight.status, 200);
    let allowed = preflight.header("access-control-allow-headers").unwrap();
    assert!(allowed.contains("authorization"));
}

#[test]
fn the_end_waits_for_answers_under_way() {
    let mut server = Server::demo(&["--device", "reference", "--log", "json"]);
    let request = |stream: bool| {
        json!({
            "model": "demo", "prompt": "The sea", "max_tokens": 60, "ignore_eos": true, "stream": stream
        })
        .to_string()
    };
    let mut whole = server.begin("POST", PATH, &[], &request(false));
    let mut streamed = server.begin("POST", PATH, &[], &request(true));
    until("both run", || server.metric("oxgpt_running_sequences") == 2.0);
    server.signal("TERM");
    until("it drains", || server.get("/health").json()["status"] == "draining");
    assert_eq!(server.get("/health").status, 503);
    let late = server.send("POST", PATH, &[], &request(false));
    assert_eq!(late.status, 503);
    assert_eq!(late.json()["error"]["code"], "draining");
    assert_eq!(read(&mut whole).json()["usage"]["completion_tokens"], 60);
    assert!(read(&mut streamed).body.ends_with("data: [DONE]\n\n"));
    assert_eq!(server.exit_code(), Some(0));
    let stderr = server.stderr();
    let lines: Vec<serde_json::Value> =
        stderr.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let answers = lines.iter().filter(|line| line["event"] == "answer" && line["tokens"] == 60);
    assert_eq!(answers.count(), 2, "{stderr}");
    assert!(!stderr.contains("The sea"), "prompts are not logged");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Server::demo(&["--device", "reference"]);
    let body = json!({"model": "demo", "prompt": "The sea", "max_tokens": 500, "ignore_eos": true})
        .to_string();
    let _answer = server.begin("POST", PATH, &[], &body);
    until("it runs", || server.metric("oxgpt_running_sequences") == 1.0);
    server.signal("INT");
    until("it drains", || server.get("/health").status == 503);
    server.signal("INT");
    assert_eq!(server.exit_code(), Some(130));
}

#[test]
fn every_response_has_a_name() {
    let server = Server::demo(&[]);
    let named = server.send("GET", "/v1/models", &["X-Request-Id: mine-7"], "");
    assert_eq!(named.header("x-request-id"), Some("mine-7"));
    assert!(server.get("/v1/models").header("x-request-id").unwrap().starts_with("req-"));
    until("it is logged", || server.stderr().contains("id=mine-7"));
}
