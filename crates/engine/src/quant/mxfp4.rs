//! MXFP4: blocks of 32 four-bit floating-point numbers (E2M1) with one power of two as their scale (E8M0); the OCP
//! Microscaling Formats specification, `block_mxfp4` in `ggml-common.h`.
//!
//! | bytes   | content                                                              |
//! | ------- | -------------------------------------------------------------------- |
//! | 0       | `e`, the exponent of the scale `2^(e - 127)`                         |
//! | 1 to 16 | the numbers: 0 to 15 in the low nibbles, 16 to 31 above              |
//!
//! A number is a sign (bit 3) and one of 0, 0.5, 1, 1.5, 2, 3, 4, 6; its value is the product with the scale. As in ggml
//! the table holds twice those and the scale is halved, so everything stays an integer until the end:
//!
//! - exponents 0 and 1 give the scales 2^-127 and 2^-126, whose halves are denormal; their products are exact too;
//! - exponent 255, which the specification makes NaN, is 2^128 here, 2^127 once halved: 0.5 still gives a number, all
//!   above it infinity. The largest numbers overflow from exponent 253 on;
//! - no scale is zero, infinite or NaN, and minus zero gives plain zero.

use super::QuantError;
use super::pack::{for_each_block, for_each_block_mut, nibbles, pack_nibbles};
use crate::format::DType;

const BLOCK_SIZE: usize = 32;
const BLOCK_BYTES: usize = 17;

/// Twice the number that a nibble stands for.
pub(crate) const DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half the scale: `2^(e - 128)`.
pub(crate) fn half_scale(e: u8) -> f32 {
    match e {
        0 | 1 => f32::from_bits(0x0020_0000 << e),
        _ => f32::from_bits(u32::from(e - 1) << 23),
    }
}

/// 32 values per 17 bytes. The lengths have been checked.
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for_each_block(bytes, out, |block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK_SIZE]| {
        let scale = half_scale(block[0]);
        for (value, code) in values.iter_mut().zip(nibbles(&block[1..])) {
            *value = scale * f32::from(DOUBLED[usize::from(code)]);
        }
    });
}

/// The exponents above this have numbers that are no F32.
const HIGHEST_EXPONENT: u8 = 252;

/// The nearest number's code without its sign, for the magnitude of a value divided by the scale.
#[inline(always)]
fn magnitude_code(x: f32) -> u8 {
    // Half-way from each number to the next.
    const BETWEEN: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
    BETWEEN.iter().map(|between| u8::from(x > *between)).sum()
}

/// 32 values per 17 bytes. The lengths have been checked, and the values are finite.
///
/// The specification takes the exponent under which the largest value lies from 4 to below 8, though the largest number is
/// 6; the exponents beside it are tried too, and the one with the least squared error is taken.
pub(super) fn quantize(values: &[f32], out: &mut [u8]) {
    for_each_block_mut(values, out, |x: &[f32; BLOCK_SIZE], block: &mut [u8; BLOCK_BYTES]| {
        let largest = x.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
        // The exponent of an F32 has the same offset. Denormals have 0 there and get the smallest scale.
        let usual = ((largest.to_bits() >> 23) as u8).saturating_sub(2);
        let code = |x: f32, inverse: f32| {
            let code = magnitude_code(x.abs() * inverse);
            code | if x < 0.0 && code > 0 { 8 } else { 0 }
        };
        // 2^(127 - e), which is a normal number for every exponent up to the highest.
        let inverse = |e: u8| f32::from_bits(u32::from(254 - e) << 23);
        let error = |e: u8| -> f64 {
            let (half_scale, inverse) = (half_scale(e), inverse(e));
            let terms = x.iter().map(|x| {
                let value = half_scale * f32::from(DOUBLED[usize::from(code(*x, inverse))]);
                f64::from(x - value).powi(2)
            });
            terms.sum()
        };
        let e = [usual, usual.saturating_sub(1), usual + 1]
            .into_iter()
            .map(|e| e.min(HIGHEST_EXPONENT))
            .map(|e| (error(e), e))
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .expect("there are three")
            .1;
        block[0] = e;
        pack_nibbles(&x.map(|x| code(x, inverse(e))), &mut block[1..]);
    });
}

