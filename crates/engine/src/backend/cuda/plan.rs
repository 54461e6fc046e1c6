//! The memory that a model takes on a GPU, before any of it is taken.

use super::batch::BatchRoom;
use super::device::open;
use super::terms::{kernel_shape, kv_element, weight_type};
use crate::backend::DeviceError;
use crate::format::Checkpoint;
use crate::kv::{BLOCK_SIZE, KvGroup, KvLayout, KvType};
use crate::model::Model;
use crate::model::executor::BatchLimits;
use crate::model::forward::workspace;
use crate::model::spec::{Decoder, MapWeights, TensorSource};
use crate::model::weights::stored_type;
use crate::speculation::MOST_ROWS;
use oxgpt_kernels::{
    Arena, Chooser, KvElement, KvPool, MAX_HEAD_DIM, PackedRoom, PartialsRoom, Routing, Uploader,
};

/// Those of an H100; other cards differ by little, and so does what depends on it.
const MULTIPROCESSORS: usize = 132;

/// What a model takes on a GPU.
#[derive(Clone, Debug)]
pub struct CudaPlan {
    /// Bytes of weights.
    pub weights: u64,
    /// Bytes of keys and values.
    pub kv: u64,
    /// Bytes of everything else.
    pub workspace: u64,
    /// How keys and values are stored.
    pub(super) element: KvElement,
    pub(super) batch: BatchRoom,
    /// Partial sums of attention.
    pub(super) partials: PartialsRoom,
    /// Rows of prompts on their way into a product.
    pub(super) packed: PackedRoom,
    /// The most experts, and the most chosen, of any layer.
    pub(super) routing: Option<Routing>,
    /// The most sequences that get a token from one batch.
    pub(super) sequences: usize,
    /// The most tokens that are chosen by one batch.
    pub(super) choices: usize,
    /// Positions of each.
    pub(super) context: usize,
}

impl CudaPlan {
    /// Bytes in all.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv).saturating_add(self.workspace)
    }

    /// Bytes that loading takes beside them, and gives back.
    pub const LOADING: u64 = Uploader::DEVICE_BYTES;

    /// What `model` takes with these pools, whose keys and values are stored as `kv` says, for `sequences` sequences of `context` positions. A device that cannot be used is taken for
    /// one as large as an H100: the plan of a card that is not here.
    ///
    /// # Errors
    /// When the kernels do not take the model.
    pub fn new(
        ordinal: usize,
        model: &Model,
        layout: &KvLayout,
        groups: &[KvGroup],
        limits: BatchLimits,
        (sequences, context): (usize, usize),
        kv: KvType,
    ) -> Result<Self, DeviceError> {
        let multiprocessors =
            open(ordinal).map_or(MULTIPROCESSORS, |gpu| gpu.info().multiprocessors as usize);
        let decoder = &model.description.decoder;
        let shapes = || decoder.layers.iter().map(|layer| kernel_shape(&layer.attention.shape));
        if let Some(wide) = shapes().find(|shape| shape.head_dim > MAX_HEAD_DIM) {
            let (found, most) = (wide.head_dim, MAX_HEAD_DIM);
            return Err(DeviceError::HeadWidth { ordinal, found, most });
        }
        let mut weights = Weights { checkpoint: &model.checkpoint, bytes: 0 };
        let Ok(_) = decoder.map(&mut weights);
        let floats = |count: usize| Arena::padded(4 * count as u64);
        for rope in &decoder.ropes {
            let tables = 1 + u64::from(rope.longer.is_some());
            weights.bytes += tables * floats(rope.pairs());
        }

        let element = kv_element(kv);
        let kv = shapes()
            .zip(&layout.group_of_layer)
            .map(|(shape, group)| KvPool::bytes(groups[*group].blocks, &shape, element));
        let kv = kv.fold(0, u64::saturating_add);

        let table_blocks = sequences.saturating_mul(context.div_ceil(BLOCK_SIZE));
        let batch = BatchRoom {
            rows: limits.rows,
            logit_rows: limits.logit_rows,
            table_blocks: vec![table_blocks; groups.len()],
            vocab_size: decoder.embedding.vocab_size,
        };
        let partials = shapes().fold(PartialsRoom::default(), |room, shape| {
            room.with(multiprocessors, (&shape, element), limits.rows, context)
        });
        let routers = decoder.layers.iter().filter_map(|layer| layer.feed_forward.router.as_ref());
        // One room for the routes of all layers.
        let routing = routers.fold(None, |most: Option<Routing>, router| {
            let (experts, top_k) = most.map_or((0, 0), |most| (most.experts, most.top_k));
            Some(Routing {
                experts: experts.max(router.experts),
                top_k: top_k.max(router.choice.count),
                softmax_before: false,
                renormalize: false,
            })
        });
        let packed = packed_room(decoder, &routing, limits.rows);
        let mut buffers: Vec<usize> = batch.buffers();
        if let Some(routing) = &routing {
            let slots = limits.rows * routing.top_k;
            let groups = oxgpt_kernels::group_words(routing, limits.rows);
            let sorted = oxgpt_kernels::sorted_words(routing, limits.rows);
            buffers.extend([1, slots, slots, groups, sorted, slots * decoder.hidden]);
        }
        let activations = workspace(decoder, limits.rows, limits.logit_rows);
        buffers.extend(activations.into_iter().map(|(rows, width)| rows * width));
        let choices = sequences.max(MOST_ROWS);
        let others = packed.bytes() + partials.bytes() + Chooser::bytes(choices, decoder.head.rows);
        let workspace = buffers.into_iter().map(floats).fold(others, u64::saturating_add);
        let weights = weights.bytes;
        Ok(CudaPlan {
            weights,
            kv,
            workspace,
            element,
            batch,
            partials,
            packed,
            routing,
            sequences,
            choices,
            context,
        })
    }
}

/// Room for what is packed for any product of `rows` rows.
fn packed_room<M, V>(
    decoder: &Decoder<M, V>,
    routing: &Option<Routing>,
    rows: usize,
) -> PackedRoom {
    let slots = routing.as_ref().map(|routing| oxgpt_kernels::sorted_places(routing, rows));
    decoder.layers.iter().fold(PackedRoom::default(), |room, layer| {
        let (attention, ffn) = (&layer.attention, &layer.feed_forward);
        let room = room.with(rows, decoder.hidden).with(rows, attention.shape.query_width());
        match slots.filter(|_| ffn.router.is_some()) {
            Some(slots) => room.with(slots, decoder.hidden).with(slots, ffn.intermediate),
            None => room.with(rows, ffn.intermediate),
        }
    })
}

/// Adds up what the weights take in an arena.
struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    bytes: u64,
}

impl MapWeights<TensorSource, TensorSource> for Weights<'_> {
    type Matrix = ();
    type Vector = ();
    type Error = std::convert::Infallible;

    fn matrix(&mut self, source: &TensorSource) -> Result<(), Self::Error> {
        if let Some(dtype) = stored_type(self.checkpoint, source) {
            self.bytes += weight_type(dtype).matrix_bytes(source.rows, source.cols);
        }
        Ok(())
    }

    fn vector(&mut self, source: &TensorSource) -> Result<(), Self::Error> {
        self.bytes += Arena::padded(4 * source.cols as u64);
        Ok(())
    }
}
