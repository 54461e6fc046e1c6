//! `/v1/responses`.

use crate::client::Server;
use crate::models::{Api, scripted};
use crate::scripted::HARMONY;
use serde_json::{Value, json};

const PATH: &str = "/v1/responses";
const TEMPLATE: Option<&str> = Some("<|channel|>");

fn tools() -> Value {
    json!([{"type": "function", "name": "weather", "description": "Of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}])
}

/// The events of a stream, and the response at its end.
fn events(body: &str) -> Vec<(String, Value)> {
    let mut events = Vec::new();
    for (index, event) in
        body.split("\n\n").filter(|event| event.starts_with("event: ")).enumerate()
    {
        let (name, data) = event.split_once('\n').unwrap();
        let name = name.strip_prefix("event: ").unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["type"], name);
        assert_eq!(data["sequence_number"], index);
        events.push((name.to_string(), data));
    }
    events
}

/// The response without what is made up anew each time.
fn stable(response: &Value) -> Value {
    let mut response = response.clone();
    for field in ["id", "created_at", "usage"] {
        response.as_object_mut().unwrap().remove(field);
    }
    for item in response["output"].as_array_mut().unwrap() {
        for field in ["id", "call_id"] {
            item.as_object_mut().unwrap().remove(field);
        }
    }
    response
}

fn ask(request: &Value, answer: &str) -> (Value, Vec<(String, Value)>) {
    let model = scripted(Api::Responses, &HARMONY, TEMPLATE, request, answer);
    let server = Server::of(model.path(), &["--alias", "m"]);
    let whole = server.answer(PATH, request);
    let mut streamed = request.clone();
    streamed["stream"] = json!(true);
    let streamed = server.post(PATH, &streamed);
    let events = events(&streamed.body);
    let (_, last) = events.last().unwrap();
    assert_eq!(stable(&last["response"]), stable(&whole));
    (whole, events)
}

#[test]
fn reasoning_and_text_are_items() {
    let request = json!({
        "model": "m", "temperature": 0, "instructions": "Be brief.", "input": "Weather?",
        "reasoning": {"effort": "low"}, "max_output_tokens": 60
    });
    let (whole, events) = ask(
        &request,
        "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>Rain.<|return|>",
    );
    assert_eq!(whole["object"], "response");
    assert_eq!(whole["status"], "completed");
    assert_eq!(whole["instructions"], "Be brief.");
    let output = whole["output"].as_array().unwrap();
    assert_eq!(output.len(), 2);
    assert_eq!(output[0]["type"], "reasoning");
    assert_eq!(output[0]["content"][0]["text"], "So.");
    assert_eq!(output[1]["type"], "message");
    assert_eq!(output[1]["content"][0]["text"], "Rain.");
    assert!(whole["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 0);
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    let mut distinct = names.clone();
    distinct.dedup();
    assert_eq!(
        distinct,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.reasoning_text.delta",
            "response.reasoning_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let text: String = events
        .iter()
        .filter(|(name, _)| name == "response.output_text.delta")
        .map(|(_, data)| data["delta"].as_str().unwrap())
        .collect();
    assert_eq!(text, "Rain.");
}

#[test]
fn calls_are_items_and_can_be_sent_back() {
    let mut request =
        json!({"model": "m", "temperature": 0, "input": "Weather?", "tools": tools()});
    let (whole, events) = ask(
        &request,
        "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"city\": \"Oslo\"}<|call|>",
    );
    let call = &whole["output"][0];
    assert_eq!(call["type"], "function_call");
    assert_eq!(
        (&call["name"], &call["arguments"]),
        (&json!("weather"), &json!("{\"city\": \"Oslo\"}"))
    );
    let done = events.iter().find(|(name, _)| name == "response.function_call_arguments.done");
    assert_eq!(done.unwrap().1["arguments"], "{\"city\": \"Oslo\"}");

    let mut input = vec![json!({"role": "user", "content": "Weather?"})];
    input.extend(whole["output"].as_array().unwrap().clone());
    input.push(
        json!({"type": "function_call_output", "call_id": call["call_id"], "output": "rain"}),
    );
    request["input"] = json!(input);
    let (whole, _) = ask(&request, "<|channel|>final<|message|>Rain.<|return|>");
    assert_eq!(whole["output"][0]["content"][0]["text"], "Rain.");
}

#[test]
fn an_answer_that_is_cut_is_incomplete() {
    let request = json!({"model": "m", "temperature": 0, "input": "Hi", "max_output_tokens": 4});
    let (whole, events) = ask(&request, "<|channel|>final<|message|>Rain and more rain.<|return|>");
    assert_eq!(whole["status"], "incomplete");
    assert_eq!(whole["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(events.last().unwrap().0, "response.incomplete");
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    let request = json!({"model": "m", "input": "Hi", "max_output_tokens": 4});
    let model = scripted(Api::Responses, &HARMONY, TEMPLATE, &request, "Hi.");
    let server = Server::of(model.path(), &["--alias", "m"]);
    for (name, value, param) in [
        ("previous_response_id", json!("resp_1"), "previous_response_id"),
        ("store", json!(true), "store"),
        ("background", json!(true), "background"),
        ("conversation", json!("c"), "conversation"),
        ("truncation", json!("auto"), "truncation"),
        ("include", json!(["file_search_call.results"]), "include"),
        ("n", json!(2), "n"),
        ("input", json!([]), "input"),
        ("input", json!([{"type": "image"}]), "input[0].type"),
        ("input", json!([{"role": "critic", "content": "a"}]), "input[0].role"),
        ("tools", json!([{"type": "web_search"}]), "tools[0].type"),
        ("text", json!({"format": {"type": "xml"}}), "text.format.type"),
        ("reasoning", json!({"effort": "extreme"}), "reasoning.effort"),
    ] {
        let mut request = request.clone();
        request[name] = value;
        let response = server.post(PATH, &request);
        assert_eq!(response.status, 400, "{name}: {}", response.body);
        assert_eq!(response.json()["error"]["param"], param, "{}", response.error());
    }
    let format = json!({"type": "json_schema", "name": "sky", "strict": true, "schema": {
        "type": "object", "properties": {"sky": {"enum": ["clear", "rain"]}},
        "required": ["sky"], "additionalProperties": false
    }});
    let held = json!({
        "model": "m", "input": "Hi", "text": {"format": format}, "max_output_tokens": 200,
        "temperature": 0
    });
    let (whole, _) = ask(&held, "<|channel|>final<|message|>No.<|return|>");
    let text = whole["output"][0]["content"][0]["text"].as_str().unwrap();
    let value: Value = serde_json::from_str(text).unwrap();
    assert!(["clear", "rain"].contains(&value["sky"].as_str().unwrap()));
}
