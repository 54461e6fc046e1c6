//! The CUDA backend: weights, keys, values and activations live in GPU memory, in one arena that was planned before.
//!
//! Operations launch kernels and return; what fails is kept, nothing runs after it, and [`Backend::status`] or
//! [`Backend::read`] tells.

mod batch;
mod choose;
mod decode;
mod device;
mod passes;
mod plan;
mod products;
mod profile;
mod routes;
mod terms;
mod wide;

pub use device::{CudaDevice, device, kernels, read_bandwidth};
pub use plan::CudaPlan;
pub use routes::Routes;

use super::{Backend, DeviceError, HostMatrix, LaunchTime};
use crate::batch::{Batch, BlockTables};
use crate::kv::KvLayout;
use crate::model::Model;
use crate::model::forward::Scratch;
use crate::model::spec::{
    AttentionShape, Choice, Decoder, Linear, Nonlinearity, Norm, Rope, RopeStyle,
};
use crate::sampler::{Pick, Picked};
use crate::speculation::MOST_ROWS;
use batch::DeviceBatch;
use device::open;
use oxgpt_kernels::{
    Arena, Buf, Chooser, CudaError, Gated, Gpu, KvElement, KvPool, Landing, Matrix, Packed,
    Partials, Positions, Routing, Uploader,
};
use passes::{Passes, Rehearsal};
use routes::RoutesMemory;
use std::ops::Range;
use terms::{kernel_activation, kernel_norm, kernel_shape, weight_type};

/// The CUDA backend.
pub struct Cuda {
    gpu: Gpu,
    arena: Arena,
    /// Until the weights are loaded.
    uploader: Option<Uploader>,
    failure: Option<CudaError>,
    batch: DeviceBatch,
    /// Of the model, with their frequencies on the device.
    ropes: Vec<DeviceRope>,
    /// By way of which logits come to the host.
    landing: Landing,
    chooser: Chooser,
    /// How keys and values are stored.
    kv_element: KvElement,
    /// Of attention over contexts that are split.
    partials: Partials,
    /// Rows of prompts on their way into a product.
    packed: Packed,
    /// Of a routed model, and the width that its experts give back.
    routing: Option<(Routing, usize)>,
    /// The most generated tokens whose products are exact.
    most_exact: usize,
    /// See [`Batch::generated`].
    generated: usize,
    /// The first rows, whose products are exact: those that were generated, unless they are too many.
    exact: usize,
    /// Of generated tokens alone, recorded.
    passes: Passes,
    rehearsal: Option<Rehearsal>,
}

struct DeviceRope {
    rope: Rope,
    frequencies: Buf<f32>,
    long_frequencies: Option<Buf<f32>>,
}

/// Rows of f32 activations. The memory is there unless something failed.
pub struct Buffer {
    rows: usize,
    width: usize,
    data: Option<Buf<f32>>,
}

/// What is there unless something failed, and after a failure nothing is launched.
fn present<T>(memory: &Option<T>) -> &T {
    memory.as_ref().expect("nothing is launched after a failure")
}

fn present_mut<T>(memory: &mut Option<T>) -> &mut T {
    memory.as_mut().expect("nothing is launched after a failure")
}

fn weight_and_bias(
    linear: &Linear<Option<Matrix>, Option<Buf<f32>>>,
) -> (&Matrix, Option<&Buf<f32>>) {
    (present(&linear.weight), linear.bias.as_ref().map(present))
}

impl Buffer {
    fn set(&mut self, rows: usize, width: usize) {
        (self.rows, self.width) = (rows, width);
    }

    fn elements(&self) -> usize {
        self.rows * self.width
    }
}

/// Runs `work` unless something failed before, and keeps its error.
fn attempt<T>(
    failure: &mut Option<CudaError>,
    work: impl FnOnce() -> Result<T, CudaError>,
) -> Option<T> {
    if failure.is_some() {
        return None;
    }
    work().map_err(|error| *failure = Some(error)).ok()
}

impl Cuda {
    /// Takes the memory of `plan` on a device, for `model`. With `deterministic`, a row has the same bits however many there are.
    /// `speculates`: whether there will be drafts.
    ///
    /// # Errors
    /// When the device cannot be used or has less memory free.
    pub fn new(
        ordinal: usize,
        model: &Model,
        plan: &CudaPlan,
        deterministic: bool,
        speculates: bool,
    ) -> Result<Self, DeviceError> {
        let gpu = open(ordinal)?;
        Self::with_gpu(gpu, model, plan, deterministic, speculates)
            .map_err(|reason| DeviceError::Cuda { ordinal, reason })
    }

