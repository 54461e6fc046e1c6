//! The search for the scales of a block, by least squares.
//!
//! For given integers `q` the scale `s` that minimises `sum (x - s * q)^2` is known, and for a given scale the integers
//! are: the nearest ones. Going back and forth ends in a local minimum; starting from several scales, some of which clip
//! the largest values, finds a good one. All errors count alike: without data to run through a model, nothing says which
//! weight matters more.

use half::f16;

/// Partial sums, so that the compiler may use vectors.
const LANES: usize = 8;
/// Steps from the best start towards its minimum; most take two.
const REFINEMENTS: usize = 6;
/// Starts on each side, a tenth of a step apart.
const STARTS: usize = 19;

/// The nearest integer, ties to even, of a number below 2^22 in magnitude. Unlike `f32::round` this is two additions on
/// every machine.
#[inline(always)]
fn round(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

/// The nearest integer from `low` to `high`.
#[inline(always)]
pub(super) fn integer(low: f32, high: f32) -> impl Fn(f32) -> f32 + Copy {
    move |x| round(x.clamp(low, high))
}

#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The nearest F16 number that is finite.
pub(super) fn finite_f16(x: f32) -> f16 {
    f16::from_f32(x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}

/// The F16 number nearest to a step. Where F16 has few digits it is the one above, so that as many steps as there are
/// reach the largest value still.
pub(super) fn step_f16(x: f32) -> f16 {
    let nearest = finite_f16(x);
    if nearest.to_f32().abs() < x.abs().min(f16::MIN_POSITIVE.to_f32()) {
        f16::from_bits(nearest.to_bits() + 1)
    } else {
        nearest
    }
}

/// Sums of `term` over all values, several sums at once.
#[inline(always)]
fn sums<const N: usize, const SUMS: usize>(
    x: &[f32; N],
    term: impl Fn(f32) -> [f32; SUMS],
) -> [f32; SUMS] {
    let mut lanes = [[0.0; LANES]; SUMS];
    for x in x.as_chunks::<LANES>().0 {
        for (lane, x) in x.iter().enumerate() {
            let terms = term(*x);
            for (sum, term) in lanes.iter_mut().zip(terms) {
                sum[lane] += term;
            }
        }
    }
    lanes.map(|lanes| lanes.iter().sum())
}

/// The value farthest from zero.
fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |most: f32, x| if x.abs() > most.abs() { *x } else { most })
}

/// `sum (x - scale * nearest(x / scale))^2`
#[inline(always)]
pub(super) fn scale_error<const N: usize>(
    x: &[f32; N],
    scale: f32,
    nearest: impl Fn(f32) -> f32,
) -> f32 {
    let inverse = inverse(scale);
    let [error] = sums(x, |x| {
        let error = x - scale * nearest(x * inverse);
        [error * error]
    });
    error
}

/// The scale that brings `scale * nearest(x / scale)` close to `x`, where `nearest` gives levels from `low` to `high`.
#[inline(always)]
pub(super) fn scale<const N: usize>(
    x: &[f32; N],
    low: f32,
    high: f32,
    nearest: impl Fn(f32) -> f32 + Copy,
) -> f32 {
    let extreme = extreme(x);
    if extreme == 0.0 {
        return 0.0;
    }
    // For the levels that `x * inverse` is nearest to: what the best scale takes off the sum of squares, and that scale.
    let improve = |inverse: f32| {
        let [products, squares] = sums(x, |x| {
            let level = nearest(x * inverse);
            [x * level, level * level]
        });
        (products * products / squares, products / squares)
    };
    let mut best = (0.0, extreme / low);
    for end in [low, high] {
        for start in 0..STARTS {
            // The extreme value lands near the end of the levels, on either side of it.
            let found = improve((end + 0.1 * (start as f32 - (STARTS / 2) as f32)) / extreme);
            if found.0 > best.0 {
                best = found;
            }
        }
    }
    for _ in 0..REFINEMENTS {
        let found = improve(inverse(best.1));
        if found.0 <= best.0 || found.0.is_nan() {
            break;
        }
        best = found;
    }
    best.1
}

/// The whole levels of either sign up to `TOP`, the largest first.
pub(super) fn whole<const TOP: usize>() -> impl Iterator<Item = f32> {
    (1..=TOP).rev().flat_map(|level| [-(level as f32), level as f32])
}

/// The scale of a block of its own, with levels from `low` to `high`.
///
/// A block that has an exact form gets one that is exact: dequantized weights come back as they were.
pub(super) fn block_scale<const N: usize>(
    x: &[f32; N],
    low: f32,
    high: f32,
    levels: impl Iterator<Item = f32>,
    nearest: impl Fn(f32) -> f32 + Copy,
) -> f16 {
    let extreme = extreme(x);
    if extreme == 0.0 {
        return f16::ZERO;
    }
    let is_exact = |d: &f16| {
        let (d, inverse) = (d.to_f32(), inverse(d.to_f32()));
        x.iter().all(|x| d * nearest(x * inverse) == *x)
    };
    // The quotient of an exact product is the exact factor, and an F16 factor leaves the last 13 bits of an F32 zero.
    let factors =
        levels.map(|level| extreme / level).filter(|d| d.to_bits().trailing_zeros() >= 13);
    if let Some(exact) = factors.map(finite_f16).find(is_exact) {
        return exact;
    }
    // The scale that clips nothing is what others take; it is kept where rounding to F16 makes it the better one.
    [scale(x, low, high, nearest), extreme / low]
        .map(finite_f16)
        .into_iter()
        .map(|d| (scale_error(x, d.to_f32(), nearest), d))
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .expect("there are two")
        .1
}

