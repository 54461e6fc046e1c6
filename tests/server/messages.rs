//! `/v1/messages`.

use crate::client::Server;
use crate::models::{Api, TEMPLATE, scripted};
use serde_json::{Value, json};

const PATH: &str = "/v1/messages";

fn tools() -> Value {
    json!([{"name": "weather", "description": "Of a city.", "input_schema": {
        "type": "object", "properties": {"city": {"type": "string"}}}}])
}

/// What the events of a stream make.
fn joined(body: &str) -> Value {
    let mut message = Value::Null;
    let mut json_text = String::new();
    for event in body.split("\n\n").filter(|event| event.starts_with("event: ")) {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(format!("event: {}", data["type"].as_str().unwrap()), name);
        let index = data["index"].as_u64().unwrap_or(0) as usize;
        match data["type"].as_str().unwrap() {
            "message_start" => message = data["message"].clone(),
            "content_block_start" => {
                let blocks = message["content"].as_array_mut().unwrap();
                assert_eq!(blocks.len(), index);
                blocks.push(data["content_block"].clone());
                json_text.clear();
            }
            "content_block_delta" => {
                let block = &mut message["content"][index];
                let delta = &data["delta"];
                for (kind, field) in [("text_delta", "text"), ("thinking_delta", "thinking")] {
                    if delta["type"] == kind {
                        let more = delta[field].as_str().unwrap();
                        block[field] = json!(format!("{}{more}", block[field].as_str().unwrap()));
                    }
                }
                if delta["type"] == "input_json_delta" {
                    json_text += delta["partial_json"].as_str().unwrap();
                }
            }
            "content_block_stop" => {
                if message["content"][index]["type"] == "tool_use" {
                    message["content"][index]["input"] = serde_json::from_str(&json_text).unwrap();
                }
            }
            "message_delta" => {
                message["stop_reason"] = data["delta"]["stop_reason"].clone();
                message["stop_sequence"] = data["delta"]["stop_sequence"].clone();
                message["usage"] = data["usage"].clone();
            }
            "message_stop" => return message,
            other => panic!("{other}"),
        }
    }
    panic!("no end: {body}")
}

fn stable(message: &Value) -> Value {
    let mut message = message.clone();
    for field in ["id", "usage"] {
        message.as_object_mut().unwrap().remove(field);
    }
    for block in message["content"].as_array_mut().unwrap() {
        block.as_object_mut().unwrap().remove("id");
    }
    message
}

fn ask(template: &str, request: &Value, answer: &str) -> Value {
    let model = scripted(Api::Messages, &[], Some(template), request, answer);
    let server = Server::of(model.path(), &["--alias", "m"]);
    let whole = server.answer(PATH, request);
    let mut streamed = request.clone();
    streamed["stream"] = json!(true);
    let streamed = server.post(PATH, &streamed);
    assert_eq!(stable(&joined(&streamed.body)), stable(&whole));
    whole
}

fn request(more: Value) -> Value {
    let mut request = json!({
        "model": "m", "max_tokens": 120, "temperature": 0, "system": "Be brief.",
        "messages": [{"role": "user", "content": "Weather?"}]
    });
    for (name, value) in more.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

#[test]
fn text_thoughts_and_calls_are_blocks() {
    let template = format!(
        "{TEMPLATE}{{# <think> <tool_call> #}}{{% if tools %}}{{{{ tools }}}}{{% endif %}}"
    );
    let call =
        "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}</tool_call>";
    let answer = format!("<think>So.</think>Let me see.{call}<|endoftext|>");
    let message = ask(&template, &request(json!({"tools": tools()})), &answer);
    assert_eq!(message["type"], "message");
    assert_eq!(message["stop_reason"], "tool_use");
    let blocks = message["content"].as_array().unwrap();
    assert_eq!(blocks[0], json!({"type": "thinking", "thinking": "So.", "signature": ""}));
    assert_eq!(blocks[1], json!({"type": "text", "text": "Let me see."}));
    assert_eq!(blocks[2]["type"], "tool_use");
    assert_eq!(blocks[2]["input"], json!({"city": "Oslo"}));

    // And back again, with what came of it.
    let turns = json!([
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "content": blocks},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": blocks[2]["id"], "content": "rain"},
            {"type": "text", "text": "Well?", "cache_control": {"type": "ephemeral"}}
        ]}
    ]);
    let again = request(json!({"tools": tools(), "messages": turns}));
    let message = ask(&template, &again, "Rain.<|endoftext|>");
    assert_eq!(message["content"], json!([{"type": "text", "text": "Rain."}]));
    assert_eq!(message["stop_reason"], "end_turn");
}

#[test]
fn what_ends_an_answer_is_named() {
    let stopped = request(json!({"stop_sequences": ["X", "more"]}));
    let message = ask(TEMPLATE, &stopped, "Rain and more rain.<|endoftext|>");
    assert_eq!(message["content"][0]["text"], "Rain and ");
    assert_eq!(message["stop_reason"], "stop_sequence");
    assert_eq!(message["stop_sequence"], "more");
    let cut = request(json!({"max_tokens": 2}));
    let message = ask(TEMPLATE, &cut, "Rain and more rain.<|endoftext|>");
    assert_eq!(message["stop_reason"], "max_tokens");
    let usage = &message["usage"];
    assert_eq!(usage["output_tokens"], 2);
    assert!(usage["input_tokens"].as_u64().unwrap() > 0);
}

#[test]
fn errors_have_the_shape_of_this_api() {
    let model =
        scripted(Api::Messages, &[], Some(TEMPLATE), &request(json!({})), "Hi.<|endoftext|>");
    let server = Server::of(model.path(), &["--alias", "m", "--api-key", "k"]);
    let send = |path: &str, key: &str, body: &Value| {
        server.send("POST", path, &[&format!("X-Api-Key: {key}")], &body.to_string())
    };
    let refused = send(PATH, "wrong", &request(json!({})));
    assert_eq!(refused.status, 401);
    assert_eq!(refused.json()["error"]["type"], "authentication_error");
    for (more, status, part) in [
        (json!({"max_tokens": null}), 400, "`max_tokens` is missing"),
        (json!({"messages": []}), 400, "not empty"),
        (json!({"messages": [{"role": "system", "content": "a"}]}), 400, "user or assistant"),
        (json!({"stop": "x"}), 400, "`stop`"),
        (json!({"thinking": {"type": "enabled", "budget_tokens": 9}}), 400, "budgets"),
        (json!({"tool_choice": {"type": "any"}}), 400, "there are no tools"),
        (json!({"container": "c"}), 400, "`container` is not supported"),
        (json!({"model": "other"}), 404, "does not exist"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}),
            400,
            "text or tool_result",
        ),
    ] {
        let response = send(PATH, "k", &request(more.clone()));
        assert_eq!(response.status, status, "{more}: {}", response.body);
        let body = response.json();
        assert_eq!(body["type"], "error");
        assert!(body["error"]["message"].as_str().unwrap().contains(part), "{body}");
    }
    let mut counted = request(json!({}));
    counted.as_object_mut().unwrap().remove("max_tokens");
    counted.as_object_mut().unwrap().remove("temperature");
    let count = send("/v1/messages/count_tokens", "k", &counted).json();
    let usage = send(PATH, "k", &request(json!({}))).json()["usage"].clone();
    let read = usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(
        count["input_tokens"].as_u64().unwrap(),
        usage["input_tokens"].as_u64().unwrap() + read
    );
}
