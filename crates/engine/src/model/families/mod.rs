//! The model families: each file maps a checkpoint's configuration and tensor names to a decoder.

mod decoder;
mod gemma3;
mod gemma3_gguf;
mod gpt2;
mod gpt2_gguf;
mod gpt_oss;
mod gpt_oss_gguf;
mod json;
mod keys;
mod llama;
mod llama_gguf;
mod mistral;
mod numbers;
mod phi3;
mod phi3_gguf;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod rope;
mod windows;

use super::{DecoderSource, ModelDescription, ModelError, file_name};
use crate::format::{Checkpoint, DType, FormatError, gguf, hugging_face};
use json::Json;

/// One family: how it is called in each format, and how it is read from it.
struct Family {
    /// `general.architecture` in GGUF; none for a family that is part of another one there.
    gguf: &'static [&'static str],
    /// `model_type` in `config.json`.
    hugging_face: &'static [&'static str],
    from_gguf: fn(&Checkpoint, &gguf::Metadata) -> Result<ModelDescription, ModelError>,
    from_hugging_face: fn(&Checkpoint, &Json) -> Result<ModelDescription, ModelError>,
    to_gguf: fn(&Checkpoint, &Json) -> Result<GgufForm, ModelError>,
    /// The names of the published sizes.
    shapes: fn() -> Vec<&'static str>,
    /// The form of one of them.
    shape: fn(&str) -> Option<GgufForm>,
}

/// A model as a GGUF file has it.
pub struct GgufForm {
    /// The keys of the architecture.
    pub metadata: gguf::Metadata,
    /// The decoder with the names of the tensors in the file. Its weights come in the same order as those of the
    /// decoder that the model was read to.
    pub decoder: DecoderSource,
    /// How the weights are read from the checkpoint that is converted, where the GGUF file has them in another order
    /// than the decoder that the model was read to.
    pub source: Option<DecoderSource>,
    /// What is in the file beside the weights.
    pub factors: Vec<Factors>,
}

/// A vector of a GGUF file that is part of a model's configuration: the divisors of a rotation.
pub struct Factors {
    /// The tensor.
    pub name: String,
    /// One for each pair.
    pub values: Vec<f32>,
}

/// The keys of the ids that end an answer.
pub const GGUF_END_TOKENS: [&str; 3] =
    ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// The `model_type` of gpt-oss.
const GPT_OSS: &str = "gpt_oss";

const FAMILIES: &[Family] = &[
    Family {
        gguf: &["gpt2"],
        hugging_face: &["gpt2"],
        from_gguf: gpt2::from_gguf,
        from_hugging_face: gpt2::from_hugging_face,
        to_gguf: gpt2_gguf::from_hugging_face,
        shapes: gpt2_gguf::shapes,
        shape: gpt2_gguf::shape,
    },
    Family {
        gguf: &["llama"],
        hugging_face: &["llama"],
        from_gguf: llama::from_gguf,
        from_hugging_face: llama::from_hugging_face,
        to_gguf: llama_gguf::from_hugging_face,
        shapes: llama_gguf::shapes,
        shape: llama_gguf::shape,
    },
    // GGUF files of Mistral have the architecture llama.
    Family {
        gguf: &[],
        hugging_face: &["mistral"],
        from_gguf: llama::from_gguf,
        from_hugging_face: mistral::from_hugging_face,
        to_gguf: mistral::to_gguf,
        shapes: mistral::shapes,
        shape: mistral::shape,
    },
    Family {
        gguf: &["phi3"],
        hugging_face: &["phi3"],
        from_gguf: phi3::from_gguf,
        from_hugging_face: phi3::from_hugging_face,
        to_gguf: phi3_gguf::from_hugging_face,
        shapes: phi3_gguf::shapes,
        shape: phi3_gguf::shape,
    },
    Family {
        gguf: &["gemma3"],
        hugging_face: &["gemma3", "gemma3_text"],
        from_gguf: gemma3::from_gguf,
        from_hugging_face: gemma3::from_hugging_face,
        to_gguf: gemma3_gguf::from_hugging_face,
        shapes: gemma3_gguf::shapes,
        shape: gemma3_gguf::shape,
    },
    Family {
        gguf: &["gpt-oss"],
        hugging_face: &[GPT_OSS],
        from_gguf: gpt_oss::from_gguf,
        from_hugging_face: gpt_oss::from_hugging_face,
        to_gguf: gpt_oss_gguf::from_hugging_face,
        shapes: gpt_oss_gguf::shapes,
        shape: gpt_oss_gguf::shape,
    },
    Family {
        gguf: &["qwen2"],
        hugging_face: &["qwen2"],
        from_gguf: qwen2::from_gguf,
        from_hugging_face: qwen2::from_hugging_face,
        to_gguf: qwen2::to_gguf,
        shapes: qwen2::shapes,
        shape: qwen2::shape,
    },
    Family {
        gguf: &["qwen3"],
        hugging_face: &["qwen3"],
        from_gguf: qwen3::from_gguf,
        from_hugging_face: qwen3::from_hugging_face,
        to_gguf: qwen3::to_gguf,
        shapes: qwen3::shapes,
        shape: qwen3::shape,
    },
    Family {
        gguf: &["qwen3moe"],
        hugging_face: &["qwen3_moe"],
        from_gguf: qwen3_moe::from_gguf,
        from_hugging_face: qwen3_moe::from_hugging_face,
        to_gguf: qwen3_moe::to_gguf,
        shapes: qwen3_moe::shapes,
        shape: qwen3_moe::shape,
    },
];

