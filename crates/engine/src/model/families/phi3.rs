//! Phi-3, Phi-3.5 and Phi-4: Llama with fused projections, windows, and LongRoPE over a part of each head.
//!
//! Abdin et al., "Phi-3 Technical Report" (2024). The options are those of `Phi3Config` in `transformers`.

use super::super::spec::Activation;
use super::super::{ModelDescription, ModelError};
use super::decoder::{self, HUGGING_FACE, Names, describe};
use super::json::Json;
use super::keys::Keys;
use super::numbers::{Defaults, Numbers, activation};
use super::rope::{self, Scaling};
use crate::format::{Checkpoint, gguf};

/// The names of llama.cpp.
pub(super) const GGUF: Names = Names { qkv: &["attn_qkv"], up: &["ffn_up"], ..decoder::GGUF };

/// From `general.architecture = phi3`.
pub fn from_gguf(
    checkpoint: &Checkpoint,
    metadata: &gguf::Metadata,
) -> Result<ModelDescription, ModelError> {
    let keys = Keys::new(checkpoint, metadata)?;
    if let Some(experts @ 1..) = keys.u32("expert_count")? {
        return Err(keys.error(
            "expert_count",
            "0, as Phi-3 with experts is not supported",
            experts,
        ));
    }
    let mut numbers = Numbers::from_gguf(&keys, Activation::Silu)?;
    numbers.ropes = vec![rope::from_gguf(&keys, numbers.head_dim, true)?];
    // Converters write 0 where there is none. llama.cpp does not look at it: beyond the window it is not exact.
    numbers.set_window(keys.u32("attention.sliding_window")?.map(|window| window as usize));
    Ok(describe("phi3", &numbers, &GGUF))
}

/// From `model_type = phi3`, with the names of `transformers`.
pub fn from_hugging_face(
    checkpoint: &Checkpoint,
    config: &Json,
) -> Result<ModelDescription, ModelError> {
    let (numbers, names) = hugging_face_numbers(checkpoint, config)?;
    Ok(describe("phi3", &numbers, &names))
}

/// The numbers in `config.json`, and the names.
pub(super) fn hugging_face_numbers(
    checkpoint: &Checkpoint,
    config: &Json,
) -> Result<(Numbers, Names), ModelError> {
    let defaults = Defaults { eps: 1e-5, ..Defaults::default() };
    let activation = activation(config, "hidden_act", "silu")?;
    let mut numbers = Numbers::from_hugging_face(checkpoint, config, &defaults, activation)?;
    let names = Names { qkv: &["self_attn.qkv_proj"], up: &["mlp.gate_up_proj"], ..HUGGING_FACE };
    let (names, has_head) = names.in_checkpoint(checkpoint, config, defaults.tied)?;
    numbers.head_rows = has_head.then_some(numbers.vocab_size);
    let rope = rope::from_hugging_face(config, numbers.head_dim, 10000.0)?;
    if !matches!(rope.scaling, Scaling::None | Scaling::Long { .. }) {
        let found = "another one";
        return Err(config.error("rope_scaling.type", "longrope, the only one of phi3", found));
    }
    numbers.ropes = vec![rope];
    numbers.set_window(config.size("sliding_window")?);
    Ok((numbers, names))
}
