//! Requests that are wrong: each is refused with the status, the field and the reason, and nothing else is disturbed.

use crate::client::Server;
use crate::models::{Api, TEMPLATE, scripted};
use serde_json::{Value, json};

fn with(mut request: Value, name: &str, value: &Value) -> Value {
    request[name] = value.clone();
    request
}

/// Sends a request with one field changed, for each of the cases: the field, its value, the status, the field at fault and
/// a part of the message.
fn refused(server: &Server, path: &str, request: &Value, cases: &[(&str, Value, &str, &str)]) {
    for (name, value, param, part) in cases {
        let response = server.post(path, &with(request.clone(), name, value));
        assert_eq!(response.status, 400, "{name}: {value}: {}", response.body);
        let message = response.error();
        assert!(message.contains(part), "{name}: {value}: {message}");
        assert_eq!(response.json()["error"]["param"], *param, "{name}: {value}: {message}");
        assert_eq!(response.json()["error"]["type"], "invalid_request_error");
    }
    assert_eq!(server.post(path, request).status, 200, "the request itself is right");
}

#[test]
fn fields_of_completions_are_checked_by_name() {
    let server = Server::demo(&["--ctx", "64", "--queue", "3"]);
    let request = json!({"model": "demo", "prompt": "a", "max_tokens": 1});
    let thousands: Vec<String> = (0..5000).map(|number| number.to_string()).collect();
    refused(
        &server,
        "/v1/completions",
        &request,
        &[
            ("temperature", json!(-1), "temperature", "finite and at least 0"),
            ("temperature", json!("hot"), "temperature", "expected a number, found \"hot\""),
            ("temperature", json!(1e39), "temperature", "finite and at least 0"),
            ("top_p", json!(1.5), "top_p", "between 0 and 1"),
            ("min_p", json!(-0.5), "min_p", "between 0 and 1"),
            ("top_k", json!(-1), "top_k", "expected an integer from 0"),
            ("repeat_penalty", json!(0), "repeat_penalty", "above 0"),
            ("frequency_penalty", json!(3), "frequency_penalty", "between -2 and 2"),
            ("presence_penalty", json!([]), "presence_penalty", "expected a number"),
            ("max_tokens", json!(-1), "max_tokens", "expected an integer from 0"),
            ("max_tokens", json!(1.5), "max_tokens", "found 1.5"),
            ("n", json!(0), "n", "expected an integer from 1"),
            ("n", json!(100), "n", "100 answers were asked for, more than the 7"),
            ("seed", json!(-3), "seed", "expected an integer from 0"),
            ("seed", json!("x"), "seed", "found \"x\""),
            ("stop", json!(7), "stop", "a string or an array of strings"),
            ("stop", json!([""]), "stop", "stop string number 1 is empty"),
            ("stop", json!(["a", 7]), "stop", "expected strings, found 7"),
            ("stop", json!(thousands), "stop", "5000 strings, more than 64"),
            ("stop", json!("x".repeat(5000)), "stop", "5000 bytes"),
            ("logit_bias", json!({"x": 1}), "logit_bias", "\"x\" is not a token id"),
            ("logit_bias", json!({"1": 101}), "logit_bias", "between -100 and 100"),
            ("logit_bias", json!({"4000000000": 1}), "logit_bias", "token 4000000000"),
            ("logit_bias", json!({"1": "a"}), "logit_bias", "expected numbers"),
            ("logprobs", json!(21), "logprobs", "from 0 to 20"),
            ("stream", json!("yes"), "stream", "expected true or false"),
            ("stream_options", json!({"include_usage": true}), "stream_options", "only for"),
            ("prompt", json!(7), "prompt", "expected a string"),
            ("prompt", json!([]), "prompt", "is empty"),
            ("prompt", json!([-1]), "prompt", "expected token ids, found -1"),
            ("prompt", json!([1, "a"]), "prompt", "expected token ids, found \"a\""),
            ("prompt", json!([4_000_000]), "prompt", "token 4000000 is not below"),
            ("prompt", json!([{"a": 1}]), "prompt", "found an object"),
            ("suffix", json!("end"), "suffix", "\"end\" is not supported"),
            ("best_of", json!(3), "best_of", "only supported where it equals `n`"),
            ("store", json!(true), "store", "true is not supported"),
            ("model", json!(7), "model", "expected a string"),
            ("frobnicate", json!(1), "frobnicate", "`frobnicate` is not supported"),
        ],
    );
    for field in ["model", "prompt"] {
        let mut request = request.clone();
        request.as_object_mut().unwrap().remove(field);
        let response = server.post("/v1/completions", &request);
        assert_eq!(response.status, 400);
        assert_eq!(response.error(), format!("`{field}` is missing"));
    }
    let empty = server.post("/v1/completions", &with(request.clone(), "prompt", &json!("")));
    assert_eq!((empty.status, empty.error().as_str()), (400, "the prompt is empty"));
    let unknown = server.post("/v1/completions", &with(request, "model", &json!("gpt-9")));
    assert_eq!(unknown.status, 404);
    assert_eq!(unknown.error(), "the model \"gpt-9\" does not exist (there is \"demo\")");
    assert_eq!(unknown.json()["error"]["code"], "model_not_found");
}

