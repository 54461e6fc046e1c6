//! The oxgpt engine: checkpoint files in, tokens out.
//!
//! Knows no HTTP, no terminal and no CUDA types.

pub mod format;
pub mod prompt;
pub mod quant;
pub mod sampler;
pub mod stop;
pub mod tokenizer;
