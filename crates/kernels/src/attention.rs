//! Keys and values in blocks, and attention over them.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::{Arena, Buf};
use crate::params::{AppendParams, AttendParams};

/// Positions of a block of keys and values.
pub const BLOCK_POSITIONS: usize = 32;

/// Positions of a split, which is what one block of threads computes.
const SPLIT: usize = 256;

/// Dimensions of the widest head that the kernels take.
pub const MAX_HEAD_DIM: usize = 256;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvElement {
    /// Exactly as they are computed.
    F32,
    /// In half of the memory.
    F16,
}

impl KvElement {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            KvElement::F32 => 4,
            KvElement::F16 => 2,
        }
    }
}

/// What heads compute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// What a query times a key is multiplied with.
    pub scale: f32,
    /// How many of the latest positions a query sees.
    pub window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
}

impl AttentionShape {
    pub(crate) fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// The width of a head in memory.
    pub(crate) fn padded_dim(&self) -> usize {
        self.head_dim.next_multiple_of(8)
    }
}

/// The keys and values of one layer.
pub struct KvPool {
    element: KvElement,
    /// Elements of one block over all heads.
    block: usize,
    blocks: usize,
    keys: Buf<u8>,
    values: Buf<u8>,
}

impl KvPool {
    /// Bytes that the keys of a pool take, and its values again.
    fn plane_bytes(blocks: usize, shape: &AttentionShape, element: KvElement) -> usize {
        blocks * shape.kv_heads * BLOCK_POSITIONS * shape.padded_dim() * element.bytes()
    }

    /// Bytes that a pool takes up in an arena.
    pub fn bytes(blocks: usize, shape: &AttentionShape, element: KvElement) -> u64 {
        2 * Arena::padded(Self::plane_bytes(blocks, shape, element) as u64)
    }

    /// Room for `blocks` blocks.
    ///
    /// # Errors
    /// When the arena is full.
    pub fn new(
        arena: &mut Arena,
        blocks: usize,
        shape: &AttentionShape,
        element: KvElement,
    ) -> Result<Self, CudaError> {
        assert!(shape.head_dim <= MAX_HEAD_DIM, "heads of {}", shape.head_dim);
        let bytes = Self::plane_bytes(blocks, shape, element);
        Ok(KvPool {
            element,
            block: shape.kv_heads * BLOCK_POSITIONS * shape.padded_dim(),
            blocks,
            keys: arena.buffer(bytes)?,
            values: arena.buffer(bytes)?,
        })
    }

    /// Sets every byte of keys and values.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn fill_bytes(&mut self, byte: u8) -> Result<(), CudaError> {
        self.keys.fill_bytes(byte)?;
        self.values.fill_bytes(byte)
    }

    /// Blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    pub(crate) fn element(&self) -> KvElement {
        self.element
    }

    /// Where keys and values start.
    pub(crate) fn addresses(&self) -> (u64, u64) {
        (self.keys.address(), self.values.address())
    }

    pub(crate) fn check(&self, shape: &AttentionShape) {
        assert_eq!(self.block, shape.kv_heads * BLOCK_POSITIONS * shape.padded_dim());
        assert!(shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads));
    }
}

/// Where the rows of a batch are, on the device. The caller checked on the host that every table has a block of the pool for
/// every position that is written or seen.
#[derive(Clone, Copy)]
pub struct Positions<'a> {
    /// The position of each row.
    pub positions: &'a Buf<u32>,
    /// The sequence of each row.
    pub sequences: &'a Buf<u32>,
    /// Where the table of each sequence starts in `blocks`.
    pub table_offsets: &'a Buf<u32>,
    /// Physical block of every logical block.
    pub blocks: &'a Buf<u32>,
    /// Rows.
    pub rows: usize,
    /// The largest position, or anything above it.
    pub last: usize,
}

/// Stores the keys and values of `qkv`, which is (rows, queries, keys, values), in the pool.
///
/// # Errors
/// When the driver fails.
pub fn append(
    gpu: &Gpu,
    pool: &mut KvPool,
    qkv: &Buf<f32>,
    at: Positions<'_>,
    shape: &AttentionShape,
) -> Result<(), CudaError> {
    pool.check(shape);
    assert!(at.rows * shape.qkv_width() <= qkv.len(), "qkv is too short");
    assert!(at.rows <= at.positions.len() && at.rows <= at.sequences.len());
    let params = AppendParams {
        qkv: qkv.address(),
        keys: pool.keys.address(),
        values: pool.values.address(),
        positions: at.positions.address(),
        sequences: at.sequences.address(),
        table_offsets: at.table_offsets.address(),
        blocks: at.blocks.address(),
        stride: shape.qkv_width() as i32,
        heads: shape.heads as i32,
        kv_heads: shape.kv_heads as i32,
        head_dim: shape.head_dim as i32,
        padded_dim: shape.padded_dim() as i32,
        unused: 0,
    };
    let name = match pool.element {
        KvElement::F32 => "append_f32",
        KvElement::F16 => "append_f16",
    };
    gpu.launch(name, [at.rows, 1, 1], 256, 0, &params)
}