/// The names of all families, in either format.
pub fn names() -> Vec<&'static str> {
    let mut names: Vec<_> =
        FAMILIES.iter().flat_map(|f| [f.gguf, f.hugging_face].concat()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The names of all published sizes, for [`shape`].
pub fn shapes() -> Vec<&'static str> {
    FAMILIES.iter().flat_map(|family| (family.shapes)()).collect()
}

/// The GGUF form of a published size.
pub fn shape(name: &str) -> Option<GgufForm> {
    FAMILIES.iter().find_map(|family| (family.shape)(name))
}

/// The type that the matrices of a published size have in its GGUF files, or F16 where they come in several types.
pub fn published_type(shape: &str) -> DType {
    if gpt_oss_gguf::shapes().contains(&shape) { DType::MXFP4 } else { DType::F16 }
}

/// Reads the description of a model from GGUF metadata.
pub fn from_gguf(
    checkpoint: &Checkpoint,
    metadata: &gguf::Metadata,
) -> Result<ModelDescription, ModelError> {
    let architecture = metadata.architecture()?;
    let Some(family) = FAMILIES.iter().find(|f| f.gguf.contains(&architecture)) else {
        return Err(ModelError::UnknownArchitecture {
            file: file_name(checkpoint),
            found: architecture.to_string(),
        });
    };
    let mut description = (family.from_gguf)(checkpoint, metadata)?;
    description.name = metadata.string("general.name")?.map(str::to_string);
    for key in GGUF_END_TOKENS {
        description.end_tokens.extend(metadata.u32(key)?);
    }
    let generation = &mut description.generation;
    generation.temperature = metadata.f32("general.sampling.temp")?;
    generation.top_k = metadata.u32("general.sampling.top_k")?;
    generation.top_p = metadata.f32("general.sampling.top_p")?;
    generation.min_p = metadata.f32("general.sampling.min_p")?;
    generation.repeat_penalty = metadata.f32("general.sampling.penalty_repeat")?;
    Ok(description)
}

/// Reads the description of a model from a Hugging Face directory's JSON files.
pub fn from_hugging_face(
    checkpoint: &Checkpoint,
    files: &hugging_face::Files,
) -> Result<ModelDescription, ModelError> {
    let (family, config) = hugging_face_family(files)?;
    let mut description = (family.from_hugging_face)(checkpoint, &config)?;
    description.end_tokens = config.ids("eos_token_id")?;
    if let Some(map) = &files.generation_config {
        let generation_config = Json::new(files.directory.join("generation_config.json"), map);
        let ids = generation_config.ids("eos_token_id")?;
        if !ids.is_empty() {
            description.end_tokens = ids;
        }
        let generation = &mut description.generation;
        generation.temperature = generation_config.f32("temperature")?;
        generation.top_k = generation_config.u32("top_k")?;
        generation.top_p = generation_config.f32("top_p")?;
        generation.min_p = generation_config.f32("min_p")?;
        generation.repeat_penalty = generation_config.f32("repetition_penalty")?;
    }
    Ok(description)
}

/// The GGUF form of a Hugging Face checkpoint.
///
/// # Errors
/// When the model has an option that GGUF has no key for.
pub fn to_gguf(
    checkpoint: &Checkpoint,
    files: &hugging_face::Files,
) -> Result<GgufForm, ModelError> {
    let (family, config) = hugging_face_family(files)?;
    (family.to_gguf)(checkpoint, &config)
}

fn hugging_face_family(
    files: &hugging_face::Files,
) -> Result<(&'static Family, Json<'_>), ModelError> {
    let config = Json::new(files.directory.join("config.json"), &files.config);
    let model_type = match config.string("model_type")? {
        Some(model_type) => model_type,
        None if gpt_oss::is_original(&config) => GPT_OSS,
        None => return Err(config.missing("model_type", "a name")),
    };
    let Some(family) = FAMILIES.iter().find(|f| f.hugging_face.contains(&model_type)) else {
        return Err(ModelError::UnknownArchitecture {
            file: config.file(),
            found: model_type.to_string(),
        });
    };
    // The one quantization that a directory may have is that of gpt-oss.
    if config.has("quantization_config") && model_type != GPT_OSS {
        return Err(ModelError::Format(FormatError::Quantized {
            directory: files.directory.display().to_string(),
            method: "mxfp4".to_string(),
        }));
    }
    Ok((family, config))
}
