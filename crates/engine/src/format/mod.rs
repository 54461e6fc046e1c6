//! Checkpoint files: bytes to names, shapes and types.
//!
//! A [`Checkpoint`] is a GGUF file (or a split set of them), or a directory in Hugging Face layout.
//! Opening it maps the files and checks every name, type, shape and extent, so that reading a tensor
//! afterwards cannot fail; no weight is read. What the metadata means is not known here.
//!
//! The files are not trusted: sizes are computed with checked arithmetic, counts and lengths are
//! compared with the bytes that are there before anything is allocated for them, and what remains
//! wrong is a [`FormatError`] that names it.

mod bytes;
mod checkpoint;
mod dtype;
mod error;
pub mod gguf;
pub mod hugging_face;
mod safetensors;
mod tensor;

pub use bytes::Bytes;
pub use checkpoint::{Checkpoint, Source};
pub use dtype::DType;
pub use error::FormatError;
pub use tensor::TensorInfo;
