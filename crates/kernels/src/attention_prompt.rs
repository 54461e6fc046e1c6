//! Attention for the rows of prompts, on the tensor cores.
//!
//! Queries and the weights of values are rounded to halves (11 significant bits). A row has the same bits whatever rows are beside
//! it, but other bits than [`crate::attend`] gives.

use crate::attention::{AttentionShape, Positions};
use crate::driver::Gpu;
use crate::error::CudaError;
use crate::kv::{KvElement, KvPool};
use crate::memory::Buf;
use crate::params::AttendPromptParams;

/// A kernel: for heads of how many dimensions at most, how many queries a block takes, and positions at a time.
struct Kernel {
    f16: &'static str,
    q8: &'static str,
    dim: usize,
    queries: usize,
    positions: usize,
}

const KERNELS: [Kernel; 5] = [
    Kernel {
        f16: "attend_prompt_f16_64",
        q8: "attend_prompt_q8_64",
        dim: 64,
        queries: 128,
        positions: 64,
    },
    Kernel {
        f16: "attend_prompt_f16_80",
        q8: "attend_prompt_q8_80",
        dim: 80,
        queries: 64,
        positions: 64,
    },
    Kernel {
        f16: "attend_prompt_f16_96",
        q8: "attend_prompt_q8_96",
        dim: 96,
        queries: 64,
        positions: 64,
    },
    Kernel {
        f16: "attend_prompt_f16_128",
        q8: "attend_prompt_q8_128",
        dim: 128,
        queries: 64,
        positions: 64,
    },
    Kernel {
        f16: "attend_prompt_f16_256",
        q8: "attend_prompt_q8_256",
        dim: 256,
        queries: 64,
        positions: 32,
    },
];

/// Query heads that a block takes at most of those that share a KV head.
const MOST_HEADS: usize = 16;

impl Kernel {
    /// Bytes of shared memory: keys and values of two tiles, rows of values 16 bytes further apart, and the queries that do not
    /// fit into registers.
    fn shared(&self) -> usize {
        let queries = if self.dim > 128 { self.queries * self.dim * 2 } else { 0 };
        2 * self.positions * (2 * self.dim * 2 + 16) + queries
    }
}

/// As [`crate::attend`], for the rows of `at` from `first` on, of which those of one sequence are together and at positions one
/// after another. Keys and values are in halves or in 8 bits.
///
/// # Errors
/// When the driver fails.
#[allow(clippy::too_many_arguments, reason = "they are the kernel's")]
pub fn attend_prompt(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    qkv: &Buf<f32>,
    pool: &KvPool,
    at: Positions<'_>,
    first: usize,
    shape: &AttentionShape,
    sinks: Option<&Buf<f32>>,
) -> Result<(), CudaError> {
    pool.check(shape);
    assert_ne!(pool.element(), KvElement::F32, "keys and values are in halves or in 8 bits here");
    let (qkv_width, width) = (shape.qkv_width(), shape.heads * shape.head_dim);
    assert!(at.rows * qkv_width <= qkv.len(), "qkv is too short");
    assert!(at.rows * width <= out.len(), "out is too short");
    assert!(at.rows <= at.positions.len() && at.rows <= at.sequences.len());
    assert!(sinks.is_none_or(|sinks| sinks.len() >= shape.heads));
    let kernel = KERNELS.iter().find(|kernel| shape.head_dim <= kernel.dim);
    let kernel = kernel.expect("heads are no wider than the pool allows");
    let group = shape.heads / shape.kv_heads;
    let tile_heads = group.min(MOST_HEADS);
    let tile_rows = kernel.queries / tile_heads;
    let rows = at.rows.saturating_sub(first);
    let (keys, values) = pool.addresses();
    let params = AttendPromptParams {
        qkv: qkv.address() + (4 * first * qkv_width) as u64,
        keys,
        values,
        positions: at.positions.address() + 4 * first as u64,
        sequences: at.sequences.address() + 4 * first as u64,
        table_offsets: at.table_offsets.address(),
        blocks: at.blocks.address(),
        sinks: sinks.map_or(0, Buf::address),
        out: out.address() + (4 * first * width) as u64,
        qkv_stride: qkv_width as i32,
        out_stride: width as i32,
        rows: rows as i32,
        tile_rows: tile_rows as i32,
        heads: shape.heads as i32,
        kv_heads: shape.kv_heads as i32,
        tile_heads: tile_heads as i32,
        head_dim: shape.head_dim as i32,
        padded_dim: shape.padded_dim() as i32,
        scale: shape.scale,
        soft_cap: shape.soft_cap.unwrap_or(0.0),
        // A window beyond the context hides nothing.
        window: shape.window.map_or(0, |window| window.min(i32::MAX as usize) as i32),
    };
    let blocks = shape.kv_heads * group.div_ceil(tile_heads);
    let name = if pool.element() == KvElement::Q8 { kernel.q8 } else { kernel.f16 };
    gpu.launch(name, [rows.div_ceil(tile_rows), blocks, 1], 128, kernel.shared(), &params)
}
