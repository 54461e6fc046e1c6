//! Rotary positions.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::Buf;
use crate::params::{RotateParams, RotationsParams};

/// How far pairs of elements turn.
#[derive(Clone, Copy)]
pub struct Rope<'a> {
    /// Radians for each position, of each pair.
    pub frequencies: &'a Buf<f32>,
    /// The same for rows of long sequences, where they turn otherwise.
    pub long_frequencies: Option<&'a Buf<f32>>,
    /// What sine and cosine are multiplied with.
    pub magnitude: f32,
}

/// The cosines, then the sines of all pairs for each of `rows` rows: `out` is (rows, 2 pairs). `is_long` is not 0 for rows of
/// long sequences.
///
/// # Errors
/// When the driver fails.
pub fn rotations(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    rope: Rope<'_>,
    positions: &Buf<u32>,
    is_long: &Buf<u32>,
    rows: usize,
) -> Result<(), CudaError> {
    let pairs = rope.frequencies.len();
    assert!(rows * 2 * pairs <= out.len(), "out is too short");
    assert!(rows <= positions.len() && rows <= is_long.len());
    assert!(rope.long_frequencies.is_none_or(|long| long.len() == pairs));
    let params = RotationsParams {
        positions: positions.address(),
        is_long: is_long.address(),
        frequencies: rope.frequencies.address(),
        long_frequencies: rope.long_frequencies.map_or(0, Buf::address),
        out: out.address(),
        pairs: pairs as i32,
        magnitude: rope.magnitude,
    };
    gpu.launch_early("rotations", [rows, 1, 1], 64, 0, &params)
}

/// Turns the first `heads` heads of `head_dim` elements of every row of `qkv`, whose rows are `stride` elements long. Pairs
/// are neighbours (interleaved), or lie as many elements apart as there are pairs.
///
/// # Errors
/// When the driver fails.
#[allow(clippy::too_many_arguments, reason = "they are the kernel's")]
pub fn rotate(
    gpu: &Gpu,
    qkv: &mut Buf<f32>,
    rotations: &Buf<f32>,
    rows: usize,
    stride: usize,
    (heads, head_dim): (usize, usize),
    pairs: usize,
    interleaved: bool,
) -> Result<(), CudaError> {
    assert!(2 * pairs <= head_dim && heads * head_dim <= stride);
    assert!(rows * stride <= qkv.len() && rows * 2 * pairs <= rotations.len());
    let params = RotateParams {
        qkv: qkv.address(),
        rotations: rotations.address(),
        stride: stride as i32,
        heads: heads as i32,
        head_dim: head_dim as i32,
        pairs: pairs as i32,
        interleaved: interleaved.into(),
        unused: 0,
    };
    gpu.launch("rotate", [rows, (heads * pairs).div_ceil(256), 1], 256, 0, &params)
}
