//! From a GGUF file to one whose matrices have other types, row by row.
//!
//! Which tensor gets which type is what llama.cpp's quantizer chooses (`llama_tensor_get_type` in its `llama-quant.cpp`):
//! files of the same name then have the same types, and figures can be compared.

use std::path::Path;

use crate::format::gguf::{
    Existing, Metadata, TensorHeader, Writer, check_destination, file_type, fitting, is_of_experts,
    keeps_f32, matrix_type,
};
use crate::format::{Checkpoint, DType, FormatError, Source, TensorInfo};
use crate::quant::{self, QuantError};

/// Elements that are held as F32 at once, to within a row.
const VALUES: usize = 1 << 22;

/// What the matrices of a file become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// One type.
    Type(DType),
    /// Mostly Q4_K.
    Q4KM,
    /// Mostly Q5_K.
    Q5KM,
}

/// The names and numbers (`enum llama_ftype`) of the mixes.
const MIXES: [(&str, Target, u32); 2] =
    [("Q4_K_M", Target::Q4KM, 15), ("Q5_K_M", Target::Q5KM, 17)];

impl Target {
    /// The target of that name, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        let mix = MIXES.iter().find(|(mix, ..)| mix.eq_ignore_ascii_case(name));
        let types = quant::QUANTIZABLE.iter().copied();
        let mut types = types.filter(|dtype| dtype.name().eq_ignore_ascii_case(name));
        mix.map(|(_, target, _)| *target).or_else(|| types.next().map(Target::Type))
    }

    /// The names of all targets.
    pub fn names() -> Vec<&'static str> {
        let types = quant::QUANTIZABLE.iter().map(|dtype| dtype.name());
        types.chain(MIXES.iter().map(|(name, ..)| *name)).collect()
    }

    fn file_type(self) -> Option<u32> {
        match self {
            Target::Type(dtype) => file_type(dtype),
            mix => MIXES.iter().find(|(_, target, _)| *target == mix).map(|(.., number)| *number),
        }
    }

    /// The type that most matrices get.
    fn main(self) -> DType {
        match self {
            Target::Type(dtype) => dtype,
            Target::Q4KM => DType::Q4_K,
            Target::Q5KM => DType::Q5_K,
        }
    }

    /// The type of a matrix, before its rows are looked at.
    fn choose(self, name: &str, model: &Facts, is_head: bool) -> DType {
        let main = self.main();
        if is_head {
            // Errors of the last product go straight to the logits.
            return match main {
                DType::Q8_0 | DType::MXFP4 => DType::Q8_0,
                _ if main.block_size() == 1 => main,
                _ => DType::Q6_K,
            };
        }
        if let Target::Type(_) = self {
            return main;
        }
        let (layer, part) = layer_and_part(name).unwrap_or((0, name));
        let more = more_bits(layer, model.layers);
        match part {
            // Of Mixtral: what all experts share is small beside them.
            "attn_v.weight" | "attn_qkv.weight" | "attn_k.weight" if model.experts == 8 => {
                DType::Q8_0
            }
            "attn_output.weight" if model.experts == 8 && main == DType::Q4_K => DType::Q5_K,
            "attn_v.weight" | "attn_qkv.weight" | "ffn_down.weight" | "ffn_down_exps.weight"
                if more =>
            {
                DType::Q6_K
            }
            // Eight heads share it, so it is small and its errors count eight times.
            "attn_v.weight" | "attn_qkv.weight" if model.is_70b && main == DType::Q4_K => {
                DType::Q5_K
            }
            _ => main,
        }
    }
}

/// What the choice of types depends on besides a tensor's name.
#[derive(Clone, Copy, Debug, Default)]
struct Facts {
    layers: usize,
    experts: usize,
    /// What llama.cpp takes for a model of about 70 billion parameters.
    is_70b: bool,
}

