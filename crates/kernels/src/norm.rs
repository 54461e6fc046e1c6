//! Norms.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::Buf;
use crate::params::NormParams;

/// A norm over `weight.len()` elements.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// What the normed elements are multiplied with.
    pub weight: &'a Buf<f32>,
    /// What is added at the end.
    pub bias: Option<&'a Buf<f32>>,
    /// Added to the variance.
    pub eps: f32,
    /// LayerNorm, which takes the mean away first; else RMSNorm.
    pub centered: bool,
}

/// Norms `segments` runs of `weight.len()` elements, side by side from the start of each of `rows` rows. Rows begin
/// `x_stride` and `out_stride` elements after one another, `x_start` and `out_start` elements into the buffers.
///
/// With `x` of `None` the rows are normed where they are, in `out`.
///
/// # Errors
/// When the driver fails.
#[allow(clippy::too_many_arguments, reason = "they are the kernel's")]
pub fn norm(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    (out_start, out_stride): (usize, usize),
    x: Option<&Buf<f32>>,
    (x_start, x_stride): (usize, usize),
    rows: usize,
    segments: usize,
    norm: Norm<'_>,
) -> Result<(), CudaError> {
    let width = norm.weight.len();
    let span = segments * width;
    let x_len = x.map_or(out.len(), Buf::len);
    if rows == 0 || span == 0 {
        return Ok(());
    }
    assert!(norm.bias.is_none_or(|bias| bias.len() >= width));
    assert!(x_start + (rows - 1) * x_stride + span <= x_len, "x is too short");
    assert!(out_start + (rows - 1) * out_stride + span <= out.len(), "out is too short");
    assert!(out_stride >= span || rows == 1, "rows overlap");
    let params = NormParams {
        x: x.map_or(out.address(), Buf::address) + 4 * x_start as u64,
        weight: norm.weight.address(),
        bias: norm.bias.map_or(0, Buf::address),
        out: out.address() + 4 * out_start as u64,
        width: width as i32,
        x_stride: x_stride as i32,
        out_stride: out_stride as i32,
        segments: segments as i32,
        eps: norm.eps,
        centered: norm.centered.into(),
        rows: rows as i32,
        unused: 0,
    };
    let all = rows * segments;
    match width {
        // Fewer threads have enough to do.
        ..=1024 => gpu.launch_early("norm_four", [all.div_ceil(4), 1, 1], 512, 0, &params),
        _ => gpu.launch_early("norm_rows", [all, 1, 1], 512, 0, &params),
    }
}