    fn with_gpu(
        gpu: Gpu,
        model: &Model,
        plan: &CudaPlan,
        deterministic: bool,
        speculates: bool,
    ) -> Result<Self, CudaError> {
        // Other models on the device must not be recorded with this one.
        let gpu = gpu.with_own_stream()?;
        let mut arena = Arena::new(&gpu, plan.total())?;
        let mut uploader = Uploader::new(&gpu)?;
        let decoder = &model.description.decoder;
        let mut ropes = Vec::new();
        for rope in &decoder.ropes {
            let long = rope.longer.as_ref().map(|longer| &longer.inverse_frequencies);
            ropes.push(DeviceRope {
                rope: rope.clone(),
                frequencies: uploader.vector(&mut arena, &rope.inverse_frequencies)?,
                long_frequencies: long.map(|long| uploader.vector(&mut arena, long)).transpose()?,
            });
        }
        let shapes = || decoder.layers.iter().map(|layer| kernel_shape(&layer.attention.shape));
        let multiprocessors = gpu.info().multiprocessors as usize;
        let drafted = if speculates { MOST_ROWS.min(plan.batch.rows) } else { 0 };
        let passes = Passes::new(plan.sequences, drafted, |rows| {
            let lasts = shapes().map(|shape| {
                oxgpt_kernels::last_positions(multiprocessors, &shape, rows, plan.context)
            });
            // All layers are cut at the same positions, some at more of them.
            lasts.max_by_key(Vec::len).unwrap_or_default()
        });
        let batch = DeviceBatch::new(&gpu, &mut arena, &plan.batch)?;
        let partials = Partials::new(&mut arena, plan.partials)?;
        let packed = Packed::new(&mut arena, plan.packed)?;
        let landing = Landing::new(&gpu)?;
        let chooser = Chooser::new(&gpu, &mut arena, plan.choices, decoder.head.rows)?;
        Ok(Cuda {
            gpu,
            arena,
            uploader: Some(uploader),
            failure: None,
            batch,
            ropes,
            landing,
            chooser,
            kv_element: plan.element,
            partials,
            packed,
            routing: plan.routing.map(|routing| (routing, decoder.hidden)),
            most_exact: if deterministic { usize::MAX } else { products::MOST_EXACT_ROWS },
            generated: 0,
            exact: 0,
            passes,
            rehearsal: None,
        })
    }
}

impl Backend for Cuda {
    type Matrix = Option<Matrix>;
    type Vector = Option<Buf<f32>>;
    type Buffer = Buffer;
    type Kv = Option<KvPool>;
    type Routes = Routes;

    fn matrix(&mut self, matrix: HostMatrix) -> Option<Matrix> {
        let Cuda { uploader, arena, failure, .. } = self;
        let uploader = uploader.as_mut().expect("weights come before the first batch");
        attempt(failure, || {
            let kind = weight_type(matrix.dtype);
            uploader.matrix(arena, kind, (matrix.rows, matrix.cols), &matrix.bytes)
        })
    }

    fn vector(&mut self, vector: Vec<f32>) -> Option<Buf<f32>> {
        let Cuda { uploader, arena, failure, .. } = self;
        let uploader = uploader.as_mut().expect("weights come before the first batch");
        attempt(failure, || uploader.vector(arena, &vector))
    }

    fn buffer(&mut self, rows: usize, width: usize) -> Buffer {
        let arena = &mut self.arena;
        let data = attempt(&mut self.failure, || arena.buffer(rows * width));
        Buffer { rows: 0, width, data }
    }

    fn routes(&mut self, rows: usize, chosen: usize) -> Routes {
        let none = Routing { experts: 0, top_k: 0, softmax_before: false, renormalize: false };
        let Some((routing, hidden)) = self.routing else {
            return Routes { rows: 0, exact: 0, routing: none, memory: None };
        };
        debug_assert!(chosen <= routing.top_k);
        let slots = rows * routing.top_k;
        let arena = &mut self.arena;
        let memory = attempt(&mut self.failure, || {
            let mut arrived = arena.buffer(1)?;
            arrived.fill_bytes(0)?;
            Ok(RoutesMemory {
                arrived,
                experts: arena.buffer(slots)?,
                weights: arena.buffer(slots)?,
                groups: arena.buffer(oxgpt_kernels::group_words(&routing, rows))?,
                sorted: arena.buffer(oxgpt_kernels::sorted_words(&routing, rows))?,
                returned: arena.buffer(slots * hidden)?,
            })
        });
        Routes { rows: 0, exact: 0, routing, memory }
    }

