//! Reading the body of a request, within bounds of size and time, and the parts that every endpoint's body has.

use super::app::App;
use super::error::ApiError;
use super::fields::Fields;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::StatusCode;
use serde_json::json;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// The whole body.
pub async fn read(app: &App, body: Body) -> Result<Bytes, ApiError> {
    let limit = app.settings.max_body;
    let too_large = || {
        let message = format!("the body is larger than {limit} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let timeout = app.settings.client_timeout;
    match tokio::time::timeout(timeout, axum::body::to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
            while let Some(error) = cause {
                if error.is::<http_body_util::LengthLimitError>() {
                    return Err(too_large());
                }
                cause = error.source();
            }
            Err(ApiError::bad(format!("the body cannot be read: {error}")))
        }
        Err(_) => {
            let message = format!("the body was not complete after {} s", timeout.as_secs_f64());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}

/// Does what may take a while (templates, tokenizers, grammars) where it holds up no other request.
pub async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::internal(error.to_string()))?
}

/// The fields of a body that names a model, which must be the one there is.
pub async fn fields(app: &App, body: Body) -> Result<Fields, ApiError> {
    let bytes = read(app, body).await?;
    let mut fields = Fields::parse(&bytes)?;
    match fields.string("model")? {
        Some(name) => app.check_model(&name)?,
        None => return Err(fields.require("model").expect_err("it is not there")),
    }
    Ok(fields)
}

/// Takes what changes nothing in an answer: who asks, and what OpenAI's service does beside answering.
pub fn ignore_labels(fields: &mut Fields) -> Result<(), ApiError> {
    fields.ignore(&["user", "metadata", "prompt_cache_key", "safety_identifier"]);
    fields.ignore(&["service_tier", "prompt_cache_retention"]);
    fields.only("store", &[json!(false)])
}

/// Whether the answer is to be streamed, and whether the tokens of it are to be told then.
pub fn streaming(fields: &mut Fields) -> Result<Option<bool>, ApiError> {
    let is_streamed = fields.boolean("stream")?.unwrap_or(false);
    let mut includes_usage = false;
    if let Some(mut options) = fields.object("stream_options")? {
        if !is_streamed {
            let message = "`stream_options` is only for `stream: true`";
            return Err(ApiError::field("stream_options", message));
        }
        includes_usage = options.boolean("include_usage")?.unwrap_or(false);
        options.only("include_obfuscation", &[json!(false)])?;
        options.finish()?;
    }
    Ok(is_streamed.then_some(includes_usage))
}

/// A name that nothing else has, such as `chatcmpl-5f0c…`.
pub fn id(prefix: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // The standard library seeds its hash maps from the system's randomness.
    format!("{prefix}{:016x}{count:08x}", RandomState::new().hash_one(count))
}
