//! How the weight types are read, sixteen elements at a time.
//!
//! Each gives exactly the number that `quant` defines: where a product and a sum meet in one instruction, the product is
//! exact, so that the sum is rounded once either way. Layouts are described in the files of `quant`. Types that are not
//! here (Q2_K and Q3_K, which few files have) are dequantized row by row.
#![allow(unsafe_code)]

use super::{LANES, Lanes};
use crate::format::DType;
use crate::quant::{IQ4_STEPS, MXFP4_DOUBLED, mxfp4_half_scale, scales_and_mins};

/// One weight type.
pub(super) trait WeightType {
    /// Elements that are read together; a row of a block type is a multiple of it.
    const STEP: usize;
    /// Bytes of `STEP` elements.
    const STEP_BYTES: usize;
    /// What the elements of a step have in common.
    type Header;

    /// Reads the header of the step at `from`.
    ///
    /// # Safety
    /// `from` must be valid for `STEP_BYTES` bytes, and `L` usable.
    unsafe fn header<L: Lanes>(from: *const u8) -> Self::Header;

    /// Reads elements `16 * part ..` of the step at `from`.
    ///
    /// # Safety
    /// As for [`WeightType::header`]; `16 * part` must be below `STEP`.
    unsafe fn load<L: Lanes>(from: *const u8, header: &Self::Header, part: usize) -> L;
}

/// A type without blocks, each element of `$bytes` bytes.
macro_rules! plain {
    ($name:ident, $bytes:literal, $load:ident) => {
        pub(super) struct $name;

        impl WeightType for $name {
            const STEP: usize = LANES;
            const STEP_BYTES: usize = LANES * $bytes;
            type Header = ();

            #[inline(always)]
            unsafe fn header<L: Lanes>(_: *const u8) {}

            #[inline(always)]
            unsafe fn load<L: Lanes>(from: *const u8, (): &(), _: usize) -> L {
                // SAFETY: 16 elements are there.
                unsafe { L::$load(from.cast()) }
            }
        }
    };
}

plain!(F32, 4, load);
plain!(F16, 2, load_f16);
plain!(BF16, 2, load_bf16);

/// A block type: its header at the bytes `$from`, and the elements of a part.
macro_rules! blocks {
    ($name:ident, $dtype:ident, $header:ty,
     |$head_from:ident| $read:expr, |$from:ident, $h:ident, $part:ident| $load:expr) => {
        pub(super) struct $name;

        impl WeightType for $name {
            const STEP: usize = DType::$dtype.block_size();
            const STEP_BYTES: usize = DType::$dtype.block_bytes();
            type Header = $header;

            #[inline(always)]
            unsafe fn header<L: Lanes>($head_from: *const u8) -> $header {
                // SAFETY: a block is there.
                unsafe { $read }
            }

            #[inline(always)]
            unsafe fn load<L: Lanes>($from: *const u8, $h: &$header, $part: usize) -> L {
                // SAFETY: a block is there, and the part inside it.
                unsafe { $load }
            }
        }
    };
}

