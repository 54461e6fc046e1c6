//! What the x86 instruction sets share: steps on sixteen bytes, before they are widened to lanes.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

/// One IEEE half-precision number.
///
/// # Safety
/// F16C must have been detected.
#[inline(always)]
pub unsafe fn f16(bits: u16) -> f32 {
    // SAFETY: F16C was detected.
    unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
}

/// Bit `bit` of each of 16 bytes.
///
/// # Safety
/// `from` must be valid for 16 bytes.
#[inline(always)]
pub unsafe fn bit_plane(from: *const u8, bit: usize) -> u16 {
    // SAFETY: 16 bytes are there. What a shift brings from one byte into the next stays below its top bit.
    unsafe {
        let shift = _mm_cvtsi32_si128(7 - bit as i32);
        _mm_movemask_epi8(_mm_sll_epi16(_mm_loadu_si128(from.cast()), shift)) as u16
    }
}

/// The entries of a table at the low (or high) nibbles of 16 bytes.
///
/// # Safety
/// `from` must be valid for 16 bytes, and SSSE3 (which AVX2 includes) detected.
#[inline(always)]
pub unsafe fn look_up_nibbles(from: *const u8, high: bool, table: &[i8; 16]) -> __m128i {
    // SAFETY: 16 bytes are there.
    unsafe {
        let bytes = _mm_loadu_si128(from.cast());
        let bytes = if high { _mm_srli_epi16::<4>(bytes) } else { bytes };
        let nibbles = _mm_and_si128(bytes, _mm_set1_epi8(15));
        _mm_shuffle_epi8(_mm_loadu_si128(table.as_ptr().cast()), nibbles)
    }
}
