//! F32: IEEE 754 binary32, little endian; `GGML_TYPE_F32` in `ggml.h`, `F32` in safetensors.

/// One value per 4 bytes. The lengths have been checked.
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (value, &stored) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(stored);
    }
}

/// 4 bytes per value. The lengths have been checked.
pub(super) fn quantize(values: &[f32], out: &mut [u8]) {
    for (value, stored) in values.iter().zip(out.as_chunks_mut().0) {
        *stored = value.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_kept() {
        let expected = [0.0, -0.0, 1.5, f32::MIN_POSITIVE / 4.0, f32::MAX, f32::NEG_INFINITY];
        let bytes: Vec<u8> = expected.iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut out = [f32::NAN; 6];
        dequantize(&bytes, &mut out);
        assert_eq!(out.map(f32::to_bits), expected.map(f32::to_bits));
        let mut out = [0.0];
        dequantize(&[0x01, 0, 0xC0, 0x7F], &mut out);
        assert_eq!(out[0].to_bits(), 0x7FC0_0001);
    }
}
