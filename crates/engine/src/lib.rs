//! The oxgpt engine: checkpoint files in, tokens out.
//!
//! Knows no HTTP, no terminal and no CUDA types. A good order to read it in: [`model::spec`] (what a decoder is),
//! [`model::forward`] (what it computes), [`model::families`] (where it comes from), [`backend`] (who computes it),
//! [`engine`] (requests in, events out).
//!
//! ```
//! use oxgpt_engine::engine::{Engine, EngineOptions};
//! use oxgpt_engine::model::Model;
//! use oxgpt_engine::sampler::SamplingOptions;
//! use oxgpt_engine::sequence::{Event, Request};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo.gguf");
//! let model = Model::open(path.as_ref())?;
//! let mut engine = Engine::new(&model, &EngineOptions::default(), &mut |_, _| {})?;
//! let tokenizer = model.tokenizer.as_ref().ok_or("no tokenizer")?;
//! engine.submit(Request {
//!     tokens: tokenizer.encode("Once upon a time")?,
//!     max_tokens: Some(8),
//!     sampling: SamplingOptions { temperature: 0.0, ..Default::default() },
//!     end_tokens: model.end_tokens(),
//!     ..Request::default()
//! })?;
//! let (mut decoder, mut text) = (tokenizer.decoder(true), String::new());
//! while !engine.is_idle() {
//!     for event in engine.step() {
//!         if let Event::Token { token, .. } = event {
//!             text += &decoder.push(token)?;
//!         }
//!     }
//! }
//! assert!(!text.is_empty());
//! # Ok(())
//! # }
//! ```

pub mod backend;
pub mod batch;
pub mod convert;
pub mod engine;
pub mod format;
pub mod kv;
pub mod model;
pub mod prompt;
pub mod quant;
pub mod quantize;
pub mod sampler;
mod scheduler;
pub mod sequence;
pub mod speculation;
pub mod stop;
pub mod synth;
pub mod tokenizer;
