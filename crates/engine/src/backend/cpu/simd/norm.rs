//! Norms of a row or a head, on lanes.
#![allow(unsafe_code)]

use super::{Isa, Kernel, LANES, Lanes};
use crate::model::spec::{Norm, NormKind};

impl Isa {
    /// `x = norm(x)` for one row, as wide as the norm's weights.
    ///
    /// Two passes for mean and variance, in f32: each element within 1e-6 of the largest of the row, tested against f64
    /// for rows around zero; a mean that is m times the deviation costs m times as much.
    pub fn normalize(self, x: &mut [f32], norm: &Norm<Vec<f32>>) {
        assert_eq!(x.len(), norm.weight.len(), "a weight for each element");
        if let Some(bias) = &norm.bias {
            assert_eq!(x.len(), bias.len(), "a bias for each element");
        }
        self.run(Normalize { x, norm });
    }
}

struct Normalize<'a> {
    x: &'a mut [f32],
    norm: &'a Norm<Vec<f32>>,
}

impl Kernel for Normalize<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes, const ROWS: usize, const COLS: usize>(self) {
        let Normalize { x, norm } = self;
        let count = x.len() as f32;
        // SAFETY: `L` is usable.
        unsafe {
            let mean = match norm.kind {
                NormKind::LayerNorm => {
                    let mut sum = L::zero();
                    for x in x.chunks(LANES) {
                        sum = sum.add(L::load_some(x));
                    }
                    L::splat(sum.sum() / count)
                }
                NormKind::RmsNorm => L::zero(),
            };
            let mut squares = L::zero();
            for x in x.chunks(LANES) {
                let centered = L::load_some(x).sub(mean).where_set(first(x.len()), L::zero());
                squares = squares.mul_add(centered, centered);
            }
            let scale = L::splat(1.0 / (squares.sum() / count + norm.eps).sqrt());
            let mut biases = norm.bias.as_deref().unwrap_or_default().chunks(LANES);
            for (x, weights) in x.chunks_mut(LANES).zip(norm.weight.chunks(LANES)) {
                let scaled = L::load_some(x).sub(mean).mul(scale);
                let bias = L::load_some(biases.next().unwrap_or_default());
                bias.mul_add(scaled, L::load_some(weights)).store_some(x);
            }
        }
    }
}

/// The bits of the first `count` of 16 lanes.
#[inline(always)]
fn first(count: usize) -> u16 {
    ((1u32 << count) - 1) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers around `mean`, far from each other.
    fn numbers(count: usize, mean: f32) -> Vec<f32> {
        (0..count).map(|i| mean + ((i * 7919) % 1009) as f32 / 200.0 - 2.5).collect()
    }

    /// See [`NormKind`].
    fn in_f64(x: &[f32], norm: &Norm<Vec<f32>>) -> Vec<f64> {
        let count = x.len() as f64;
        let x = || x.iter().map(|x| f64::from(*x));
        let mean = match norm.kind {
            NormKind::LayerNorm => x().sum::<f64>() / count,
            NormKind::RmsNorm => 0.0,
        };
        let variance = x().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
        let scale = 1.0 / (variance + f64::from(norm.eps)).sqrt();
        let bias = |i| norm.bias.as_ref().map_or(0.0, |bias: &Vec<f32>| f64::from(bias[i]));
        x().enumerate()
            .map(|(i, x)| (x - mean) * scale * f64::from(norm.weight[i]) + bias(i))
            .collect()
    }

    #[test]
    fn norms_have_the_accuracy_that_is_promised() {
        for isa in Isa::all() {
            for width in (1..70).chain([768, 1601, 4096]) {
                for (kind, mean) in [
                    (NormKind::LayerNorm, 0.0),
                    (NormKind::RmsNorm, 0.0),
                    (NormKind::LayerNorm, 100.0),
                ] {
                    for with_bias in [false, true] {
                        let x = numbers(width, mean);
                        let weight = numbers(width, 3.0);
                        let bias = with_bias.then(|| numbers(width, -1.0));
                        let norm = Norm { kind, weight, bias, eps: 1e-5 };
                        let expected = in_f64(&x, &norm);
                        let mut found = x;
                        isa.normalize(&mut found, &norm);
                        let largest =
                            expected.iter().fold(1.0f64, |largest, x| largest.max(x.abs()));
                        let allowed = 1e-6 * largest * f64::from(mean).max(1.0);
                        for (found, expected) in found.iter().zip(expected) {
                            let error = (f64::from(*found) - expected).abs();
                            assert!(
                                error < allowed,
                                "{isa:?} {kind:?} {width}: {found} {expected}"
                            );
                        }
                    }
                }
            }
        }
    }
}
