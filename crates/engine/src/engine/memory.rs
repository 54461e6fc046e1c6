//! What a model takes, decided before anything is loaded.

use super::{Device, EngineError, EngineOptions, SCORE_ROWS};
use crate::backend::cuda::CudaPlan;
use crate::kv::{BLOCK_SIZE, KvGroup, KvLayout, KvType};
use crate::model::executor::BatchLimits;
use crate::model::forward::workspace_elements;
use crate::model::spec::AttentionShape;
use crate::model::{DecoderSource, Model};

/// Bytes that a model takes, by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The weights, in the types of the file.
    pub weights: u64,
    /// The blocks of keys and values.
    pub kv: u64,
    /// Activations of the largest batch.
    pub workspace: u64,
}

/// Bytes that the keys and values of one position take, over all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvPerToken {
    /// With as many heads of keys and values as of queries: multi-head attention.
    pub multi_head: u64,
    /// With those that the model has: grouped-query attention where they are fewer.
    pub actual: u64,
}

impl KvPerToken {
    /// Those of a model on a device, stored as `kv` says.
    pub fn new(model: &Model, device: Device, kv: KvType) -> Self {
        let sum = |heads: fn(&AttentionShape) -> usize| {
            let shapes = model.description.decoder.layers.iter().map(|layer| layer.attention.shape);
            shapes
                .map(|shape| (2 * heads(&shape) * device.kv_bytes(kv, shape.head_dim)) as u64)
                .sum()
        };
        KvPerToken { multi_head: sum(|shape| shape.heads), actual: sum(|shape| shape.kv_heads) }
    }
}

impl MemoryPlan {
    /// What a model would take with these options, whatever their limit. Loads nothing; [`Engine::new`](super::Engine::new) goes by the
    /// same figures.
    ///
    /// # Errors
    /// When the context is not one that the model has.
    pub fn new(model: &Model, options: &EngineOptions) -> Result<Self, EngineError> {
        Ok(plan(model, options)?.plan)
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv).saturating_add(self.workspace)
    }
}

/// What is decided before anything is loaded.
pub(super) struct Planned {
    pub context: usize,
    pub sequences: usize,
    pub chunk: usize,
    pub layout: KvLayout,
    pub groups: Vec<KvGroup>,
    pub limits: BatchLimits,
    pub plan: MemoryPlan,
    /// The same in detail, where it is for a GPU.
    pub cuda: Option<CudaPlan>,
}

pub(super) fn plan(model: &Model, options: &EngineOptions) -> Result<Planned, EngineError> {
    let decoder: &DecoderSource = &model.description.decoder;
    let limit = decoder.context_length;
    let context = options.context.unwrap_or(limit);
    if context == 0 || context > limit {
        return Err(EngineError::Context { asked: context, limit });
    }
    if options.kv == KvType::Q8 && options.device == Device::Reference {
        return Err(EngineError::KvType { device: options.device });
    }
    let sequences = options.sequences.max(1);
    // No step has more rows than all sequences have positions.
    let chunk = options.chunk.clamp(1, context.saturating_mul(sequences));
    let layout = KvLayout::new(decoder.layers.iter().map(|layer| layer.attention.shape.window));
    let mut groups = layout.groups(sequences, context, chunk);
    if let Some(tokens) = options.kv_tokens {
        if tokens < context {
            return Err(EngineError::KvTokens { tokens, context });
        }
        for group in &mut groups {
            group.blocks = group.blocks.min(tokens.div_ceil(BLOCK_SIZE));
        }
    }
    let limits = BatchLimits { rows: chunk.max(sequences), logit_rows: sequences.max(SCORE_ROWS) };

    if let Device::Cuda(ordinal) = options.device {
        let size = (sequences, context);
        let cuda = CudaPlan::new(ordinal, model, &layout, &groups, limits, size, options.kv)?;
        let CudaPlan { weights, kv, workspace, .. } = cuda;
        let plan = MemoryPlan { weights, kv, workspace };
        let cuda = Some(cuda);
        return Ok(Planned { context, sequences, chunk, layout, groups, limits, plan, cuda });
    }
    let kv = decoder.layers.iter().zip(&layout.group_of_layer).map(|(layer, group)| {
        let positions = groups[*group].blocks.saturating_mul(BLOCK_SIZE) as u64;
        let AttentionShape { kv_heads, head_dim, .. } = layer.attention.shape;
        positions
            .saturating_mul((2 * kv_heads * options.device.kv_bytes(options.kv, head_dim)) as u64)
    });
    let workspace = workspace_elements(decoder, limits.rows, limits.logit_rows) as u64;
    let plan = MemoryPlan {
        weights: model.weight_bytes(),
        kv: kv.fold(0, u64::saturating_add),
        workspace: workspace.saturating_mul(options.device.activation_bytes() as u64),
    };
    Ok(Planned { context, sequences, chunk, layout, groups, limits, plan, cuda: None })
}
