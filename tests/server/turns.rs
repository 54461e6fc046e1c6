//! Conversations that go on: what was generated is not computed again.

use crate::client::Server;
use crate::models::{Api, scripted_ids};
use crate::scripted::HARMONY;
use serde_json::{Value, json};

const PATH: &str = "/v1/chat/completions";

const TEMPLATE: Option<&str> =
    Some("{% for m in messages %}[{{ m.role }}: {{ m.content }}<|end|>]{% endfor %}[assistant: ");

const TEXT: &str =
    "the other thing and then all the other things that were there before it and after";

/// Positions in a block of keys and values.
const BLOCK: u64 = 32;

fn first(more: Value) -> Value {
    let mut request = json!({
        "model": "m", "temperature": 0, "messages": [{"role": "user", "content": "Hello there"}]
    });
    for (name, value) in more.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

/// The next turn, after an answer.
fn next(first: &Value, answer: &str) -> Value {
    let mut request = first.clone();
    let messages = request["messages"].as_array_mut().unwrap();
    messages.push(json!({"role": "assistant", "content": answer}));
    messages.push(json!({"role": "user", "content": "And then?"}));
    request["max_tokens"] = json!(1);
    request
}

/// The tokens of a text that its tokenizer would not choose: one for each byte; special tokens stay such.
fn spelled(server: &Server, text: &str, special: &[&str]) -> Vec<u32> {
    let ids = |text: &str| {
        let tokens = server.answer("/tokenize", &json!({"prompt": text}))["tokens"].clone();
        serde_json::from_value::<Vec<u32>>(tokens).unwrap()
    };
    let mut spelled = Vec::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let special = special.iter().find(|special| rest.starts_with(**special));
        let part = special.map_or(&rest[..next.len_utf8()], |special| special);
        let token = ids(part);
        assert_eq!(token.len(), 1, "{part}");
        spelled.extend(token);
        rest = &rest[part.len()..];
    }
    spelled
}

fn numbers(answer: &Value) -> (u64, u64) {
    let usage = &answer["usage"];
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    (usage["prompt_tokens"].as_u64().unwrap(), cached)
}

#[test]
fn the_next_turn_has_the_tokens_of_the_answer() {
    let request = first(json!({"max_tokens": TEXT.len()}));
    let special = ["<|end|>"];
    let model = scripted_ids(Api::Chat, &special, TEMPLATE, &request, |_, server| {
        spelled(server, TEXT, &[])
    });
    let server = Server::of(model.path(), &["--alias", "m"]);
    let answer = server.answer(PATH, &request);
    let said = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(said, TEXT);
    let (prompt, _) = numbers(&answer);
    let computed = prompt + TEXT.len() as u64 - 1;

    let next = next(&request, said);
    let count = server.answer("/tokenize", &json!({"messages": next["messages"]}))["count"].clone();
    let count = count.as_u64().unwrap();
    let (tokens, cached) = numbers(&server.answer(PATH, &next));
    assert_eq!(cached, computed / BLOCK * BLOCK, "of the prompt and the answer");
    assert!(cached > prompt);
    assert!(tokens > count, "{tokens} tokens, of which the tokenizer would make {count}");

    // A stream, the other endpoints, and the same turn once more.
    let mut streamed = next.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let events = server.post(PATH, &streamed).events();
    let (again, cached) = numbers(events.last().unwrap());
    assert_eq!(again, tokens);
    assert!(cached >= computed / BLOCK * BLOCK);
    let response = json!({"model": "m", "input": next["messages"], "max_output_tokens": 1});
    let usage = &server.answer("/v1/responses", &response)["usage"];
    assert_eq!(usage["input_tokens"].as_u64(), Some(tokens));
    assert!(usage["input_tokens_details"]["cached_tokens"].as_u64().unwrap() >= cached);
    let message = json!({"model": "m", "messages": next["messages"], "max_tokens": 1});
    let usage = &server.answer("/v1/messages", &message)["usage"];
    let read = usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(usage["input_tokens"].as_u64().unwrap() + read, tokens);

    // An answer that was changed is another text.
    let changed = self::next(&request, &TEXT.replace("before", "behind"));
    let (_, cached) = numbers(&server.answer(PATH, &changed));
    assert!(cached <= prompt, "{cached}");

    // Where results depend on nothing that ran before, the tokenizer has the say.
    let forgetful = Server::of(model.path(), &["--alias", "m", "--deterministic"]);
    forgetful.answer(PATH, &request);
    let (tokens, cached) = numbers(&forgetful.answer(PATH, &next));
    assert_eq!(tokens, count);
    assert!(cached <= prompt);
}

#[test]
fn what_a_client_had_of_an_answer_is_remembered_too() {
    let request = first(json!({"max_tokens": TEXT.len(), "stop": " after"}));
    let model = scripted_ids(Api::Chat, &["<|end|>"], TEMPLATE, &request, |_, server| {
        spelled(server, TEXT, &[])
    });
    let server = Server::of(model.path(), &["--alias", "m"]);
    let answer = server.answer(PATH, &request);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let said = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(said, TEXT.strip_suffix(" after").unwrap());
    let (prompt, _) = numbers(&answer);
    let (_, cached) = numbers(&server.answer(PATH, &next(&request, said)));
    assert_eq!(cached, (prompt + said.len() as u64) / BLOCK * BLOCK);
}

#[test]
fn harmony_has_the_tokens_of_an_answer_without_reasoning() {
    let request = first(json!({}));
    let text = "the other thing and then";
    let harmony = |answer: &str| {
        let answer = answer.to_string();
        scripted_ids(Api::Chat, &HARMONY, Some("<|channel|>"), &request, move |_, server| {
            spelled(server, &answer, &HARMONY)
        })
    };
    let header = "<|channel|>final<|message|>";
    let model = harmony(&format!("{header}{text}<|return|>"));
    let server = Server::of(model.path(), &["--alias", "m"]);
    let answer = server.answer(PATH, &request);
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"], text);
    let (prompt, _) = numbers(&answer);
    let (_, cached) = numbers(&server.answer(PATH, &next(&request, text)));
    let generated = answer["usage"]["completion_tokens"].as_u64().unwrap();
    // The token that ends the answer was not computed, and is another one in the next prompt.
    assert_eq!(cached, (prompt + generated - 1) / BLOCK * BLOCK);

    // What follows reasoning was computed with that before it, and the format has it dropped.
    let thought = "<|channel|>analysis<|message|>I think so.<|end|><|start|>assistant";
    let model = harmony(&format!("{thought}{header}{text}<|return|>"));
    let server = Server::of(model.path(), &["--alias", "m"]);
    let answer = server.answer(PATH, &request);
    assert_eq!(answer["choices"][0]["message"]["reasoning"], "I think so.");
    let (prompt, _) = numbers(&answer);
    let turn = server.answer(PATH, &next(&request, text));
    let (_, cached) = numbers(&turn);
    assert_eq!(cached, prompt / BLOCK * BLOCK, "up to the answer");
    let miss = &turn["usage"]["prompt_tokens_details"]["cache_miss"];
    assert_eq!(*miss, json!({"position": prompt + 1, "reason": "differs"}));
}
