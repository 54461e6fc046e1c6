//! Sums and soft caps.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::Buf;
use crate::params::ElementwiseParams;

/// `out += x` for the first `count` elements.
///
/// # Errors
/// When the driver fails.
pub fn add(gpu: &Gpu, out: &mut Buf<f32>, x: &Buf<f32>, count: usize) -> Result<(), CudaError> {
    assert!(count <= x.len() && count <= out.len());
    let (x, out) = (x.address(), out.address());
    let params = ElementwiseParams { x, out, count: count as i64, cap: 0.0, unused: 0 };
    gpu.launch("add", [count.div_ceil(256), 1, 1], 256, 0, &params)
}

/// `x = cap * tanh(x / cap)` for the first `count` elements.
///
/// # Errors
/// When the driver fails.
pub fn soft_cap(gpu: &Gpu, x: &mut Buf<f32>, count: usize, cap: f32) -> Result<(), CudaError> {
    assert!(count <= x.len());
    let (x, out) = (x.address(), x.address());
    let params = ElementwiseParams { x, out, count: count as i64, cap, unused: 0 };
    gpu.launch("soft_cap", [count.div_ceil(256), 1, 1], 256, 0, &params)
}
