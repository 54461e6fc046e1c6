//! The chat page: one file, which asks for nothing but this server.

use super::base64;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, header};
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

const PAGE: &str = include_str!("page.html");

/// Nothing runs but the page's own script, and nothing is loaded but from here.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let between = |text: &'static str, from: &str, to: &str| {
        let text = text.split_once(from)?.1;
        Some(text.split_once(to)?.0)
    };
    let hash = |text: Option<&str>| {
        format!("'sha256-{}'", base64::encode(&Sha256::digest(text.unwrap_or_default())))
    };
    let script = hash(between(PAGE, "<script>", "</script>"));
    let policy = format!(
        "default-src 'none'; script-src {script}; style-src 'unsafe-inline'; img-src data:; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).expect("it is made of visible characters")
});

/// The handler.
pub async fn page() -> Response<Body> {
    let mut response = Response::new(Body::from(PAGE));
    for (name, value) in [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, POLICY.clone()),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            HeaderValue::from_static("same-origin"),
        ),
    ] {
        response.headers_mut().insert(name, value);
    }
    response
}
