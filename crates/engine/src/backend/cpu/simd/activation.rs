//! What stands between the two products of a feed-forward part, on lanes.
#![allow(unsafe_code)]

use super::elementary::{exp, gelu_erf, sigmoid, tanh};
use super::{Isa, Kernel, LANES, Lanes};
use crate::model::spec::{Activation, Nonlinearity};

impl Isa {
    /// `out[i] = nonlinearity(gate[i], up[i])`; a plain one ignores `up`, which may then be empty.
    ///
    /// Accuracy, tested against f64: `Relu` exact; `Tanh` and `GeluErf` as their functions in `elementary`; `Silu`,
    /// `GeluSigmoid` and `GeluTanh`, which are `x sigmoid(u)`, relatively within 4e-7 (1 + |u|) wherever the value is
    /// a normal number above 1e-36, 0 below. A gate multiplies with `up`, rounded once more.
    pub fn activate(self, out: &mut [f32], gate: &[f32], up: &[f32], nonlinearity: Nonlinearity) {
        assert_eq!(out.len(), gate.len(), "an element for each element");
        assert!(!nonlinearity.is_gated() || up.len() == gate.len(), "a gate for each element");
        match nonlinearity {
            Nonlinearity::Plain(function) => {
                self.map_with(out, gate, gate, Plain(function));
            }
            Nonlinearity::Gated(function) => self.map_with(out, gate, up, Gated(function)),
            Nonlinearity::ClampedSwiglu { alpha, limit } => {
                self.map_with(out, gate, up, ClampedSwiglu { alpha, limit });
            }
        }
    }

    /// `x[i] = cap * tanh(x[i] / cap)`, relatively within 5e-7.
    pub fn soft_cap(self, x: &mut [f32], cap: f32) {
        self.run(InPlace(x, SoftCap(cap)));
    }

    /// `x[i] = exp(x[i])` within 2 units in the last place; 0 below -87.3.
    pub fn exp(self, x: &mut [f32]) {
        self.run(InPlace(x, Exp));
    }

    fn map_with<F: Function>(self, out: &mut [f32], x: &[f32], y: &[f32], function: F) {
        self.run(Map { out, x, y, function });
    }
}

/// A function of one or two numbers, lane by lane.
trait Function: Copy {
    /// # Safety
    /// `L` must be usable.
    unsafe fn of<L: Lanes>(self, x: L, y: L) -> L;
}

#[derive(Clone, Copy)]
struct Plain(Activation);

impl Function for Plain {
    #[inline(always)]
    unsafe fn of<L: Lanes>(self, x: L, _: L) -> L {
        // SAFETY: `L` is usable.
        unsafe {
            match self.0 {
                Activation::GeluErf => gelu_erf(x),
                Activation::GeluTanh => {
                    // 0.5 (1 + tanh(u)) = sigmoid(2 u), and 2 sqrt(2 / pi) = 1.595769
                    let cubic = x.mul_add(x.mul(x).mul(x), L::splat(0.044_715));
                    x.mul(sigmoid(cubic.mul(L::splat(1.595_769))))
                }
                Activation::GeluSigmoid => x.mul(sigmoid(x.mul(L::splat(1.702)))),
                // In this order of operands NaN passes.
                Activation::Relu => L::zero().max(x),
                Activation::Silu => x.mul(sigmoid(x)),
                Activation::Tanh => tanh(x),
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Gated(Activation);

impl Function for Gated {
    #[inline(always)]
    unsafe fn of<L: Lanes>(self, gate: L, up: L) -> L {
        // SAFETY: `L` is usable.
        unsafe { Plain(self.0).of(gate, gate).mul(up) }
    }
}

#[derive(Clone, Copy)]
struct ClampedSwiglu {
    alpha: f32,
    limit: f32,
}

impl Function for ClampedSwiglu {
    #[inline(always)]
    unsafe fn of<L: Lanes>(self, gate: L, up: L) -> L {
        // SAFETY: `L` is usable.
        unsafe {
            let limit = L::splat(self.limit);
            let gate = limit.min(gate);
            let up = limit.min(L::splat(-self.limit).max(up));
            gate.mul(sigmoid(gate.mul(L::splat(self.alpha)))).mul(up.add(L::splat(1.0)))
        }
    }
}

#[derive(Clone, Copy)]
struct SoftCap(f32);

impl Function for SoftCap {
    #[inline(always)]
    unsafe fn of<L: Lanes>(self, x: L, _: L) -> L {
        // SAFETY: `L` is usable.
        unsafe { tanh(x.div(L::splat(self.0))).mul(L::splat(self.0)) }
    }
}

#[derive(Clone, Copy)]
struct Exp;

impl Function for Exp {
    #[inline(always)]
    unsafe fn of<L: Lanes>(self, x: L, _: L) -> L {
        // SAFETY: `L` is usable.
        unsafe { exp(x) }
    }
}

struct Map<'a, F> {
    out: &'a mut [f32],
    x: &'a [f32],
    y: &'a [f32],
    function: F,
}

impl<F: Function> Kernel for Map<'_, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes, const ROWS: usize, const COLS: usize>(self) {
        let (xs, ys) = (self.x.chunks(LANES), self.y.chunks(LANES));
        for ((out, x), y) in self.out.chunks_mut(LANES).zip(xs).zip(ys) {
            // SAFETY: `L` is usable.
            unsafe { self.function.of(L::load_some(x), L::load_some(y)).store_some(out) };
        }
    }
}

struct InPlace<'a, F>(&'a mut [f32], F);

