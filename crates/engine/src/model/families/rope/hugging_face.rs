//! The rotation in `config.json`.

use super::super::super::ModelError;
use super::super::json::Json;
use super::{
    BETA_FAST, BETA_SLOW, RopeNumbers, Scaling, check_divisors, dims_are_right, yarn_magnitude,
};

/// The parameters of `transformers` 5, or else the older ones that they replace.
///
/// # Errors
/// As [`from_parameters`].
pub fn from_hugging_face(
    config: &Json,
    head_dim: usize,
    default_base: f64,
) -> Result<RopeNumbers, ModelError> {
    let scaling = config.object("rope_scaling")?;
    let parameters = match scaling {
        Some(scaling) => Some(scaling),
        None => config.object("rope_parameters")?,
    };
    let base = config.f64("rope_theta")?.unwrap_or(default_base);
    from_parameters(config, parameters.as_ref(), head_dim, base)
}

/// From one dictionary of parameters, such as that of one kind of layers; `base` is for one without `rope_theta`.
///
/// # Errors
/// A kind of scaling that we do not have, by its name; numbers that make no rotation.
pub fn from_parameters(
    config: &Json,
    parameters: Option<&Json>,
    head_dim: usize,
    base: f64,
) -> Result<RopeNumbers, ModelError> {
    let p = parameters.unwrap_or(config);
    let base = match parameters {
        Some(p) => p.f64("rope_theta")?.unwrap_or(base),
        None => base,
    };
    if !(base > 1.0 && (base as f32).is_finite()) {
        return Err(p.error("rope_theta", "a number above 1", base));
    }
    let (inside, outside) = (p.f64("partial_rotary_factor")?, config.f64("partial_rotary_factor")?);
    let part = inside.or(outside).unwrap_or(1.0);
    let dims = (head_dim as f64 * part) as usize;
    if !dims_are_right(dims, head_dim) {
        return Err(if part == 1.0 {
            config.error("head_dim", "an even number up to 65536", head_dim)
        } else {
            let expected = format!("an even part of the head's {head_dim} elements");
            p.error("partial_rotary_factor", &expected, part)
        });
    }
    let kind = match parameters {
        Some(p) => p.string("rope_type")?.or(p.string("type")?).unwrap_or("default"),
        None => "default",
    };
    let positive = |key: &str| match p.f64(key)? {
        Some(number) if !(number > 0.0 && (number as f32).is_finite()) => {
            Err(p.error(key, "a positive number", number))
        }
        number => Ok(number),
    };
    let required = |key: &str| positive(key)?.ok_or_else(|| p.missing(key, "a positive number"));
    let context = config.size("max_position_embeddings")?;
    let original = || {
        let key = "original_max_position_embeddings";
        let original = config.size(key)?.or(p.size(key)?).or(context);
        original.ok_or_else(|| p.missing(key, "a positive integer"))
    };
    let scaling = match kind {
        "default" => Scaling::None,
        "linear" => Scaling::Linear { factor: required("factor")? },
        "llama3" => {
            let (low, high) = (required("low_freq_factor")?, required("high_freq_factor")?);
            if low >= high {
                let expected = format!("a number above low_freq_factor {low}");
                return Err(p.error("high_freq_factor", &expected, high));
            }
            Scaling::Llama3 { factor: required("factor")?, low, high, original: original()? }
        }
        "yarn" => {
            let original = original()?;
            let ratio = context.unwrap_or(original) as f64 / original as f64;
            let factor = positive("factor")?.unwrap_or(ratio);
            let given =
                (positive("attention_factor")?, positive("mscale")?, positive("mscale_all_dim")?);
            let magnitude = match given {
                (Some(magnitude), ..) => magnitude,
                (None, Some(weight), Some(all)) => {
                    yarn_magnitude(factor, weight) / yarn_magnitude(factor, all)
                }
                _ => yarn_magnitude(factor, 1.0),
            };
            let beta_fast = positive("beta_fast")?.unwrap_or(BETA_FAST);
            let beta_slow = positive("beta_slow")?.unwrap_or(BETA_SLOW);
            let truncate = p.bool("truncate")?.unwrap_or(true);
            Scaling::Yarn { factor, original, beta_fast, beta_slow, truncate, magnitude }
        }
        "longrope" | "su" => {
            let original = original()?;
            let ratio = context.unwrap_or(original) as f64 / original as f64;
            let factor = positive("factor")?.unwrap_or(ratio);
            let magnitude = match positive("attention_factor")? {
                Some(magnitude) => magnitude,
                None if factor <= 1.0 => 1.0,
                None if original == 1 => {
                    let expected = "an integer above 1";
                    return Err(p.error("original_max_position_embeddings", expected, original));
                }
                None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
            };
            let divisors = |key: &str| {
                let divisors = p.f32s(key)?.ok_or_else(|| p.missing(key, "a list of numbers"))?;
                check_divisors(&divisors, dims / 2)
                    .map_err(|(expected, found)| p.error(key, &expected, found))?;
                Ok::<_, ModelError>(divisors)
            };
            let (short, long) = (divisors("short_factor")?, divisors("long_factor")?);
            Scaling::Long { short, long, original, magnitude }
        }
        other => {
            let key = if p.has("rope_type") { "rope_type" } else { "type" };
            return Err(p.error(key, "default, linear, llama3, yarn or longrope", other));
        }
    };
    Ok(RopeNumbers { base, dims, scaling })
}
