//! How the block types pack their fields into bytes, in one place.
//!
//! ggml lays small fields out in *planes*: over a run of `n` bytes, the lowest `BITS` bits of all bytes are fields `0..n`,
//! the next `BITS` bits fields `n..2 * n`, and so on. Nibbles, pairs of bits and single bits all follow it; what differs
//! from type to type is `n`.

use super::fit_super::Affine;
use half::f16;

/// The F16 number at byte `at` of a block.
pub(super) fn f16_at<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Unpacks planes of fields of `BITS` bits: `8 / BITS` fields of each byte.
pub(super) fn unpack<const BITS: usize>(packed: &[u8], fields: &mut [u8]) {
    debug_assert_eq!(packed.len() * 8, fields.len() * BITS);
    for (plane, fields) in fields.chunks_exact_mut(packed.len()).enumerate() {
        for (field, byte) in fields.iter_mut().zip(packed) {
            *field = byte >> (plane * BITS) & ((1 << BITS) - 1);
        }
    }
}

/// The reverse of [`unpack`].
pub(super) fn pack<const BITS: usize>(fields: &[u8], packed: &mut [u8]) {
    debug_assert_eq!(packed.len() * 8, fields.len() * BITS);
    packed.fill(0);
    for (plane, fields) in fields.chunks_exact(packed.len()).enumerate() {
        for (field, byte) in fields.iter().zip(&mut *packed) {
            *byte |= field << (plane * BITS);
        }
    }
}

/// The 32 fields of 4 bits in 16 bytes.
pub(super) fn nibbles(packed: &[u8]) -> [u8; 32] {
    let mut fields = [0; 32];
    unpack::<4>(packed, &mut fields);
    fields
}

/// The reverse of [`nibbles`].
pub(super) fn pack_nibbles(fields: &[u8; 32], packed: &mut [u8]) {
    pack::<4>(fields, packed);
}

/// The 32 fields of 5 bits of Q5_0 and Q5_1: 4 bytes with a fifth bit for each, then 16 bytes of nibbles.
pub(super) fn five_bits(packed: &[u8]) -> [u8; 32] {
    let mut fields = nibbles(&packed[4..]);
    for (i, field) in fields.iter_mut().enumerate() {
        *field |= (packed[i / 8] >> (i % 8) & 1) << 4;
    }
    fields
}

/// The reverse of [`five_bits`].
pub(super) fn pack_five_bits(fields: &[u8; 32], packed: &mut [u8]) {
    let (fifth, low) = packed.split_at_mut(4);
    fifth.fill(0);
    for (i, field) in fields.iter().enumerate() {
        fifth[i / 8] |= field >> 4 << (i % 8);
    }
    pack_nibbles(&fields.map(|field| field & 15), low);
}

/// The 8 scales and 8 minima of 6 bits in the 12 bytes that Q4_K and Q5_K have for them.
///
/// Bytes 0 to 3 hold scales 0 to 3 in their low 6 bits, bytes 4 to 7 minima 0 to 3, and bytes 8 to 11 the low nibbles of
/// scales 4 to 7 (low) and of minima 4 to 7 (high), whose upper two bits are those of bytes 0 to 7.
pub(crate) fn scales_and_mins(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for i in 0..4 {
        scales[i] = packed[i] & 63;
        mins[i] = packed[4 + i] & 63;
        scales[4 + i] = packed[8 + i] & 15 | packed[i] >> 6 << 4;
        mins[4 + i] = packed[8 + i] >> 4 | packed[4 + i] >> 6 << 4;
    }
    (scales, mins)
}

/// The first 16 bytes of a Q4_K or Q5_K block: `d`, `dmin`, and the reverse of [`scales_and_mins`].
pub(super) fn pack_header<const BYTES: usize>(fitted: &Affine<8>, block: &mut [u8; BYTES]) {
    [block[0], block[1]] = fitted.d.to_le_bytes();
    [block[2], block[3]] = fitted.dmin.to_le_bytes();
    let (scales, mins) = (&fitted.scales, &fitted.mins);
    for i in 0..4 {
        block[4 + i] = scales[i] | scales[4 + i] >> 4 << 6;
        block[8 + i] = mins[i] | mins[4 + i] >> 4 << 6;
        block[12 + i] = scales[4 + i] & 15 | mins[4 + i] << 4;
    }
}

/// The values of a Q4_K or Q5_K block, whose first 16 bytes are `d`, `dmin` and the scales and minima, from its `q`.
pub(super) fn dequantize_eighths<const BYTES: usize>(
    block: &[u8; BYTES],
    q: &[u8; 256],
    values: &mut [f32; 256],
) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let (scales, mins) = scales_and_mins(&std::array::from_fn(|i| block[4 + i]));
    let groups = values.chunks_exact_mut(32).zip(q.chunks_exact(32));
    for ((values, q), (scale, min)) in groups.zip(scales.into_iter().zip(mins)) {
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        for (value, q) in values.iter_mut().zip(q) {
            *value = scale * f32::from(*q) - min;
        }
    }
}

/// Calls `dequantize` with each block and the values that it holds.
pub(super) fn for_each_block<const BYTES: usize, const VALUES: usize>(
    bytes: &[u8],
    out: &mut [f32],
    mut dequantize: impl FnMut(&[u8; BYTES], &mut [f32; VALUES]),
) {
    for (block, values) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        dequantize(block, values);
    }
}

/// Calls `quantize` with the values of each block and the block to fill.
pub(super) fn for_each_block_mut<const BYTES: usize, const VALUES: usize>(
    values: &[f32],
    out: &mut [u8],
    quantize: impl Fn(&[f32; VALUES], &mut [u8; BYTES]),
) {
    for (values, block) in values.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        quantize(values, block);
    }
}
