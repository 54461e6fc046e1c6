//! Activation functions.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::Buf;
use crate::params::ActivateParams;

/// The functions, as `cuda/activate.cu` numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Activation {
    /// `0.5 x (1 + erf(x / sqrt(2)))`
    GeluErf,
    /// `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`
    GeluTanh,
    /// `x sigmoid(1.702 x)`
    GeluSigmoid,
    /// `max(x, 0)`
    Relu,
    /// `x sigmoid(x)`
    Silu,
    /// `tanh(x)`
    Tanh,
}

/// How two inputs become one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gated {
    /// `activation(gate) * up`
    Plain(Activation),
    /// gpt-oss: `g sigmoid(alpha g) (u + 1)` with `g = min(gate, limit)` and `u = clamp(up, -limit, limit)`
    ClampedSwiglu {
        /// The limit.
        limit: f32,
        /// What the gate is multiplied with inside the sigmoid.
        alpha: f32,
    },
}

/// `out = activation(x)` for the first `count` elements.
///
/// # Errors
/// When the driver fails.
pub fn activate(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    x: &Buf<f32>,
    count: usize,
    activation: Activation,
) -> Result<(), CudaError> {
    assert!(count <= x.len() && count <= out.len() && count <= i32::MAX as usize);
    let params = ActivateParams {
        gate: x.address(),
        up: 0,
        out: out.address(),
        width: count as i32,
        gate_stride: 0,
        up_stride: 0,
        out_stride: 0,
        kind: activation as i32,
        limit: 0.0,
        alpha: 0.0,
        unused: 0,
    };
    gpu.launch("activate", [count.div_ceil(256), 1, 1], 256, 0, &params)
}

/// `out[r] = gated(gate, up)` for `rows` rows of `width` elements. `x` is (rows, 2 width), each row with the gates first.
///
/// # Errors
/// When the driver fails.
pub fn activate_gated(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    x: &Buf<f32>,
    (rows, width): (usize, usize),
    gated: Gated,
) -> Result<(), CudaError> {
    assert!(rows * width <= out.len(), "out is too short");
    assert!(rows * 2 * width <= x.len(), "x is too short");
    // Number 6 is the kernel's own name for it.
    let (kind, limit, alpha) = match gated {
        Gated::Plain(activation) => (activation as i32, 0.0, 0.0),
        Gated::ClampedSwiglu { limit, alpha } => (6, limit, alpha),
    };
    let params = ActivateParams {
        gate: x.address(),
        up: x.address() + 4 * width as u64,
        out: out.address(),
        width: width as i32,
        gate_stride: 2 * width as i32,
        up_stride: 2 * width as i32,
        out_stride: width as i32,
        kind,
        limit,
        alpha,
        unused: 0,
    };
    gpu.launch("activate", [width.div_ceil(256), rows, 1], 256, 0, &params)
}
