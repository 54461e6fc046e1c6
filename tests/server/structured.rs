//! Answers that are held to a schema or must call a tool, of models that would say something else.

use crate::chat::{ask, assert_same, joined};
use crate::client::Server;
use crate::models::{Api, TEMPLATE, scripted};
use serde_json::{Value, json};

const PATH: &str = "/v1/chat/completions";

fn request(more: Value) -> Value {
    let mut request = json!({
        "model": "m", "temperature": 0, "max_tokens": 200,
        "messages": [{"role": "user", "content": "Hello"}]
    });
    for (name, value) in more.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

fn schema() -> Value {
    json!({
        "type": "object", "properties": {
            "city": {"enum": ["Oslo", "Rome"]}, "warm": {"type": "boolean"}
        },
        "required": ["city", "warm"], "additionalProperties": false
    })
}

fn tools() -> Value {
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": schema()}});
    json!([tool("weather"), tool("climate")])
}

fn assert_fits(text: &Value) {
    let text = text.as_str().unwrap();
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(["Oslo", "Rome"].contains(&value["city"].as_str().unwrap()), "{text}");
    assert!(value["warm"].is_boolean() && value.as_object().unwrap().len() == 2, "{text}");
}

#[test]
fn answers_are_of_the_schema_that_was_asked_for() {
    let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema()}});
    let request = request(json!({"response_format": format, "n": 2}));
    let (whole, streamed) = ask(&[], Some(TEMPLATE), &request, "I would rather not.<|endoftext|>");
    for choice in whole["choices"].as_array().unwrap() {
        assert_fits(&choice["message"]["content"]);
        assert_eq!(choice["finish_reason"], "stop");
    }
    let mut first = String::new();
    for event in streamed.events() {
        let choice = &event["choices"][0];
        if choice["index"] == 0 {
            first += choice["delta"]["content"].as_str().unwrap_or_default();
        }
    }
    assert_eq!(whole["choices"][0]["message"]["content"], first);
}

#[test]
fn any_object_is_an_object() {
    let request = request(json!({"response_format": {"type": "json_object"}}));
    let answer = "{\"a\": [1, true]} and more<|endoftext|>";
    let (whole, _) = ask(&[], Some(TEMPLATE), &request, answer);
    assert_eq!(whole["choices"][0]["message"]["content"], "{\"a\": [1, true]}");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
}

#[test]
fn tools_that_must_be_called_are() {
    let named = json!({"type": "function", "function": {"name": "climate"}});
    for (choice, names) in [(json!("required"), &["weather", "climate"][..]), (named, &["climate"])]
    {
        let request =
            request(json!({"tools": tools(), "tool_choice": choice, "parallel_tool_calls": false}));
        let (whole, streamed) = ask(&[], Some(TEMPLATE), &request, "No.<|endoftext|>");
        let message = &whole["choices"][0]["message"];
        let function = &message["tool_calls"][0]["function"];
        assert!(names.contains(&function["name"].as_str().unwrap()), "{message}");
        assert_fits(&function["arguments"]);
        assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
        assert_same(message, &joined(&streamed).0);
    }
}

#[test]
fn strict_tools_are_called_as_they_are_or_not_at_all() {
    let mut tools = tools();
    tools[0]["function"]["strict"] = json!(true);
    let request = request(json!({"tools": tools}));
    let (whole, _) = ask(&[], Some(TEMPLATE), &request, "Just text, 1 < 2.<|endoftext|>");
    assert_eq!(whole["choices"][0]["message"]["content"], "Just text, 1 < 2.");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    let call = "Well. <tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}</tool_call>\
                <|endoftext|>";
    let (whole, _) = ask(&[], Some(TEMPLATE), &request, call);
    let message = &whole["choices"][0]["message"];
    assert!(message["content"].as_str().unwrap().starts_with("Well."), "{message}");
    assert_fits(&message["tool_calls"][0]["function"]["arguments"]);
}

#[test]
fn reasoning_is_left_alone() {
    let template = format!("{TEMPLATE}{{# <think> #}}");
    let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema()}});
    let request = request(json!({"response_format": format}));
    let answer = "<think>Not {JSON}.</think>\n\nNor this.<|endoftext|>";
    let (whole, _) = ask(&[], Some(&template), &request, answer);
    let message = &whole["choices"][0]["message"];
    assert_eq!(message["reasoning"], "Not {JSON}.", "{message}");
    assert_fits(&message["content"]);
}

#[test]
fn schemas_that_cannot_be_held_to_are_refused() {
    let model = scripted(Api::Chat, &[], Some(TEMPLATE), &request(json!({})), "Hi.<|endoftext|>");
    let server = Server::of(model.path(), &["--alias", "m"]);
    let schema = |schema: Value| json!({"type": "json_schema", "json_schema": {"schema": schema}});
    for (format, part) in [
        (json!({"type": "xml"}), "expected text, json_object or json_schema"),
        (json!({"type": "json_schema"}), "is missing"),
        (schema(json!(7)), "expected an object"),
        (schema(json!({"type": "nonsense"})), "nonsense"),
        (schema(json!({"$ref": "#/nowhere"})), "nowhere"),
        (schema(json!({"$ref": "#"})), "`response_format`: no answer can begin"),
        (json!({"type": "json_object", "more": 1}), "`response_format.more` is not supported"),
    ] {
        let response = server.post(PATH, &request(json!({"response_format": format})));
        assert_eq!(response.status, 400, "{format}: {}", response.body);
        assert!(response.error().contains(part), "{format}: {}", response.error());
    }
    for (tools, choice, part) in [
        (json!([]), json!("required"), "there are no tools"),
        (tools(), json!("often"), "expected \"auto\""),
        (tools(), json!({"type": "function", "function": {"name": "x"}}), "no function \"x\""),
        (
            json!([{"function": {"name": "f", "strict": true, "parameters": {"type": "nonsense"}}}]),
            json!("auto"),
            "nonsense",
        ),
    ] {
        let request = request(json!({"tools": tools, "tool_choice": choice}));
        let response = server.post(PATH, &request);
        assert_eq!(response.status, 400, "{}", response.body);
        assert!(response.error().contains(part), "{}", response.error());
    }
    // Large repetitions are not written out.
    let pattern = schema(json!({"type": "string", "pattern": "^((a{1,900}){1,900}){1,900}$"}));
    let repeated = server.answer(PATH, &request(json!({"response_format": pattern})));
    let text = repeated["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.trim_matches('"').chars().all(|c| c == 'a'), "{text}");
    // One whose answers never end is followed as far as the answer may go.
    let endless = json!({
        "type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"], "additionalProperties": false
    });
    let endless = request(json!({"response_format": schema(endless), "max_tokens": 40}));
    let answer = server.answer(PATH, &endless);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.split_whitespace().collect::<String>().starts_with("{\"a\":{\"a\":{"), "{text}");
    let both = request(json!({"response_format": {"type": "json_object"}, "ignore_eos": true}));
    assert!(server.post(PATH, &both).error().contains("ignore_eos"));
    assert_eq!(server.post(PATH, &request(json!({}))).status, 200);
}
