//! What the engine cannot do.

use super::{Device, MemoryPlan};
use crate::backend::DeviceError;
use crate::model::ModelError;
use crate::sampler::SamplingError;

/// Why the engine refuses a model or a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The model is wrong.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The sampling options are wrong.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// More positions than the model knows.
    #[error("the context of {asked} positions is not between 1 and the model's {limit}")]
    Context {
        /// Asked for.
        asked: usize,
        /// The model's own limit.
        limit: usize,
    },
    /// Less room for keys and values than one sequence may need.
    #[error(
        "there is to be room for the keys and values of {tokens} tokens, but the context of one sequence holds {context}"
    )]
    KvTokens {
        /// Asked for.
        tokens: usize,
        /// Positions of each sequence.
        context: usize,
    },
    /// Keys and values of 8 bits, where they are not supported.
    #[error("keys and values in 8 bits are for the cpu and for GPUs, not for {device}")]
    KvType {
        /// Where.
        device: Device,
    },
    /// The device cannot be used, or failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Less memory on the device than the plan needs.
    #[error(
        "{device} has {free} bytes free, but {} are needed: {} for weights, {} for keys and values of {sequences} \
         sequences of {context} positions, {} for workspace, {loading} while it loads; a smaller context or fewer \
         sequences take less",
        plan.total() + loading, plan.weights, plan.kv, plan.workspace
    )]
    DeviceMemory {
        /// Where.
        device: Device,
        /// What is free there.
        free: u64,
        /// What is needed.
        plan: MemoryPlan,
        /// Needed beside it, to load.
        loading: u64,
        /// Sequences planned for.
        sequences: usize,
        /// Positions of each.
        context: usize,
    },
    /// Less memory than the plan needs.
    #[error(
        "the memory limit is {limit} bytes, but {} are needed: {} for weights, {} for keys and values of {sequences} \
         sequences of {context} positions, {} for workspace",
        plan.total(), plan.weights, plan.kv, plan.workspace
    )]
    MemoryLimit {
        /// What may be used.
        limit: u64,
        /// What is needed.
        plan: MemoryPlan,
        /// Sequences planned for.
        sequences: usize,
        /// Positions of each.
        context: usize,
    },
    /// The threads could not be started.
    #[error("cannot start {threads} threads: {source}")]
    Threads {
        /// How many.
        threads: usize,
        /// Why.
        source: std::io::Error,
    },
    /// Nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A prompt that does not fit.
    #[error("the prompt has {tokens} tokens, but the context holds {context}")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Positions of the context.
        context: usize,
    },
    /// Other sequences hold the blocks.
    #[error("there is no room for {sequences} more sequences of {positions} positions")]
    NoRoom {
        /// Sequences asked for.
        sequences: usize,
        /// Positions of each.
        positions: usize,
    },
    /// A token that the model does not have.
    #[error("token {token} is not below the model's vocabulary size of {vocab_size}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
}
