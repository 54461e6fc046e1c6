//! The rotation of queries and keys, as `config.json` and GGUF metadata describe it.
//!
//! The formulas, and their order of operations in f32, are those of `modeling_rope_utils.py` in `transformers` 5.

mod gguf;
mod hugging_face;

pub use gguf::from_gguf;
pub use hugging_face::{from_hugging_face, from_parameters};

use std::f64::consts::TAU;

use super::super::spec::{Longer, Rope, RopeStyle};

/// The widest head that is rotated; no published model has one of more than 512.
const MAX_DIMS: usize = 1 << 16;

/// The numbers of a rotation.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeNumbers {
    /// Pair `i` of `dims / 2` turns by `base ^ (-2 i / dims)` a position, before scaling.
    pub base: f64,
    /// Elements of a head that are rotated; even.
    pub dims: usize,
    /// How the frequencies are changed for longer contexts.
    pub scaling: Scaling,
}

/// How frequencies are changed for longer contexts than a model was first trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1: the low ones divided, the high ones kept, those between mixed.
    Llama3 {
        /// What the low ones are divided by.
        factor: f64,
        /// Turns within the original context below which a frequency is low.
        low: f64,
        /// Turns within the original context above which a frequency is high.
        high: f64,
        /// The original context.
        original: usize,
    },
    /// Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models" (2023).
    Yarn {
        /// What the low ones are divided by.
        factor: f64,
        /// The original context.
        original: usize,
        /// Turns within the original context above which a frequency is kept.
        beta_fast: f64,
        /// Turns within the original context below which a frequency is divided.
        beta_slow: f64,
        /// Whether the bounds of the mixed ones are rounded to whole pairs.
        truncate: bool,
        /// What sine and cosine are multiplied with.
        magnitude: f64,
    },
    /// Ding et al., "LongRoPE" (2024): each divided by a factor of its own, another one for long sequences.
    Long {
        /// Divisors for sequences within the original context.
        short: Vec<f32>,
        /// Divisors for longer sequences.
        long: Vec<f32>,
        /// The original context.
        original: usize,
        /// What sine and cosine are multiplied with.
        magnitude: f64,
    },
    /// Each divided by a factor of its own: what GGUF stores for Llama 3.1.
    Divided {
        /// The divisors.
        by: Vec<f32>,
    },
}

/// What YaRN multiplies sine and cosine with, section 3.4 of the paper.
pub(super) fn yarn_magnitude(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}

impl RopeNumbers {
    /// The rotation that these numbers mean.
    pub fn rope(&self, style: RopeStyle) -> Rope {
        let powers = self.powers();
        let plain = || powers.iter().map(|power| 1.0 / power);
        let divided =
            |by: &[f32]| powers.iter().zip(by).map(|(power, by)| 1.0 / (by * power)).collect();
        let (mut magnitude, mut longer) = (1.0, None);
        let inverse_frequencies = match &self.scaling {
            Scaling::None => plain().collect(),
            Scaling::Linear { factor } => plain().map(|f| f / *factor as f32).collect(),
            Scaling::Llama3 { factor, low, high, original } => {
                plain().map(|f| llama3(f, *factor, *low, *high, *original as f64)).collect()
            }
            Scaling::Yarn { factor, magnitude: times, .. } => {
                magnitude = *times;
                let weights = self.yarn_weights();
                let mixed = powers.iter().zip(weights).map(|(power, kept)| {
                    1.0 / (*factor as f32 * power) * (1.0 - kept) + 1.0 / power * kept
                });
                mixed.collect()
            }
            Scaling::Long { short, long, original, magnitude: times } => {
                magnitude = *times;
                longer = Some(Longer { than: *original, inverse_frequencies: divided(long) });
                divided(short)
            }
            Scaling::Divided { by } => plain().zip(by).map(|(f, by)| f / by).collect(),
        };
        Rope { style, inverse_frequencies, magnitude: magnitude as f32, longer }
    }

    /// `base ^ (2 i / dims)` of each pair.
    fn powers(&self) -> Vec<f32> {
        let base = f64::from(self.base as f32);
        let exponents = (0..self.dims / 2).map(|pair| (2 * pair) as f32 / self.dims as f32);
        exponents.map(|exponent| base.powf(f64::from(exponent)) as f32).collect()
    }

    /// How much of each pair's own frequency YaRN keeps, from 0 to 1.
    fn yarn_weights(&self) -> Vec<f32> {
        let Scaling::Yarn { original, beta_fast, beta_slow, truncate, .. } = self.scaling else {
            return Vec::new();
        };
        let dims = self.dims as f64;
        // The pair, not rounded, that turns this often within the original context.
        let pair =
            |turns: f64| dims * (original as f64 / (turns * TAU)).ln() / (2.0 * self.base.ln());
        let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dims - 1.0));
        if low == high {
            high += 0.001;
        }
        let ramp = |pair: usize| (pair as f32 - low as f32) / (high - low) as f32;
        (0..self.dims / 2).map(|pair| 1.0 - ramp(pair).clamp(0.0, 1.0)).collect()
    }
}

/// A frequency as Llama 3.1 scales it.
fn llama3(frequency: f32, factor: f64, low: f64, high: f64, original: f64) -> f32 {
    let wavelength = TAU as f32 / frequency;
    if wavelength > (original / low) as f32 {
        return frequency / factor as f32;
    }
    if wavelength < (original / high) as f32 {
        return frequency;
    }
    let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
    (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
}

/// YaRN's bounds where a model has none of its own.
const BETA_FAST: f64 = 32.0;
const BETA_SLOW: f64 = 1.0;

/// Whether so many elements of a head can be rotated.
fn dims_are_right(dims: usize, head_dim: usize) -> bool {
    dims > 0 && dims.is_multiple_of(2) && dims <= head_dim.min(MAX_DIMS)
}

/// What is expected of divisors, and what was found, unless they are right.
fn check_divisors(divisors: &[f32], pairs: usize) -> Result<(), (String, String)> {
    if divisors.len() != pairs {
        return Err((format!("{pairs} numbers"), divisors.len().to_string()));
    }
    match divisors.iter().find(|divisor| !(divisor.is_finite() && **divisor > 0.0)) {
        Some(divisor) => Err(("positive numbers".to_string(), divisor.to_string())),
        None => Ok(()),
    }
}
