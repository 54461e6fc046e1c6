//! What can be wrong with a checkpoint.

use std::path::Path;

use thiserror::Error;

use super::dtype::DType;
use crate::quant;

/// Why a checkpoint cannot be opened, or a metadata value cannot be used. Each message is one
/// sentence that names the file, the thing in it, what was expected and what was found.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the fields are the parts of the message above them
pub enum FormatError {
    // ---- files ----
    #[error("cannot {action} {file}: {cause}")]
    Io { file: String, action: &'static str, cause: std::io::Error },
    #[error("{file} is neither a regular file nor a directory")]
    NotAFile { file: String },
    #[error("{file} has {found} bytes, more than the {limit} that a file of its kind may have")]
    FileTooLarge { file: String, found: u64, limit: u64 },

    #[error("{file} is a Git LFS pointer, expected the file that it stands for (git lfs pull)")]
    LfsPointer { file: String },

    // ---- writing ----
    #[error("{file} is there already, expected a new name, or force to replace it")]
    Exists { file: String },
    #[error("{file} is no regular file and is not replaced: expected a new name")]
    NotReplaceable { file: String },
    #[error("{file}: tensor {} has type {dtype}, which GGUF does not have", quote(tensor))]
    NotAGgmlType { file: String, tensor: String, dtype: String },

    // ---- GGUF: the header ----
    #[error("{file} is not a GGUF file: expected it to start with \"GGUF\", found {found}")]
    NotGguf { file: String, found: String },
    #[error("{file} is a big-endian GGUF file, expected a little-endian one")]
    BigEndian { file: String },
    #[error("{file} is GGUF version {version}, expected version 2 or 3")]
    GgufVersion { file: String, version: u32 },
    #[error(
        "{file}: {what} at byte {offset} needs {expected} bytes, found the end of the file after \
         {found}"
    )]
    Truncated { file: String, what: String, offset: u64, expected: u64, found: u64 },
    #[error("{file}: {what} at byte {offset} ends past the {limit} bytes that a header may have")]
    HeaderTooLong { file: String, what: String, offset: u64, limit: u64 },
    #[error("{file}: the number of {what} is {found}, expected at most {limit}")]
    CountTooLarge { file: String, what: &'static str, found: u64, limit: u64 },
    #[error("{file}: {what} is not valid UTF-8")]
    NotUtf8 { file: String, what: String },

    // ---- GGUF: metadata ----
    #[error("{file}: key {} occurs twice", quote(key))]
    DuplicateKey { file: String, key: String },
    #[error("{file}: the value of key {} has type {id}, expected 0 to 12", quote(key))]
    UnknownValueType { file: String, key: String, id: u32 },
    #[error("{file}: the value of key {} nests arrays more than {limit} deep", quote(key))]
    NestedTooDeep { file: String, key: String, limit: usize },
    #[error(
        "{file}: the value of key {} has the byte {found} as a bool, expected 0 or 1",
        quote(key)
    )]
    BadBool { file: String, key: String, found: u8 },
    #[error("{file}: key {} is missing, expected {expected}", quote(key))]
    MissingKey { file: String, key: String, expected: &'static str },
    #[error("{file}: key {} should hold {expected}, found {found}", quote(key))]
    WrongType { file: String, key: String, expected: &'static str, found: String },
    #[error(
        "{file}: key \"general.alignment\" should hold a multiple of 8 from 8 to {limit}, found {found}"
    )]
    Alignment { file: String, found: u32, limit: u32 },

    // ---- tensors ----
    #[error("{file}: tensor {} occurs twice", quote(tensor))]
    DuplicateTensor { file: String, tensor: String },
    #[error("{file}: tensor {} has {found} dimensions, expected at most {limit}", quote(tensor))]
    TooManyDimensions { file: String, tensor: String, found: u32, limit: u32 },
    #[error(
        "{file}: tensor {} has shape {shape:?}, expected every dimension to be at least 1",
        quote(tensor)
    )]
    ZeroDimension { file: String, tensor: String, shape: Vec<usize> },
    #[error(
        "{file}: tensor {} has the unknown ggml type {id}, expected one of {}",
        quote(tensor),
        supported_types()
    )]
    UnknownGgmlType { file: String, tensor: String, id: u32 },
    #[error("{file}: tensor {} has the unknown type {}", quote(tensor), quote(dtype))]
    UnknownSafetensorsType { file: String, tensor: String, dtype: String },
    #[error(
        "{file}: tensor {} of type {dtype} has rows of {found} elements, expected {}",
        quote(tensor),
        whole_blocks(*dtype)
    )]
    PartialBlock { file: String, tensor: String, dtype: DType, found: usize },
    #[error(
        "{file}: tensor {} of type {dtype} has shape {}, too large to be addressed",
        quote(tensor),
        short_shape(shape)
    )]
    SizeOverflow { file: String, tensor: String, dtype: DType, shape: Vec<u64> },
    #[error(
        "{file}: tensor {} starts at byte {offset} of the data, expected a multiple of {alignment}",
        quote(tensor)
    )]
    Misaligned { file: String, tensor: String, offset: u64, alignment: u64 },
    #[error(
        "{file}: tensor {} ends at byte {expected} of the file, which has only {found}: the file is \
         incomplete or damaged",
        quote(tensor)
    )]
    TensorPastEnd { file: String, tensor: String, expected: u64, found: u64 },
    #[error("{file}: tensors {} and {} overlap", quote(first), quote(second))]
    TensorsOverlap { file: String, first: String, second: String },
    #[error(
        "{file}: tensor {} of type {dtype} and shape {} needs {expected} bytes, found a range of \
         {found}",
        quote(tensor),
        short_shape(shape)
    )]
    WrongLength {
        file: String,
        tensor: String,
        dtype: DType,
        shape: Vec<u64>,
        expected: u64,
        found: u64,
    },
    #[error("{file}: bytes {start} to {end} of the data belong to no tensor")]
    UnusedBytes { file: String, start: u64, end: u64 },

    // ---- GGUF in several files ----
    #[error(
        "{file} is part {number} of {count}: expected its name to end in \
         \"-{number:05}-of-{count:05}.gguf\", which the other parts are found by"
    )]
    SplitName { file: String, number: u32, count: u32 },
    #[error("{file} is one of {count} parts, of which {missing} cannot be found beside it")]
    SplitMissing { file: String, count: u32, missing: String },
    #[error("{file}: {what} is {found}, expected {expected} in this set of parts")]
    SplitDisagrees { file: String, what: &'static str, expected: String, found: String },

    // ---- Hugging Face directories ----
    #[error("{directory} has no config.json{hint}")]
    MissingConfig { directory: String, hint: String },
    #[error(
        "{directory} has no weights: expected model.safetensors, model.safetensors.index.json or \
         one other .safetensors file, found {found}"
    )]
    NoWeights { directory: String, found: String },
    #[error(
        "{directory} has weights in the {method} quantization, which is not supported: expected an \
         unquantized checkpoint, MXFP4, or a GGUF file"
    )]
    Quantized { directory: String, method: String },
    #[error("{file} is not the JSON that was expected: {cause}")]
    Json { file: String, cause: String },
    #[error(
        "{file}: tensor {} is said to be in {}, expected the name of a file in the same directory",
        quote(tensor),
        quote(shard)
    )]
    ShardName { file: String, tensor: String, shard: String },
    #[error("{file}: tensor {} is said to be in {shard}, which does not have it", quote(tensor))]
    ShardLacksTensor { file: String, tensor: String, shard: String },
}

