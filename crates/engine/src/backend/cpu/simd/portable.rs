//! Sixteen lanes in plain Rust, for machines without a set of our own.
#![allow(unsafe_code)]

use super::kernels::entry_points;
use super::{Kernel, LANES, Lanes};
use std::array::from_fn;

#[derive(Clone, Copy)]
struct Portable([f32; LANES]);

// SAFETY: reads and writes exactly what the trait names; needs no instruction set.
unsafe impl Lanes for Portable {
    #[inline(always)]
    unsafe fn zero() -> Self {
        Portable([0.0; LANES])
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Portable([value; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: 16 f32 are there.
        Portable(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: there is room for 16 f32.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Portable(from_fn(|lane| self.0[lane] * other.0[lane]))
    }

    // Not `f32::mul_add`: without the instruction that is a call for each lane.
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        Portable(from_fn(|lane| self.0[lane] + a.0[lane] * b.0[lane]))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let eight: [f32; 8] = from_fn(|lane| self.0[lane] + self.0[lane + 8]);
        let four: [f32; 4] = from_fn(|lane| eight[lane] + eight[lane + 4]);
        let two: [f32; 2] = from_fn(|lane| four[lane] + four[lane + 2]);
        two[0] + two[1]
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Portable(from_fn(|lane| self.0[lane] + other.0[lane]))
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Portable(from_fn(|lane| self.0[lane] - other.0[lane]))
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        Portable(from_fn(|lane| self.0[lane] / other.0[lane]))
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        let choose = |a, b| if a < b { a } else { b };
        Portable(from_fn(|lane| choose(self.0[lane], other.0[lane])))
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        let choose = |a, b| if a > b { a } else { b };
        Portable(from_fn(|lane| choose(self.0[lane], other.0[lane])))
    }

    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    // Not `f32::round_ties_even`: without the instruction that is a call for each lane.
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // Up to 2^22, adding and subtracting 1.5 * 2^23 rounds; larger ones never get here.
        const ROUND: f32 = 12_582_912.0;
        Portable(self.0.map(|x| (x + ROUND) - ROUND))
    }

    #[inline(always)]
    unsafe fn scale_by_power(self, power: Self) -> Self {
        // In two halves, each the exponent of a normal number.
        Portable(from_fn(|lane| {
            let power = power.0[lane] as i32;
            let half = power >> 1;
            let factor = |power: i32| f32::from_bits(((power + 127) as u32) << 23);
            self.0[lane] * factor(half) * factor(power - half)
        }))
    }

    #[inline(always)]
    unsafe fn if_below(self, than: Self, then: Self, otherwise: Self) -> Self {
        let choose = |lane: usize| if self.0[lane] < than.0[lane] { then } else { otherwise };
        Portable(from_fn(|lane| choose(lane).0[lane]))
    }

    #[inline(always)]
    unsafe fn where_set(self, bits: u16, otherwise: Self) -> Self {
        let choose = |lane: usize| if bits >> lane & 1 == 1 { self } else { otherwise };
        Portable(from_fn(|lane| choose(lane).0[lane]))
    }
}

entry_points!(Portable, 2 x 2);