/// The kernels for one type of keys and values: with how many query heads at once and for how many dimensions, one block
/// for all splits and one for each.
type Kernels = [(usize, usize, &'static str, &'static str); 8];

macro_rules! kernels {
    ($element:literal) => {
        [
            (
                1,
                64,
                concat!("attend_", $element, "_1_1"),
                concat!("attend_", $element, "_1_1_split"),
            ),
            (
                1,
                128,
                concat!("attend_", $element, "_1_2"),
                concat!("attend_", $element, "_1_2_split"),
            ),
            (
                1,
                256,
                concat!("attend_", $element, "_1_4"),
                concat!("attend_", $element, "_1_4_split"),
            ),
            (
                4,
                64,
                concat!("attend_", $element, "_4_1"),
                concat!("attend_", $element, "_4_1_split"),
            ),
            (
                4,
                128,
                concat!("attend_", $element, "_4_2"),
                concat!("attend_", $element, "_4_2_split"),
            ),
            (
                4,
                256,
                concat!("attend_", $element, "_4_4"),
                concat!("attend_", $element, "_4_4_split"),
            ),
            (
                8,
                64,
                concat!("attend_", $element, "_8_1"),
                concat!("attend_", $element, "_8_1_split"),
            ),
            (
                8,
                128,
                concat!("attend_", $element, "_8_2"),
                concat!("attend_", $element, "_8_2_split"),
            ),
        ]
    };
}
const KERNELS_F32: Kernels = kernels!("f32");
const KERNELS_F16: Kernels = kernels!("f16");

/// Parts into which a context that ends at position `last` is cut.
fn parts(last: usize) -> usize {
    last / SPLIT + 1
}

/// The most splits that a row sees.
fn splits(shape: &AttentionShape, last: usize) -> usize {
    let all = parts(last);
    shape.window.map_or(all, |window| all.min(window.div_ceil(SPLIT) + 1))
}

/// Elements of the partial sums that [`attend`] may need for `rows` rows in contexts of up to `context` positions, on a device of so
/// many multiprocessors. More rows than that take no partial sums.
pub fn partial_elements(
    multiprocessors: usize,
    shape: &AttentionShape,
    rows: usize,
    context: usize,
) -> usize {
    let rows = rows.min(rows_worth_splitting(multiprocessors, shape));
    rows * shape.heads * context.div_ceil(SPLIT) * (shape.padded_dim() + 2)
}

/// As [`Positions::last`], a few numbers with which `rows` rows of contexts of up to `context` positions can be launched, ascending:
/// that the least of them which is no less than their last position serves a batch nearly as well as that position itself. Blocks
/// that a context has no use for end at once.
pub fn last_positions(
    multiprocessors: usize,
    shape: &AttentionShape,
    rows: usize,
    context: usize,
) -> Vec<usize> {
    // Two splits are taken by one block.
    let ends = std::iter::successors(Some(2 * SPLIT), |end| Some(2 * end));
    let is_split = rows <= rows_worth_splitting(multiprocessors, shape);
    let ends = ends.take_while(|end| is_split && *end < context);
    ends.chain([context]).map(|end| end - 1).collect()
}

/// With more rows than this, there are blocks enough without splits.
fn rows_worth_splitting(multiprocessors: usize, shape: &AttentionShape) -> usize {
    (2 * multiprocessors).div_ceil(shape.kv_heads)
}

/// The turn of queries and keys, see [`crate::rotate`].
#[derive(Clone, Copy)]
pub struct Turn<'a> {
    /// Of each row, as [`crate::rotations`] wrote them.
    pub rotations: &'a Buf<f32>,
    /// Pairs of a head.
    pub pairs: usize,
    /// Pairs are neighbours.
    pub interleaved: bool,
}

/// Per row and head: `out = softmax(scale * q * keys.transposed()) * values`, over the positions that the row sees. `qkv` is
/// as [`append`] left it, `out` is (rows, queries); `sinks` has a number for each query head. `partials` is scratch of
/// [`partial_elements`]. A row's bits do not depend on the other rows.
///
/// # Errors
/// When the driver fails.
#[allow(clippy::too_many_arguments, reason = "they are the kernel's")]
pub fn attend(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    qkv: &Buf<f32>,
    pool: &KvPool,
    at: Positions<'_>,
    shape: &AttentionShape,
    sinks: Option<&Buf<f32>>,
    partials: &mut Buf<f32>,
) -> Result<(), CudaError> {
    launch(gpu, out, qkv, pool, at, shape, sinks, partials, None)
}

