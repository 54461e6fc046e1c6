//! Sixteen rows in one AVX-512 register.
#![allow(unsafe_code)]

use super::GROUP;
use super::activations::Tile;
use super::block_types::BlockType;
use super::rows::RowLanes;
use super::tiles::{self, tile_functions};
use std::arch::x86_64::*;

struct Avx512Rows;

// SAFETY: reads and writes exactly what the trait names; only used where AVX-512 F, BW, VL, DQ and VNNI were detected.
unsafe impl RowLanes for Avx512Rows {
    const ROWS: usize = 16;
    const WIDE_LESS_128: bool = false;
    type Words = __m512i;
    type Floats = __m512;

    #[inline(always)]
    unsafe fn words(line: *const u8, row: usize) -> __m512i {
        // SAFETY: the words of 16 rows are there.
        unsafe { _mm512_loadu_si512(line.add(row * 4).cast()) }
    }

    #[inline(always)]
    unsafe fn and(words: __m512i, mask: u8) -> __m512i {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_and_si512(words, _mm512_set1_epi8(mask as i8)) }
    }

    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    unsafe fn shift(words: __m512i, left: i32) -> __m512i {
        // SAFETY: AVX-512 was detected.
        unsafe {
            match left {
                0 => words,
                1.. => _mm512_sll_epi32(words, _mm_cvtsi32_si128(left)),
                _ => _mm512_srl_epi32(words, _mm_cvtsi32_si128(-left)),
            }
        }
    }

    #[inline(always)]
    unsafe fn look_up(bytes: __m512i, table: &[u8; 16]) -> __m512i {
        // SAFETY: AVX-512 BW was detected, and the table has 16 bytes.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, bytes)
        }
    }

    #[inline(always)]
    unsafe fn splat_word(value: i32) -> __m512i {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m512i, codes: __m512i, x: i32, _: bool) -> __m512i {
        // SAFETY: AVX-512 VNNI was detected.
        unsafe { _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(x)) }
    }

    #[inline(always)]
    unsafe fn bytes(at: *const u8, row: usize) -> __m512i {
        // SAFETY: the bytes of 16 rows are there.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(at.add(row).cast())) }
    }

    #[inline(always)]
    unsafe fn signed_bytes(at: *const u8, row: usize) -> __m512i {
        // SAFETY: the bytes of 16 rows are there.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(at.add(row).cast())) }
    }

    #[inline(always)]
    unsafe fn floats(integers: __m512i) -> __m512 {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_cvtepi32_ps(integers) }
    }

    #[inline(always)]
    unsafe fn half_scales(exponents: __m512i) -> __m512 {
        // SAFETY: AVX-512 was detected. 2^(e - 128) has the exponent field e - 1; for 0 and 1 it is denormal.
        unsafe {
            let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(exponents, _mm512_set1_epi32(1)));
            let denormal = _mm512_cmplt_epi32_mask(exponents, _mm512_set1_epi32(2));
            let smallest = _mm512_set1_epi32(0x0020_0000);
            _mm512_castsi512_ps(_mm512_mask_sllv_epi32(normal, denormal, smallest, exponents))
        }
    }

    #[inline(always)]
    unsafe fn f32s(at: *const u8, row: usize) -> __m512 {
        // SAFETY: the numbers of 16 rows are there.
        unsafe { _mm512_loadu_ps(at.add(row * 4).cast()) }
    }

    #[inline(always)]
    unsafe fn f16s(at: *const u8, row: usize) -> __m512 {
        // SAFETY: the numbers of 16 rows are there.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.add(row * 2).cast())) }
    }

    #[inline(always)]
    unsafe fn bf16s(at: *const u8, row: usize) -> __m512 {
        // SAFETY: the numbers of 16 rows are there.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.add(row * 2).cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(sum: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_fmadd_ps(a, b, sum) }
    }

    #[inline(always)]
    unsafe fn store(floats: __m512, to: *mut f32) {
        // SAFETY: there is room for 16 numbers.
        unsafe { _mm512_storeu_ps(to, floats) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

tile_functions!(
    Avx512, Avx512Rows, widest 8, tiles 1 x 1, 2 x 4, 4 x 2, 8 x 2,
    features "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"
);
