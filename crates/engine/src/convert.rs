//! From a Hugging Face directory to a GGUF file, without loss.
//!
//! A family describes the same decoder twice, once with the names of each format; conversion walks both and writes each
//! weight under its other name, in rows of one output each. Matrices keep their type; vectors and what llama.cpp wants
//! in F32 become F32, which every F16 and BF16 number is.

use std::collections::HashSet;
use std::convert::Infallible;
use std::fs;
use std::path::Path;

use crate::backend::HostMatrix;
use crate::format::gguf::{
    Existing, Metadata, TensorHeader, Writer, check_destination, file_type, keeps_f32,
};
use crate::format::{Checkpoint, DType, FormatError, Source, hugging_face};
use crate::model::families::{self, Factors, GGUF_END_TOKENS, GgufForm};
use crate::model::spec::{MapWeights, TensorSource};
use crate::model::weights::{read, stored_type};
use crate::model::{DecoderSource, ModelDescription, ModelError, describe, gguf_tokenizer};
use crate::quant;
use crate::tokenizer;

/// Bytes that are written at once, so that progress is seen.
const PIECE: usize = 8 << 20;

/// Elements that are turned to F32 at once.
const VALUES: usize = 1 << 16;

/// Why a checkpoint was not converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The checkpoint is wrong, or has what GGUF cannot say.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// What comes from [`crate::format`], a full disk included.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The source has the format already.
    #[error("{file} is a GGUF file already, expected a directory in Hugging Face layout")]
    AlreadyGguf {
        /// The source.
        file: String,
    },
    /// The destination is read.
    #[error("{file} is part of the model that is read, expected another destination")]
    Source {
        /// The destination.
        file: String,
    },
}

/// What is to be known about a conversion that worked.
#[derive(Debug)]
pub struct Conversion {
    /// Tensors of the source that the model does not compute with, and that the GGUF file does not have.
    pub unused: Vec<String>,
}

