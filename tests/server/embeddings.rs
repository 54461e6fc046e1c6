//! `/v1/embeddings`.

use crate::client::Server;
use crate::common::{ids, json, oxgpt};
use serde_json::{Value, json};

const PATH: &str = "/v1/embeddings";

fn vector(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

fn product(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

#[test]
fn texts_become_vectors_of_length_1() {
    let server = Server::demo(&[]);
    let texts = ["The sea was calm.", "The sea was very calm.", "Numbers: 1, 2, 3!"];
    let response = server.answer(PATH, &json!({"model": "demo", "input": texts}));
    assert_eq!(response["object"], "list");
    let vectors: Vec<Vec<f64>> = response["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|data| vector(&data["embedding"]))
        .collect();
    for (index, vector) in vectors.iter().enumerate() {
        assert_eq!(response["data"][index]["index"], index);
        assert!((product(vector, vector) - 1.0).abs() < 1e-5);
    }
    assert!(product(&vectors[0], &vectors[1]) > product(&vectors[0], &vectors[2]));

    // Ids are as good as text, one text as one of several, and base 64 as numbers.
    let tokens = ids(&json(oxgpt().args(["tokenize", texts[0]])));
    let one = server.answer(PATH, &json!({"model": "demo", "input": tokens}));
    assert_eq!(vector(&one["data"][0]["embedding"]), vectors[0]);
    assert_eq!(one["usage"]["prompt_tokens"], tokens.len());
    let encoded = server
        .answer(PATH, &json!({"model": "demo", "input": texts[0], "encoding_format": "base64"}));
    let encoded = encoded["data"][0]["embedding"].as_str().unwrap();
    assert_eq!(encoded.trim_end_matches('=').len(), (vectors[0].len() * 32).div_ceil(6));
    let last = server.answer(PATH, &json!({"model": "demo", "input": tokens, "pooling": "last"}));
    assert!(product(&vector(&last["data"][0]["embedding"]), &vectors[0]) < 0.99);
}

#[test]
fn answers_go_on_beside_them() {
    let server = Server::demo(&[]);
    let texts: Vec<String> = (0..40).map(|number| format!("Text {number}. ").repeat(30)).collect();
    let body = json!({"model": "demo", "input": texts}).to_string();
    let mut embedding = server.begin("POST", PATH, &[], &body);
    let request = json!({"model": "demo", "prompt": "The sea", "max_tokens": 20, "temperature": 0});
    let beside = server.answer("/v1/completions", &request);
    let response = crate::client::read(&mut embedding).json();
    assert_eq!(response["data"].as_array().unwrap().len(), 40);
    let alone = server.answer("/v1/completions", &request);
    assert_eq!(beside["choices"], alone["choices"]);
    // Who goes away is not worked for.
    drop(server.begin("POST", PATH, &[], &body));
    assert_eq!(server.answer("/v1/completions", &request)["choices"], alone["choices"]);
}

#[test]
fn what_is_wrong_is_named() {
    let server = Server::demo(&["--ctx", "64"]);
    for (request, part) in [
        (json!({"model": "demo"}), "`input` is missing"),
        (json!({"model": "demo", "input": []}), "is empty"),
        (json!({"model": "demo", "input": ""}), "a text of `input` is empty"),
        (json!({"model": "demo", "input": vec![1; 65]}), "65 tokens, but the context holds 64"),
        (json!({"model": "demo", "input": [4_000_000]}), "token 4000000 is not below"),
        (json!({"model": "demo", "input": [[1], "a", 7]}), "expected a string"),
        (json!({"model": "demo", "input": "a", "dimensions": 3}), "`dimensions` is not supported"),
        (json!({"model": "demo", "input": "a", "encoding_format": "int8"}), "float or base64"),
        (json!({"model": "demo", "input": "a", "pooling": "max"}), "mean or last"),
    ] {
        let response = server.post(PATH, &request);
        assert_eq!(response.status, 400, "{request}");
        assert!(response.error().contains(part), "{}", response.error());
    }
}
