//! Elementary functions on lanes, without libm: the same polynomials on every machine.
//!
//! The polynomials are minimax fits of the relative error (Remez's algorithm) unless said otherwise. The bounds hold
//! with fused multiply-add; without it (the portable lanes) they are the double.
#![allow(unsafe_code)]

use super::Lanes;

/// `coefficients[0] + coefficients[1] x + ...`, by Horner's rule.
///
/// # Safety
/// `L` must be usable.
#[inline(always)]
unsafe fn polynomial<L: Lanes, const N: usize>(x: L, coefficients: [f32; N]) -> L {
    // SAFETY: `L` is usable.
    unsafe {
        let mut sum = L::splat(coefficients[N - 1]);
        for coefficient in coefficients.iter().rev().skip(1) {
            sum = L::splat(*coefficient).mul_add(sum, x);
        }
        sum
    }
}

/// `-x`
///
/// # Safety
/// `L` must be usable.
#[inline(always)]
unsafe fn negated<L: Lanes>(x: L) -> L {
    // SAFETY: `L` is usable.
    unsafe { L::zero().sub(x) }
}

/// `|x|`
///
/// # Safety
/// `L` must be usable.
#[inline(always)]
unsafe fn magnitude<L: Lanes>(x: L) -> L {
    // SAFETY: `L` is usable.
    unsafe { x.max(negated(x)) }
}

/// `exp(x)` within 2 units in the last place; 0 below -87.3, infinite above 88.7, NaN for NaN.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2` (Cody and Waite's two-part ln 2), a polynomial for `exp(r)` (its Taylor
/// series to degree 7: the next term is below 6e-9), and `2^n` put into the exponent.
///
/// # Safety
/// `L` must be usable.
#[inline(always)]
pub unsafe fn exp<L: Lanes>(x: L) -> L {
    // 355/512 has few bits, so that `n * LN_2_HIGH` is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const SERIES: [f32; 8] =
        [1.0, 1.0, 0.5, 1.0 / 6.0, 1.0 / 24.0, 1.0 / 120.0, 1.0 / 720.0, 1.0 / 5040.0];
    // SAFETY: `L` is usable.
    unsafe {
        // In this order of operands NaN passes.
        let clamped = L::splat(-104.0).max(L::splat(89.0).min(x));
        let n = clamped.mul(L::splat(std::f32::consts::LOG2_E)).round();
        let r = clamped.mul_add(n, L::splat(-LN_2_HIGH)).mul_add(n, L::splat(-LN_2_LOW));
        let result = polynomial(r, SERIES).scale_by_power(n);
        x.if_below(L::splat(-87.3), L::zero(), result)
    }
}

/// `1 / (1 + exp(-x))`, relatively within 3e-7, and 0 below -88.7.
///
/// # Safety
/// `L` must be usable.
#[inline(always)]
pub unsafe fn sigmoid<L: Lanes>(x: L) -> L {
    // SAFETY: `L` is usable.
    unsafe { L::splat(1.0).div(L::splat(1.0).add(exp(negated(x)))) }
}

/// `tanh(x)`, relatively within 3e-7 for every x.
///
/// `x P(x^2)` up to 0.625, beyond that `1 - 2 / (exp(2 |x|) + 1)` with the sign of x.
///
/// # Safety
/// `L` must be usable.
#[inline(always)]
pub unsafe fn tanh<L: Lanes>(x: L) -> L {
    const SERIES: [f32; 6] =
        [1.0, -0.333_332_5, 0.133_309_32, -0.053_705_32, 0.020_539_94, -0.005_602_740_7];
    // SAFETY: `L` is usable.
    unsafe {
        let size = magnitude(x);
        let small = x.mul(polynomial(x.mul(x), SERIES));
        let grown = exp(size.add(size)).add(L::splat(1.0));
        let large = L::splat(1.0).sub(L::splat(2.0).div(grown));
        let large = x.if_below(L::zero(), negated(large), large);
        size.if_below(L::splat(0.625), small, large)
    }
}