/// [`crate::rotate`], [`append`] and [`attend`] at once, for rows that are each of a sequence of its own. `qkv` stays as it is.
///
/// # Errors
/// When the driver fails.
#[allow(clippy::too_many_arguments, reason = "they are the kernel's")]
pub fn attend_fresh(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    qkv: &Buf<f32>,
    pool: &mut KvPool,
    at: Positions<'_>,
    shape: &AttentionShape,
    sinks: Option<&Buf<f32>>,
    partials: &mut Buf<f32>,
    turn: Option<Turn<'_>>,
) -> Result<(), CudaError> {
    if let Some(turn) = turn {
        assert!(2 * turn.pairs <= shape.head_dim, "{} pairs", turn.pairs);
        assert!(at.rows * 2 * turn.pairs <= turn.rotations.len(), "too few rotations");
    }
    launch(gpu, out, qkv, pool, at, shape, sinks, partials, Some(turn))
}

#[allow(clippy::too_many_arguments, reason = "they are the kernel's")]
fn launch(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    qkv: &Buf<f32>,
    pool: &KvPool,
    at: Positions<'_>,
    shape: &AttentionShape,
    sinks: Option<&Buf<f32>>,
    partials: &mut Buf<f32>,
    fresh: Option<Option<Turn<'_>>>,
) -> Result<(), CudaError> {
    let turn = fresh.flatten();
    pool.check(shape);
    assert!(at.rows * shape.qkv_width() <= qkv.len(), "qkv is too short");
    assert!(at.rows * shape.heads * shape.head_dim <= out.len(), "out is too short");
    assert!(at.rows <= at.positions.len() && at.rows <= at.sequences.len());
    assert!(sinks.is_none_or(|sinks| sinks.len() >= shape.heads));
    let (group, dim) = (shape.heads / shape.kv_heads, shape.padded_dim());
    let kernels = match pool.element {
        KvElement::F32 => &KERNELS_F32,
        KvElement::F16 => &KERNELS_F16,
    };
    let fitting = || kernels.iter().filter(|(_, most, ..)| dim <= *most);
    // Of a context, only the last splits are in a window, but they are numbered from the start.
    let all = parts(at.last);
    let few = at.rows <= rows_worth_splitting(gpu.info().multiprocessors as usize, shape);
    let with_partials = few && splits(shape, at.last) > 2;
    // Blocks with fewer heads are through sooner, so as long as multiprocessors are idle, heads get blocks of their own; beyond
    // that, those that share keys and values share what is read. The least dimensions come first.
    let side_by_side =
        at.rows * shape.kv_heads * if with_partials { splits(shape, at.last) } else { 1 };
    let fills =
        |heads: usize| side_by_side * group.div_ceil(heads) >= gpu.info().multiprocessors as usize;
    let useful = fitting().map(|(heads, ..)| *heads).filter(|heads| *heads < 2 * group);
    let widest = useful.clone().filter(|heads| fills(*heads)).max().or(useful.min());
    let &(heads, _, whole, split) = fitting()
        .filter(|(heads, ..)| Some(*heads) == widest)
        .min_by_key(|(_, most, ..)| *most)
        .expect("heads are no wider than the pool allows");
    if with_partials {
        let needed = at.rows * shape.heads * all * (dim + 2);
        assert!(needed <= partials.len(), "partials are too short");
    }
    let params = AttendParams {
        qkv: qkv.address(),
        keys: pool.keys.address(),
        values: pool.values.address(),
        positions: at.positions.address(),
        sequences: at.sequences.address(),
        table_offsets: at.table_offsets.address(),
        blocks: at.blocks.address(),
        sinks: sinks.map_or(0, Buf::address),
        out: out.address(),
        partials: partials.address(),
        qkv_stride: shape.qkv_width() as i32,
        out_stride: (shape.heads * shape.head_dim) as i32,
        heads: shape.heads as i32,
        kv_heads: shape.kv_heads as i32,
        head_dim: shape.head_dim as i32,
        padded_dim: dim as i32,
        scale: shape.scale,
        soft_cap: shape.soft_cap.unwrap_or(0.0),
        // A window beyond the context hides nothing.
        window: shape.window.map_or(0, |window| window.min(i32::MAX as usize) as i32),
        splits: all as i32,
        rotations: turn.map_or(0, |turn| turn.rotations.address()),
        pairs: turn.map_or(0, |turn| turn.pairs as i32),
        interleaved: turn.is_some_and(|turn| turn.interleaved).into(),
        fresh: fresh.is_some().into(),
        unused: 0,
    };
    let warps = SPLIT / BLOCK_POSITIONS;
    let shared = 4 * (heads * dim + warps * heads * (BLOCK_POSITIONS + dim + 2));
    let blocks = shape.kv_heads * group.div_ceil(heads);
    if with_partials {
        gpu.launch_early(split, [at.rows, blocks, all], 256, shared, &params)?;
        gpu.launch_early("attend_merge", [at.rows, shape.heads, 1], 128, 0, &params)
    } else {
        gpu.launch_early(whole, [at.rows, blocks, 1], 256, shared, &params)
    }
}
