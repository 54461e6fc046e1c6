//! The search for the scales of a super-block: those of its groups, which are themselves quantized, and the scale of
//! these scales.
//!
//! Each group is fitted alone; its scale is then rounded to the steps that the super-block has, where the steps beside the
//! nearest are tried too; and with the integers so found the scale of the scales is fitted again.

use super::fit::{self, Line, finite_f16, integer, step_f16};
use half::f16;

/// Values in a super-block.
const VALUES: usize = 256;
/// Times that the scale of the scales is fitted again; each must make the error smaller.
const ROUNDS: usize = 4;

/// A super-block of `GROUPS` groups with a scale and a minimum each: values are `(d * scale) * q - dmin * min`.
#[derive(Clone)]
pub(super) struct Affine<const GROUPS: usize> {
    pub d: f16,
    pub dmin: f16,
    pub scales: [u8; GROUPS],
    pub mins: [u8; GROUPS],
    pub q: [u8; VALUES],
}

/// A super-block of groups of `N` values, `q` from 0 to `top`, scales and minima from 0 to `most`.
pub(super) fn affine<const N: usize, const GROUPS: usize>(
    x: &[f32; VALUES],
    top: f32,
    most: f32,
) -> Affine<GROUPS> {
    let groups = x.as_chunks::<N>().0;
    let fitted: [Line; GROUPS] = std::array::from_fn(|i| fit::line(&groups[i], top, 0.0));
    let largest = |part: fn(&Line) -> f32| fitted.iter().map(part).fold(0.0, f32::max);
    let mut d = step_f16(largest(|line| line.scale) / most);
    let mut dmin = step_f16(largest(|line| -line.offset) / most);
    let mut best: Option<(f32, Affine<GROUPS>)> = None;
    for _ in 0..ROUNDS {
        let (mut error, mut found) =
            (0.0, Affine { d, dmin, scales: [0; GROUPS], mins: [0; GROUPS], q: [0; VALUES] });
        for (i, (x, q)) in groups.iter().zip(found.q.as_chunks_mut::<N>().0).enumerate() {
            let line = |scale: f32, min: f32| Line {
                scale: d.to_f32() * scale,
                offset: -(dmin.to_f32() * min),
            };
            let mut nearest = (f32::INFINITY, 0.0, 0.0);
            for scale in around(fitted[i].scale, d.to_f32(), 0.0, most) {
                for min in around(-fitted[i].offset, dmin.to_f32(), 0.0, most) {
                    let error = line(scale, min).error(x, top);
                    if error < nearest.0 {
                        nearest = (error, scale, min);
                    }
                }
            }
            let (group_error, scale, min) = nearest;
            error += group_error;
            (found.scales[i], found.mins[i]) = (scale as u8, min as u8);
            *q = line(scale, min).integers(x, top).map(|q| q as u8);
        }
        if best.as_ref().is_some_and(|(least, _)| error >= *least) {
            break;
        }
        (d, dmin) = found.refit::<N>(groups);
        best = Some((error, found));
    }
    best.expect("there was a round").1
}

impl<const GROUPS: usize> Affine<GROUPS> {
    /// The `d` and `dmin` that are best for these scales, minima and integers.
    fn refit<const N: usize>(&self, groups: &[[f32; N]]) -> (f16, f16) {
        // x = d * a - dmin * b in least squares, with a = scale * q and b = min.
        let (mut aa, mut ab, mut bb, mut ax, mut bx) = (0f64, 0f64, 0f64, 0f64, 0f64);
        for (i, (x, q)) in groups.iter().zip(self.q.as_chunks::<N>().0).enumerate() {
            let (scale, b) = (f64::from(self.scales[i]), f64::from(self.mins[i]));
            for (x, q) in x.iter().zip(q) {
                let (x, a) = (f64::from(*x), scale * f64::from(*q));
                aa += a * a;
                ab += a * b;
                bb += b * b;
                ax += a * x;
                bx += b * x;
            }
        }
        let determinant = aa * bb - ab * ab;
        if determinant <= 0.0 {
            return (self.d, self.dmin);
        }
        let d = (ax * bb - ab * bx) / determinant;
        let dmin = (ab * ax - aa * bx) / determinant;
        (finite_f16(d as f32), finite_f16(dmin as f32))
    }
}

/// A super-block of groups with a signed scale each: values are `(d * scale) * level`.
#[derive(Clone)]
pub(super) struct Scaled<const GROUPS: usize> {
    pub d: f16,
    pub scales: [i8; GROUPS],
    pub levels: [i8; VALUES],
}

/// A super-block of groups of `N` values, levels from `low` to `-low - 1`, scales from `lowest` to `-lowest - 1`.
pub(super) fn scaled<const N: usize, const GROUPS: usize>(
    x: &[f32; VALUES],
    low: f32,
    lowest: f32,
) -> Scaled<GROUPS> {
    let groups = x.as_chunks::<N>().0;
    let high = -low - 1.0;
    let nearest = integer(low, high);
    let fitted: [f32; GROUPS] = std::array::from_fn(|i| fit::scale(&groups[i], low, high, nearest));
    let largest =
        fitted.iter().fold(0.0, |most: f32, s| if s.abs() > most.abs() { *s } else { most });
    // There is one more negative scale than positive ones, and the largest takes it.
    let mut d = if largest == 0.0 { f16::ZERO } else { step_f16(largest / lowest) };
    let mut best: Option<(f32, Scaled<GROUPS>)> = None;
    for _ in 0..ROUNDS {
        let (mut error, mut found) = (0.0, Scaled { d, scales: [0; GROUPS], levels: [0; VALUES] });
        let (mut products, mut squares) = (0f64, 0f64);
        for (i, (x, levels)) in groups.iter().zip(found.levels.as_chunks_mut::<N>().0).enumerate() {
            let (group_error, scale) = around(fitted[i], d.to_f32(), lowest, -lowest - 1.0)
                .into_iter()
                .map(|scale| (fit::scale_error(x, d.to_f32() * scale, nearest), scale))
                .min_by(|a, b| a.0.total_cmp(&b.0))
                .expect("there are three");
            error += group_error;
            found.scales[i] = scale as i8;
            let found = fit::levels(x, d.to_f32() * scale, nearest);
            for (x, level) in x.iter().zip(found) {
                let unit = f64::from(scale * level);
                products += f64::from(*x) * unit;
                squares += unit * unit;
            }
            *levels = found.map(|level| level as i8);
        }
        if best.as_ref().is_some_and(|(least, _)| error >= *least) {
            break;
        }
        best = Some((error, found));
        if squares > 0.0 {
            d = finite_f16((products / squares) as f32);
        }
    }
    best.expect("there was a round").1
}

/// The step nearest to `x`, first, and those beside it.
fn around(x: f32, step: f32, lowest: f32, highest: f32) -> [f32; 3] {
    let nearest = if step == 0.0 { 0.0 } else { (x / step).round() };
    [nearest, nearest - 1.0, nearest + 1.0].map(|step| step.clamp(lowest, highest))
}