impl Facts {
    fn of(metadata: &Metadata) -> Result<Self, FormatError> {
        let architecture = metadata.architecture()?;
        let number = |key: &str| metadata.usize(&format!("{architecture}.{key}"));
        let layers = number("block_count")?.unwrap_or(0);
        let experts = number("expert_count")?.unwrap_or(0);
        let is_70b = layers == 80
            && match architecture {
                "llama" => {
                    let heads = number("attention.head_count")?;
                    number("attention.head_count_kv")?.is_some_and(|kv| Some(kv) != heads)
                }
                "qwen2" => true,
                _ => false,
            };
        Ok(Facts { layers, experts, is_70b })
    }
}

/// `blk.7.ffn_down.weight` is part `ffn_down.weight` of layer 7.
fn layer_and_part(name: &str) -> Option<(usize, &str)> {
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

/// The layers whose errors matter most: the first and the last eighth, and every third between.
fn more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// Why a file was not quantized.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// What comes from [`crate::format`], a full disk included.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The source is not GGUF.
    #[error("{file} is a directory, expected a GGUF file (convert it first)")]
    NotGguf {
        /// The source.
        file: String,
    },
    /// The destination is read.
    #[error("{file} is part of the model that is read, expected another destination")]
    Source {
        /// The destination.
        file: String,
    },
    /// A tensor whose numbers cannot be read or written.
    #[error("{file}: tensor `{tensor}`: {cause}")]
    Tensor {
        /// The source.
        file: String,
        /// The tensor.
        tensor: String,
        /// Why.
        cause: QuantError,
    },
}

/// What is to be known about a file that was quantized.
#[derive(Debug, Default)]
pub struct Quantized {
    /// Tensors that got another type than they should, since their rows are no whole blocks.
    pub fallbacks: Vec<TensorHeader>,
    /// The types of tensors that were quantized before, and what they became where that loses something.
    pub requantized: Vec<(DType, DType)>,
}

