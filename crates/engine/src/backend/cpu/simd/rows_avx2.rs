//! Eight rows in one AVX2 register, with FMA and half-precision conversion; with AVX-VNNI where that is there too.
#![allow(unsafe_code)]

use super::GROUP;
use super::activations::Tile;
use super::block_types::BlockType;
use super::rows::RowLanes;
use super::tiles::{self, tile_functions};
use std::arch::x86_64::*;

/// `VNNI` says whether products of bytes are one instruction.
pub(super) struct Avx2Rows<const VNNI: bool>;

// SAFETY: reads and writes exactly what the trait names; only used where AVX2, FMA and F16C were detected, and for `VNNI`
// AVX-VNNI.
unsafe impl<const VNNI: bool> RowLanes for Avx2Rows<VNNI> {
    const ROWS: usize = 8;
    const WIDE_LESS_128: bool = !VNNI;
    type Words = __m256i;
    type Floats = __m256;

    #[inline(always)]
    unsafe fn words(line: *const u8, row: usize) -> __m256i {
        // SAFETY: the words of 8 rows are there.
        unsafe { _mm256_loadu_si256(line.add(row * 4).cast()) }
    }

    #[inline(always)]
    unsafe fn and(words: __m256i, mask: u8) -> __m256i {
        // SAFETY: AVX2 was detected.
        unsafe { _mm256_and_si256(words, _mm256_set1_epi8(mask as i8)) }
    }

    #[inline(always)]
    unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: AVX2 was detected.
        unsafe { _mm256_or_si256(a, b) }
    }

    #[inline(always)]
    unsafe fn shift(words: __m256i, left: i32) -> __m256i {
        // SAFETY: AVX2 was detected.
        unsafe {
            match left {
                0 => words,
                1.. => _mm256_sll_epi32(words, _mm_cvtsi32_si128(left)),
                _ => _mm256_srl_epi32(words, _mm_cvtsi32_si128(-left)),
            }
        }
    }

    #[inline(always)]
    unsafe fn look_up(bytes: __m256i, table: &[u8; 16]) -> __m256i {
        // SAFETY: AVX2 was detected, and the table has 16 bytes.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, bytes)
        }
    }

    #[inline(always)]
    unsafe fn splat_word(value: i32) -> __m256i {
        // SAFETY: AVX2 was detected.
        unsafe { _mm256_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m256i, codes: __m256i, x: i32, wide: bool) -> __m256i {
        if VNNI {
            // SAFETY: AVX-VNNI was detected.
            return unsafe { _mm256_dpbusd_avx_epi32(sum, codes, _mm256_set1_epi32(x)) };
        }
        // SAFETY: AVX2 was detected. No sum of two products is beyond 16 bits: either codes are at most 127, or they
        // are taken less 128 and their signs given to `x`, and 2 * 128 * 127 is below 2^15.
        unsafe {
            let x = _mm256_set1_epi32(x);
            let pairs = if wide {
                let signed = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
                _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(x, signed))
            } else {
                _mm256_maddubs_epi16(codes, x)
            };
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    unsafe fn bytes(at: *const u8, row: usize) -> __m256i {
        // SAFETY: the bytes of 8 rows are there.
        unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.add(row).cast())) }
    }

    #[inline(always)]
    unsafe fn signed_bytes(at: *const u8, row: usize) -> __m256i {
        // SAFETY: the bytes of 8 rows are there.
        unsafe { _mm256_cvtepi8_epi32(_mm_loadl_epi64(at.add(row).cast())) }
    }

    #[inline(always)]
    unsafe fn floats(integers: __m256i) -> __m256 {
        // SAFETY: AVX2 was detected.
        unsafe { _mm256_cvtepi32_ps(integers) }
    }

    #[inline(always)]
    unsafe fn half_scales(exponents: __m256i) -> __m256 {
        // SAFETY: AVX2 was detected. 2^(e - 128) has the exponent field e - 1; for 0 and 1 it is denormal.
        unsafe {
            let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(exponents, _mm256_set1_epi32(1)));
            let denormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), exponents);
            let is_normal = _mm256_cmpgt_epi32(exponents, _mm256_set1_epi32(1));
            _mm256_castsi256_ps(_mm256_blendv_epi8(denormal, normal, is_normal))
        }
    }

    #[inline(always)]
    unsafe fn f32s(at: *const u8, row: usize) -> __m256 {
        // SAFETY: the numbers of 8 rows are there.
        unsafe { _mm256_loadu_ps(at.add(row * 4).cast()) }
    }

    #[inline(always)]
    unsafe fn f16s(at: *const u8, row: usize) -> __m256 {
        // SAFETY: the numbers of 8 rows are there.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.add(row * 2).cast())) }
    }

    #[inline(always)]
    unsafe fn bf16s(at: *const u8, row: usize) -> __m256 {
        // SAFETY: the numbers of 8 rows are there.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.add(row * 2).cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        // SAFETY: AVX2 was detected.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: AVX2 was detected.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(sum: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: FMA was detected.
        unsafe { _mm256_fmadd_ps(a, b, sum) }
    }

    #[inline(always)]
    unsafe fn store(floats: __m256, to: *mut f32) {
        // SAFETY: there is room for 8 numbers.
        unsafe { _mm256_storeu_ps(to, floats) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

tile_functions!(
    Avx2, Avx2Rows<false>, widest 4, tiles 1 x 4, 2 x 2, 4 x 2,
    features "avx2,fma,f16c"
);
