//! `/v1/chat/completions` with a template, and a model whose answer is known.

use crate::client::{Response, Server};
use crate::models::{Api, TEMPLATE, scripted};
use serde_json::{Value, json};

const PATH: &str = "/v1/chat/completions";

fn request(more: Value) -> Value {
    let mut request = json!({
        "model": "m", "temperature": 0, "messages": [{"role": "user", "content": "Hello"}]
    });
    for (name, value) in more.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

/// Asks a model that answers with this text, special tokens included: a whole answer and a stream.
pub fn ask(
    special: &[&str],
    template: Option<&str>,
    request: &Value,
    answer: &str,
) -> (Value, Response) {
    let model = scripted(Api::Chat, special, template, request, answer);
    let server = Server::of(model.path(), &["--alias", "m"]);
    let whole = server.answer(PATH, request);
    let mut streamed = request.clone();
    streamed["stream"] = json!(true);
    (whole, server.post(PATH, &streamed))
}

/// The message that the deltas of a stream make, and why it ended.
pub fn joined(response: &Response) -> (Value, Value) {
    let (mut message, mut finish) = (json!({}), Value::Null);
    for event in response.events() {
        assert_eq!(event["object"], "chat.completion.chunk");
        let choice = &event["choices"][0];
        assert_eq!(finish, Value::Null, "nothing follows the end");
        finish = choice["finish_reason"].clone();
        for (name, value) in choice["delta"].as_object().unwrap() {
            if name == "tool_calls" {
                for part in value.as_array().unwrap() {
                    let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
                    let mut calls = calls;
                    let index = part["index"].as_u64().unwrap() as usize;
                    if index == calls.len() {
                        assert!(part["id"].as_str().unwrap().starts_with("call_"));
                        calls.push(json!({
                            "type": part["type"],
                            "function": {"name": part["function"]["name"], "arguments": ""}
                        }));
                    }
                    let arguments = calls[index]["function"]["arguments"].as_str().unwrap();
                    let more = part["function"]["arguments"].as_str().unwrap();
                    calls[index]["function"]["arguments"] = json!(format!("{arguments}{more}"));
                    message["tool_calls"] = json!(calls);
                }
            } else if let (Some(old), Some(new)) = (message[name].as_str(), value.as_str()) {
                message[name] = json!(format!("{old}{new}"));
            } else {
                message[name] = value.clone();
            }
        }
    }
    (message, finish)
}

/// Whether a whole message and a streamed one say the same; the names of calls are made up anew each time.
pub fn assert_same(whole: &Value, streamed: &Value) {
    let mut whole = whole.clone();
    for call in whole["tool_calls"].as_array_mut().into_iter().flatten() {
        let id = call.as_object_mut().unwrap().remove("id").unwrap();
        assert!(id.as_str().unwrap().starts_with("call_"));
    }
    if whole["tool_calls"].is_null() {
        whole.as_object_mut().unwrap().remove("tool_calls");
    }
    if whole["content"].is_null() {
        whole["content"] = json!("");
    }
    assert_eq!(whole, *streamed);
}

#[test]
fn a_conversation_is_answered_whole_and_in_a_stream() {
    let request = request(json!({}));
    let (whole, streamed) = ask(&[], Some(TEMPLATE), &request, "Hi there.<|endoftext|>");
    assert_eq!(whole["object"], "chat.completion");
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"]["content"], "Hi there.");
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["finish_reason"], "stop");
    assert!(whole["usage"]["completion_tokens"].as_u64().unwrap() > 1);
    let (message, finish) = joined(&streamed);
    assert_same(&choice["message"], &message);
    assert_eq!(finish, "stop");
}