    fn kv(&mut self, blocks: usize, shape: &AttentionShape) -> Option<KvPool> {
        let Cuda { arena, failure, kv_element, .. } = self;
        attempt(failure, || KvPool::new(arena, blocks, &kernel_shape(shape), *kv_element))
    }

    fn status(&mut self) -> Result<(), DeviceError> {
        let Cuda { uploader, failure, gpu, .. } = self;
        if let Some(uploader) = uploader.take() {
            attempt(failure, || uploader.finish());
            gpu.ready();
        }
        match failure {
            None => Ok(()),
            Some(error) => {
                Err(DeviceError::Cuda { ordinal: gpu.info().ordinal, reason: error.clone() })
            }
        }
    }

    fn rehearse(&mut self, pass: &mut dyn FnMut(&mut Self, &Batch)) {
        self.rehearse_passes(pass);
    }

    fn profile(
        &mut self,
        batch: &Batch,
        pass: &mut dyn FnMut(&mut Self, &Batch),
    ) -> Vec<LaunchTime> {
        self.profile_pass(batch, pass)
    }

    fn begin(&mut self, batch: &Batch, logits: &mut Buffer) -> bool {
        self.generated = batch.generated;
        self.exact = if batch.generated > self.most_exact { 0 } else { batch.generated };
        let Cuda { batch: device_batch, failure, passes, gpu, rehearsal, chooser, .. } = self;
        let rows = batch.rows();
        let is_plain = rows == batch.generated && !batch.wants_hidden && rehearsal.is_none();
        let recorded = if is_plain { passes.fitting(batch) } else { None };
        let rows = recorded.map_or(rows, |(shape, _)| shape.rows);
        attempt(failure, || {
            device_batch.write(batch, rows, gpu, chooser)?;
            if let Some(Rehearsal::Recording { begun }) = rehearsal {
                gpu.start_recording()?;
                *begun = true;
            }
            recorded.map_or(Ok(()), |(_, graph)| graph.launch())
        });
        if recorded.is_some() {
            logits.set(batch.logit_rows.len(), logits.width);
        }
        recorded.is_some()
    }

    fn pass(
        &mut self,
        decoder: &Decoder<Option<Matrix>, Option<Buf<f32>>>,
        layout: &KvLayout,
        kv: &mut [Option<KvPool>],
        batch: &Batch,
        scratch: &mut Scratch<Cuda>,
    ) -> bool {
        self.decode(decoder, layout, kv, batch, scratch)
    }

    fn embed(&mut self, out: &mut Buffer, table: &Option<Matrix>, rows: &[u32], scale: f32) {
        let Cuda { gpu, failure, batch, .. } = self;
        attempt(failure, || {
            let table = present(table);
            out.set(rows.len(), table.cols());
            let on_device = batch.tokens(rows)?;
            let out = present_mut(&mut out.data);
            oxgpt_kernels::embed(gpu, out, table, on_device, rows.len(), scale)
        });
    }

    fn add_rows(&mut self, out: &mut Buffer, table: &Option<Matrix>, rows: &[u32]) {
        let Cuda { gpu, failure, batch, .. } = self;
        attempt(failure, || {
            let on_device = batch.positions(rows)?;
            let out = present_mut(&mut out.data);
            oxgpt_kernels::add_rows(gpu, out, present(table), on_device, rows.len())
        });
    }

    fn norm(&mut self, out: &mut Buffer, x: &Buffer, norm: &Norm<Option<Buf<f32>>>) {
        out.set(x.rows, x.width);
        let gpu = &self.gpu;
        attempt(&mut self.failure, || {
            let (rows, at) = (x.rows, (0, x.width));
            let (out, x) = (present_mut(&mut out.data), present(&x.data));
            oxgpt_kernels::norm(gpu, out, at, Some(x), at, rows, 1, kernel_norm(norm))
        });
    }

    fn norm_heads(&mut self, x: &mut Buffer, heads: Range<usize>, norm: &Norm<Option<Buf<f32>>>) {
        let gpu = &self.gpu;
        attempt(&mut self.failure, || {
            let norm = kernel_norm(norm);
            let at = (heads.start * norm.weight.len(), x.width);
            let data = present_mut(&mut x.data);
            oxgpt_kernels::norm(gpu, data, at, None, at, x.rows, heads.len(), norm)
        });
    }

