//! `/openapi.json` lists what the server takes, and nothing else.

use crate::client::Server;
use crate::models::{Api, TEMPLATE, scripted};
use serde_json::{Value, json};

/// A request that is right but for what a test adds.
fn request(path: &str) -> Value {
    let messages = json!([{"role": "user", "content": "Hello"}]);
    match path {
        "/v1/chat/completions" => json!({"model": "m", "messages": messages}),
        "/v1/completions" => json!({"model": "m", "prompt": "Hello"}),
        "/v1/responses" => json!({"model": "m", "input": "Hello"}),
        "/v1/messages" => json!({"model": "m", "messages": messages, "max_tokens": 1}),
        "/v1/messages/count_tokens" => json!({"model": "m", "messages": messages}),
        "/v1/embeddings" => json!({"model": "m", "input": "Hello"}),
        "/tokenize" => json!({"prompt": "Hello"}),
        "/detokenize" => json!({"tokens": [1]}),
        other => panic!("{other}"),
    }
}

#[test]
fn every_field_that_is_listed_is_known_and_no_other() {
    let chat = request("/v1/chat/completions");
    let model = scripted(Api::Chat, &[], Some(TEMPLATE), &chat, "Hi.<|endoftext|>");
    let server = Server::of(model.path(), &["--alias", "m"]);
    let description = server.get("/openapi.json").json();
    assert_eq!(description["openapi"], "3.1.0");
    assert_eq!(description["info"]["version"], env!("CARGO_PKG_VERSION"));
    for (path, methods) in description["paths"].as_object().unwrap() {
        if methods.get("get").is_some() {
            let path = path.replace("{name}", "m");
            assert_eq!(server.get(&path).status, 200, "{path}");
            continue;
        }
        let message = |body: &Value| {
            let response = server.post(path, body);
            let body = response.json();
            assert_eq!(response.status, 400, "{path}: {body}");
            body["error"]["message"].as_str().unwrap().to_string()
        };
        let schema = &methods["post"]["requestBody"]["content"]["application/json"]["schema"];
        for field in schema["properties"].as_object().unwrap().keys() {
            // A field that nobody knows is met only after all others.
            let mut body = request(path);
            if path == "/tokenize"
                && !["model", "prompt", "add_special_tokens", "return_token_strs"]
                    .contains(&field.as_str())
            {
                body = json!({"messages": chat["messages"]});
            }
            if body[field].is_null() {
                body[field] = json!(false);
            }
            body["frobnicate"] = json!(1);
            let message = message(&body);
            assert!(!message.contains(&format!("`{field}` is not supported")), "{path}: {message}");
        }
        let mut body = request(path);
        body["frobnicate"] = json!(1);
        assert_eq!(message(&body), "`frobnicate` is not supported", "{path}");
        for field in schema["required"].as_array().unwrap() {
            let mut body = request(path);
            body.as_object_mut().unwrap().remove(field.as_str().unwrap());
            assert!(message(&body).contains("is missing"), "{path}: {field}");
        }
    }
}