#[test]
fn fields_of_chats_are_checked_by_name() {
    let request = json!({
        "model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "Hello"}]
    });
    let model = scripted(Api::Chat, &[], Some(TEMPLATE), &request, "Hi.<|endoftext|>");
    let server = Server::of(model.path(), &["--alias", "m"]);
    let message = |message: Value| json!([message]);
    let tool = |tool: Value| json!([tool]);
    refused(
        &server,
        "/v1/chat/completions",
        &request,
        &[
            ("messages", json!("Hi"), "messages", "expected an array"),
            ("messages", json!([]), "messages", "is empty"),
            ("messages", json!([7]), "messages[0]", "expected an object, found 7"),
            ("messages", message(json!({"content": "a"})), "messages[0].role", "is missing"),
            (
                "messages",
                message(json!({"role": "critic", "content": "a"})),
                "messages[0].role",
                "\"critic\" is not supported",
            ),
            ("messages", message(json!({"role": "user"})), "messages[0].content", "is missing"),
            (
                "messages",
                message(
                    json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
                ),
                "messages[0].content[0].type",
                "\"image_url\" is not supported",
            ),
            (
                "messages",
                message(json!({"role": "user", "content": "a", "audio": {"id": "x"}})),
                "messages[0].audio",
                "is not supported",
            ),
            (
                "messages",
                message(json!({"role": "tool", "content": "a"})),
                "messages[0].tool_call_id",
                "is missing",
            ),
            (
                "messages",
                message(json!({"role": "assistant", "tool_calls": [{"function": {}}]})),
                "messages[0].tool_calls[0].function.name",
                "is missing",
            ),
            (
                "tools",
                tool(json!({"type": "custom"})),
                "tools[0].type",
                "\"custom\" is not supported",
            ),
            (
                "tools",
                tool(json!({"type": "function", "function": {"name": "two words"}})),
                "tools[0].function.name",
                "letters, digits",
            ),
            (
                "tools",
                tool(json!({"type": "function", "function": {"name": "f", "parameters": 7}})),
                "tools[0].function.parameters",
                "expected an object",
            ),
            (
                "tools",
                json!([{"function": {"name": "f"}}, {"function": {"name": "f"}}]),
                "tools",
                "two functions called `f`",
            ),
            ("functions", json!([]), "functions", "`functions` is not supported"),
            ("top_logprobs", json!(2), "top_logprobs", "only for `logprobs: true`"),
            ("max_completion_tokens", json!(7), "max_tokens", "`max_tokens` is 1, but"),
            ("max_tokens", json!(0), "max_tokens", "expected an integer from 1"),
            ("reasoning_effort", json!("high"), "reasoning_effort", "no such setting"),
            ("modalities", json!(["audio"]), "modalities", "is not supported"),
            ("prediction", json!({}), "prediction", "`prediction` is not supported"),
            ("web_search_options", json!({}), "web_search_options", "is not supported"),
        ],
    );
}

#[test]
fn a_model_without_a_template_does_not_chat() {
    let server = Server::demo(&[]);
    let request = json!({"model": "demo", "messages": [{"role": "user", "content": "Hello"}]});
    let response = server.post("/v1/chat/completions", &request);
    assert_eq!(response.status, 400);
    assert!(response.error().contains("no chat template"));
}

#[test]
fn bodies_and_paths_are_checked() {
    let server = Server::demo(&["--max-body", "10KB"]);
    let post = |body: &str| server.send("POST", "/v1/completions", &[], body);
    for (body, part) in [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ("{\"model\": \"demo\", \"prompt\": \"a\", \"temperature\": NaN}", "not valid JSON"),
        ("{\"model\": \"demo\", \"prompt\": \"a\", \"temperature\": 1e999}", "not valid JSON"),
        ("{\"model\": \"demo\", \"prompt\": \"\\ud800\"}", "not valid JSON"),
        (&"[".repeat(5000), "not valid JSON"),
    ] {
        let response = post(body);
        assert_eq!(response.status, 400, "{body}");
        assert!(response.error().contains(part), "{}", response.error());
    }
    let large = post(&" ".repeat(20_000));
    assert_eq!(large.status, 413);
    assert!(large.error().contains("larger than 10000 bytes"));
    // The length of chunks is known only when they are there.
    let mut chunked = server.connect();
    use std::io::Write;
    let chunk = format!("800\r\n{}\r\n", " ".repeat(0x800));
    let head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    chunked.write_all(head.as_bytes()).unwrap();
    for _ in 0..8 {
        // The server may close the connection before all is sent.
        let _ = chunked.write_all(chunk.as_bytes());
    }
    let _ = chunked.write_all(b"0\r\n\r\n");
    assert_eq!(crate::client::read(&mut chunked).status, 413);

    let nowhere = server.get("/v2/models");
    assert_eq!((nowhere.status, nowhere.error().as_str()), (404, "there is no /v2/models"));
    let wrong = server.get("/v1/completions");
    assert_eq!((wrong.status, wrong.error().as_str()), (405, "/v1/completions does not take GET"));
    assert_eq!(server.get("/v1/models/demo").json()["id"], "demo");
    assert_eq!(server.get("/v1/models/a/b").status, 404);
    assert_eq!(server.get("/version").json()["version"], env!("CARGO_PKG_VERSION"));
}
