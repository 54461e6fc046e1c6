//! Models of exact shapes and types with random weights, for benchmarks.
//!
//! Blocks are made as they are stored, without ever being numbers, so that a file comes as fast as the disk takes it. Its
//! bytes depend on the shape, the type and the seed alone.

mod random;
#[cfg(test)]
mod tests;

use std::panic::resume_unwind;
use std::path::Path;
use std::sync::mpsc::{channel, sync_channel};
use std::thread;

use rayon::prelude::*;

use crate::convert::{factors_bytes, factors_header, no_vocabulary, weights};
use crate::format::gguf::{
    Existing, Metadata, TensorHeader, Writer, file_type, fitting, is_of_experts, keeps_f32,
    matrix_type,
};
use crate::format::{DType, FormatError};
use crate::model::families::{self, GgufForm};
use random::Filling;

/// Bytes that one thread makes at once, to within a block.
const CHUNK: usize = 1 << 20;

/// Chunks that are made before they are written.
const CHUNKS: usize = 16;

/// Why a model was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SynthError {
    /// No family has a size of that name.
    #[error("there is no shape {found:?}, expected one of {}", families::shapes().join(", "))]
    UnknownShape {
        /// The name.
        found: String,
    },
    /// More layers than there are, or none.
    #[error("{shape} has {all} layers, expected from 1 to that many, found {found}")]
    Layers {
        /// The name.
        shape: String,
        /// Its layers.
        all: usize,
        /// Those that were asked for.
        found: usize,
    },
    /// A type that cannot be run.
    #[error(transparent)]
    Type(#[from] crate::quant::QuantError),
    /// The file cannot be written.
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// A tensor that has another type than was asked for, since its rows are no whole blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// The tensor.
    pub tensor: String,
    /// The type that it has instead.
    pub dtype: DType,
}

/// What is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The type of the matrices; `None` for that of the published files, or F16 where they have several.
    pub dtype: Option<DType>,
    /// The first so many layers alone; all of them if `None`.
    pub layers: Option<usize>,
    /// Other weights for another seed.
    pub seed: u64,
}

impl Options {
    /// Checks what is known before anything is written.
    ///
    /// # Errors
    /// When there is no such shape, or it has fewer layers.
    pub fn check(&self, shape: &str) -> Result<(), SynthError> {
        form(shape, self).map(|_| ())
    }
}

/// The whole form of the published size `shape`, which has as many layers as are asked for.
fn form(shape: &str, options: &Options) -> Result<GgufForm, SynthError> {
    let Some(form) = families::shape(shape) else {
        return Err(SynthError::UnknownShape { found: shape.to_string() });
    };
    let all = form.decoder.layers.len();
    match options.layers {
        Some(found) if !(1..=all).contains(&found) => {
            Err(SynthError::Layers { shape: shape.to_string(), all, found })
        }
        _ => Ok(form),
    }
}

/// What stands before the weights of a file.
struct Header {
    form: GgufForm,
    metadata: Metadata,
    /// Of the weights alone, in the file's order.
    tensors: Vec<TensorHeader>,
    fallbacks: Vec<Fallback>,
}

impl Header {
    fn new(shape: &str, options: &Options) -> Result<Self, SynthError> {
        let mut form = form(shape, options)?;
        let dtype = options.dtype.unwrap_or_else(|| families::published_type(shape));
        let mut metadata = form.metadata.clone();
        metadata.set("general.name", format!("{shape} with random weights"));
        if let Some(layers) = options.layers {
            form.decoder.layers.truncate(layers);
            let key = format!("{}.block_count", metadata.architecture()?);
            metadata.set(&key, u32::try_from(layers).unwrap_or(u32::MAX));
            metadata.set("general.name", format!("{layers} layers of {shape} with random weights"));
        }
        if let Some(number) = file_type(dtype) {
            metadata.set("general.file_type", number);
        }
        if dtype.block_size() > 1 {
            metadata.set("general.quantization_version", 2u32);
        }
        no_vocabulary(&mut metadata, form.decoder.embedding.vocab_size)?;

        let mut fallbacks = Vec::new();
        let sources = weights(&form.decoder);
        let has_experts = sources.iter().any(|source| is_of_experts(&source.shape_in_file()));
        let tensors = sources.into_iter().map(|source| {
            let shape = source.shape_in_file();
            let wanted = match keeps_f32(&source.name, &shape) {
                true => DType::F32,
                false => matrix_type(dtype, &shape, has_experts),
            };
            let fits = fitting(wanted, source.cols);
            if fits != wanted {
                fallbacks.push(Fallback { tensor: source.name.clone(), dtype: fits });
            }
            TensorHeader { name: source.name, dtype: fits, shape }
        });
        let tensors = tensors.collect();
        Ok(Header { form, metadata, tensors, fallbacks })
    }

    /// Begins the file: everything before the weights.
    fn write(&self, destination: &Path, existing: Existing) -> Result<Writer, SynthError> {
        let factors = self.form.factors.iter().map(factors_header);
        let headers: Vec<TensorHeader> = factors.chain(self.tensors.iter().cloned()).collect();
        let mut writer = Writer::create(destination, existing, &self.metadata, &headers)?;
        for factors in &self.form.factors {
            writer.write(&factors_bytes(factors))?;
        }
        Ok(writer)
    }
}

/// Writes a model of the published size `shape`. `progress` is told the bytes written so far and in total.
///
/// # Errors
/// When there is no such shape, it has fewer layers, the type cannot be run, or the file cannot be written.
pub fn synth(
    shape: &str,
    options: &Options,
    destination: &Path,
    existing: Existing,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Fallback>, SynthError> {
    let header = Header::new(shape, options)?;
    let tensors = &header.tensors;
    let fillings =
        tensors.iter().map(Filling::new).collect::<Result<Vec<_>, crate::quant::QuantError>>()?;
    let mut writer = header.write(destination, existing)?;
    let lengths: Vec<usize> = tensors.iter().filter_map(TensorHeader::byte_len).collect();
    let (mut done, total) = (0, lengths.iter().map(|bytes| *bytes as u64).sum());
    // One thread writes while the others make what comes next; buffers go back and forth.
    let (to_write, made) = sync_channel::<Vec<u8>>(1);
    let (written, empty) = channel();
    let writer = thread::scope(|scope| {
        let writing = scope.spawn(move || -> Result<Writer, FormatError> {
            for piece in made {
                writer.write(&piece)?;
                // It is gone once everything is made.
                let _ = written.send(piece);
            }
            Ok(writer)
        });
        'making: for (index, ((tensor, filling), bytes)) in
            tensors.iter().zip(&fillings).zip(lengths).enumerate()
        {
            // Whole blocks, so that a chunk's bytes do not depend on its neighbours.
            let block = tensor.dtype.block_bytes();
            let chunk = CHUNK / block * block;
            let (mut left, mut first) = (bytes, 0);
            while left > 0 {
                let mut piece: Vec<u8> = empty.try_recv().unwrap_or_default();
                piece.resize(left.min(chunk * CHUNKS), 0);
                piece.par_chunks_mut(chunk).enumerate().for_each(|(offset, out)| {
                    filling.fill(&mut random::Words::new(options.seed, index, first + offset), out);
                });
                left -= piece.len();
                first += CHUNKS;
                done += piece.len() as u64;
                if to_write.send(piece).is_err() {
                    // The other thread has failed, and says why when it is joined.
                    break 'making;
                }
                progress(done, total);
            }
        }
        drop(to_write);
        writing.join().unwrap_or_else(|panic| resume_unwind(panic))
    })?;
    writer.finish()?;
    Ok(header.fallbacks)
}