    fn matmul(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        linears: &[Linear<Option<Matrix>, Option<Buf<f32>>>],
    ) {
        let outputs =
            |linear: &Linear<Option<Matrix>, _>| linear.weight.as_ref().map_or(0, Matrix::rows);
        let stride = linears.iter().map(outputs).sum();
        out.set(x.rows, stride);
        self.products(out, x, linears, false);
    }

    fn matmul_add(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        linear: &Linear<Option<Matrix>, Option<Buf<f32>>>,
    ) {
        self.products(out, x, std::slice::from_ref(linear), true);
    }

    fn project(&mut self, out: &mut Buffer, x: &Buffer, weight: &Option<Matrix>) {
        let stride = weight.as_ref().map_or(0, Matrix::rows);
        out.set(x.rows, stride);
        self.logits(out, x, weight);
    }

    fn add(&mut self, out: &mut Buffer, x: &Buffer) {
        let gpu = &self.gpu;
        attempt(&mut self.failure, || {
            oxgpt_kernels::add(gpu, present_mut(&mut out.data), present(&x.data), x.elements())
        });
    }

    fn zero_like(&mut self, out: &mut Buffer, like: &Buffer) {
        out.set(like.rows, like.width);
        attempt(&mut self.failure, || present_mut(&mut out.data).fill_bytes(0));
    }

    fn soft_cap(&mut self, x: &mut Buffer, cap: f32) {
        let gpu = &self.gpu;
        attempt(&mut self.failure, || {
            let elements = x.elements();
            oxgpt_kernels::soft_cap(gpu, present_mut(&mut x.data), elements, cap)
        });
    }

    fn rotations(&mut self, out: &mut Buffer, rope: &Rope, batch: &Batch) {
        out.set(batch.rows(), 2 * rope.pairs());
        let Cuda { gpu, failure, batch: device_batch, ropes, .. } = self;
        attempt(failure, || {
            let known = ropes.iter().find(|known| known.rope == *rope);
            let known = known.expect("the ropes of a model were taken over with it");
            let kernel_rope = oxgpt_kernels::Rope {
                frequencies: &known.frequencies,
                long_frequencies: known.long_frequencies.as_ref(),
                magnitude: rope.magnitude,
            };
            let (positions, is_long) = device_batch.positions_and_lengths();
            let out = present_mut(&mut out.data);
            oxgpt_kernels::rotations(gpu, out, kernel_rope, positions, is_long, batch.rows())
        });
    }

    fn rotate(
        &mut self,
        qkv: &mut Buffer,
        rotations: &Buffer,
        rope: &Rope,
        shape: &AttentionShape,
    ) {
        let gpu = &self.gpu;
        attempt(&mut self.failure, || {
            oxgpt_kernels::rotate(
                gpu,
                present_mut(&mut qkv.data),
                present(&rotations.data),
                qkv.rows,
                qkv.width,
                (shape.heads + shape.kv_heads, shape.head_dim),
                rope.pairs(),
                rope.style == RopeStyle::Pairs,
            )
        });
    }

    fn append(
        &mut self,
        kv: &mut Option<KvPool>,
        qkv: &Buffer,
        batch: &Batch,
        tables: &BlockTables,
        shape: &AttentionShape,
    ) {
        let Cuda { gpu, failure, batch: device_batch, .. } = self;
        attempt(failure, || {
            let at = device_batch.place(batch, tables)?;
            let qkv = present(&qkv.data);
            oxgpt_kernels::append(gpu, present_mut(kv), qkv, at, &kernel_shape(shape))
        });
    }

    fn attend(
        &mut self,
        out: &mut Buffer,
        qkv: &Buffer,
        kv: &Option<KvPool>,
        batch: &Batch,
        tables: &BlockTables,
        shape: &AttentionShape,
        sinks: Option<&Option<Buf<f32>>>,
    ) {
        out.set(batch.rows(), shape.query_width());
        let Cuda { gpu, failure, batch: device_batch, partials, .. } = self;
        attempt(failure, || {
            let (out, qkv, kv) = (present_mut(&mut out.data), present(&qkv.data), present(kv));
            let (all, shape) = (device_batch.place(batch, tables)?, kernel_shape(shape));
            let (generated, sinks) = (batch.generated, sinks.map(present));
            if generated > 0 {
                let at = Positions { rows: generated, ..all };
                oxgpt_kernels::attend(gpu, out, qkv, kv, at, &shape, sinks, partials)?;
            }
            oxgpt_kernels::attend_prompt(gpu, out, qkv, kv, all, generated, &shape, sinks)
        });
    }

