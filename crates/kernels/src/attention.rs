//! Attention of generated tokens over keys and values in blocks.
//!
//! There are two kinds of kernels: `attend_tensor` on the tensor cores, for keys and values in halves or in 8 bits and heads of up
//! to 128 dimensions, and `attend` for the others. A shape of heads always takes the same one.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::kv::{BLOCK_POSITIONS, KvElement, KvPool};
use crate::memory::{Arena, Buf};
use crate::params::{AttendParams, AttendTensorParams};

/// Positions of a split of a context, which `attend` has a block of threads for where splits are worth it.
const SPLIT: usize = 256;

/// The same for `attend_tensor`: short splits at first, then longer ones, and how many are merged before they are merged with others.
const SHORT_CHUNK: usize = 512;
const SHORT_CHUNKS: usize = 8;
const LONG_CHUNK: usize = 1024;
const SPAN: usize = 8;

/// Query heads that a block of `attend_tensor` takes.
const TENSOR_HEADS: usize = 8;

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

/// Kernels of `attend` for one type of keys and values: with how many query heads at once and for how many dimensions, one block
/// for all splits and one for each.
type Kernels = &'static [(usize, usize, &'static str, &'static str)];

const KERNELS_F32: Kernels = &[
    (1, 64, "attend_f32_1_1", "attend_f32_1_1_split"),
    (1, 128, "attend_f32_1_2", "attend_f32_1_2_split"),
    (1, 256, "attend_f32_1_4", "attend_f32_1_4_split"),
    (4, 64, "attend_f32_4_1", "attend_f32_4_1_split"),
    (4, 128, "attend_f32_4_2", "attend_f32_4_2_split"),
    (4, 256, "attend_f32_4_4", "attend_f32_4_4_split"),
    (8, 64, "attend_f32_8_1", "attend_f32_8_1_split"),
    (8, 128, "attend_f32_8_2", "attend_f32_8_2_split"),
];
const KERNELS_F16: Kernels = &[
    (1, 256, "attend_f16_1_4", "attend_f16_1_4_split"),
    (4, 256, "attend_f16_4_4", "attend_f16_4_4_split"),
];
const KERNELS_Q8: Kernels = &[
    (1, 256, "attend_q8_1_4", "attend_q8_1_4_split"),
    (4, 256, "attend_q8_4_4", "attend_q8_4_4_split"),
];

/// Kernels of `attend_tensor`: for how many dimensions, and whether for just as many, one block for all splits and one for each.
type TensorKernels = [(usize, bool, &'static str, &'static str); 4];

const TENSOR_F16: TensorKernels = [
    (64, true, "attend_tensor_f16_64", "attend_tensor_f16_64_split"),
    (64, false, "attend_tensor_f16_64_padded", "attend_tensor_f16_64_padded_split"),
    (128, true, "attend_tensor_f16_128", "attend_tensor_f16_128_split"),
    (128, false, "attend_tensor_f16_128_padded", "attend_tensor_f16_128_padded_split"),
];
const TENSOR_Q8: TensorKernels = [
    (64, true, "attend_tensor_q8_64", "attend_tensor_q8_64_split"),
    (64, false, "attend_tensor_q8_64_padded", "attend_tensor_q8_64_padded_split"),
    (128, true, "attend_tensor_q8_128", "attend_tensor_q8_128_split"),
    (128, false, "attend_tensor_q8_128_padded", "attend_tensor_q8_128_padded_split"),
];

/// Which kernels a shape takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `attend`
    Plain,
    /// `attend_tensor`
    Tensor,
}

impl Kind {
    fn of(shape: &AttentionShape, element: KvElement) -> Self {
        match element {
            KvElement::F16 | KvElement::Q8 if shape.padded_dim() <= 128 => Kind::Tensor,
            _ => Kind::Plain,
        }
    }

    /// Splits of a context that ends at position `last`.
    fn splits(self, last: usize) -> usize {
        let short = SHORT_CHUNKS * SHORT_CHUNK;
        match self {
            Kind::Plain => last / SPLIT + 1,
            Kind::Tensor if last < short => last / SHORT_CHUNK + 1,
            Kind::Tensor => SHORT_CHUNKS + (last - short) / LONG_CHUNK + 1,
        }
    }

    /// Whether splits are worth a block each, for as few rows that they are worth it at all.
    fn is_long(self, shape: &AttentionShape, rows: usize, last: usize) -> bool {
        match self {
            Kind::Plain => plain_splits(shape, last) > 2,
            Kind::Tensor => {
                // A window that lies across two splits is no more work than one that does not. And some blocks are busy with a
                // split for about as long as merging takes.
                let seen = shape.window.map_or(last + 1, |window| window.min(last + 1));
                let few = rows * tensor_blocks(shape) <= 32;
                seen > if few { SHORT_CHUNK } else { LONG_CHUNK }
            }
        }
    }

