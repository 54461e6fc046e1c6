//! The rotation in GGUF: the keys and tensors that llama.cpp reads.

use super::super::super::spec::{RopeStyle, TensorSource};
use super::super::super::weights::read_vector;
use super::super::super::{ModelError, file_name};
use super::super::Factors;
use super::super::keys::Keys;
use super::{
    BETA_FAST, BETA_SLOW, RopeNumbers, Scaling, check_divisors, dims_are_right, yarn_magnitude,
};
use crate::format::gguf::Metadata;

impl RopeNumbers {
    /// Sets the keys of these numbers, which are `ARCHITECTURE.rope.*`. The returned tensors belong in the file too.
    pub fn to_gguf(&self, architecture: &str, metadata: &mut Metadata) -> Vec<Factors> {
        let key = |name: &str| format!("{architecture}.rope.{name}");
        let factors = |name: &str, values: &[f32]| Factors {
            name: format!("{name}.weight"),
            values: values.to_vec(),
        };
        metadata.set(&key("dimension_count"), self.dims as u32);
        metadata.set(&key("freq_base"), self.base as f32);
        match &self.scaling {
            Scaling::None => {}
            Scaling::Linear { factor } => {
                metadata.set(&key("scaling.type"), "linear");
                metadata.set(&key("scaling.factor"), *factor as f32);
            }
            Scaling::Llama3 { .. } | Scaling::Divided { .. } => {
                let scaled = self.rope(RopeStyle::Halves).inverse_frequencies;
                let powers = self.powers();
                let by = powers.iter().zip(scaled).map(|(power, f)| 1.0 / power / f);
                return vec![factors("rope_freqs", &by.collect::<Vec<_>>())];
            }
            Scaling::Yarn { factor, original, beta_fast, beta_slow, magnitude, .. } => {
                metadata.set(&key("scaling.type"), "yarn");
                metadata.set(&key("scaling.factor"), *factor as f32);
                metadata.set(&key("scaling.original_context_length"), *original as u32);
                metadata.set(&key("scaling.yarn_beta_fast"), *beta_fast as f32);
                metadata.set(&key("scaling.yarn_beta_slow"), *beta_slow as f32);
                // llama.cpp multiplies the paper's magnitude with it.
                let times = magnitude / yarn_magnitude(*factor, 1.0);
                if times != 1.0 {
                    metadata.set(&key("scaling.attn_factor"), times as f32);
                }
            }
            Scaling::Long { short, long, original, magnitude } => {
                metadata.set(&key("scaling.type"), "longrope");
                metadata.set(&key("scaling.original_context_length"), *original as u32);
                metadata.set(&key("scaling.attn_factor"), *magnitude as f32);
                return vec![
                    factors("rope_factors_long", long),
                    factors("rope_factors_short", short),
                ];
            }
        }
        Vec::new()
    }
}

