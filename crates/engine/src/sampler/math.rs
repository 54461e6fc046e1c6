//! Logarithm and exponential as fixed sequences of IEEE 754 single-precision operations.
//!
//! Every step is one correctly rounded multiplication, addition or subtraction, in the order written;
//! nothing is fused (on a GPU: `__fmul_rn`, `__fadd_rn`) and no mathematics library is involved, so every
//! device gets the same bits. The polynomials are our own minimax fits; the constant ln 2 is split so
//! that an integer times the upper part is exact (Cody and Waite 1980).

#![allow(clippy::excessive_precision)] // The nine digits that name one f32 exactly.

/// ln 2 rounded to ten bits.
const LN2_HIGH: f32 = 0.693359375;
/// ln 2 - `LN2_HIGH`.
const LN2_LOW: f32 = -2.12194440e-4;

/// P in ln(1 + f) = f - f²/2 + f³ P(f) for f in [√½ - 1, √2 - 1], lowest power first.
/// Relative error of the formula 5.9e-9.
const LN: [f32; 8] = [
    3.333333135e-1,
    -2.500081956e-1,
    2.000122666e-1,
    -1.662335694e-1,
    1.420175582e-1,
    -1.316018552e-1,
    1.276159436e-1,
    -7.634509355e-2,
];

/// P in exp(r) = 1 + r + r² P(r) for |r| <= ½ ln 2, lowest power first.
/// Relative error of the formula 3.1e-9.
const EXP: [f32; 5] =
    [4.999999404e-1, 1.666652113e-1, 4.166838899e-2, 8.368735202e-3, 1.381456037e-3];

#[inline(always)]
fn polynomial<const N: usize>(coefficients: &[f32; N], x: f32) -> f32 {
    let mut sum = coefficients[N - 1];
    for i in (0..N - 1).rev() {
        sum = sum * x + coefficients[i];
    }
    sum
}

/// ln(2^exponent (1 + f)) for f in [√½ - 1, √2 - 1] and an integer exponent.
#[inline(always)]
pub(super) fn ln_reduced(exponent: f32, f: f32) -> f32 {
    let square = f * f;
    let mut tail = (f * square) * polynomial(&LN, f);
    tail += exponent * LN2_LOW;
    tail -= 0.5 * square;
    (f + tail) + exponent * LN2_HIGH
}

/// x = 2^exponent (1 + f) with f in [√½ - 1, √2 - 1], for a positive normal x.
#[inline(always)]
pub(super) fn reduce(x: f32) -> (f32, f32) {
    const SQRT_HALF: u32 = 0x3f35_04f3;
    let bits = x.to_bits();
    let exponent = (bits.wrapping_sub(SQRT_HALF) as i32) >> 23;
    let mantissa = f32::from_bits(bits.wrapping_sub((exponent << 23) as u32));
    (exponent as f32, mantissa - 1.0)
}

/// ln x for a positive normal x.
#[inline(always)]
pub(super) fn ln(x: f32) -> f32 {
    let (exponent, f) = reduce(x);
    ln_reduced(exponent, f)
}

/// Below this exponent a weight is 0; exp(-30) is less than 2^-43.
pub(super) const WEIGHT_FLOOR: f32 = -30.0;

/// floor(exp(x) 2^40) for x <= 0: a softmax weight as an integer, so that sums of weights are exact and
/// the same in every order.
#[inline(always)]
pub(super) fn weight(x: f32) -> u64 {
    const LOG2_E: f32 = 1.44269502;
    // Adding and subtracting 1.5 * 2^23 rounds to an integer, ties to even.
    const ROUND: f32 = 12_582_912.0;
    if x < WEIGHT_FLOOR {
        return 0;
    }
    let n = (x * LOG2_E + ROUND) - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let fraction = 1.0 + (r + (r * r) * polynomial(&EXP, r));
    let scaled = f32::from_bits(((n as i32 + 40 + 127) << 23) as u32);
    (fraction * scaled) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ln_is_close_over_its_range() {
        let mut worst: f64 = 0.0;
        let mut bits = f32::MIN_POSITIVE.to_bits();
        while bits < f32::INFINITY.to_bits() {
            let x = f32::from_bits(bits);
            let exact = f64::from(x).ln();
            let error = (f64::from(ln(x)) - exact).abs() / exact.abs().max(1e-30);
            worst = worst.max(error);
            bits += 1009;
        }
        assert_eq!(ln(1.0).to_bits(), 0);
        assert!(worst < 8.5e-8, "relative error {worst:e}");
        // Next to 1 the logarithm is tiny and still has to be right to its last bits.
        for offset in -100_000i32..100_000 {
            let x = f32::from_bits((1.0f32.to_bits() as i32 + offset) as u32);
            let exact = f64::from(x).ln();
            assert!((f64::from(ln(x)) - exact).abs() <= 8.5e-8 * exact.abs(), "ln {x}");
        }
    }

    #[test]
    fn weights_are_close_and_end_at_zero() {
        const ONE: f64 = (1u64 << 40) as f64;
        assert_eq!(weight(0.0), 1 << 40);
        assert_eq!(weight(-0.0), 1 << 40);
        assert_eq!(weight(f32::NEG_INFINITY), 0);
        assert_eq!(weight(-1e30), 0);
        let mut worst: f64 = 0.0;
        for i in 0..3_000_000 {
            let x = -(i as f32) * 1e-5;
            let exact = f64::from(x).exp();
            let error = (weight(x) as f64 / ONE - exact).abs() - 1.0 / ONE;
            worst = worst.max(error / exact);
        }
        assert!(worst < 1.5e-7, "relative error {worst:e}");
    }
}