    /// Elements of partial sums, and counters, that a row takes when its context is split.
    fn partials(self, shape: &AttentionShape, last: usize) -> (usize, usize) {
        let splits = self.splits(last);
        match self {
            Kind::Plain => (shape.heads * splits * (shape.padded_dim() + 2), 0),
            Kind::Tensor => {
                let spans = splits.div_ceil(SPAN);
                let elements = shape.heads * (splits + spans) * (tensor_dim(shape) + 4);
                (elements, tensor_blocks(shape) * (spans + 1))
            }
        }
    }
}

/// The most splits of `attend` that a row sees.
fn plain_splits(shape: &AttentionShape, last: usize) -> usize {
    let all = Kind::Plain.splits(last);
    shape.window.map_or(all, |window| all.min(window.div_ceil(SPLIT) + 1))
}

/// Dimensions of the kernel of `attend_tensor` that takes a shape.
fn tensor_dim(shape: &AttentionShape) -> usize {
    if shape.padded_dim() <= 64 { 64 } else { 128 }
}

/// Blocks of threads that `attend_tensor` has for a row, or for a split of one.
fn tensor_blocks(shape: &AttentionShape) -> usize {
    shape.kv_heads * (shape.heads / shape.kv_heads).div_ceil(TENSOR_HEADS)
}

/// Scratch of [`attend`]: the results of splits, which are merged in order, and who has left one.
pub struct Partials {
    sums: Buf<f32>,
    /// Zero between launches.
    arrived: Buf<u32>,
}

/// The scratch that launches need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartialsRoom {
    elements: usize,
    counters: usize,
}

impl PartialsRoom {
    /// Room for this and for `rows` rows in contexts of up to `context` positions, on a device of so many multiprocessors.
    pub fn with(
        self,
        multiprocessors: usize,
        (shape, element): (&AttentionShape, KvElement),
        rows: usize,
        context: usize,
    ) -> Self {
        let rows = rows.min(rows_worth_splitting(multiprocessors, shape));
        let kind = Kind::of(shape, element);
        let (elements, counters) = kind.partials(shape, context.saturating_sub(1));
        PartialsRoom {
            elements: self.elements.max(rows * elements),
            counters: self.counters.max(rows * counters),
        }
    }

    /// Bytes that it takes up in an arena.
    pub fn bytes(self) -> u64 {
        Arena::padded(4 * self.elements as u64) + Arena::padded(4 * self.counters as u64)
    }
}

impl Partials {
    /// Takes the room.
    ///
    /// # Errors
    /// When the arena is full, or the driver fails.
    pub fn new(arena: &mut Arena, room: PartialsRoom) -> Result<Self, CudaError> {
        let (sums, mut arrived) = (arena.buffer(room.elements)?, arena.buffer(room.counters)?);
        arrived.fill_bytes(0)?;
        Ok(Partials { sums, arrived })
    }

    /// Sets every byte of the results.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn fill_bytes(&mut self, byte: u8) -> Result<(), CudaError> {
        self.sums.fill_bytes(byte)
    }
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
    // As much is taken by one block.
    let ends = std::iter::successors(Some(SHORT_CHUNK), |end| Some(2 * end));
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
/// as [`append`](crate::append) left it, `out` is (rows, queries); `sinks` has a number for each query head. A row's bits do not
/// depend on the other rows.
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
    partials: &mut Partials,
) -> Result<(), CudaError> {
    launch(gpu, out, qkv, pool, at, shape, sinks, partials, None)
}