/// The levels of the values under a scale.
#[inline(always)]
pub(super) fn levels<const N: usize>(
    x: &[f32; N],
    scale: f32,
    nearest: impl Fn(f32) -> f32,
) -> [f32; N] {
    let inverse = inverse(scale);
    x.map(|x| nearest(x * inverse))
}

/// A scale and an offset: values are `scale * q + offset`, with `q` from 0 to some top.
#[derive(Clone, Copy)]
pub(super) struct Line {
    pub scale: f32,
    pub offset: f32,
}

impl Line {
    /// The integers of the values.
    #[inline(always)]
    pub fn integers<const N: usize>(self, x: &[f32; N], top: f32) -> [f32; N] {
        let (nearest, inverse) = (integer(0.0, top), inverse(self.scale));
        x.map(|x| nearest((x - self.offset) * inverse))
    }

    /// `sum (x - (scale * q + offset))^2`
    #[inline(always)]
    pub fn error<const N: usize>(self, x: &[f32; N], top: f32) -> f32 {
        let (nearest, inverse) = (integer(0.0, top), inverse(self.scale));
        let [error] = sums(x, |x| {
            let q = nearest((x - self.offset) * inverse);
            let error = x - (self.scale * q + self.offset);
            [error * error]
        });
        error
    }
}

/// The line that brings values close to `x`, with an offset of at most `highest`.
#[inline(always)]
pub(super) fn line<const N: usize>(x: &[f32; N], top: f32, highest: f32) -> Line {
    let low = x.iter().fold(highest, |low, x| low.min(*x));
    let range = x.iter().fold(low, |high, x| high.max(*x)) - low;
    if range == 0.0 {
        return Line { scale: 0.0, offset: low };
    }
    // From here on relative to the lowest value: far from zero, squares would have no digits left for differences.
    let x = x.map(|x| x - low);
    let highest = highest - low;
    let count = N as f32;
    let [sum] = sums(&x, |x| [x]);
    // For the integers that a line gives: what the best line takes off the sum of squares, and that line.
    let improve = |line: Line| {
        let (nearest, inverse) = (integer(0.0, top), inverse(line.scale));
        let [q, qq, qx] = sums(&x, |x| {
            let q = nearest((x - line.offset) * inverse);
            [q, q * q, q * x]
        });
        let scale = (count * qx - q * sum) / (count * qq - q * q);
        let offset = (sum - scale * q) / count;
        let (scale, offset) =
            if offset > highest { ((qx - highest * q) / qq, highest) } else { (scale, offset) };
        let gain = scale * (2.0 * qx - scale * qq - 2.0 * offset * q)
            + offset * (2.0 * sum - count * offset);
        (gain, Line { scale, offset })
    };
    let mut best = (0.0, Line { scale: range / top, offset: 0.0 });
    for start in 0..STARTS {
        // More steps than there are leave the ends of the range out: the upper one, or both alike.
        let scale = range / (top + 0.1 * (start as f32 - 6.0));
        let centred = 0.5 * (range - top * scale);
        for offset in [0.0, centred.min(highest)] {
            let found = improve(Line { scale, offset });
            if found.0 > best.0 {
                best = found;
            }
        }
    }
    for _ in 0..REFINEMENTS {
        let found = improve(best.1);
        if found.0 <= best.0 || found.0.is_nan() {
            break;
        }
        best = found;
    }
    Line { scale: best.1.scale, offset: best.1.offset + low }
}

/// The scale and offset of a block of its own, and the integers from 0 to `top`.
///
/// A block that has an exact form gets one that is exact, as in [`block_scale`].
pub(super) fn block_line<const N: usize>(x: &[f32; N], top: u8) -> (f16, f16, [u8; N]) {
    let low = x.iter().fold(f32::INFINITY, |low, x| low.min(*x));
    let high = x.iter().fold(f32::NEG_INFINITY, |high, x| high.max(*x));
    let steps = f32::from(top);
    let rounded = |scale: f32, offset: f32| (finite_f16(scale), finite_f16(offset));
    let line =
        |(scale, offset): (f16, f16)| Line { scale: scale.to_f32(), offset: offset.to_f32() };
    let integers = |pair| line(pair).integers(x, steps).map(|q| q as u8);
    let is_exact = |pair: &(f16, f16)| {
        let Line { scale, offset } = line(*pair);
        let nearest = integer(0.0, steps);
        let inverse = inverse(scale);
        x.iter().all(|x| scale * nearest((x - offset) * inverse) + offset == *x)
    };
    // `used` steps between the lowest and the highest value, the first of them being step `first`; a negative scale goes
    // down from the highest. Their difference is that many scales but for the rounding of the two sums.
    let rounding = 2.0 * f32::EPSILON * low.abs().max(high.abs());
    let mut candidates = (1..=top)
        .rev()
        .map(|used| (used, finite_f16((high - low) / f32::from(used)).to_f32()))
        .filter(|(used, scale)| (scale * f32::from(*used) - (high - low)).abs() <= rounding)
        .flat_map(|(used, scale)| (0..=top - used).map(move |first| (f32::from(first), scale)))
        .flat_map(|(first, scale)| {
            [rounded(scale, low - scale * first), rounded(-scale, high + scale * first)]
        });
    if let Some(exact) = candidates.find(is_exact) {
        return (exact.0, exact.1, integers(exact));
    }
    let fitted = self::line(x, steps, f32::INFINITY);
    let best = [rounded(fitted.scale, fitted.offset), rounded((high - low) / steps, low)]
        .into_iter()
        .map(|pair| (line(pair).error(x, steps), pair))
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .expect("there are two")
        .1;
    (best.0, best.1, integers(best))
}