impl<F: Function> Kernel for InPlace<'_, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes, const ROWS: usize, const COLS: usize>(self) {
        for x in self.0.chunks_mut(LANES) {
            // SAFETY: `L` is usable.
            unsafe { self.1.of(L::load_some(x), L::zero()).store_some(x) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::reference;

    /// From -90 to 90, closely around zero, and a length that leaves a rest.
    fn numbers() -> Vec<f32> {
        let wide = (-9000..=9000).map(|i| i as f32 / 100.0);
        wide.chain((-4000..4000).map(|i| i as f32 / 2e5)).collect()
    }

    /// What the sigmoid of `x sigmoid(u)` is taken of.
    fn argument(x: f64, activation: Activation) -> f64 {
        match activation {
            Activation::GeluTanh => {
                2.0 * std::f64::consts::FRAC_2_PI.sqrt() * (x + 0.044715 * x.powi(3))
            }
            Activation::GeluSigmoid => 1.702 * x,
            _ => x,
        }
    }

    #[test]
    fn activations_have_the_accuracy_that_is_promised() {
        for isa in Isa::all() {
            for activation in [Activation::GeluTanh, Activation::GeluSigmoid, Activation::Silu] {
                let x = numbers();
                let mut out = vec![f32::NAN; x.len()];
                isa.activate(&mut out, &x, &[], Nonlinearity::Plain(activation));
                for (x, found) in x.iter().zip(&out) {
                    let u = argument(f64::from(*x), activation);
                    let expected = f64::from(*x) / (1.0 + (-u).exp());
                    let error = (f64::from(*found) - expected).abs();
                    let allowed = 4e-7 * (1.0 + u.abs()) * expected.abs() + 1e-36;
                    assert!(error <= allowed, "{isa:?} {activation:?} {x}: {found} {expected}");
                }
            }
        }
    }

    #[test]
    fn all_nonlinearities_are_those_of_the_reference() {
        let all = [
            Nonlinearity::Plain(Activation::GeluErf),
            Nonlinearity::Plain(Activation::GeluTanh),
            Nonlinearity::Plain(Activation::GeluSigmoid),
            Nonlinearity::Plain(Activation::Relu),
            Nonlinearity::Plain(Activation::Silu),
            Nonlinearity::Plain(Activation::Tanh),
            Nonlinearity::Gated(Activation::GeluErf),
            Nonlinearity::Gated(Activation::Relu),
            Nonlinearity::Gated(Activation::Silu),
            Nonlinearity::ClampedSwiglu { alpha: 1.702, limit: 7.0 },
        ];
        let gate = numbers();
        let up: Vec<f32> = gate.iter().rev().map(|x| x * 0.37 + 0.1).collect();
        for isa in Isa::all() {
            for nonlinearity in all {
                let mut out = vec![f32::NAN; gate.len()];
                isa.activate(&mut out, &gate, &up, nonlinearity);
                for ((gate, up), found) in gate.iter().zip(&up).zip(&out) {
                    let (gate, up) = (f64::from(*gate), f64::from(*up));
                    let expected = reference::between(gate, up, nonlinearity);
                    let error = (f64::from(*found) - expected).abs();
                    let size =
                        if nonlinearity.is_gated() { gate * up.abs().max(1.0) } else { gate };
                    let allowed = 6e-7 * size.abs().max(1e-30);
                    assert!(error <= allowed, "{isa:?} {nonlinearity:?} {gate} {up}: {error}");
                }
            }
        }
    }

    #[test]
    fn soft_caps_are_relatively_right() {
        for isa in Isa::all() {
            for cap in [0.5f32, 30.0, 50.0] {
                let mut x = numbers();
                isa.soft_cap(&mut x, cap);
                for (x, found) in numbers().into_iter().zip(x) {
                    let cap = f64::from(cap);
                    let expected = cap * (f64::from(x) / cap).tanh();
                    let error = (f64::from(found) - expected).abs();
                    assert!(error <= 6e-7 * expected.abs(), "{isa:?} {cap} {x}: {error}");
                }
            }
        }
    }
}
