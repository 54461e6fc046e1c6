//! The tables of `docs/server.md` say what becomes of every field, and the server does that.

use crate::client::Server;
use crate::models::{POSITIONS, TEMPLATE};
use crate::scripted::write_model;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// One row: the field, what becomes of it, and the fields of a request that has it.
struct Row {
    path: String,
    field: String,
    claim: String,
    example: Value,
}

fn rows() -> Vec<Row> {
    let text = include_str!("../../docs/server.md");
    let mut path = None;
    let mut rows = Vec::new();
    for line in text.lines() {
        if line.starts_with('#') {
            path = line.strip_prefix("### POST ").map(str::to_string);
        }
        let (Some(path), Some(line)) = (&path, line.strip_prefix("| `")) else { continue };
        let (field, rest) = line.split_once("` | ").unwrap();
        let (claim, rest) = rest.split_once(" | `").unwrap();
        let (example, _) = rest.split_once("` | ").unwrap();
        rows.push(Row {
            path: path.clone(),
            field: field.to_string(),
            claim: claim.to_string(),
            example: serde_json::from_str(example).unwrap(),
        });
    }
    rows
}

fn request(path: &str) -> Value {
    let messages = json!([{"role": "user", "content": "Hello"}]);
    let own = match path {
        "/v1/chat/completions" | "/v1/messages" => json!({"max_tokens": 2, "messages": messages}),
        "/v1/completions" => json!({"max_tokens": 2, "prompt": "Hello"}),
        "/v1/responses" => json!({"max_output_tokens": 2, "input": "Hello"}),
        "/v1/embeddings" => return json!({"model": "m", "input": "Hello"}),
        other => panic!("{other} is not tested"),
    };
    with(&json!({"model": "m", "temperature": 0}), &own)
}

fn with(request: &Value, example: &Value) -> Value {
    let mut request = request.clone();
    for (name, value) in example.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

/// What an answer says, without its name and time.
fn said(answer: &Value) -> Value {
    let mut said = answer.clone();
    for name in ["id", "created", "created_at", "usage", "service_tier"] {
        said.as_object_mut().unwrap().remove(name);
    }
    for name in
        ["user", "metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"]
    {
        // Responses repeat these.
        said.as_object_mut().unwrap().remove(name);
    }
    if let Some(items) = said["output"].as_array_mut() {
        items.iter_mut().for_each(|item| item["id"] = json!(""));
    }
    said
}

#[test]
fn the_tables_tell_what_becomes_of_every_field() {
    let folder = tempfile::tempdir().unwrap();
    let template = format!("{{# {{ tools }} <tool_call> reasoning_effort #}}{TEMPLATE}");
    write_model(folder.path(), &[], Some(&template), POSITIONS, &[]);
    let server = Server::of(folder.path(), &["--alias", "m"]);
    let mut counts = BTreeMap::new();
    for Row { path, field, claim, example } in rows() {
        *counts.entry((path.clone(), claim.clone())).or_insert(0) += 1;
        let name = field.split(['.', '[']).next().unwrap();
        assert!(example.get(name).is_some(), "{path}: {field}: the example does not have it");
        let right = request(&path);
        let response = server.post(&path, &with(&right, &example));
        let about = format!("{path}: `{field}`: {claim}: {}", response.body);
        match claim.as_str() {
            "refused" => {
                assert_eq!(response.status, 400, "{about}");
                let message = response.json()["error"]["message"].as_str().unwrap().to_string();
                assert!(message.contains(&format!("`{field}`")), "{about}");
                if path != "/v1/messages" {
                    assert_eq!(response.json()["error"]["param"], field, "{about}");
                }
            }
            "no effect" => {
                assert_eq!(response.status, 200, "{about}");
                let plain = server.answer(&path, &right);
                assert_eq!(said(&response.json()), said(&plain), "{about}");
            }
            "yes" => assert_eq!(response.status, 200, "{about}"),
            other => panic!("{path}: {field}: {other:?} is no claim"),
        }
    }
    for path in ["chat/completions", "completions", "responses", "messages", "embeddings"] {
        for claim in ["yes", "no effect", "refused"] {
            let count = counts.get(&(format!("/v1/{path}"), claim.to_string()));
            assert!(count.is_some(), "{path} has no row that says {claim:?}");
        }
    }
}

#[test]
fn the_tables_have_every_field_that_the_server_describes() {
    let server = Server::demo(&[]);
    let description = server.get("/openapi.json").json();
    let rows = rows();
    for path in ["chat/completions", "completions", "embeddings"] {
        let path = format!("/v1/{path}");
        let schema =
            &description["paths"][&path]["post"]["requestBody"]["content"]["application/json"];
        for field in schema["schema"]["properties"].as_object().unwrap().keys() {
            let is_there = rows
                .iter()
                .any(|row| row.path == path && row.field.split(['.', '[']).next() == Some(field));
            assert!(is_there, "{path}: {field}");
        }
    }
}