/// The keys and tensors of llama.cpp. It has no key for whether YaRN rounds its bounds; `yarn_truncates` says what the
/// family does.
///
/// # Errors
/// A kind of scaling that we do not have, by its name; numbers that make no rotation; damaged tensors.
pub fn from_gguf(
    keys: &Keys,
    head_dim: usize,
    yarn_truncates: bool,
) -> Result<RopeNumbers, ModelError> {
    let base = f64::from(keys.f32("rope.freq_base")?.unwrap_or(10000.0));
    if !(base > 1.0 && base.is_finite()) {
        return Err(keys.error("rope.freq_base", "a number above 1", base));
    }
    let dims = keys.size("rope.dimension_count")?.unwrap_or(head_dim);
    if !dims_are_right(dims, head_dim) {
        let expected = format!("an even number up to the head's {head_dim} elements");
        return Err(keys.error("rope.dimension_count", &expected, dims));
    }
    let positive = |key: &str| match keys.f32(key)? {
        Some(number) if !(number.is_finite() && number > 0.0) => {
            Err(keys.error(key, "a positive number", number))
        }
        number => Ok(number.map(f64::from)),
    };
    // llama.cpp takes 0 for "not there".
    let factor = match keys.f32("rope.scaling.factor")?.or(keys.f32("rope.scale_linear")?) {
        Some(0.0) | None => None,
        Some(_) => positive("rope.scaling.factor")?.or(positive("rope.scale_linear")?),
    };
    let original = || {
        let original = keys.size("rope.scaling.original_context_length")?;
        match original {
            Some(original) => Ok(original),
            None => keys.required_size("context_length"),
        }
    };
    let divisors = |name: &str| {
        if keys.checkpoint.tensor(name).is_none() {
            return Ok::<_, ModelError>(None);
        }
        let divisors = read_vector(keys.checkpoint, &TensorSource::vector(name, dims / 2))?;
        check_divisors(&divisors, dims / 2).map_err(|(expected, found)| {
            let (file, key) = (file_name(keys.checkpoint), name.to_string());
            ModelError::Configuration { file, key, expected, found }
        })?;
        Ok(Some(divisors))
    };
    let times = positive("rope.scaling.attn_factor")?.unwrap_or(1.0);
    let kind = keys.string("rope.scaling.type")?;
    let long = divisors("rope_factors_long.weight")?;
    let scaling = match (kind, long) {
        // Converters of Phi-3 write the factors and no type.
        (None | Some("longrope"), Some(long)) => {
            let short = divisors("rope_factors_short.weight")?;
            let short = short.ok_or_else(|| ModelError::MissingTensor {
                file: file_name(keys.checkpoint),
                tensor: "rope_factors_short.weight".to_string(),
                expected: vec![dims / 2],
            })?;
            Scaling::Long { short, long, original: original()?, magnitude: times }
        }
        (Some("longrope"), None) => {
            return Err(ModelError::MissingTensor {
                file: file_name(keys.checkpoint),
                tensor: "rope_factors_long.weight".to_string(),
                expected: vec![dims / 2],
            });
        }
        (Some("yarn"), _) => {
            let factor = factor.unwrap_or(1.0);
            let magnitude = match (
                positive("rope.scaling.yarn_attn_factor")?,
                keys.f32("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0),
            ) {
                // Converters write `attention_factor` of config.json, which is all of it.
                (Some(magnitude), _) => magnitude,
                (None, 0.0) => yarn_magnitude(factor, 1.0),
                (None, all) => yarn_magnitude(factor, 1.0) / yarn_magnitude(factor, f64::from(all)),
            };
            let magnitude = magnitude * times;
            if !(magnitude.is_finite() && magnitude > 0.0) {
                let key = "rope.scaling.yarn_log_multiplier";
                return Err(keys.error(key, "a magnitude above 0", magnitude));
            }
            Scaling::Yarn {
                factor,
                original: original()?,
                beta_fast: positive("rope.scaling.yarn_beta_fast")?.unwrap_or(BETA_FAST),
                beta_slow: positive("rope.scaling.yarn_beta_slow")?.unwrap_or(BETA_SLOW),
                truncate: yarn_truncates,
                magnitude,
            }
        }
        (Some("none"), _) | (None | Some("linear"), _)
            if kind == Some("none") || factor.is_none() =>
        {
            match divisors("rope_freqs.weight")? {
                Some(by) => Scaling::Divided { by },
                None => Scaling::None,
            }
        }
        (None | Some("linear"), _) => Scaling::Linear { factor: factor.unwrap_or(1.0) },
        (Some(other), _) => {
            let known = "none, linear, yarn or longrope";
            return Err(keys.error("rope.scaling.type", known, other));
        }
    };
    let has_divisors = keys.checkpoint.tensor("rope_freqs.weight").is_some();
    if has_divisors && !matches!(scaling, Scaling::Divided { .. }) {
        let found = "other scaling as well";
        return Err(keys.error("rope.scaling.type", "none beside `rope_freqs.weight`", found));
    }
    Ok(RopeNumbers { base, dims, scaling })
}
