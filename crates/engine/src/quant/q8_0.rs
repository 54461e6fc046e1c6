//! Q8_0: blocks of 32 signed bytes with one scale; `block_q8_0` in `ggml-common.h`.
//!
//! | bytes   | content                             |
//! | ------- | ----------------------------------- |
//! | 0 to 1  | `d`, the scale: F16, little endian  |
//! | 2 to 33 | `q`: 32 signed bytes                |
//!
//! Value `i` of a block is `d * q[i]`, computed in F32. That is exact: 11 significant bits times 8.

use super::fit::{block_scale, integer, levels, whole};
use super::pack::{f16_at, for_each_block, for_each_block_mut};

const BLOCK_SIZE: usize = 32;
const BLOCK_BYTES: usize = 2 + BLOCK_SIZE;

/// 32 values per 34 bytes. The lengths have been checked.
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for_each_block(bytes, out, |block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK_SIZE]| {
        let d = f16_at(block, 0);
        for (value, q) in values.iter_mut().zip(&block[2..]) {
            *value = d * f32::from(*q as i8);
        }
    });
}

/// 32 values per 34 bytes. The lengths have been checked, and the values are finite.
pub(super) fn quantize(values: &[f32], out: &mut [u8]) {
    let nearest = integer(-128.0, 127.0);
    for_each_block_mut(values, out, |x: &[f32; BLOCK_SIZE], block: &mut [u8; BLOCK_BYTES]| {
        let d = block_scale(x, -127.0, 127.0, whole::<128>(), nearest);
        [block[0], block[1]] = d.to_le_bytes();
        for (byte, level) in block[2..].iter_mut().zip(levels(x, d.to_f32(), nearest)) {
            *byte = level as i8 as u8;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(scale: u16, q: [i8; BLOCK_SIZE]) -> Vec<u8> {
        let mut bytes = scale.to_le_bytes().to_vec();
        bytes.extend(q.map(|q| q as u8));
        bytes
    }

    fn values(bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![f32::NAN; bytes.len() / BLOCK_BYTES * BLOCK_SIZE];
        dequantize(bytes, &mut out);
        out
    }

    #[test]
    fn every_value_in_its_place() {
        // Two blocks with different scales, 0.5 and -2.
        let up: [i8; BLOCK_SIZE] = std::array::from_fn(|i| i as i8 - 16);
        let down = up.map(|q| -q);
        let out = values(&[block(0x3800, up), block(0xC000, down)].concat());
        for i in 0..BLOCK_SIZE {
            let q = i as f32 - 16.0;
            assert_eq!((out[i], out[BLOCK_SIZE + i]), (0.5 * q, 2.0 * q), "{i}");
        }
    }

    #[test]
    fn the_extremes_are_exact() {
        let mut q = [0; BLOCK_SIZE];
        (q[0], q[1], q[2]) = (i8::MIN, i8::MAX, -1);
        let largest = values(&block(0x7BFF, q));
        assert_eq!(largest[..4], [-65504.0 * 128.0, 65504.0 * 127.0, -65504.0, 0.0]);
        let smallest = values(&block(0x0001, q));
        let d = 2f32.powi(-24);
        assert_eq!(smallest[..4], [-128.0 * d, 127.0 * d, -d, 0.0]);
    }

    #[test]
    fn special_scales() {
        let mut q = [1; BLOCK_SIZE];
        (q[1], q[2]) = (-1, 0);
        assert!(values(&block(0x0000, q)).iter().all(|&value| value == 0.0));
        assert_eq!(values(&block(0x8000, q))[0].to_bits(), (-0.0f32).to_bits());
        let infinite = values(&block(0x7C00, q));
        assert_eq!(infinite[..2], [f32::INFINITY, f32::NEG_INFINITY]);
        assert!(infinite[2].is_nan());
        assert!(values(&block(0x7E00, q)).iter().all(|value| value.is_nan()));
    }
}
