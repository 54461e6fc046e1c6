//! `/v1/completions` and the paths beside it, with the built-in model.

use crate::client::Server;
use crate::common::{ids, json, oxgpt};
use serde_json::{Value, json};

const PATH: &str = "/v1/completions";

fn request(more: Value) -> Value {
    let mut request =
        json!({"model": "demo", "prompt": "The sea", "max_tokens": 12, "temperature": 0});
    for (name, value) in more.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

fn text(response: &Value) -> &str {
    response["choices"][0]["text"].as_str().unwrap()
}

#[test]
fn answers_are_those_of_run() {
    let server = Server::demo(&[]);
    let report = json(oxgpt().args(["run", "--json", "--temperature", "0", "-n", "12", "The sea"]));
    let response = server.answer(PATH, &request(json!({})));
    assert_eq!(text(&response), report["text"].as_str().unwrap());
    assert_eq!(response["object"], "text_completion");
    assert_eq!(response["model"], "demo");
    assert_eq!(response["choices"][0]["finish_reason"], "length");
    let prompt = ids(&report["prompt_tokens"]);
    assert_eq!(response["usage"]["prompt_tokens"], prompt.len());
    assert_eq!(response["usage"]["completion_tokens"], 12);
    assert_eq!(response["usage"]["total_tokens"], prompt.len() + 12);

    // Ids are as good as text, and so is any order of choices.
    let by_ids = server.answer(PATH, &request(json!({"prompt": prompt})));
    assert_eq!(text(&by_ids), text(&response));
    let several = server.answer(PATH, &request(json!({"prompt": ["The sea", prompt], "n": 2})));
    let choices = several["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["text"], response["choices"][0]["text"]);
    }
    assert_eq!(several["usage"]["prompt_tokens"], 2 * prompt.len());
    assert_eq!(several["usage"]["completion_tokens"], 4 * 12);

    // A seed decides, and differs by choice.
    let seeded = json!({"temperature": 1.5, "seed": 7, "n": 3});
    let one = server.answer(PATH, &request(seeded.clone()));
    let other = server.answer(PATH, &request(seeded));
    assert_eq!(one["choices"], other["choices"]);
    assert_ne!(one["choices"][0]["text"], one["choices"][1]["text"]);
    let report = json(oxgpt().args([
        "run",
        "--json",
        "--temperature",
        "1.5",
        "--seed",
        "7",
        "-n",
        "12",
        "The sea",
    ]));
    assert_eq!(text(&one), report["text"].as_str().unwrap());
}

#[test]
fn a_stream_says_the_same_as_a_whole_answer() {
    let server = Server::demo(&[]);
    let options = json!({"n": 2, "temperature": 1, "seed": 3, "logprobs": 2});
    let whole = server.answer(PATH, &request(options.clone()));
    let mut streamed = request(options);
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let response = server.post(PATH, &streamed);
    assert_eq!(response.header("content-type"), Some("text/event-stream"));
    let events = response.events();
    let (last, events) = events.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    assert!(events.len() > 12, "tokens come one by one");
    for index in 0..2 {
        let (mut text, mut tokens, mut finish) = (String::new(), Vec::new(), Value::Null);
        for event in events {
            assert_eq!(event["usage"], Value::Null);
            let choice = &event["choices"][0];
            if choice["index"] == index {
                assert_eq!(finish, Value::Null, "nothing follows the end");
                text += choice["text"].as_str().unwrap();
                tokens.extend(choice["logprobs"]["tokens"].as_array().unwrap().clone());
                finish = choice["finish_reason"].clone();
            }
        }
        let expected = &whole["choices"][index];
        assert_eq!(text, expected["text"].as_str().unwrap());
        assert_eq!(json!(tokens), expected["logprobs"]["tokens"]);
        assert_eq!(finish, expected["finish_reason"]);
    }
}

#[test]
fn log_probabilities_are_those_of_run() {
    let server = Server::demo(&[]);
    let response = server.answer(PATH, &request(json!({"logprobs": 3})));
    let report = json(oxgpt().args([
        "run",
        "--json",
        "--temperature",
        "0",
        "-n",
        "12",
        "--logprobs",
        "3",
        "The sea",
    ]));
    let logprobs = &response["choices"][0]["logprobs"];
    let expected = report["logprobs"].as_array().unwrap();
    let all: String = logprobs["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token.as_str().unwrap())
        .collect();
    assert_eq!(all, text(&response));
    for (index, expected) in expected.iter().enumerate() {
        assert_eq!(logprobs["token_logprobs"][index], expected["logprob"]);
        let top = logprobs["top_logprobs"][index].as_object().unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!(top[expected["text"].as_str().unwrap()], expected["logprob"]);
    }
    assert_eq!(logprobs["text_offset"][0], 0);
    // The chosen token is there however few are asked for.
    let few = server.answer(PATH, &request(json!({"logprobs": 0})));
    let few = &few["choices"][0]["logprobs"];
    let top = few["top_logprobs"][0].as_object().unwrap();
    assert_eq!(top.len(), 1);
    assert_eq!(top[few["tokens"][0].as_str().unwrap()], few["token_logprobs"][0]);
}

#[test]
fn options_do_what_they_say() {
    let server = Server::demo(&[]);
    let plain = server.answer(PATH, &request(json!({})));
    let all = text(&plain).to_string();
    let (middle, _) = all.char_indices().nth(all.chars().count() / 2).unwrap();
    let stop = &all[middle..middle + 3];
    let before = &all[..all.find(stop).unwrap()];

    let stopped =
        server.answer(PATH, &request(json!({"stop": ["no such text", stop], "logprobs": 0})));
    assert_eq!(text(&stopped), before);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let tokens = stopped["choices"][0]["logprobs"]["tokens"].as_array().unwrap();
    assert!(tokens.len() < 12);
    let streamed = server.post(PATH, &request(json!({"stop": stop, "stream": true})));
    let events = streamed.events();
    let text_of = |event: &Value| event["choices"][0]["text"].as_str().unwrap().to_string();
    assert_eq!(events.iter().map(text_of).collect::<String>(), before);
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "stop");

    let echo = server.answer(PATH, &request(json!({"echo": true})));
    assert_eq!(text(&echo), format!("The sea{all}"));
    let nothing = server.answer(PATH, &request(json!({"echo": true, "max_tokens": 0})));
    assert_eq!(text(&nothing), "The sea");
    assert_eq!(nothing["usage"]["completion_tokens"], 0);

    let first = json(oxgpt().args(["run", "--json", "--temperature", "0", "-n", "1", "The sea"]));
    let first = ids(&first["tokens"])[0].to_string();
    let biased = server.answer(PATH, &request(json!({"logit_bias": {(first): -100}})));
    assert_ne!(text(&biased), all);
    let default = server.answer(
        PATH,
        &json!({"model": "demo", "prompt": "The sea", "ignore_eos": true, "temperature": 0}),
    );
    assert_eq!(default["usage"]["completion_tokens"], 16);
    let labelled = json!({
        "user": "me", "metadata": {"a": "b"}, "store": false, "service_tier": "auto",
        "prompt_cache_key": "k", "safety_identifier": "s", "best_of": 1, "suffix": "", "top_k": 1,
        "min_p": 0.5, "repeat_penalty": 1.0, "min_tokens": 3, "presence_penalty": 0
    });
    assert_eq!(text(&server.answer(PATH, &request(labelled))), all);
}

#[test]
fn a_prefix_that_was_seen_is_told_and_changes_nothing() {
    let server = Server::demo(&[]);
    let long = "The sea was calm and the boat was small. ".repeat(12);
    let ask = || server.answer(PATH, &request(json!({"prompt": long})));
    let (cold, warm) = (ask(), ask());
    assert_eq!(cold["choices"], warm["choices"]);
    let details = |response: &Value| response["usage"]["prompt_tokens_details"].clone();
    let count = cold["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(
        details(&cold),
        json!({"cached_tokens": 0, "cache_miss": {"position": 0, "reason": "new"}})
    );
    assert_eq!(details(&warm), json!({"cached_tokens": (count - 1) / 32 * 32}));
    let other = server.answer(PATH, &request(json!({"prompt": format!("A{long}")})));
    assert_eq!(details(&other)["cached_tokens"], 0);
    assert!(server.metric("vllm:prefix_cache_hits_total") >= 64.0);
}

#[test]
fn the_context_is_never_exceeded_in_silence() {
    let server = Server::demo(&["--ctx", "32"]);
    let response = server.post(PATH, &request(json!({"prompt": vec![5; 33]})));
    assert_eq!(response.status, 400);
    assert_eq!(response.error(), "the prompt has 33 tokens, but the context holds 32");
    assert_eq!(response.json()["error"]["code"], "context_length_exceeded");
    let response = server.post(PATH, &request(json!({"prompt": vec![5; 30], "max_tokens": 4})));
    assert_eq!(
        response.error(),
        "the context holds 32 tokens, but 34 were asked for: 30 in the prompt and 4 in the answer"
    );
    // A default is no wish: the answer is as long as it can be, and says why it ends.
    let mut request = request(json!({"prompt": vec![5; 30], "ignore_eos": true}));
    request.as_object_mut().unwrap().remove("max_tokens");
    let cut = server.answer(PATH, &request);
    assert_eq!(cut["usage"]["completion_tokens"], 3);
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
}

#[test]
fn text_becomes_tokens_and_back() {
    let server = Server::demo(&[]);
    let tokens =
        server.answer("/tokenize", &json!({"prompt": "Éa <b>", "return_token_strs": true}));
    let expected = json(oxgpt().args(["tokenize", "Éa <b>"]));
    assert_eq!(tokens["tokens"], expected);
    assert_eq!(tokens["count"], ids(&expected).len());
    assert_eq!(tokens["token_strs"].as_array().unwrap().len(), ids(&expected).len());
    let text = server.answer("/detokenize", &json!({"model": "demo", "tokens": expected}));
    assert_eq!(text, json!({"prompt": "Éa <b>"}));
    let wrong = server.post("/detokenize", &json!({"tokens": [1, 1 << 30]}));
    assert_eq!(wrong.status, 400);
    assert!(wrong.error().contains("1073741824"), "{}", wrong.error());
    assert_eq!(
        server.post("/tokenize", &json!({"messages": [{"role": "user", "content": "a"}]})).status,
        400
    );
}