    fn activate(&mut self, out: &mut Buffer, x: &Buffer, nonlinearity: Nonlinearity) {
        let width = if nonlinearity.is_gated() { x.width / 2 } else { x.width };
        out.set(x.rows, width);
        let gpu = &self.gpu;
        attempt(&mut self.failure, || {
            let (out, data) = (present_mut(&mut out.data), present(&x.data));
            let gated = match nonlinearity {
                Nonlinearity::Plain(activation) => {
                    let activation = kernel_activation(activation);
                    return oxgpt_kernels::activate(gpu, out, data, x.elements(), activation);
                }
                Nonlinearity::Gated(activation) => Gated::Plain(kernel_activation(activation)),
                Nonlinearity::ClampedSwiglu { alpha, limit } => {
                    Gated::ClampedSwiglu { limit, alpha }
                }
            };
            oxgpt_kernels::activate_gated(gpu, out, data, (x.rows, width), gated)
        });
    }

    fn route(&mut self, routes: &mut Routes, router: &Buffer, choice: Choice) {
        routes.rows = router.rows;
        routes.exact = self.exact.min(router.rows);
        routes.routing = routes::routing(router.width, choice);
        let gpu = &self.gpu;
        attempt(&mut self.failure, || {
            let Routes { rows, exact, routing, .. } = *routes;
            let RoutesMemory { experts, weights, groups, sorted, .. } =
                present_mut(&mut routes.memory);
            oxgpt_kernels::route(gpu, experts, weights, present(&router.data), rows, routing)?;
            if exact > 0 {
                oxgpt_kernels::group_slots(gpu, groups, experts, exact, routing)?;
            }
            if rows > exact {
                oxgpt_kernels::sort_slots(gpu, sorted, experts, (exact, rows), routing)?;
            }
            Ok(())
        });
    }

    fn expert_matmul(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        linears: &[Linear<Option<Matrix>, Option<Buf<f32>>>],
        routes: &Routes,
    ) {
        let Routing { experts, top_k, .. } = routes.routing;
        let outputs = |linear: &Linear<Option<Matrix>, _>| {
            linear.weight.as_ref().map_or(0, Matrix::rows) / experts
        };
        let stride = linears.iter().map(outputs).sum();
        out.set(routes.rows * top_k, stride);
        let Cuda { gpu, failure, packed, .. } = self;
        attempt(failure, || {
            let (out, x) = (present_mut(&mut out.data), present(&x.data));
            let weights = linears.iter().map(weight_and_bias);
            routes.products(gpu, packed, out, stride, x, weights, false)
        });
    }

    fn expert_matmul_add(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        linear: &Linear<Option<Matrix>, Option<Buf<f32>>>,
        routes: &Routes,
    ) {
        let top_k = routes.routing.top_k;
        let Cuda { gpu, failure, packed, .. } = self;
        attempt(failure, || {
            let RoutesMemory { weights, returned, .. } = present(&routes.memory);
            // Scratch: what it holds is nobody's but this operation's.
            let mut returned = returned.share();
            let linear = std::iter::once(weight_and_bias(linear));
            let x = present(&x.data);
            routes.products(gpu, packed, &mut returned, out.width, x, linear, true)?;
            let shape = (routes.rows, out.width);
            let out = present_mut(&mut out.data);
            oxgpt_kernels::combine(gpu, out, &returned, weights, shape, top_k)
        });
    }

    fn gather(&mut self, out: &mut Buffer, x: &Buffer, rows: &[u32]) {
        out.set(rows.len(), x.width);
        let Cuda { gpu, failure, batch, .. } = self;
        attempt(failure, || {
            let on_device = batch.logit_rows(rows)?;
            let (out, data) = (present_mut(&mut out.data), present(&x.data));
            oxgpt_kernels::gather(gpu, out, data, on_device, rows.len(), x.width)
        });
    }

    fn read(&mut self, out: &mut Vec<f32>, x: &Buffer) {
        out.resize(x.elements(), 0.0);
        let landing = &mut self.landing;
        attempt(&mut self.failure, || landing.read(present(&x.data), out));
    }

    fn choose(
        &mut self,
        logits: &mut Buffer,
        width: usize,
        picks: &mut [Pick<'_>],
        host: &mut Vec<f32>,
    ) -> Option<Vec<Picked>> {
        self.choose_on_device(logits, width, picks, host)
    }

    fn chosen(&mut self) -> Vec<Picked> {
        self.chosen_on_device()
    }

    fn runs_ahead(&self) -> bool {
        true
    }
}