/// [`crate::rotate`], [`crate::append`] and [`attend`] at once, for rows that are each of a sequence of its own. `qkv` stays as it is.
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
    partials: &mut Partials,
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
    partials: &mut Partials,
    fresh: Option<Option<Turn<'_>>>,
) -> Result<(), CudaError> {
    let turn = fresh.flatten();
    pool.check(shape);
    assert!(at.rows * shape.qkv_width() <= qkv.len(), "qkv is too short");
    assert!(at.rows * shape.heads * shape.head_dim <= out.len(), "out is too short");
    assert!(at.rows <= at.positions.len() && at.rows <= at.sequences.len());
    assert!(sinks.is_none_or(|sinks| sinks.len() >= shape.heads));
    let kind = Kind::of(shape, pool.element());
    // Of a context, only the last splits are in a window, but they are numbered from the start.
    let splits = kind.splits(at.last);
    let few = at.rows <= rows_worth_splitting(gpu.info().multiprocessors as usize, shape);
    let is_split = few && kind.is_long(shape, at.rows, at.last);
    if is_split {
        let (elements, counters) = kind.partials(shape, at.last);
        assert!(at.rows * elements <= partials.sums.len(), "partials are too short");
        assert!(at.rows * counters <= partials.arrived.len(), "too few counters");
    }
    let (keys, values) = pool.addresses();
    let params = AttendParams {
        qkv: qkv.address(),
        keys,
        values,
        positions: at.positions.address(),
        sequences: at.sequences.address(),
        table_offsets: at.table_offsets.address(),
        blocks: at.blocks.address(),
        sinks: sinks.map_or(0, Buf::address),
        out: out.address(),
        partials: partials.sums.address(),
        qkv_stride: shape.qkv_width() as i32,
        out_stride: (shape.heads * shape.head_dim) as i32,
        heads: shape.heads as i32,
        kv_heads: shape.kv_heads as i32,
        head_dim: shape.head_dim as i32,
        padded_dim: shape.padded_dim() as i32,
        scale: shape.scale,
        soft_cap: shape.soft_cap.unwrap_or(0.0),
        // A window beyond the context hides nothing.
        window: shape.window.map_or(0, |window| window.min(i32::MAX as usize) as i32),
        splits: splits as i32,
        rotations: turn.map_or(0, |turn| turn.rotations.address()),
        pairs: turn.map_or(0, |turn| turn.pairs as i32),
        interleaved: turn.is_some_and(|turn| turn.interleaved).into(),
        fresh: fresh.is_some().into(),
        unused: 0,
    };
    match kind {
        Kind::Plain => launch_plain(gpu, pool.element(), shape, at, is_split, &params),
        Kind::Tensor => {
            let kernels = if pool.element() == KvElement::Q8 { TENSOR_Q8 } else { TENSOR_F16 };
            let dim = shape.padded_dim();
            let fits = |(most, whole, ..): &&(usize, bool, _, _)| match whole {
                true => dim == *most,
                false => dim < *most,
            };
            let &(_, _, whole, split) =
                kernels.iter().find(fits).expect("heads are no wider than the kernels");
            let (name, depth) = if is_split { (split, splits) } else { (whole, 1) };
            let params = AttendTensorParams { attend: params, arrived: partials.arrived.address() };
            gpu.launch_early(name, [at.rows, tensor_blocks(shape), depth], 256, 0, &params)
        }
    }
}

fn launch_plain(
    gpu: &Gpu,
    element: KvElement,
    shape: &AttentionShape,
    at: Positions<'_>,
    is_split: bool,
    params: &AttendParams,
) -> Result<(), CudaError> {
    let (group, dim) = (shape.heads / shape.kv_heads, shape.padded_dim());
    let kernels = match element {
        KvElement::F32 => KERNELS_F32,
        KvElement::F16 => KERNELS_F16,
        KvElement::Q8 => KERNELS_Q8,
    };
    let fitting = || kernels.iter().filter(|(_, most, ..)| dim <= *most);
    // Blocks with fewer heads are through sooner, so as long as multiprocessors are idle, heads get blocks of their own; beyond
    // that, those that share keys and values share what is read. The least dimensions come first.
    let visible = if is_split { plain_splits(shape, at.last) } else { 1 };
    let side_by_side = at.rows * shape.kv_heads * visible;
    let fills =
        |heads: usize| side_by_side * group.div_ceil(heads) >= gpu.info().multiprocessors as usize;
    let useful = fitting().map(|(heads, ..)| *heads).filter(|heads| *heads < 2 * group);
    let widest = useful.clone().filter(|heads| fills(*heads)).max().or(useful.min());
    let &(heads, _, whole, split) = fitting()
        .filter(|(heads, ..)| Some(*heads) == widest)
        .min_by_key(|(_, most, ..)| *most)
        .expect("heads are no wider than the pool allows");
    let warps = SPLIT / BLOCK_POSITIONS;
    let shared = 4 * (heads * dim + warps * heads * (BLOCK_POSITIONS + dim + 2));
    let blocks = shape.kv_heads * group.div_ceil(heads);
    if is_split {
        let splits = Kind::Plain.splits(at.last);
        gpu.launch_early(split, [at.rows, blocks, splits], 256, shared, params)?;
        gpu.launch_early("attend_merge", [at.rows, shape.heads, 1], 128, 0, params)
    } else {
        gpu.launch_early(whole, [at.rows, blocks, 1], 256, shared, params)
    }
}