#[test]
fn reasoning_and_calls_are_told_apart_from_text() {
    let template = format!(
        "{TEMPLATE}{{# <think> <tool_call> #}}{{% if tools %}}{{{{ tools }}}}{{% endif %}}"
    );
    let request = request(json!({"tools": [{"type": "function", "function": {
        "name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}
    }}]}));
    let answer = "<think>\nWhere?\n</think>\n\nLet me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": \
                  {\"city\": \"Oslo\"}}\n</tool_call><|endoftext|>";
    let (whole, streamed) = ask(&[], Some(&template), &request, answer);
    let message = &whole["choices"][0]["message"];
    assert_eq!(message["reasoning"], "Where?");
    assert_eq!(message["reasoning_content"], "Where?");
    assert_eq!(message["content"], "Let me see.");
    let call = &message["tool_calls"][0];
    assert_eq!(call["type"], "function");
    assert_eq!(call["function"], json!({"name": "weather", "arguments": "{\"city\":\"Oslo\"}"}));
    assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
    let reasoned = &whole["usage"]["completion_tokens_details"]["reasoning_tokens"];
    assert!(reasoned.as_u64().unwrap() > 0);
    let (said, finish) = joined(&streamed);
    assert_same(message, &said);
    assert_eq!(finish, "tool_calls");

    // Without tools the same is text.
    let mut bare = request.clone();
    bare.as_object_mut().unwrap().remove("tools");
    let (whole, _) = ask(&[], Some(&template), &bare, answer);
    let content = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(content.contains("<tool_call>"), "{content}");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
}

#[test]
fn tools_are_told_where_the_template_does_not_show_them() {
    let tool = json!({"type": "function", "function": {"name": "f", "description": "Does it."}});
    let request = request(json!({
        "parallel_tool_calls": false,
        "tools": [tool],
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Do it."}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ]},
            {"role": "tool", "tool_call_id": "call_1", "content": "done"}
        ]
    }));
    let call = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
    let (whole, streamed) =
        ask(&[], Some(TEMPLATE), &request, &format!("{call}{call}<|endoftext|>"));
    let calls = whole["choices"][0]["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(calls.len(), 1, "one at a time");
    assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
    assert_same(&whole["choices"][0]["message"], &joined(&streamed).0);
    let mut parallel = request.clone();
    parallel["parallel_tool_calls"] = json!(true);
    let (whole, _) = ask(&[], Some(TEMPLATE), &parallel, &format!("{call}{call}<|endoftext|>"));
    assert_eq!(whole["choices"][0]["message"]["tool_calls"].as_array().unwrap().len(), 2);
    let (whole, _) =
        ask(&[], Some(TEMPLATE), &request, "<tool_call>{\"name\": f}</tool_call><|endoftext|>");
    let message = &whole["choices"][0]["message"];
    assert_eq!(message["content"], "<tool_call>{\"name\": f}</tool_call>", "nothing is lost");
}

#[test]
fn log_probabilities_and_stop_strings_go_with_the_text() {
    let request = request(json!({
        "logprobs": true, "top_logprobs": 2, "stop": "Bye", "max_completion_tokens": 50
    }));
    let (whole, streamed) = ask(&[], Some(TEMPLATE), &request, "Hé there. Bye now.<|endoftext|>");
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"]["content"], "Hé there. ");
    assert_eq!(choice["finish_reason"], "stop");
    let tokens = choice["logprobs"]["content"].as_array().unwrap();
    let bytes: Vec<u8> = tokens
        .iter()
        .flat_map(|token| token["bytes"].as_array().unwrap())
        .map(|byte| byte.as_u64().unwrap() as u8)
        .collect();
    assert!(String::from_utf8(bytes).unwrap().starts_with("Hé there."));
    for token in tokens {
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
    }
    let streamed: Vec<Value> = streamed
        .events()
        .iter()
        .flat_map(|event| {
            event["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default()
        })
        .collect();
    assert_eq!(json!(streamed), choice["logprobs"]["content"]);
}

#[test]
fn another_template_can_be_given() {
    let model = scripted(Api::Chat, &[], Some(TEMPLATE), &request(json!({})), "Hi.<|endoftext|>");
    let file = model.path().join("other.jinja");
    std::fs::write(&file, "{{ raise_exception('Not ' + messages[0].content) }}").unwrap();
    let server =
        Server::of(model.path(), &["--alias", "m", "--chat-template", file.to_str().unwrap()]);
    let response = server.post(PATH, &request(json!({})));
    assert_eq!(response.status, 400);
    assert_eq!(response.error(), "the chat template refuses the conversation: Not Hello");
}
