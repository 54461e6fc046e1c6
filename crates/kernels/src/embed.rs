//! Rows of tables.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::Buf;
use crate::params::{EmbedParams, GatherParams};
use crate::weights::{Matrix, kernel_names};

const EMBED: [&str; 16] = kernel_names!("embed_", "");

/// `out[r] = scale * table[rows[r]]` for the first `count` rows. `out` is (count, table columns).
///
/// `rows` must be below the table's rows: the caller checked them on the host.
///
/// # Errors
/// When the driver fails.
pub fn embed(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    table: &Matrix,
    rows: &Buf<u32>,
    count: usize,
    scale: f32,
) -> Result<(), CudaError> {
    launch(gpu, out, table, rows, count, scale, false)
}

/// `out[r] += table[rows[r]]` for the first `count` rows, as [`embed`].
///
/// # Errors
/// When the driver fails.
pub fn add_rows(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    table: &Matrix,
    rows: &Buf<u32>,
    count: usize,
) -> Result<(), CudaError> {
    launch(gpu, out, table, rows, count, 1.0, true)
}

fn launch(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    table: &Matrix,
    rows: &Buf<u32>,
    count: usize,
    scale: f32,
    add: bool,
) -> Result<(), CudaError> {
    assert!(count <= rows.len() && count * table.cols() <= out.len());
    let params = EmbedParams {
        table: table.planes(),
        rows: rows.address(),
        out: out.address(),
        cols: table.cols() as i32,
        chunks: table.chunks() as i32,
        scale,
        add: add.into(),
    };
    let grid = [table.chunks().div_ceil(128), count, 1];
    gpu.launch_early(EMBED[table.kind() as usize], grid, 128, 0, &params)
}

/// `out[i] = x[rows[i]]` for the first `count` rows of `width` elements. `rows` must be rows of `x`: the caller checked them
/// on the host.
///
/// # Errors
/// When the driver fails.
pub fn gather(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    x: &Buf<f32>,
    rows: &Buf<u32>,
    count: usize,
    width: usize,
) -> Result<(), CudaError> {
    assert!(count <= rows.len() && count * width <= out.len());
    let params = GatherParams {
        x: x.address(),
        rows: rows.address(),
        out: out.address(),
        width: width as i64,
    };
    gpu.launch_early("gather", [width.div_ceil(256), count, 1], 256, 0, &params)
}
