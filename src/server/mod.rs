//! The HTTP server: OpenAI's API over the engine.
//!
//! A request is read field by field (`fields`), becomes a task for the engine's thread (`worker`), and its tokens come
//! back as pieces of text (`generation`, `answer`) that an endpoint puts into the shape its clients expect. The engine
//! knows nothing of this.

mod answer;
pub mod app;
mod base64;
mod body;
mod chat;
mod completions;
pub mod connection;
mod conversation;
mod embeddings;
mod error;
mod fields;
mod generation;
mod log;
mod messages;
pub mod metrics;
mod page;
mod responses;
mod router;
mod sampling;
mod sse;
mod tags;
pub mod thoughts;
pub mod tls;
mod tokens;
mod tools;
pub mod turns;
pub mod worker;

pub use router::router;

/// What `system_fingerprint` says: answers to equal requests are equal while it is.
const FINGERPRINT: &str = concat!("oxgpt-", env!("CARGO_PKG_VERSION"));
