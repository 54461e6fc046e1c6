//! Less room for keys and values than all answers together need.

use crate::client::{Server, read};
use crate::common::{error, oxgpt};
use serde_json::{Value, json};

const PATH: &str = "/v1/completions";

fn request(index: usize) -> Value {
    let prompt = format!("Number {index}: the sea and the hills are");
    json!({"model": "demo", "prompt": prompt, "max_tokens": 90, "seed": index, "ignore_eos": true})
}

fn text(answer: &Value) -> String {
    answer["choices"][0]["text"].as_str().unwrap().to_string()
}

#[test]
fn answers_that_wait_for_room_are_the_same() {
    let roomy = Server::demo(&["--ctx", "128"]);
    let small = Server::demo(&["--ctx", "128", "--sequences", "6", "--kv-tokens", "192"]);
    let streams = (0..6).map(|index| {
        small.begin("POST", PATH, &["Content-Type: application/json"], &request(index).to_string())
    });
    let streams: Vec<_> = streams.collect();
    for (index, mut stream) in streams.into_iter().enumerate() {
        let answer = read(&mut stream).json();
        assert_eq!(answer["usage"]["completion_tokens"], 90);
        assert_eq!(text(&answer), text(&roomy.answer(PATH, &request(index))), "{index}");
    }
    let preemptions = small.metric("oxgpt_preemptions_total");
    assert!(preemptions > 0.0);
    assert_eq!(small.metric("vllm:num_preemptions_total"), preemptions);
    assert_eq!(small.metric("oxgpt_queue_seconds_count"), 6.0, "each has waited once");
    assert_eq!(roomy.metric("oxgpt_preemptions_total"), 0.0);

    let long = json!({"model": "demo", "prompt": "word ".repeat(200), "max_tokens": 1});
    let refused = small.post(PATH, &long);
    assert_eq!(refused.status, 400);
    assert!(refused.error().ends_with("but the context holds 128"), "{}", refused.error());
}

#[test]
fn the_room_holds_a_context_at_least() {
    let serve = |args: &[&str]| {
        error(oxgpt().args(["serve", "--port", "0", "--device", "cpu"]).args(args), 1)
    };
    let message = serve(&["--ctx", "128", "--kv-tokens", "127"]);
    assert!(message.contains("127 tokens, but the context of one sequence holds 128"), "{message}");
    error(oxgpt().args(["serve", "--kv-tokens", "0"]), 2);
    let server = Server::demo(&["--kv-tokens", "96"]);
    assert_eq!(server.get("/v1/models").json()["data"][0]["max_model_len"], 96);
    let plan = |args: &[&str]| {
        let output =
            oxgpt().args(["plan", "--json", "--device", "cpu"]).args(args).output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let whole = plan(&["--ctx", "128", "--sequences", "4"]);
    let part = plan(&["--ctx", "128", "--sequences", "4", "--kv-tokens", "256"]);
    assert_eq!(whole["kv"].as_u64().unwrap(), 2 * part["kv"].as_u64().unwrap());
    assert_eq!(part["kv_tokens"], 256);
}
