//! The oxgpt engine: checkpoint files in, tokens out.
//!
//! Knows no HTTP, no terminal and no CUDA types. A good order to read it in: [`model::spec`] (what a decoder is),
//! [`model::forward`] (what it computes), [`model::families`] (where it comes from), [`backend`] (who computes it),
//! [`engine`] (requests in, events out).

pub mod backend;
pub mod batch;
pub mod engine;
pub mod format;
pub mod kv;
pub mod model;
pub mod prompt;
pub mod quant;
pub mod sampler;
mod scheduler;
pub mod sequence;
pub mod stop;
pub mod tokenizer;