/// Puts MXFP4 weights as safetensors files of gpt-oss have them into the order of this type, losslessly.
///
/// There, `blocks` has 16 bytes for each 32 numbers, neighbours in one byte (number `2 * j` in the low nibble of byte `j`
/// and `2 * j + 1` above), and `scales` the exponents. `out` is filled with as many blocks as there are scales.
///
/// # Errors
/// When the lengths do not fit together.
pub fn mxfp4_from_pair(blocks: &[u8], scales: &[u8], out: &mut [u8]) -> Result<(), QuantError> {
    let found = out.len();
    let length = |found, elements| QuantError::Length { dtype: DType::MXFP4, elements, found };
    let (numbers, rest) = blocks.as_chunks::<16>();
    if numbers.len() != scales.len() || !rest.is_empty() {
        // Each scale stands for a block of 17 bytes, its own among them.
        return Err(length(blocks.len() + scales.len(), scales.len() * BLOCK_SIZE));
    }
    if found != scales.len() * BLOCK_BYTES {
        return Err(length(found, scales.len() * BLOCK_SIZE));
    }
    let out = out.as_chunks_mut::<BLOCK_BYTES>().0;
    for ((numbers, &scale), [e, packed @ ..]) in numbers.iter().zip(scales).zip(out) {
        *e = scale;
        let number = |i: usize| numbers[i / 2] >> (i % 2 * 4) & 15;
        for (i, byte) in packed.iter_mut().enumerate() {
            *byte = number(i) | number(i + 16) << 4;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaled(e: u8) -> [f32; BLOCK_SIZE] {
        let mut block = [0; BLOCK_BYTES];
        block[0] = e;
        for i in 0..16 {
            block[1 + i as usize] = i | (15 - i) << 4;
        }
        let mut values = [f32::NAN; BLOCK_SIZE];
        dequantize(&block, &mut values);
        values
    }

    #[test]
    fn the_ends_of_the_exponent() {
        let numbers = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for (e, exponent) in [(0, -127), (1, -126), (2, -125), (127, 0), (252, 125)] {
            let found = scaled(e);
            for (i, number) in numbers.into_iter().enumerate() {
                let expected = (number * 2f64.powi(exponent)) as f32;
                assert_eq!((found[i], found[8 + i]), (expected, -expected), "{e} {number}");
                assert_eq!((found[31 - i], found[23 - i]), (expected, -expected), "{e} {number}");
            }
        }
        assert_eq!(scaled(255)[..4], [0.0, 2f32.powi(127), f32::INFINITY, f32::INFINITY]);
        let (three, four) = (scaled(253)[5], scaled(253)[6]);
        assert_eq!((three, four), (1.5 * 2f32.powi(127), f32::INFINITY));
    }

    #[test]
    fn a_pair_becomes_blocks_without_loss() {
        let blocks: Vec<u8> = (0..64u8).map(|i| i.wrapping_mul(37).wrapping_add(11)).collect();
        let scales = [0, 120, 127, 255];
        let mut out = [0; 4 * BLOCK_BYTES];
        mxfp4_from_pair(&blocks, &scales, &mut out).unwrap();
        let mut found = [0.0; 4 * BLOCK_SIZE];
        dequantize(&out, &mut found);
        for (i, found) in found.iter().enumerate() {
            let code = blocks[i / 2] >> (i % 2 * 4) & 15;
            let expected = half_scale(scales[i / 32]) * f32::from(DOUBLED[usize::from(code)]);
            assert_eq!(found.to_bits(), expected.to_bits(), "{i}");
        }
        let mut back = [0u8; 64];
        for (i, code) in out.chunks(17).flat_map(|block| nibbles(&block[1..])).enumerate() {
            back[i / 2] |= code << (i % 2 * 4);
        }
        assert_eq!(back[..], blocks[..], "minus zero too");
    }

    #[test]
    fn a_pair_must_fit_together() {
        let mut out = [0; 34];
        for (blocks, scales, length) in [(32, 1, 34), (31, 2, 34), (32, 2, 33), (33, 2, 34)] {
            let result = mxfp4_from_pair(&vec![0; blocks], &vec![0; scales], &mut out[..length]);
            assert!(matches!(result, Err(QuantError::Length { .. })), "{result:?}");
        }
        assert_eq!(mxfp4_from_pair(&[0; 32], &[0; 2], &mut out), Ok(()));
    }
}
