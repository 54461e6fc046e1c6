//! Which path goes where, and what stands before all of them: keys, origins, and the log.

use super::app::{App, Phase};
use super::chat::chat_completions;
use super::completions::completions;
use super::embeddings::embeddings;
use super::error::{ApiError, json_response};
use super::page::page;
use super::responses::responses;
use super::{base64, body, log, messages, tokens};
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::time::Instant;
use tower_http::cors::{AllowOrigin, CorsLayer};

const REQUEST_ID: &str = "x-request-id";

/// The whole server.
pub fn router(app: &'static App) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/responses", post(responses))
        .route("/v1/messages", post(messages::messages))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route("/v1/embeddings", post(embeddings))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(app, authorize))
        .layer(cors(app))
        .layer(middleware::from_fn_with_state(app, record))
        .with_state(app)
}

/// Which pages may use the server from a browser.
fn cors(app: &App) -> CorsLayer {
    let origins = &app.settings.origins;
    let origin = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(tower_http::cors::AllowHeaders::mirror_request())
        .expose_headers([header::HeaderName::from_static(REQUEST_ID), header::RETRY_AFTER])
}

/// Gives every request a name, and the log a line.
async fn record(State(app): State<&'static App>, request: Request, next: Next) -> Response<Body> {
    let begin = Instant::now();
    // A request that was let in is answered though the server drains meanwhile.
    let _answering = app.begin_answer();
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let is_usable = |id: &&HeaderValue| id.len() <= 128 && id.to_str().is_ok();
    let id = request.headers().get(REQUEST_ID).filter(is_usable).cloned();
    let id = id.or_else(|| HeaderValue::from_str(&body::id("req-")).ok());
    let mut response = next.run(request).await;
    let status = response.status().as_u16();
    app.metrics.responses[(status / 100).min(5) as usize].add(1);
    // Those who watch the server ask often.
    if !matches!(path.as_str(), "/health" | "/metrics") || status >= 500 {
        let milliseconds = begin.elapsed().as_secs_f64() * 1e3;
        let id = id.as_ref().and_then(|id| id.to_str().ok());
        let fields = json!({
            "event": "request", "id": id, "method": method.as_str(), "path": path, "status": status,
            "ms": milliseconds
        });
        log::write(app.settings.log, fields);
    }
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Lets requests pass that have the key, and that no foreign page has sent.
async fn authorize(
    State(app): State<&'static App>,
    request: Request,
    next: Next,
) -> Response<Body> {
    match check(app, &request) {
        Ok(()) => next.run(request).await,
        Err(error) if request.uri().path().starts_with("/v1/messages") => messages::refuse(&error),
        Err(error) => {
            let mut response = error.response(&error.body());
            if request.uri().path() == "/" && error.status == StatusCode::UNAUTHORIZED {
                // Browsers ask for a password then, and send it with what the page asks for too.
                let asks = HeaderValue::from_static("Basic realm=\"oxgpt\", charset=\"UTF-8\"");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, asks);
            }
            response
        }
    }
}

fn check(app: &App, request: &Request) -> Result<(), ApiError> {
    if request.uri().path() != "/health" {
        check_key(app, request.headers())?;
    }
    if request.method() == Method::POST {
        check_origin(app, request.headers())?;
    }
    Ok(())
}

fn check_key(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let keys = &app.settings.api_keys;
    if keys.is_empty() {
        return Ok(());
    }
    let authorization = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let is_bearer = |value: &&[u8]| value.len() > 7 && value[..7].eq_ignore_ascii_case(b"bearer ");
    let bearer = authorization.filter(is_bearer).map(|value| value[7..].to_vec());
    let own = || headers.get("x-api-key").map(|value| value.as_bytes().to_vec());
    let given = bearer.or_else(|| authorization.and_then(password)).or_else(own);
    let error = |message: &str| {
        ApiError::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key")
    };
    let Some(given) = given else {
        return Err(error("an API key is needed, as `Authorization: Bearer KEY`"));
    };
    // All are compared, so that the time tells nothing.
    let matches = keys.iter().fold(false, |found, key| found | is_equal(key.as_bytes(), &given));
    if matches { Ok(()) } else { Err(error("the API key is wrong")) }
}

/// The password that a browser asked its user for.
fn password(authorization: &[u8]) -> Option<Vec<u8>> {
    let (scheme, encoded) = authorization.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let decoded = base64::decode(encoded)?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    Some(decoded[colon + 1..].to_vec())
}

/// Compares in a time that depends on the lengths alone: what is compared are hashes, which nobody can choose byte by byte,
/// and all of their bytes.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    let (one, other) = (Sha256::digest(one), Sha256::digest(other));
    one.iter().zip(other.iter()).fold(0, |sum, (one, other)| sum | (one ^ other)) == 0
}

/// Browsers send what a page posts even where the page may not read the answer.
fn check_origin(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok()) else {
        return Ok(());
    };
    let allowed = &app.settings.origins;
    if allowed.iter().any(|allowed| allowed == "*" || allowed == origin) {
        return Ok(());
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let of_origin = origin.split_once("://").map(|(_, host)| host);
    if host.is_some() && host == of_origin {
        return Ok(());
    }
    let message = format!("pages of {origin} may not use this server (--cors lets them)");
    Err(ApiError::new(StatusCode::FORBIDDEN, message))
}

async fn health(State(app): State<&'static App>) -> Response<Body> {
    let (status, text) = match app.phase() {
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
        Phase::Ready => (StatusCode::OK, "ready"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
    };
    json_response(status, &json!({"status": text}))
}

async fn version() -> Response<Body> {
    json_response(StatusCode::OK, &json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// What each path takes and gives; `tests/server/openapi.rs` holds it to what the server does.
async fn openapi() -> Response<Body> {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json")).into_response()
}

async fn metrics(State(app): State<&'static App>) -> Response<Body> {
    let text = app.metrics.text(&app.settings.name);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

fn describe(app: &App) -> Result<Value, ApiError> {
    let served = app.served()?;
    Ok(json!({
        "id": app.settings.name,
        "object": "model",
        "created": app.created,
        "owned_by": "oxgpt",
        "max_model_len": served.context
    }))
}

async fn models(State(app): State<&'static App>) -> Result<Response<Body>, ApiError> {
    let list = json!({"object": "list", "data": [describe(app)?]});
    Ok(json_response(StatusCode::OK, &list))
}

async fn model(
    State(app): State<&'static App>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response<Body>, ApiError> {
    let Path(name) = name.map_err(|error| ApiError::bad(error.body_text()))?;
    app.check_model(&name)?;
    Ok(json_response(StatusCode::OK, &describe(app)?))
}

async fn no_such_path(request: Request) -> ApiError {
    let message = format!("there is no {}", request.uri().path());
    ApiError::new(StatusCode::NOT_FOUND, message)
}

async fn wrong_method(request: Request) -> ApiError {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_equal_only_to_themselves() {
        assert!(is_equal(b"key", b"key"));
        for other in [&b"ke"[..], b"keys", b"kez", b""] {
            assert!(!is_equal(b"key", other));
        }
    }
}