/// A nibble's own value.
const PLAIN: [i8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
/// A nibble less 8.
const LESS_8: [i8; 16] = [-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7];
/// A nibble less 16, for a fifth bit to be added.
const LESS_16: [i8; 16] = [-16, -15, -14, -13, -12, -11, -10, -9, -8, -7, -6, -5, -4, -3, -2, -1];
/// A nibble less 32, for two more bits to be added.
const LESS_32: [i8; 16] =
    [-32, -31, -30, -29, -28, -27, -26, -25, -24, -23, -22, -21, -20, -19, -18, -17];

/// The F16 number at `from`.
#[inline(always)]
unsafe fn f16<L: Lanes>(from: *const u8) -> f32 {
    // SAFETY: two bytes are there.
    unsafe { L::f16(u16::from_le_bytes([*from, *from.add(1)])) }
}

/// The 16 bits at `from`.
#[inline(always)]
unsafe fn bits(from: *const u8) -> u16 {
    // SAFETY: two bytes are there.
    unsafe { u16::from_le_bytes([*from, *from.add(1)]) }
}

/// `value * scale + offset`
#[inline(always)]
unsafe fn affine<L: Lanes>(value: L, scale: f32, offset: f32) -> L {
    // SAFETY: `L` is usable.
    unsafe { L::splat(offset).mul_add(value, L::splat(scale)) }
}

blocks!(Q8_0, Q8_0, f32, |from| f16::<L>(from), |from, scale, part| {
    L::load_i8(from.add(2 + part * LANES)).mul(L::splat(*scale))
});

blocks!(Q4_0, Q4_0, f32, |from| f16::<L>(from), |from, scale, part| {
    L::load_nibbles(from.add(2), part == 1, &LESS_8).mul(L::splat(*scale))
});

blocks!(
    Q4_1,
    Q4_1,
    (f32, f32),
    |from| (f16::<L>(from), f16::<L>(from.add(2))),
    |from, header, part| {
        affine(L::load_nibbles(from.add(4), part == 1, &PLAIN), header.0, header.1)
    }
);

blocks!(Q5_0, Q5_0, f32, |from| f16::<L>(from), |from, scale, part| {
    let nibbles = L::load_nibbles(from.add(6), part == 1, &LESS_16);
    nibbles.add_where(bits(from.add(2 + 2 * part)), 16.0).mul(L::splat(*scale))
});

blocks!(
    Q5_1,
    Q5_1,
    (f32, f32),
    |from| (f16::<L>(from), f16::<L>(from.add(2))),
    |from, header, part| {
        let nibbles = L::load_nibbles(from.add(8), part == 1, &PLAIN);
        affine(nibbles.add_where(bits(from.add(4 + 2 * part)), 16.0), header.0, header.1)
    }
);

blocks!(Iq4Nl, IQ4_NL, f32, |from| f16::<L>(from), |from, scale, part| {
    L::load_nibbles(from.add(2), part == 1, &IQ4_STEPS).mul(L::splat(*scale))
});

blocks!(Mxfp4, MXFP4, f32, |from| mxfp4_half_scale(*from), |from, scale, part| {
    L::load_nibbles(from.add(1), part == 1, &MXFP4_DOUBLED).mul(L::splat(*scale))
});

/// Scales and negated minima of the eight groups of a Q4_K or Q5_K block.
type Eighths = ([f32; 8], [f32; 8]);

#[inline(always)]
unsafe fn eighths<L: Lanes>(from: *const u8) -> Eighths {
    // SAFETY: a block is there.
    let (d, dmin, packed) =
        unsafe { (f16::<L>(from), f16::<L>(from.add(2)), *from.add(4).cast::<[u8; 12]>()) };
    let (scales, mins) = scales_and_mins(&packed);
    (scales.map(|scale| d * f32::from(scale)), mins.map(|min| -(dmin * f32::from(min))))
}

/// The nibbles of a part of a Q4_K or Q5_K block: groups of 32 in pairs that share 32 bytes.
#[inline(always)]
unsafe fn nibbles_of_eighth<L: Lanes>(q: *const u8, part: usize) -> L {
    let group = part / 2;
    // SAFETY: a block is there, and the part inside it.
    unsafe { L::load_nibbles(q.add(group / 2 * 32 + part % 2 * LANES), group % 2 == 1, &PLAIN) }
}

blocks!(Q4K, Q4_K, Eighths, |from| eighths::<L>(from), |from, header, part| {
    let nibbles = nibbles_of_eighth::<L>(from.add(16), part);
    affine(nibbles, header.0[part / 2], header.1[part / 2])
});

blocks!(Q5K, Q5_K, Eighths, |from| eighths::<L>(from), |from, header, part| {
    let fifth = L::bit_plane(from.add(16 + part % 2 * LANES), part / 2);
    let nibbles = nibbles_of_eighth::<L>(from.add(48), part);
    affine(nibbles.add_where(fifth, 16.0), header.0[part / 2], header.1[part / 2])
});

blocks!(Q6K, Q6_K, f32, |from| f16::<L>(from.add(208)), |from, d, part| {
    // Two halves of 128; in each, eight parts of 16: nibbles in two planes of 64, pairs of bits in four of 32.
    let (half, part_of_half) = (part / 8, part % 8);
    let low = from.add(half * 64 + part_of_half % 4 * LANES);
    let high = from.add(128 + half * 32 + part_of_half % 2 * LANES);
    let pair = part_of_half / 2 * 2;
    let scale = d * f32::from(*from.add(192 + part) as i8);
    L::load_nibbles(low, part_of_half >= 4, &LESS_32)
        .add_where(L::bit_plane(high, pair), 16.0)
        .add_where(L::bit_plane(high, pair + 1), 32.0)
        .mul(L::splat(scale))
});

blocks!(
    Iq4Xs,
    IQ4_XS,
    [f32; 8],
    |from| {
        let d = f16::<L>(from);
        let upper = bits(from.add(2));
        std::array::from_fn(|group| {
            let lower = *from.add(4 + group / 2) >> (group % 2 * 4) & 15;
            let scale = i32::from(lower) | i32::from(upper >> (2 * group) & 3) << 4;
            d * (scale - 32) as f32
        })
    },
    |from, scales, part| {
        let group = part / 2;
        let nibbles = L::load_nibbles(from.add(8 + group * 16), part % 2 == 1, &IQ4_STEPS);
        nibbles.mul(L::splat(scales[group]))
    }
);
