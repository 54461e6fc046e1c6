//! Random weights, made in the form in which they are stored.

use half::{bf16, f16};

use crate::format::DType;
use crate::format::gguf::TensorHeader;
use crate::quant::{self, QuantError};

/// Blocks that tell how large numbers of unit scale are.
const SAMPLE: usize = 256;

/// Random words: SplitMix64, whose n-th word depends on the start alone.
pub struct Words(u64);

impl Words {
    /// The words of a chunk of a tensor.
    pub fn new(seed: u64, tensor: usize, chunk: usize) -> Self {
        let mut words = Words(seed);
        for number in [tensor, chunk] {
            words = Words(words.next() ^ number as u64);
        }
        words
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    fn fill(&mut self, out: &mut [u8]) {
        let (words, rest) = out.as_chunks_mut::<8>();
        for word in words {
            *word = self.next().to_le_bytes();
        }
        let last = self.next().to_le_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// Where a block keeps what its numbers are multiplied with.
enum Scales {
    /// F16 numbers at these bytes, each this many times the first.
    F16(&'static [(usize, f32)]),
    /// A power of two at the first byte, as E8M0.
    Exponent,
}

/// The layout of a block type; all bytes besides its scales may have any value. Types with a minimum get one that puts
/// the middle of their numbers at zero.
fn scales(dtype: DType) -> Option<Scales> {
    Some(Scales::F16(match dtype {
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 | DType::IQ4_NL | DType::IQ4_XS => &[(0, 1.0)],
        DType::Q4_1 => &[(0, 1.0), (2, -7.5)],
        DType::Q5_1 => &[(0, 1.0), (2, -15.5)],
        DType::Q2_K => &[(80, 1.0), (82, 1.5)],
        DType::Q3_K => &[(108, 1.0)],
        DType::Q4_K => &[(0, 1.0), (2, 7.5)],
        DType::Q5_K => &[(0, 1.0), (2, 15.5)],
        DType::Q6_K => &[(208, 1.0)],
        DType::MXFP4 => return Some(Scales::Exponent),
        _ => return None,
    }))
}

/// How the elements of a tensor are made.
pub struct Filling {
    dtype: DType,
    /// What the elements vary around, and how far; of F32 alone does the first differ from zero.
    mean: f32,
    deviation: f32,
    blocks: Option<Blocks>,
}

/// The bytes that give every block the size that its numbers shall have.
struct Blocks {
    fixed: Vec<(usize, Vec<u8>)>,
}

impl Filling {
    /// Weights with which a model's activations stay near one: norms near one, small biases, and matrices that keep
    /// the size of what they are multiplied with.
    pub fn new(tensor: &TensorHeader) -> Result<Self, QuantError> {
        let dtype = tensor.dtype;
        let (mean, deviation) = match tensor.shape.as_slice() {
            [_, .., cols] => (0.0, 1.0 / (*cols as f32).sqrt()),
            _ if tensor.name.ends_with("_norm.weight") => (1.0, 0.1),
            _ => (0.0, 0.05),
        };
        let unsupported = || QuantError::Unsupported { dtype };
        let blocks = match dtype {
            DType::F32 | DType::F16 | DType::BF16 => None,
            _ => Some(Blocks::new(dtype, deviation, scales(dtype).ok_or_else(unsupported)?)?),
        };
        Ok(Filling { dtype, mean, deviation, blocks })
    }

    /// Makes the elements of `out`, which are whole blocks.
    pub fn fill(&self, words: &mut Words, out: &mut [u8]) {
        words.fill(out);
        if let Some(Blocks { fixed }) = &self.blocks {
            for block in out.chunks_exact_mut(self.dtype.block_bytes()) {
                for (at, bytes) in fixed {
                    block[*at..*at + bytes.len()].copy_from_slice(bytes);
                }
            }
            return;
        }
        // A uniform distribution is as wide as the square root of three times its deviation to either side.
        let width = self.deviation * 3f32.sqrt();
        let narrow = |bytes: [u8; 2]| f32::from(i16::from_le_bytes(bytes)) * (width / 32768.0);
        match self.dtype {
            DType::F16 => {
                for number in out.as_chunks_mut::<2>().0 {
                    *number = f16::from_f32(narrow(*number)).to_le_bytes();
                }
            }
            DType::BF16 => {
                for number in out.as_chunks_mut::<2>().0 {
                    *number = bf16::from_f32(narrow(*number)).to_le_bytes();
                }
            }
            _ => {
                for number in out.as_chunks_mut::<4>().0 {
                    let uniform = i32::from_le_bytes(*number) as f32 / 2f32.powi(31);
                    *number = (self.mean + width * uniform).to_le_bytes();
                }
            }
        }
    }
}

impl Blocks {
    /// Scales for numbers of this deviation. What numbers of unit scale have is measured, not worked out per type.
    fn new(dtype: DType, deviation: f32, scales: Scales) -> Result<Self, QuantError> {
        let blocks = Blocks { fixed: scales.bytes(1.0) };
        let filling = Filling { dtype, mean: 0.0, deviation: 1.0, blocks: Some(blocks) };
        let mut bytes = vec![0; SAMPLE * dtype.block_bytes()];
        filling.fill(&mut Words::new(0, 0, 0), &mut bytes);
        let mut values = vec![0.0; SAMPLE * dtype.block_size()];
        quant::dequantize(dtype, &bytes, &mut values)?;
        let square: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
        let unit = (square / values.len() as f64).sqrt() as f32;
        Ok(Blocks { fixed: scales.bytes(deviation / unit) })
    }
}

impl Scales {
    /// What every block has at which byte.
    fn bytes(&self, scale: f32) -> Vec<(usize, Vec<u8>)> {
        match self {
            Scales::F16(fields) => fields
                .iter()
                .map(|(at, times)| (*at, f16::from_f32(scale * times).to_le_bytes().to_vec()))
                .collect(),
            Scales::Exponent => vec![(0, vec![(127.0 + scale.log2()).round() as u8])],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, dtype: DType, shape: &[usize]) -> TensorHeader {
        TensorHeader { name: name.into(), dtype, shape: shape.to_vec() }
    }

    fn values(tensor: &TensorHeader, words: &mut Words) -> Vec<f32> {
        let mut bytes = vec![0; tensor.byte_len().unwrap()];
        Filling::new(tensor).unwrap().fill(words, &mut bytes);
        let mut values = vec![0.0; tensor.shape.iter().product()];
        quant::dequantize(tensor.dtype, &bytes, &mut values).unwrap();
        values
    }

    /// Mean and deviation.
    fn moments(values: &[f32]) -> (f32, f32) {
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let square = values.iter().map(|value| (value - mean).powi(2)).sum::<f32>();
        (mean, (square / values.len() as f32).sqrt())
    }

    #[test]
    fn every_type_that_runs_can_be_made_with_the_same_spread() {
        for &dtype in quant::SUPPORTED {
            let tensor = tensor("blk.0.ffn_up.weight", dtype, &[512, 1024]);
            let values = values(&tensor, &mut Words::new(1, 2, 3));
            let (mean, deviation) = moments(&values);
            assert!(values.iter().all(|value| value.is_finite()), "{dtype}");
            // A power of two is right to within its square root.
            let wrong = deviation * 1024f32.sqrt();
            let most = if dtype == DType::MXFP4 { 1.5 } else { 1.05 };
            assert!(wrong < most && wrong > 1.0 / most, "{dtype}: {wrong} times too wide");
            assert!(mean.abs() < 0.2 * deviation, "{dtype}: {mean} is not near zero");
        }
    }

    #[test]
    fn norms_are_near_one_and_biases_small() {
        let mut words = Words::new(1, 2, 3);
        let norm = values(&tensor("blk.0.ffn_norm.weight", DType::F32, &[4096]), &mut words);
        assert!((moments(&norm).0 - 1.0).abs() < 0.05 && moments(&norm).1 < 0.2);
        let bias = values(&tensor("blk.0.ffn_norm.bias", DType::F32, &[4096]), &mut words);
        assert!(moments(&bias).0.abs() < 0.05 && moments(&bias).1 < 0.1);
    }

    #[test]
    fn types_that_do_not_run_are_refused() {
        let error = Filling::new(&tensor("a", DType::TQ1_0, &[2, 256])).err().unwrap();
        assert!(matches!(error, QuantError::Unsupported { .. }), "{error}");
    }

    #[test]
    fn chunks_tensors_and_seeds_differ() {
        let word = |seed, tensor, chunk| Words::new(seed, tensor, chunk).next();
        let words = [word(1, 2, 3), word(1, 2, 4), word(1, 3, 3), word(2, 2, 3), word(1, 3, 2)];
        let distinct: std::collections::HashSet<_> = words.iter().collect();
        assert_eq!(distinct.len(), words.len());
        assert_eq!(word(1, 2, 3), words[0]);
    }
}