/// Converts the Hugging Face directory `source` to the GGUF file `destination`. `progress` is told the bytes of weights
/// written so far and in total.
///
/// # Errors
/// When the checkpoint is wrong, has what GGUF cannot say, or the destination cannot be written. There is no file then,
/// or the one that was there before.
pub fn convert(
    source: &Path,
    destination: &Path,
    existing: Existing,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Conversion, ConvertError> {
    let checkpoint = Checkpoint::open(source)?;
    let Source::HuggingFace(files) = checkpoint.source() else {
        return Err(ConvertError::AlreadyGguf { file: source.display().to_string() });
    };
    refuse_source_file(source, destination)?;
    check_destination(destination, existing)?;

    let mut description = describe(&checkpoint)?;
    let GgufForm { mut metadata, decoder: mut target, mut source, factors } =
        families::to_gguf(&checkpoint, files)?;
    if head_is_embedding(&checkpoint, &description.decoder) {
        description.decoder.head.weight = None;
        if let Some(source) = &mut source {
            source.head.weight = None;
        }
        target.head.weight = None;
    }
    let pairs: Vec<(TensorSource, TensorSource)> =
        weights(source.as_ref().unwrap_or(&description.decoder))
            .into_iter()
            .zip(weights(&target))
            .collect();
    let mut tensors: Vec<TensorHeader> = factors.iter().map(factors_header).collect();
    for (from, to) in &pairs {
        tensors.push(header(&checkpoint, from, to)?);
    }

    let rows = target.embedding.vocab_size;
    add_metadata(&mut metadata, files, &description, rows)?;
    metadata.set("general.file_type", main_file_type(&tensors));

    let mut writer = Writer::create(destination, existing, &metadata, &tensors)?;
    let total = tensors.iter().filter_map(TensorHeader::byte_len).map(|bytes| bytes as u64).sum();
    let mut done = 0;
    let mut write = |bytes: &[u8]| {
        bytes.chunks(PIECE).try_for_each(|piece| {
            writer.write(piece)?;
            done += piece.len() as u64;
            progress(done, total);
            Ok(())
        })
    };
    for factors in &factors {
        write(&factors_bytes(factors))?;
    }
    for ((from, _), header) in pairs.iter().zip(&tensors[factors.len()..]) {
        write_tensor(&checkpoint, from, header, &mut write)?;
    }
    writer.finish()?;

    let used: HashSet<String> =
        pairs.iter().flat_map(|(from, _)| from.tensors()).map(|(name, _)| name).collect();
    let names = checkpoint.tensors().iter().map(|tensor| &tensor.name);
    let unused = names.filter(|name| !used.contains(*name)).cloned().collect();
    Ok(Conversion { unused })
}

/// Refuses a destination that is a file of the source, by whichever path.
fn refuse_source_file(source: &Path, destination: &Path) -> Result<(), ConvertError> {
    // What is not there yet has no such path.
    let Ok(there) = destination.canonicalize() else { return Ok(()) };
    let failed = |cause| FormatError::io(source, "list", cause);
    for entry in fs::read_dir(source).map_err(failed)? {
        let entry = entry.map_err(failed)?.path();
        if entry.canonicalize().is_ok_and(|entry| entry == there) {
            return Err(ConvertError::Source { file: destination.display().to_string() });
        }
    }
    Ok(())
}

/// Whether the head is a copy of the token embedding, as some tools write for models that share the two.
fn head_is_embedding(checkpoint: &Checkpoint, decoder: &DecoderSource) -> bool {
    let tensor = |source: &TensorSource| checkpoint.tensor(&source.name);
    let head = decoder.head.weight.as_ref().and_then(tensor);
    let (Some(head), Some(tokens)) = (head, tensor(&decoder.embedding.tokens)) else {
        return false;
    };
    head.dtype == tokens.dtype
        && head.shape == tokens.shape
        && *checkpoint.bytes(head) == *checkpoint.bytes(tokens)
}

/// The weights of a decoder, in the order in which it uses them.
pub(crate) fn weights(decoder: &DecoderSource) -> Vec<TensorSource> {
    struct Collect(Vec<TensorSource>);
    impl MapWeights<TensorSource, TensorSource> for Collect {
        type Matrix = ();
        type Vector = ();
        type Error = Infallible;

        fn matrix(&mut self, source: &TensorSource) -> Result<(), Infallible> {
            self.0.push(source.clone());
            Ok(())
        }

        fn vector(&mut self, source: &TensorSource) -> Result<(), Infallible> {
            self.matrix(source)
        }
    }
    let mut all = Collect(Vec::new());
    match decoder.map(&mut all) {
        Ok(_) => all.0,
        Err(never) => match never {},
    }
}

/// What a file says about a vector that is no weight.
pub(crate) fn factors_header(factors: &Factors) -> TensorHeader {
    let shape = vec![factors.values.len()];
    TensorHeader { name: factors.name.clone(), dtype: DType::F32, shape }
}

/// Its bytes.
pub(crate) fn factors_bytes(factors: &Factors) -> Vec<u8> {
    factors.values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn header(
    checkpoint: &Checkpoint,
    from: &TensorSource,
    to: &TensorSource,
) -> Result<TensorHeader, ModelError> {
    let Some(stored) = stored_type(checkpoint, from) else {
        return Err(ModelError::MissingTensor {
            file: checkpoint.path().display().to_string(),
            tensor: from.name.clone(),
            expected: from.shape_in_file(),
        });
    };
    let (name, shape) = (to.name.clone(), to.shape_in_file());
    let becomes_f32 = keeps_f32(&name, &shape) || from.plus != 0.0;
    let dtype = if becomes_f32 { DType::F32 } else { stored };
    Ok(TensorHeader { name, dtype, shape })
}

/// The number of the type that most matrix elements have.
fn main_file_type(tensors: &[TensorHeader]) -> u32 {
    let matrices = || tensors.iter().filter(|tensor| !keeps_f32(&tensor.name, &tensor.shape));
    let elements = |dtype: DType| -> usize {
        let of_type = matrices().filter(|tensor| tensor.dtype == dtype);
        of_type.map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    };
    let main = matrices().map(|tensor| tensor.dtype).max_by_key(|dtype| elements(*dtype));
    main.and_then(file_type).unwrap_or_default()
}

/// Everything that is no number of the architecture: the name, the sampling settings, the tokenizer.
fn add_metadata(
    metadata: &mut Metadata,
    files: &hugging_face::Files,
    description: &ModelDescription,
    rows: usize,
) -> Result<(), ModelError> {
    // A path such as `.` has no name of its own.
    let directory = files.directory.canonicalize().unwrap_or_else(|_| files.directory.clone());
    if let Some(name) = directory.file_name() {
        metadata.set("general.name", name.to_string_lossy().into_owned());
    }
    let generation = &description.generation;
    for (key, value) in [
        ("general.sampling.temp", generation.temperature),
        ("general.sampling.top_p", generation.top_p),
        ("general.sampling.min_p", generation.min_p),
        ("general.sampling.penalty_repeat", generation.repeat_penalty),
    ] {
        if let Some(value) = value {
            metadata.set(key, value);
        }
    }
    if let Some(top_k) = generation.top_k {
        // llama.cpp reads an i32, and more than that many tokens no model has.
        metadata.set("general.sampling.top_k", i32::try_from(top_k).unwrap_or(i32::MAX));
    }
    if tokenizer::to_gguf(&files.directory, Some(rows), metadata)? {
        // What reads the file must find nothing wrong with it.
        gguf_tokenizer(metadata)?;
    } else {
        let ends = &description.end_tokens;
        if ends.len() > GGUF_END_TOKENS.len() {
            return Err(ModelError::Configuration {
                file: files.directory.display().to_string(),
                key: "eos_token_id".to_string(),
                expected: format!("at most {} ids, as GGUF has keys for", GGUF_END_TOKENS.len()),
                found: format!("{ends:?}"),
            });
        }
        no_vocabulary(metadata, rows)?;
        for (key, id) in GGUF_END_TOKENS.iter().zip(ends) {
            metadata.set(key, *id);
        }
    }
    Ok(())
}

/// Says that there is no tokenizer, as llama.cpp wants it said.
pub(crate) fn no_vocabulary(metadata: &mut Metadata, rows: usize) -> Result<(), FormatError> {
    let key = format!("{}.vocab_size", metadata.architecture()?);
    metadata.set("tokenizer.ggml.model", "no_vocab");
    metadata.set(&key, u32::try_from(rows).unwrap_or(u32::MAX));
    Ok(())
}

/// Writes one tensor in rows of one output each, in its new type.
fn write_tensor(
    checkpoint: &Checkpoint,
    source: &TensorSource,
    header: &TensorHeader,
    write: &mut impl FnMut(&[u8]) -> Result<(), FormatError>,
) -> Result<(), ConvertError> {
    let HostMatrix { dtype, bytes: rows, .. } = read(checkpoint, source)?;
    if header.dtype == dtype && source.plus == 0.0 {
        write(&rows)?;
        rows.release();
        return Ok(());
    }
    let (mut values, mut bytes) = (vec![0.0; VALUES], Vec::with_capacity(VALUES * 4));
    for piece in rows.chunks(VALUES * dtype.block_bytes()) {
        let values = &mut values[..piece.len() / dtype.block_bytes()];
        quant::dequantize(dtype, piece, values).expect("the checked type is no block type");
        bytes.clear();
        bytes.extend(values.iter().flat_map(|value| (value + source.plus).to_le_bytes()));
        write(&bytes)?;
    }
    Ok(())
}
