//! F16: IEEE 754 binary16, little endian; `GGML_TYPE_F16` in `ggml.h`, `F16` in safetensors.

use half::f16;

/// One value per 2 bytes; every binary16 number is a binary32 number. The lengths have been checked.
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (value, &stored) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = f16::from_le_bytes(stored).to_f32();
    }
}

/// 2 bytes per value, the nearest number (ties to even). The lengths have been checked, and the values are in range.
pub(super) fn quantize(values: &[f32], out: &mut [u8]) {
    for (value, stored) in values.iter().zip(out.as_chunks_mut().0) {
        *stored = f16::from_f32(*value).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(bits: u16) -> f32 {
        let mut out = [0.0];
        dequantize(&bits.to_le_bytes(), &mut out);
        out[0]
    }

    #[test]
    fn special_values() {
        for (bits, expected) in [
            (0x0000, 0.0),
            (0x8000, -0.0),
            (0x3C00, 1.0),
            (0xC500, -5.0),
            (0x3555, 1365.0 / 4096.0),
            (0x0001, 1.0 / (1 << 24) as f32),
            (0x03FF, 1023.0 / (1 << 24) as f32),
            (0x0400, 1.0 / (1 << 14) as f32),
            (0x7BFF, 65504.0),
            (0x7C00, f32::INFINITY),
            (0xFC00, f32::NEG_INFINITY),
        ] {
            assert_eq!(one(bits).to_bits(), expected.to_bits(), "{bits:#06x}");
        }
        assert!(one(0x7E00).is_nan() && one(0xFC01).is_nan());
    }

    #[test]
    fn every_number_by_its_definition() {
        for bits in 0..=u16::MAX {
            let exponent = i32::from(bits >> 10 & 31);
            let fraction = f64::from(bits & 1023);
            let magnitude = match exponent {
                0 => fraction / 2f64.powi(24),
                31 => continue,
                _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
            };
            let expected = if bits >> 15 == 1 { -magnitude } else { magnitude };
            assert_eq!(f64::from(one(bits)).to_bits(), expected.to_bits(), "{bits:#06x}");
        }
    }
}
