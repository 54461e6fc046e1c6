//! Answers as server-sent events.

use super::error::ApiError;
use super::generation::{Change, Generation, Usage};
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, header};
use serde_json::Value;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// After so long without an event, a comment keeps the connection from being taken for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const COMMENT: &str = ": keep-alive\n\n";

/// Events that wait for the client to take them in.
const BACKLOG: usize = 64;

/// What there is to tell.
pub enum Step<'a> {
    /// The answers begin.
    Begin,
    Change(&'a Change),
    /// All answers are over.
    End(Usage),
    /// There is no more, for this reason.
    Failed(&'a ApiError),
}

/// An event without a name.
pub fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

/// An event with a name.
pub fn event(name: &str, value: &Value) -> String {
    format!("event: {name}\ndata: {value}\n\n")
}

/// Sends the events that `encode` makes of each step. A client that goes away cancels the generation.
pub fn stream(
    mut generation: Generation,
    mut encode: impl FnMut(Step<'_>) -> String + Send + 'static,
) -> Response<Body> {
    let (sender, receiver) = mpsc::channel::<Bytes>(BACKLOG);
    tokio::spawn(async move {
        let mut text = encode(Step::Begin);
        loop {
            // The last events may be nothing, where all was told before.
            if !text.is_empty() && sender.send(text.into()).await.is_err() {
                return;
            }
            let next = tokio::select! {
                () = sender.closed() => return,
                next = tokio::time::timeout(KEEP_ALIVE, generation.next()) => next,
            };
            text = match next {
                Err(_) => COMMENT.to_string(),
                Ok(Some(Ok(change))) => encode(Step::Change(&change)),
                Ok(last) => {
                    let text = match last {
                        Some(Err(error)) => encode(Step::Failed(&error)),
                        _ => encode(Step::End(generation.usage())),
                    };
                    let _ = sender.send(text.into()).await;
                    return;
                }
            };
        }
    });
    let chunks = ReceiverStream::new(receiver).map(Ok::<Bytes, Infallible>);
    let mut response = Response::new(Body::from_stream(chunks));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies such as nginx would gather events otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