/// Writes the model in the GGUF file `source` to `destination` with the types of `target`. `progress` is told the bytes
/// written so far and in total.
///
/// # Errors
/// When the source is damaged, or the destination cannot be written. There is no file then, or the one that was there
/// before.
pub fn quantize(
    source: &Path,
    destination: &Path,
    target: Target,
    existing: Existing,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Quantized, QuantizeError> {
    let checkpoint = Checkpoint::open(source)?;
    let Source::Gguf(metadata) = checkpoint.source() else {
        return Err(QuantizeError::NotGguf { file: source.display().to_string() });
    };
    if let Ok(there) = destination.canonicalize()
        && checkpoint
            .file_names()
            .any(|name| Path::new(name).canonicalize().is_ok_and(|p| p == there))
    {
        return Err(QuantizeError::Source { file: destination.display().to_string() });
    }
    check_destination(destination, existing)?;

    let facts = Facts::of(metadata)?;
    let tied = checkpoint.tensor("output.weight").is_none();
    let has_experts = checkpoint.tensors().iter().any(|tensor| is_of_experts(&tensor.shape));
    let mut quantized = Quantized::default();
    let headers: Vec<TensorHeader> = checkpoint
        .tensors()
        .iter()
        .map(|tensor| header(tensor, target, &facts, tied, has_experts, &mut quantized))
        .collect();

    let metadata = new_metadata(metadata, target);
    let mut writer = Writer::create(destination, existing, &metadata, &headers)?;
    let total = headers.iter().filter_map(TensorHeader::byte_len).map(|bytes| bytes as u64).sum();
    let mut done = 0;
    for (tensor, header) in checkpoint.tensors().iter().zip(&headers) {
        rewrite(&checkpoint, tensor, header.dtype, &mut |bytes| {
            writer.write(bytes)?;
            done += bytes.len() as u64;
            progress(done, total);
            Ok(())
        })?;
    }
    writer.finish()?;
    Ok(quantized)
}

fn header(
    tensor: &TensorInfo,
    target: Target,
    facts: &Facts,
    tied: bool,
    has_experts: bool,
    quantized: &mut Quantized,
) -> TensorHeader {
    let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
    // gpt-oss was trained with its experts in MXFP4; what others publish of it has them so, whatever block type the rest has.
    let is_plain = matches!(target, Target::Type(dtype) if dtype.block_size() == 1);
    let was_trained_so = tensor.dtype == DType::MXFP4 && is_of_experts(&shape) && !is_plain;
    if keeps_f32(&name, &shape) || was_trained_so {
        return TensorHeader { name, dtype: tensor.dtype, shape };
    }
    let is_head = name == "output.weight" || tied && name == "token_embd.weight";
    let wanted = matrix_type(target.choose(&name, facts, is_head), &shape, has_experts);
    let dtype = fitting(wanted, shape.last().copied().unwrap_or(1));
    let header = TensorHeader { name, dtype, shape };
    if dtype != wanted {
        quantized.fallbacks.push(header.clone());
    }
    let change = (tensor.dtype, dtype);
    // As F32, blocks stay exactly what they are.
    let loses = tensor.dtype.block_size() > 1 && dtype != tensor.dtype && dtype != DType::F32;
    if loses && !quantized.requantized.contains(&change) {
        quantized.requantized.push(change);
    }
    header
}

/// The source's metadata, which is no part of a set any more, with the new type.
fn new_metadata(source: &Metadata, target: Target) -> Metadata {
    let mut metadata = Metadata::new(source.file().to_string());
    for (key, value) in source.iter().filter(|(key, _)| !key.starts_with("split.")) {
        metadata.set(key, value.clone());
    }
    if let Some(number) = target.file_type() {
        metadata.set("general.file_type", number);
    }
    if target.main().block_size() > 1 {
        metadata.set("general.quantization_version", 2u32);
    }
    metadata
}

/// Hands over the bytes of a tensor in another type, some rows at a time.
fn rewrite(
    checkpoint: &Checkpoint,
    tensor: &TensorInfo,
    dtype: DType,
    write: &mut dyn FnMut(&[u8]) -> Result<(), FormatError>,
) -> Result<(), QuantizeError> {
    let stored = checkpoint.bytes(tensor);
    let cols = tensor.shape.last().copied().unwrap_or(1);
    let rows = (VALUES / cols).max(1);
    let failed = |cause| QuantizeError::Tensor {
        file: checkpoint.path().display().to_string(),
        tensor: tensor.name.clone(),
        cause,
    };
    let length = |dtype: DType, elements| {
        // The reader has checked the stored type, and the writer's header the new one.
        dtype.bytes_for(elements).expect("rows are whole blocks")
    };
    let (mut values, mut bytes) = (Vec::new(), Vec::new());
    let step = length(tensor.dtype, rows * cols);
    for start in (0..stored.len()).step_by(step) {
        let end = stored.len().min(start + step);
        let piece = stored.slice(start..end).expect("the range ends with the bytes");
        if dtype == tensor.dtype {
            write(&piece)?;
        } else {
            let elements = piece.len() / tensor.dtype.block_bytes() * tensor.dtype.block_size();
            values.resize(elements, 0.0);
            quant::dequantize(tensor.dtype, &piece, &mut values).map_err(failed)?;
            bytes.resize(length(dtype, elements), 0);
            quant::quantize(dtype, &values, &mut bytes).map_err(failed)?;
            write(&bytes)?;
        }
        // The whole file would stay in memory otherwise, where there is room for it.
        piece.release();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPT2: Facts = Facts { layers: 12, experts: 0, is_70b: false };

    #[test]
    fn mixes_are_those_of_llama_cpp_for_gpt2() {
        let types = |target: Target, part: &str| {
            let layers = (0..12).map(|layer| format!("blk.{layer}.{part}.weight"));
            layers.map(|name| target.choose(&name, &GPT2, false)).collect::<Vec<_>>()
        };
        // Layers 0, 3, 6, 9, 10 and 11 of 12.
        let more_in_some = |main: DType| {
            [1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 1, 1]
                .map(|more| if more == 1 { DType::Q6_K } else { main })
        };
        for part in ["ffn_down", "attn_qkv"] {
            assert_eq!(types(Target::Q4KM, part), more_in_some(DType::Q4_K));
            assert_eq!(types(Target::Q5KM, part), more_in_some(DType::Q5_K));
        }
        assert_eq!(types(Target::Q5KM, "ffn_up"), [DType::Q5_K; 12]);
        assert_eq!(types(Target::Type(DType::Q4_K), "ffn_down"), [DType::Q4_K; 12]);
        for (target, head) in [
            (Target::Q4KM, DType::Q6_K),
            (Target::Type(DType::Q4_0), DType::Q6_K),
            (Target::Type(DType::Q8_0), DType::Q8_0),
            (Target::Type(DType::MXFP4), DType::Q8_0),
            (Target::Type(DType::F16), DType::F16),
        ] {
            assert_eq!(target.choose("token_embd.weight", &GPT2, true), head);
        }
    }

    /// `llama_tensor_get_type_impl` of llama.cpp b11434.
    #[test]
    fn mixes_are_those_of_llama_cpp_for_grouped_queries_and_experts() {
        let grouped = Facts { layers: 32, experts: 0, is_70b: false };
        let large = Facts { layers: 80, experts: 0, is_70b: true };
        let mixtral = Facts { layers: 32, experts: 8, is_70b: false };
        let (q4, q5) = (Target::Q4KM, Target::Q5KM);
        for (target, facts, name, expected) in [
            // The first and the last eighth of the layers, and every third between.
            (q4, grouped, "blk.3.attn_v", DType::Q6_K),
            (q4, grouped, "blk.4.attn_v", DType::Q4_K),
            (q4, grouped, "blk.6.attn_v", DType::Q6_K),
            (q4, grouped, "blk.28.attn_v", DType::Q6_K),
            (q5, grouped, "blk.4.attn_v", DType::Q5_K),
            (q4, grouped, "blk.6.ffn_down", DType::Q6_K),
            (q4, grouped, "blk.6.ffn_down_exps", DType::Q6_K),
            (q4, grouped, "blk.7.ffn_down_exps", DType::Q4_K),
            (q4, grouped, "blk.6.ffn_gate_exps", DType::Q4_K),
            (q4, grouped, "blk.6.attn_k", DType::Q4_K),
            (q4, grouped, "blk.6.attn_output", DType::Q4_K),
            (q4, large, "blk.9.attn_v", DType::Q6_K),
            (q4, large, "blk.10.attn_v", DType::Q5_K),
            (q5, large, "blk.10.attn_v", DType::Q5_K),
            (q4, large, "blk.10.attn_k", DType::Q4_K),
            (q4, mixtral, "blk.6.attn_v", DType::Q8_0),
            (q4, mixtral, "blk.7.attn_k", DType::Q8_0),
            (q4, mixtral, "blk.7.attn_q", DType::Q4_K),
            (q4, mixtral, "blk.7.attn_output", DType::Q5_K),
            (q5, mixtral, "blk.7.attn_output", DType::Q5_K),
            (q4, mixtral, "blk.6.ffn_down_exps", DType::Q6_K),
        ] {
            let found = target.choose(&format!("{name}.weight"), &facts, false);
            assert_eq!(found, expected, "{target:?} {facts:?} {name}");
        }
    }

    #[test]
    fn targets_are_found_by_name() {
        for name in Target::names() {
            let target = Target::from_name(&name.to_lowercase()).unwrap();
            assert!(target.file_type().is_some(), "{name}");
        }
        assert_eq!(Target::from_name("Q9_9"), None);
    }
}
