//! BF16: the upper half of an IEEE 754 binary32 number, little endian; `GGML_TYPE_BF16` in `ggml.h`,
//! `BF16` in safetensors.

use half::bf16;

/// One value per 2 bytes. The lengths have been checked.
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (value, &stored) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = bf16::from_le_bytes(stored).to_f32();
    }
}

/// 2 bytes per value, the nearest number (ties to even). The lengths have been checked, and the values are in range.
pub(super) fn quantize(values: &[f32], out: &mut [u8]) {
    for (value, stored) in values.iter().zip(out.as_chunks_mut().0) {
        *stored = bf16::from_f32(*value).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_the_upper_half_of_its_f32() {
        for bits in 0..=u16::MAX {
            let mut out = [0.0f32];
            dequantize(&bits.to_le_bytes(), &mut out);
            let expected = f32::from_bits(u32::from(bits) << 16);
            // A signalling NaN may become a quiet one.
            let equal = out[0].to_bits() == expected.to_bits();
            assert!(equal || out[0].is_nan() && expected.is_nan(), "{bits:#06x}");
        }
    }

    #[test]
    fn special_values() {
        let mut out = [0.0; 5];
        dequantize(&[0x80, 0x3F, 0, 0xC0, 0x7F, 0x7F, 1, 0, 0x80, 0xFF], &mut out);
        let smallest = 2f32.powi(-133);
        assert_eq!(out, [1.0, -2.0, 255.0 * 2f32.powi(120), smallest, f32::NEG_INFINITY]);
    }
}