impl FormatError {
    pub(crate) fn io(file: &Path, action: &'static str, cause: std::io::Error) -> Self {
        Self::Io { file: file.display().to_string(), action, cause }
    }
}

/// Recognises what a clone without Git LFS has in place of large files, of any format.
pub(super) fn refuse_lfs_pointer(file: &str, bytes: &[u8]) -> Result<(), FormatError> {
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(FormatError::LfsPointer { file: file.to_owned() });
    }
    Ok(())
}

/// A string from a file as a message shows it: control characters escaped, and not at any length.
pub(super) fn quote(text: &str) -> String {
    const SHOWN: usize = 80;
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}... ({} bytes)", &text[..end], text.len()),
    }
}

/// The types that weights may have.
fn supported_types() -> String {
    quant::names(quant::SUPPORTED)
}

/// What the rows of a type should have. Where the type itself cannot be run, that is what the user wants to know.
fn whole_blocks(dtype: DType) -> String {
    if quant::is_supported(dtype) {
        format!("a multiple of {}", dtype.block_size())
    } else {
        format!("a multiple of {}, and one of the types {}", dtype.block_size(), supported_types())
    }
}

/// A shape as a message shows it; safetensors puts no bound on the number of dimensions.
fn short_shape(shape: &[u64]) -> String {
    const SHOWN: usize = 8;
    match shape.get(..SHOWN) {
        Some(start) if shape.len() > SHOWN => {
            format!("{start:?}... ({} dimensions)", shape.len())
        }
        _ => format!("{shape:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_is_escaped_and_bounded() {
        assert_eq!(quote("a\n\u{1b}[0m"), r#""a\n\u{1b}[0m""#);
        let long = "é".repeat(100_000);
        let quoted = quote(&long);
        assert!(quoted.len() < 200 && quoted.ends_with("... (200000 bytes)"), "{quoted}");
    }

    #[test]
    fn errors_are_small_enough_to_return() {
        assert!(size_of::<FormatError>() <= 128);
    }
}
