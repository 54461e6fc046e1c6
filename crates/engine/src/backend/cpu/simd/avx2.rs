//! Sixteen lanes in two AVX2 registers, with FMA and half-precision conversion.
#![allow(unsafe_code)]

use super::kernels::entry_points;
use super::{Kernel, Lanes};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
struct Avx2(__m256, __m256);

/// All bits of the lanes whose bit is set.
///
/// # Safety
/// AVX2 must have been detected.
#[inline(always)]
unsafe fn mask(bits: u16) -> __m256 {
    // SAFETY: AVX2 was detected.
    unsafe {
        let of_lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        let own = _mm256_and_si256(_mm256_set1_epi32(i32::from(bits)), of_lane);
        _mm256_castsi256_ps(_mm256_cmpeq_epi32(own, of_lane))
    }
}

// SAFETY: reads and writes exactly what the trait names; only used where AVX2, FMA and F16C were detected.
unsafe impl Lanes for Avx2 {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: AVX2 was detected.
        unsafe { Avx2(_mm256_setzero_ps(), _mm256_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: AVX2 was detected.
        unsafe { Avx2(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: 16 f32 are there.
        unsafe { Avx2(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: there is room for 16 f32.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: AVX2 was detected.
        unsafe { Avx2(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        // SAFETY: FMA was detected.
        unsafe { Avx2(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: AVX2 was detected.
        unsafe {
            let eight = _mm256_add_ps(self.0, self.1);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: AVX2 was detected.
        unsafe { Avx2(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: AVX2 was detected.
        unsafe { Avx2(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: AVX2 was detected.
        unsafe { Avx2(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: AVX2 was detected.
        unsafe { Avx2(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: AVX2 was detected.
        unsafe { Avx2(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        // SAFETY: AVX2 was detected.
        unsafe {
            let eight = _mm256_max_ps(self.0, self.1);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: AVX2 was detected.
        unsafe { Avx2(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1)) }
    }

    #[inline(always)]
    unsafe fn scale_by_power(self, power: Self) -> Self {
        // SAFETY: AVX2 was detected.
        unsafe {
            // In two halves, each the exponent of a normal number.
            let scale = |x, power| {
                let power = _mm256_cvtps_epi32(power);
                let half = _mm256_srai_epi32::<1>(power);
                let factor = |power| {
                    let biased = _mm256_add_epi32(power, _mm256_set1_epi32(127));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
                };
                let x = _mm256_mul_ps(x, factor(half));
                _mm256_mul_ps(x, factor(_mm256_sub_epi32(power, half)))
            };
            Avx2(scale(self.0, power.0), scale(self.1, power.1))
        }
    }

    #[inline(always)]
    unsafe fn if_below(self, than: Self, then: Self, otherwise: Self) -> Self {
        // SAFETY: AVX2 was detected.
        unsafe {
            let below = |x, than| _mm256_cmp_ps::<_CMP_LT_OQ>(x, than);
            Avx2(
                _mm256_blendv_ps(otherwise.0, then.0, below(self.0, than.0)),
                _mm256_blendv_ps(otherwise.1, then.1, below(self.1, than.1)),
            )
        }
    }

    #[inline(always)]
    unsafe fn where_set(self, bits: u16, otherwise: Self) -> Self {
        // SAFETY: AVX2 was detected.
        unsafe {
            Avx2(
                _mm256_blendv_ps(otherwise.0, self.0, mask(bits)),
                _mm256_blendv_ps(otherwise.1, self.1, mask(bits >> 8)),
            )
        }
    }
}

entry_points!(Avx2, 2 x 2, "avx2,fma,f16c");
