//! gpt-oss's format: reasoning, answers and calls, and what is none of these.

use crate::chat::{ask, assert_same, joined};
use crate::client::Server;
use crate::models::{Api, scripted};
use crate::scripted::HARMONY;
use serde_json::{Value, json};

/// What tells the tokenizer's files that this is the format; the template itself is not used.
const TEMPLATE: Option<&str> = Some("<|channel|>");

fn request(more: Value) -> Value {
    let mut request = json!({
        "model": "m", "temperature": 0, "messages": [{"role": "user", "content": "Weather?"}]
    });
    for (name, value) in more.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "weather", "description": "Of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}])
}

/// A message of the answer, whole and streamed alike, and why it ended.
fn message(request: &Value, answer: &str) -> (Value, Value) {
    let (whole, streamed) = ask(&HARMONY, TEMPLATE, request, answer);
    let choice = &whole["choices"][0];
    let (said, finish) = joined(&streamed);
    assert_same(&choice["message"], &said);
    assert_eq!(finish, choice["finish_reason"]);
    (choice["message"].clone(), finish)
}

#[test]
fn channels_become_reasoning_and_content() {
    let (message, finish) = message(
        &request(json!({"reasoning_effort": "low"})),
        "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>Rain.<|return|>",
    );
    assert_eq!(message["reasoning"], "So.");
    assert_eq!(message["reasoning_content"], "So.");
    assert_eq!(message["content"], "Rain.");
    assert_eq!(finish, "stop");
}

#[test]
fn calls_are_calls_where_tools_were_offered() {
    let answer = "<|channel|>analysis<|message|>Ask.<|end|><|start|>assistant<|channel|>commentary to=functions.weather \
                  <|constrain|>json<|message|>{\"city\": \"Oslo\"}<|call|>";
    let (said, finish) = message(&request(json!({"tools": tools()})), answer);
    assert_eq!(said["content"], Value::Null);
    assert_eq!(said["reasoning"], "Ask.");
    let function = &said["tool_calls"][0]["function"];
    assert_eq!(*function, json!({"name": "weather", "arguments": "{\"city\": \"Oslo\"}"}));
    assert_eq!(finish, "tool_calls");
}

#[test]
fn reasoning_before_a_call_is_there_when_its_result_comes() {
    let answer = "<|channel|>analysis<|message|>Ask someone who knows.<|end|><|start|>assistant<|channel|>commentary \
                  to=functions.weather <|constrain|>json<|message|>{\"city\": \"Oslo\"}<|call|>";
    let first = request(json!({"tools": tools()}));
    let model = scripted(Api::Chat, &HARMONY, TEMPLATE, &first, answer);
    let count = |args: &[&str], change: &dyn Fn(&mut Value)| {
        let server = Server::of(model.path(), &[&["--alias", "m"], args].concat());
        let answer = server.answer("/v1/chat/completions", &first);
        let mut called = answer["choices"][0]["message"].clone();
        assert_eq!(called["reasoning"], "Ask someone who knows.");
        // Clients give back what OpenAI's API has fields for.
        for field in ["reasoning", "reasoning_content", "refusal"] {
            called.as_object_mut().unwrap().remove(field);
        }
        change(&mut called);
        let id = called["tool_calls"][0]["id"].clone();
        let mut next = request(json!({"tools": tools(), "max_tokens": 1}));
        let messages = next["messages"].as_array_mut().unwrap();
        messages.push(called);
        messages.push(json!({"role": "tool", "tool_call_id": id, "content": "Rain."}));
        let turn = server.answer("/v1/chat/completions", &next);
        turn["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let plain = count(&[], &|_| ());
    let said = count(&[], &|called| called["reasoning"] = json!("Ask someone who knows."));
    assert_eq!(plain, said);
    let unknown = count(&[], &|called| called["tool_calls"][0]["id"] = json!("call_x"));
    assert!(unknown + 10 < plain, "{unknown} {plain}");
    assert_eq!(count(&["--deterministic"], &|_| ()), unknown);
    let own =
        count(&[], &|called| called["reasoning"] = json!("Ask someone who knows a lot more."));
    assert!(own > plain);
}

#[test]
fn headers_that_are_none_cannot_be_produced() {
    for answer in [
        "No header at all.<|return|>",
        "<|message|>Bare.<|return|>",
        "<|channel|>unheard<|message|>Odd.<|return|>",
        "<|call|>",
        "<|channel|>commentary to=functions.unknown<|message|>{}<|call|>",
    ] {
        let request = request(json!({"tools": tools(), "max_tokens": 60}));
        let (whole, _) = ask(&HARMONY, TEMPLATE, &request, answer);
        let message = &whole["choices"][0]["message"];
        let text = message.to_string();
        assert!(!text.contains("<|") && !text.contains("unheard"), "{answer}: {text}");
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            assert_eq!(call["function"]["name"], "weather", "{answer}");
        }
    }
}

#[test]
fn grammars_are_for_the_answer_and_not_for_the_reasoning() {
    let format = json!({"type": "json_schema", "json_schema": {"name": "sky", "schema": {
        "type": "object", "properties": {"sky": {"enum": ["clear", "rain"]}},
        "required": ["sky"], "additionalProperties": false
    }}});
    let (said, finish) = message(
        &request(json!({"response_format": format, "max_tokens": 60})),
        "<|channel|>analysis<|message|>So {.<|end|><|start|>assistant<|channel|>final<|message|>It rains.<|return|>",
    );
    assert_eq!(said["reasoning"], "So {.");
    let answer: Value = serde_json::from_str(said["content"].as_str().unwrap()).unwrap();
    assert!(["clear", "rain"].contains(&answer["sky"].as_str().unwrap()));
    assert_eq!(finish, "stop");

    // A tool that must be called is, with arguments of its schema.
    let mut tools = tools();
    tools[0]["function"]["parameters"] = json!({
        "type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"],
        "additionalProperties": false
    });
    let (said, finish) = message(
        &request(json!({"tools": tools, "tool_choice": "required", "max_tokens": 150})),
        "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>No.<|return|>",
    );
    let function = &said["tool_calls"][0]["function"];
    assert_eq!(function["name"], "weather", "{said}");
    let arguments: Value = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
    assert!(["Oslo", "Rome"].contains(&arguments["city"].as_str().unwrap()));
    assert_eq!(finish, "tool_calls");
}

#[test]
fn log_probabilities_are_of_the_content_alone() {
    let (whole, _) = ask(
        &HARMONY,
        TEMPLATE,
        &request(json!({"logprobs": true})),
        "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>Rain.<|return|>",
    );
    let tokens = whole["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let text: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(text, "Rain.");
    let usage = &whole["usage"];
    let reasoned = usage["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
    assert!(reasoned > 0 && reasoned < usage["completion_tokens"].as_u64().unwrap());
}
