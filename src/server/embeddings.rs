//! `/v1/embeddings`: texts as vectors, from the final hidden state of the model.

use super::app::{App, Served};
use super::completions::token_ids;
use super::error::{ApiError, json_response};
use super::fields::{Fields, wrong};
use super::worker::Embedding;
use super::{base64, body};
use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use oxgpt_engine::engine::Pooling;
use serde_json::{Value, json};

/// The most texts of one request.
const MAX_INPUTS: usize = 2048;

/// What to embed, and how to tell it.
struct Asked {
    texts: Vec<Vec<u32>>,
    pooling: Pooling,
    is_base64: bool,
}

/// The handler.
pub async fn embeddings(
    State(app): State<&'static App>,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let served = app.served()?;
    let fields = body::fields(app, body).await?;
    let _answering = app.begin_answer();
    let Asked { texts, pooling, is_base64 } =
        body::in_background(move || parse(served, fields)).await?;
    let tokens: usize = texts.iter().map(Vec::len).sum();
    let vectors = served.worker.embed(texts, pooling);
    let vectors = vectors.map_err(|busy| super::generation::refuse(app, busy))?;
    let gone = || ApiError::internal("the engine has stopped");
    let vectors = match app.settings.request_timeout {
        None => vectors.await.map_err(|_| gone())?,
        Some(limit) => match tokio::time::timeout(limit, vectors).await {
            Ok(vectors) => vectors.map_err(|_| gone())?,
            Err(_) => {
                let message = format!("not complete after {} seconds", limit.as_secs_f64());
                let error = ApiError::new(StatusCode::GATEWAY_TIMEOUT, message);
                return Err(error.with_code("timeout"));
            }
        },
    };
    let entry = |(index, vector): (usize, Embedding)| {
        let vector = normalized(vector);
        let vector = if is_base64 { json!(encoded(&vector)) } else { json!(vector) };
        json!({"object": "embedding", "index": index, "embedding": vector})
    };
    let entries: Vec<Value> = vectors?.into_iter().enumerate().map(entry).collect();
    let response = json!({
        "object": "list", "data": entries, "model": app.settings.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens}
    });
    Ok(json_response(StatusCode::OK, &response))
}

fn parse(served: &Served, mut fields: Fields) -> Result<Asked, ApiError> {
    fields.ignore(&["user"]);
    let pooling = match fields.string("pooling")?.as_deref() {
        None | Some("mean") => Pooling::Mean,
        Some("last") => Pooling::Last,
        Some(other) => return Err(wrong("pooling", "mean or last", &json!(other))),
    };
    let is_base64 = match fields.string("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => return Err(wrong("encoding_format", "float or base64", &json!(other))),
    };
    let input = fields.require("input")?;
    fields.finish()?;
    let texts = texts(served, input)?;
    for tokens in &texts {
        if tokens.is_empty() {
            return Err(ApiError::field("input", "a text of `input` is empty"));
        }
        let size = served.vocab_size;
        if let Some(id) = tokens.iter().find(|id| **id as usize >= size) {
            let message = format!("token {id} is not below the model's vocabulary size of {size}");
            return Err(ApiError::field("input", message));
        }
        if tokens.len() > served.context {
            let message = format!(
                "a text of `input` has {} tokens, but the context holds {}",
                tokens.len(),
                served.context
            );
            return Err(ApiError::field("input", message).with_code("context_length_exceeded"));
        }
    }
    Ok(Asked { texts, pooling, is_base64 })
}

/// A text, texts, ids, or arrays of ids.
fn texts(served: &Served, input: Value) -> Result<Vec<Vec<u32>>, ApiError> {
    const EXPECTED: &str = "a string, strings, token ids, or arrays of token ids";
    let encode =
        |text: &str| -> Result<Vec<u32>, ApiError> { Ok(served.tokenizer()?.encode(text)?) };
    let values = match input {
        Value::String(text) => return Ok(vec![encode(&text)?]),
        Value::Array(values) => values,
        other => return Err(wrong("input", EXPECTED, &other)),
    };
    match values.first() {
        None => Err(ApiError::field("input", "`input` is empty")),
        Some(Value::Number(_)) => Ok(vec![token_ids("input", &values)?]),
        Some(_) if values.len() > MAX_INPUTS => {
            let message = format!("`input` has {} entries, more than {MAX_INPUTS}", values.len());
            Err(ApiError::field("input", message))
        }
        Some(_) => {
            let text = |value: Value| match value {
                Value::String(text) => encode(&text),
                Value::Array(ids) => token_ids("input", &ids),
                other => Err(wrong("input", EXPECTED, &other)),
            };
            values.into_iter().map(text).collect()
        }
    }
}

/// The vector of length 1 in the same direction.
fn normalized(mut vector: Embedding) -> Embedding {
    let square: f64 = vector.iter().map(|value| f64::from(*value).powi(2)).sum();
    if square > 0.0 {
        let length = square.sqrt();
        vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
    vector
}

/// The bytes of the numbers, the lowest first.
fn encoded(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    base64::encode(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_brought_to_length_1() {
        assert_eq!(normalized(vec![3.0, 4.0]), [0.6, 0.8]);
        assert_eq!(normalized(vec![0.0]), [0.0]);
    }
}
