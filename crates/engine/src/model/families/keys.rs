//! Typed look-ups of the keys of one architecture in GGUF metadata.

use super::super::{ModelError, file_name};
use crate::format::{Checkpoint, gguf};

/// The keys that begin with the name of an architecture.
pub struct Keys<'a> {
    /// The file.
    pub checkpoint: &'a Checkpoint,
    metadata: &'a gguf::Metadata,
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    /// The keys of the file's own architecture.
    ///
    /// # Errors
    /// When the file does not name it.
    pub fn new(
        checkpoint: &'a Checkpoint,
        metadata: &'a gguf::Metadata,
    ) -> Result<Self, ModelError> {
        Ok(Keys { checkpoint, metadata, architecture: metadata.architecture()? })
    }

    /// All of the key.
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// The error for a key whose value is not what it should be.
    pub fn error(&self, key: &str, expected: &str, found: impl ToString) -> ModelError {
        ModelError::Configuration {
            file: file_name(self.checkpoint),
            key: self.full(key),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// An integer from 1 to 2^32 - 1.
    pub fn size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        match self.metadata.u32(&self.full(key))? {
            Some(0) => Err(self.error(key, "a positive integer", 0)),
            size => Ok(size.map(|size| size as usize)),
        }
    }

    /// A [`Keys::size`] that has to be there.
    pub fn required_size(&self, key: &str) -> Result<usize, ModelError> {
        self.size(key)?.ok_or_else(|| self.error(key, "a positive integer", "nothing"))
    }

    /// An integer from 0 to 2^32 - 1.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, ModelError> {
        Ok(self.metadata.u32(&self.full(key))?)
    }

    /// A number, which may be infinite or none.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, ModelError> {
        Ok(self.metadata.f32(&self.full(key))?)
    }

    /// A string.
    pub fn string(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        Ok(self.metadata.string(&self.full(key))?)
    }

    /// The value, whatever its type.
    pub fn value(&self, key: &str) -> Option<&'a gguf::Value> {
        self.metadata.get(&self.full(key))
    }
}