/// `0.5 x (1 + erf(x / sqrt(2)))`: within 3e-7 of |x|, and for negative x also relatively within 3e-6 down to -12.9,
/// where it is below 1e-36 and becomes 0.
///
/// With `z = |x| / sqrt(2)` it is `max(x, 0) - 0.5 |x| erfc(z)`, and `erfc(z) = exp(-z^2) erfcx(z)`; `erfcx` is a
/// polynomial of `(z - 2.5) / (z + 2.5)`.
///
/// # Safety
/// `L` must be usable.
#[inline(always)]
pub unsafe fn gelu_erf<L: Lanes>(x: L) -> L {
    const SCALED_ERFC: [f32; 11] = [
        0.210_806_36,
        -0.371_736_73,
        0.251_713_16,
        -0.125_033_22,
        0.039_923_146,
        -0.003_992_020_5,
        -0.002_646_027_6,
        8.679_295e-4,
        2.364_28e-4,
        -1.099_05e-4,
        -3.701_501e-5,
    ];
    // SAFETY: `L` is usable.
    unsafe {
        // Beyond 30 nothing changes any more, and infinity times 0 does not arise.
        let size = L::splat(30.0).min(magnitude(x));
        let z = size.mul(L::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = z.sub(L::splat(2.5)).div(z.add(L::splat(2.5)));
        // The square and what its rounding lost: the exponential would multiply that.
        let square = size.mul(size);
        let lost = negated(square).mul_add(size, size);
        let gauss = exp(square.mul(L::splat(-0.5)));
        let gauss = gauss.mul_add(gauss, lost.mul(L::splat(-0.5)));
        let tail = gauss.mul(polynomial(t, SCALED_ERFC)).mul(L::splat(0.5));
        L::zero().max(x).sub(size.mul(tail))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Isa, Kernel, LANES};
    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Function {
        Exp,
        Sigmoid,
        Tanh,
        GeluErf,
    }

    struct Apply<'a>(Function, &'a mut [f32]);

    impl Kernel for Apply<'_> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<L: Lanes, const ROWS: usize, const COLS: usize>(self) {
            for x in self.1.chunks_mut(LANES) {
                // SAFETY: `L` is usable.
                unsafe {
                    let lanes = L::load_some(x);
                    let result = match self.0 {
                        Function::Exp => exp(lanes),
                        Function::Sigmoid => sigmoid(lanes),
                        Function::Tanh => tanh(lanes),
                        Function::GeluErf => gelu_erf(lanes),
                    };
                    result.store_some(x);
                }
            }
        }
    }

    /// Many numbers of both signs between these magnitudes, evenly and by powers.
    fn numbers(least: f32, most: f32) -> Vec<f32> {
        let count = 200_000;
        let part = |i: usize| i as f32 / count as f32;
        let even = (0..=count).map(|i| least + (most - least) * part(i));
        let powers = (0..=count).map(|i| least * (most / least).powf(part(i)));
        even.chain(powers).flat_map(|x| [x, -x]).collect()
    }

    /// Fails where `error(x, found, expected)` is not below 1.
    fn check(
        function: Function,
        numbers: &[f32],
        expected: impl Fn(f64) -> f64,
        error: impl Fn(f64, f64, f64) -> f64,
    ) {
        for isa in Isa::all() {
            // Without fused multiply-add twice the error is allowed.
            let allowed = if isa == Isa::all()[0] { 2.0 } else { 1.0 };
            let mut found = numbers.to_vec();
            isa.run(Apply(function, &mut found));
            let (mut worst, mut at) = (0.0, 0.0);
            for (x, found) in numbers.iter().zip(&found) {
                let x = f64::from(*x);
                let error = error(x, f64::from(*found), expected(x));
                if error.is_nan() || error > worst {
                    (worst, at) = (error, x);
                }
            }
            assert!(worst < allowed, "{isa:?} {function:?}({at}): {worst} of the bound");
        }
    }

    fn relative(bound: f64) -> impl Fn(f64, f64, f64) -> f64 {
        move |_, found, expected| (found - expected).abs() / (bound * expected.abs())
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let numbers: Vec<f32> = numbers(1e-9, 88.7).into_iter().filter(|x| *x >= -87.3).collect();
        let units = |_: f64, found: f64, expected: f64| {
            let nearest = expected as f32;
            let unit = f64::from(f32::from_bits(nearest.to_bits() + 1)) - f64::from(nearest);
            (found - expected).abs() / (2.0 * unit)
        };
        check(Function::Exp, &numbers, f64::exp, units);
    }

    #[test]
    fn sigmoid_and_tanh_are_relatively_right() {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let above: Vec<f32> = numbers(1e-9, 300.0).into_iter().filter(|x| *x > -87.0).collect();
        check(Function::Sigmoid, &above, sigmoid, relative(3e-7));
        check(Function::Tanh, &numbers(1e-30, 300.0), f64::tanh, relative(3e-7));
    }

    #[test]
    fn gelu_is_right_and_its_tail_relatively() {
        let gelu = |x: f64| 0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
        let of_size =
            |x: f64, found: f64, expected: f64| (found - expected).abs() / (3e-7 * x.abs());
        check(Function::GeluErf, &numbers(1e-20, 300.0), gelu, of_size);
        let tail: Vec<f32> = numbers(1e-20, 12.9).into_iter().filter(|x| *x < 0.0).collect();
        check(Function::GeluErf, &tail, gelu, relative(3e-6));
    }

    #[test]
    fn ends_are_right() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        for isa in Isa::all() {
            let of = |function, x: f32| {
                let mut x = [x];
                isa.run(Apply(function, &mut x));
                x[0]
            };
            assert_eq!(of(Function::Exp, 0.0), 1.0);
            assert_eq!(of(Function::Exp, -200.0), 0.0);
            assert_eq!([of(Function::Exp, -inf), of(Function::Exp, inf)], [0.0, inf]);
            assert_eq!([of(Function::Sigmoid, -inf), of(Function::Sigmoid, inf)], [0.0, 1.0]);
            assert_eq!([of(Function::Tanh, -inf), of(Function::Tanh, inf)], [-1.0, 1.0]);
            assert_eq!([of(Function::GeluErf, -inf), of(Function::GeluErf, inf)], [0.0, inf]);
            assert_eq!(of(Function::GeluErf, 0.0), 0.0);
            for function in [Function::Exp, Function::Sigmoid, Function::Tanh, Function::GeluErf] {
                assert!(of(function, nan).is_nan(), "{isa:?} {function:?}");
            }
        }
    }

    #[test]
    fn vector_sets_agree_bit_for_bit() {
        let sets = Isa::all();
        let Some((first, rest)) = sets.get(1..).and_then(|sets| sets.split_first()) else { return };
        for function in [Function::Exp, Function::Sigmoid, Function::Tanh, Function::GeluErf] {
            let bits = |isa: &Isa| {
                let mut x = numbers(1e-9, 100.0);
                isa.run(Apply(function, &mut x));
                x.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            for isa in rest {
                assert!(bits(first) == bits(isa), "{isa:?} {function:?}");
            }
        }
    }
}
