//! Opening a model: the checkpoint, what it computes, and its tokenizer.

use super::spec::{MapWeights, TensorSource};
use super::weights::{stored_bytes, stored_type};
use super::{ModelDescription, ModelError, describe, file_name};
use crate::format::{Checkpoint, DType, Source, gguf};
use crate::tokenizer::{GgufTokenizer, Tokenizer};
use std::path::Path;

/// An opened model: checked, but no weight loaded yet.
pub struct Model {
    /// The file or directory.
    pub checkpoint: Checkpoint,
    /// What it computes.
    pub description: ModelDescription,
    /// How it reads text; `None` for a checkpoint without a tokenizer.
    pub tokenizer: Option<Tokenizer>,
}

impl Model {
    /// Opens a `.gguf` file or a Hugging Face directory and checks everything but the values of the weights.
    ///
    /// # Errors
    /// When the files are damaged, contradict each other or hold what we cannot run.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Self::from_checkpoint(Checkpoint::open(path)?)
    }

    /// Opens a GGUF that is part of the program; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self, ModelError> {
        Self::from_checkpoint(Checkpoint::from_static(name, bytes)?)
    }

    fn from_checkpoint(checkpoint: Checkpoint) -> Result<Self, ModelError> {
        let description = describe(&checkpoint)?;
        let tokenizer = open_tokenizer(&checkpoint)?;
        if let Some(tokenizer) = &tokenizer {
            check_vocabulary(&checkpoint, tokenizer, description.decoder.embedding.vocab_size)?;
        }
        Ok(Model { checkpoint, description, tokenizer })
    }

    /// The ids that end an answer: the tokenizer's and the configuration's.
    pub fn end_tokens(&self) -> Vec<u32> {
        let mut ids = self.description.end_tokens.clone();
        if let Some(tokenizer) = &self.tokenizer {
            ids.extend(&tokenizer.metadata().end_tokens);
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Bytes of the weights that the decoder uses, in the types of the file.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes_by_type().iter().map(|(_, bytes)| bytes).sum()
    }

    /// [`Model::weight_bytes`] of each type, the types in the order of their first use.
    pub fn weight_bytes_by_type(&self) -> Vec<(DType, u64)> {
        let mut sums = Sums { checkpoint: &self.checkpoint, bytes: Vec::new() };
        match self.description.decoder.map(&mut sums) {
            Ok(_) => sums.bytes,
            Err(never) => match never {},
        }
    }

    /// Bytes of weights that one step of decoding reads: all of them but the embedding, of which it reads single rows
    /// unless the embedding is the head too, and the experts that a row is not routed to.
    pub fn decode_bytes(&self) -> u64 {
        let decoder = &self.description.decoder;
        let bytes = |source: &TensorSource| stored_bytes(&self.checkpoint, source) as u64;
        let tokens = &decoder.embedding.tokens;
        let mut unread = decoder.embedding.positions.as_ref().map_or(0, bytes);
        unread += if decoder.head.weight.is_none() { 0 } else { bytes(tokens) };
        for feed_forward in decoder.layers.iter().map(|layer| &layer.feed_forward) {
            let Some(router) = &feed_forward.router else { continue };
            let matrices = feed_forward.up.iter().chain([&feed_forward.down]);
            let all: u64 = matrices.map(|linear| bytes(&linear.weight)).sum();
            let experts = router.experts as u64;
            unread += all / experts * experts.saturating_sub(router.choice.count as u64);
        }
        self.weight_bytes().saturating_sub(unread)
    }
}

/// Adds up the bytes of the tensors of a decoder.
struct Sums<'a> {
    checkpoint: &'a Checkpoint,
    bytes: Vec<(DType, u64)>,
}

impl MapWeights<TensorSource, TensorSource> for Sums<'_> {
    type Matrix = ();
    type Vector = ();
    type Error = std::convert::Infallible;

    fn matrix(&mut self, source: &TensorSource) -> Result<(), Self::Error> {
        let Some(stored) = stored_type(self.checkpoint, source) else { return Ok(()) };
        let bytes = stored_bytes(self.checkpoint, source) as u64;
        match self.bytes.iter_mut().find(|(dtype, _)| *dtype == stored) {
            Some((_, sum)) => *sum += bytes,
            None => self.bytes.push((stored, bytes)),
        }
        Ok(())
    }

    fn vector(&mut self, source: &TensorSource) -> Result<(), Self::Error> {
        self.matrix(source)
    }
}

/// Whether each token that a text can be cut into has a row of the embedding. Special tokens are refused where they are
/// used: published models have some without a row, such as the image token of text-only Gemma 3 or a pad token.
fn check_vocabulary(
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    rows: usize,
) -> Result<(), ModelError> {
    let without_row = u32::try_from(rows).unwrap_or(u32::MAX)..=tokenizer.max_id();
    for id in without_row {
        if tokenizer.token_bytes(id).is_some() && !tokenizer.is_special(id) {
            let (file, max_id) = (file_name(checkpoint), tokenizer.max_id());
            return Err(ModelError::Vocabulary { file, id, max_id, rows });
        }
    }
    Ok(())
}

/// The tokenizer that comes with a checkpoint, if there is one.
fn open_tokenizer(checkpoint: &Checkpoint) -> Result<Option<Tokenizer>, ModelError> {
    match checkpoint.source() {
        Source::HuggingFace(files) => Ok(Tokenizer::from_directory(&files.directory)?),
        Source::Gguf(metadata) => gguf_tokenizer(metadata),
    }
}

/// The tokenizer in the metadata of a GGUF file, if there is one.
pub fn gguf_tokenizer(metadata: &gguf::Metadata) -> Result<Option<Tokenizer>, ModelError> {
    // llama.cpp's two names for a file that has none.
    let model = match metadata.string("tokenizer.ggml.model")? {
        None | Some("no_vocab" | "none") => return Ok(None),
        Some(model) => model,
    };
    let fields = GgufTokenizer {
        model,
        architecture: metadata.string("general.architecture")?,
        pre: metadata.string("tokenizer.ggml.pre")?,
        tokens: metadata.require_strings("tokenizer.ggml.tokens")?,
        token_types: metadata.i32s("tokenizer.ggml.token_type")?,
        merges: metadata.strings("tokenizer.ggml.merges")?,
        scores: metadata.f32s("tokenizer.ggml.scores")?,
        bos: metadata.u32("tokenizer.ggml.bos_token_id")?,
        eos: metadata.u32("tokenizer.ggml.eos_token_id")?,
        eot: metadata.u32("tokenizer.ggml.eot_token_id")?,
        eom: metadata.u32("tokenizer.ggml.eom_token_id")?,
        pad: metadata.u32("tokenizer.ggml.padding_token_id")?,
        unknown: metadata.u32("tokenizer.ggml.unknown_token_id")?,
        add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
        add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?,
        add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix")?,
        chat_template: metadata.string("tokenizer.chat_template")?,
    };
    Ok(Some(Tokenizer::from_gguf(fields)?))
}
