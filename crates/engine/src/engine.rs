//! The engine: submit requests, step, read events.

use crate::backend::DeviceError;
use crate::backend::cpu::Cpu;
use crate::backend::cpu::cores::physical_cores;
use crate::backend::cuda::{self, Cuda, CudaPlan};
use crate::backend::reference::Reference;
use crate::batch::{Batch, Logits, Origin};
use crate::kv::{BLOCK_SIZE, KvGroup, KvLayout, KvPools, KvSequence};
use crate::model::executor::{BatchLimits, Executor, load};
use crate::model::forward::workspace_elements;
use crate::model::spec::AttentionShape;
use crate::model::{DecoderSource, Model, ModelError};
use crate::sampler::{Allowed, Sampler, SamplingError, TokenLogprobs, log_probabilities};
pub use crate::scheduler::PrefixSharing;
use crate::scheduler::{Plan, Scheduler};
use crate::sequence::{Event, FinishReason, GenerationError, Request, Sequence, SequenceId};
use std::{fmt, thread};

/// The most rows that get logits at once when a text is scored: enough to keep a product busy, few enough that the
/// logits of a large vocabulary stay small.
const SCORE_ROWS: usize = 64;

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The slow definition, in f64.
    Reference,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU, by its number.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Reference => f.write_str("reference"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl Device {
    /// Rows of a step that keep the device busy; see [`EngineOptions::chunk`].
    pub fn chunk(self) -> usize {
        match self {
            Device::Reference | Device::Cpu => 256,
            // Each expert gets some hundred of them. Twice as many would be 6 % faster, in twice the workspace.
            Device::Cuda(_) => 4096,
        }
    }

    /// What later requests can take over without a change of a bit; see [`EngineOptions::sharing`].
    pub fn sharing(self) -> PrefixSharing {
        match self {
            Device::Reference | Device::Cpu => PrefixSharing::All,
            // Generated tokens are multiplied in another way than those of prompts.
            Device::Cuda(_) => PrefixSharing::Prompts,
        }
    }

    /// Bytes of one key or value.
    pub fn kv_bytes(self) -> usize {
        match self {
            Device::Reference => size_of::<f64>(),
            Device::Cpu => size_of::<f32>(),
            Device::Cuda(_) => size_of::<half::f16>(),
        }
    }

    /// Bytes of one activation.
    fn activation_bytes(self) -> usize {
        match self {
            Device::Reference => size_of::<f64>(),
            Device::Cpu | Device::Cuda(_) => size_of::<f32>(),
        }
    }
}

/// How to run a model.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Where.
    pub device: Device,
    /// Positions of each sequence; the model's own limit if `None`.
    pub context: Option<usize>,
    /// Sequences that can run at once.
    pub sequences: usize,
    /// Rows of one step: longer prompts are computed in chunks. Changes no result.
    pub chunk: usize,
    /// CPU threads; the physical cores if `None`. Changes no result.
    pub threads: Option<usize>,
    /// The most bytes that weights, keys and values, and workspace may take.
    pub memory_limit: Option<u64>,
    /// Which keys and values later requests may take over.
    pub sharing: PrefixSharing,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            device: Device::Cpu,
            context: None,
            sequences: 1,
            chunk: Device::Cpu.chunk(),
            threads: None,
            memory_limit: None,
            sharing: PrefixSharing::All,
        }
    }
}

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
    /// Those of a model on a device.
    pub fn new(model: &Model, device: Device) -> Self {
        let element = device.kv_bytes() as u64;
        let sum = |width: fn(&AttentionShape) -> usize| {
            let layers = model.description.decoder.layers.iter();
            layers.map(|layer| 2 * width(&layer.attention.shape) as u64 * element).sum()
        };
        KvPerToken {
            multi_head: sum(AttentionShape::query_width),
            actual: sum(AttentionShape::kv_width),
        }
    }
}

impl MemoryPlan {
    /// What a model would take with these options, whatever their limit. Loads nothing; [`Engine::new`] goes by the
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

/// A sequence that is fed from outside instead of sampled, for scoring and measuring.
#[derive(Debug)]
pub struct HeldSequence {
    kv: KvSequence,
    is_long: bool,
    /// Positions computed so far.
    positions: usize,
}

/// A loaded model and the requests that it works on.
pub struct Engine {
    executor: Box<dyn Executor>,
    scheduler: Scheduler,
    kv: KvPools,
    groups: usize,
    context: usize,
    chunk: usize,
    vocab_size: usize,
    logit_width: usize,
    /// See [`crate::model::spec::Longer`].
    short_context: Option<usize>,
    logits: Vec<f32>,
    next_id: u64,
}

impl Engine {
    /// Loads a model. `progress` is told the bytes loaded so far and in total.
    ///
    /// # Errors
    /// When the options do not fit the model or its memory plan the limit.
    pub fn new(
        model: &Model,
        options: &EngineOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, EngineError> {
        let Planned { context, sequences, chunk, layout, groups, limits, plan, cuda } =
            plan(model, options)?;
        let decoder = &model.description.decoder;
        if let Some(limit) = options.memory_limit
            && plan.total() > limit
        {
            return Err(EngineError::MemoryLimit { limit, plan, sequences, context });
        }

        let mut done = 0;
        let mut loaded = |bytes: usize| {
            done += bytes as u64;
            progress(done, plan.weights);
        };
        let executor = match options.device {
            Device::Reference => {
                load(Reference::default(), model, layout.clone(), &groups, limits, &mut loaded)?
            }
            Device::Cpu => {
                let threads = options.threads.unwrap_or_else(physical_cores);
                let cpu =
                    Cpu::new(threads).map_err(|source| EngineError::Threads { threads, source })?;
                load(cpu, model, layout.clone(), &groups, limits, &mut loaded)?
            }
            Device::Cuda(ordinal) => {
                let free = cuda::device(ordinal)?.free;
                let loading = CudaPlan::LOADING;
                if plan.total().saturating_add(loading) > free {
                    let device = options.device;
                    return Err(EngineError::DeviceMemory {
                        device,
                        free,
                        plan,
                        loading,
                        sequences,
                        context,
                    });
                }
                let cuda = cuda.as_ref().expect("a plan for a GPU was made");
                let cuda = Cuda::new(ordinal, model, cuda)?;
                load(cuda, model, layout.clone(), &groups, limits, &mut loaded)?
            }
        };
        Ok(Engine {
            executor,
            scheduler: Scheduler::new(sequences, limits.rows, options.sharing),
            groups: groups.len(),
            kv: KvPools::new(groups, limits.rows),
            context,
            chunk,
            vocab_size: decoder.embedding.vocab_size,
            logit_width: decoder.head.rows,
            short_context: decoder.short_context(),
            logits: Vec::new(),
            next_id: 0,
        })
    }

    /// Tokens that a prompt can have: every id is below it.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Width of the logits: ids from there on are never chosen.
    pub fn logit_width(&self) -> usize {
        self.logit_width
    }

    /// Positions of each sequence.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Takes a request in; [`Engine::step`] works on it.
    ///
    /// # Errors
    /// When the prompt is empty, too long or has unknown tokens, or an option is out of range.
    pub fn submit(&mut self, request: Request) -> Result<SequenceId, EngineError> {
        self.check_tokens(&request.tokens)?;
        let sampler = Sampler::new(request.sampling, self.logit_width, &request.tokens)?;
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let prompt_tokens = request.tokens.len();
        let is_long = is_long(self.short_context, prompt_tokens);
        // The token chosen last needs no position of its own, so a full context still gives one.
        let room = self.context + 1 - prompt_tokens;
        let new_tokens = request.max_tokens.map_or(room, |max_tokens| max_tokens.min(room));
        self.scheduler.submit(Sequence {
            id,
            tokens: request.tokens,
            prompt_tokens,
            computed: 0,
            is_long,
            min_length: prompt_tokens + request.min_tokens.min(new_tokens),
            max_length: prompt_tokens + new_tokens,
            sampler,
            choice: request.choice,
            end_tokens: request.end_tokens,
            logprobs: request.logprobs,
            constraint: request.constraint,
            kv: None,
        });
        Ok(id)
    }

    /// Forgets a sequence; no more events of it follow.
    pub fn cancel(&mut self, id: SequenceId) {
        self.scheduler.remove(id, &mut self.kv);
    }

    /// Sequences that were submitted and do not run yet.
    pub fn waiting(&self) -> usize {
        self.scheduler.waiting()
    }

    /// The share of the room for keys and values that sequences use, from 0 to 1.
    pub fn kv_usage(&self) -> f64 {
        self.kv.usage()
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// Computes one batch: plan, forward, sample, commit.
    pub fn step(&mut self) -> Vec<Event> {
        let Plan { batch, sampled, started } = self.scheduler.plan(&mut self.kv, self.groups);
        let started = started.into_iter();
        let mut events: Vec<Event> =
            started.map(|(sequence, prefix)| Event::Started { sequence, prefix }).collect();
        if batch.is_empty() {
            return events;
        }
        let (computed, refused) = self.forward(&batch, &sampled);
        if let Err(error) = computed {
            for sequence in self.scheduler.running() {
                self.scheduler.remove(sequence, &mut self.kv);
                events.push(Event::Failed { sequence, error: error.clone().into() });
            }
            return events;
        }
        self.scheduler.stored(&mut self.kv);
        for (sequence, message) in refused {
            self.scheduler.remove(sequence, &mut self.kv);
            let error = GenerationError::Constraint { message };
            events.push(Event::Failed { sequence, error });
        }
        for (id, logits) in sampled.iter().zip(self.logits.chunks_exact(self.logit_width)) {
            let Some(sequence) = self.scheduler.running_mut(*id) else { continue };
            if !commit(sequence, logits, &mut events) {
                self.scheduler.remove(*id, &mut self.kv);
            } else if !sequence.is_long && is_long(self.short_context, sequence.tokens.len()) {
                // What was stored so far was rotated otherwise.
                self.scheduler.restart_as_long(*id, &mut self.kv);
            }
        }
        events
    }

    /// Computes a batch and beside it, on a thread of its own, which tokens the `sampled` sequences may choose. The second
    /// result has those of which that cannot be said, and why.
    fn forward(
        &mut self,
        batch: &Batch,
        sampled: &[SequenceId],
    ) -> (Result<(), DeviceError>, Vec<(SequenceId, String)>) {
        let Engine { executor, scheduler, logits, .. } = self;
        let mut constraints = scheduler.constraints(sampled);
        if constraints.is_empty() {
            return (executor.forward(batch, logits), Vec::new());
        }
        let all: Vec<SequenceId> = constraints.iter().map(|(id, _)| *id).collect();
        let fail = |message: &str| all.iter().map(|id| (*id, message.to_string())).collect();
        thread::scope(|scope| {
            let work = move || {
                let computed = constraints.iter_mut().map(|(id, c)| (*id, c.compute()));
                computed.filter_map(|(id, result)| Some((id, result.err()?))).collect::<Vec<_>>()
            };
            let worker = thread::Builder::new().spawn_scoped(scope, work);
            let computed = executor.forward(batch, logits);
            let refused = match worker.map(|worker| worker.join()) {
                Ok(Ok(refused)) => refused,
                Ok(Err(_)) => fail("its computation ended unexpectedly"),
                Err(error) => fail(&error.to_string()),
            };
            (computed, refused)
        })
    }

    /// Computes the logits of every token of a text and hands them to `sink` row by row, with the row's index.
    ///
    /// # Errors
    /// When the text is empty, too long for the context or has unknown tokens, when all sequences are taken, or when
    /// the device failed.
    pub fn score(
        &mut self,
        tokens: &[u32],
        sink: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        self.check_tokens(tokens)?;
        let Some(mut sequence) = self.hold(tokens.len()) else {
            return Err(EngineError::NoRoom { sequences: 1, positions: tokens.len() });
        };
        for chunk in tokens.chunks(self.chunk.min(SCORE_ROWS)) {
            let start = sequence.positions;
            if let Err(error) = self.compute(
                std::slice::from_mut(&mut sequence),
                &[chunk],
                Origin::Prompt,
                Logits::All,
            ) {
                self.release(sequence);
                return Err(error);
            }
            for (offset, logits) in self.logits.chunks_exact(self.logit_width).enumerate() {
                sink(start + offset, logits);
            }
        }
        self.release(sequence);
        Ok(())
    }

    /// Room for a sequence of at most `positions` positions that the caller feeds itself, or `None` while others
    /// hold it. The caller gives it back with [`Engine::release`].
    pub fn hold(&mut self, positions: usize) -> Option<HeldSequence> {
        let is_long = is_long(self.short_context, positions);
        self.kv.reserve(positions).map(|kv| HeldSequence { kv, is_long, positions: 0 })
    }

    /// Appends the next tokens of each sequence in one batch, and returns the logits of the wanted rows. The tokens
    /// of one sequence are no more than a chunk, and stay within the positions that it holds.
    ///
    /// # Errors
    /// When the device failed.
    pub fn compute(
        &mut self,
        sequences: &mut [HeldSequence],
        tokens: &[&[u32]],
        origin: Origin,
        wanted: Logits,
    ) -> Result<&[f32], EngineError> {
        let mut batch = Batch::new(self.groups);
        for (sequence, tokens) in sequences.iter_mut().zip(tokens) {
            let end = sequence.positions + tokens.len();
            self.kv.extend(&mut sequence.kv, sequence.positions, end);
            let HeldSequence { kv, is_long, positions } = sequence;
            batch.push(tokens, *positions, *is_long, &kv.tables, wanted);
            sequence.positions = end;
        }
        if origin == Origin::Generated {
            assert_eq!(batch.rows(), batch.sequences(), "one token for each sequence");
            batch.generated = batch.rows();
        }
        self.executor.forward(&batch, &mut self.logits)?;
        Ok(&self.logits)
    }

    /// Gives the room of a sequence back.
    pub fn release(&mut self, sequence: HeldSequence) {
        self.kv.release(sequence.kv);
    }

    /// Rows of one step.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<(), EngineError> {
        if tokens.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if tokens.len() > self.context {
            return Err(EngineError::PromptTooLong { tokens: tokens.len(), context: self.context });
        }
        match tokens.iter().find(|token| **token as usize >= self.vocab_size) {
            Some(&token) => Err(EngineError::UnknownToken { token, vocab_size: self.vocab_size }),
            None => Ok(()),
        }
    }
}

/// Whether a sequence of that many tokens is rotated as the long ones are.
fn is_long(short_context: Option<usize>, tokens: usize) -> bool {
    short_context.is_some_and(|short| tokens > short)
}

/// Chooses the next token of a sequence, and says whether the sequence goes on.
fn commit(sequence: &mut Sequence, logits: &[f32], events: &mut Vec<Event>) -> bool {
    let id = sequence.id;
    let finish = |events: &mut Vec<Event>, reason| {
        events.push(Event::Finished { sequence: id, reason });
        false
    };
    if sequence.tokens.len() >= sequence.max_length {
        return finish(events, FinishReason::Length);
    }
    let position = sequence.tokens.len() as u64;
    let (token, logprobs) = match choose(sequence, logits, position) {
        Ok(chosen) => chosen,
        Err(error) => {
            events.push(Event::Failed { sequence: id, error });
            return false;
        }
    };
    sequence.sampler.accept(token);
    sequence.tokens.push(token);
    events.push(Event::Token { sequence: id, token, logprobs });
    let is_complete = sequence.constraint.as_ref().is_some_and(|c| c.is_complete());
    if sequence.end_tokens.contains(&token) || is_complete {
        return finish(events, FinishReason::Stop);
    }
    if sequence.tokens.len() >= sequence.max_length {
        return finish(events, FinishReason::Length);
    }
    true
}

fn choose(
    sequence: &mut Sequence,
    logits: &[f32],
    position: u64,
) -> Result<(u32, Option<TokenLogprobs>), GenerationError> {
    let may_end = sequence.tokens.len() >= sequence.min_length;
    let allowed = Allowed {
        mask: sequence.constraint.as_ref().and_then(|constraint| constraint.allowed()),
        except: if may_end { &[] } else { &sequence.end_tokens },
    };
    let token = sequence.sampler.sample_among(logits, allowed, position, sequence.choice)?;
    let logprobs =
        sequence.logprobs.map(|top| log_probabilities(logits, token, top)).transpose()?;
    if let Some(constraint) = &mut sequence.constraint {
        constraint.accept(token).map_err(|message| GenerationError::Constraint { message })?;
    }
    Ok((token, logprobs))
}

/// What is decided before anything is loaded.
struct Planned {
    context: usize,
    sequences: usize,
    chunk: usize,
    layout: KvLayout,
    groups: Vec<KvGroup>,
    limits: BatchLimits,
    plan: MemoryPlan,
    /// The same in detail, where it is for a GPU.
    cuda: Option<CudaPlan>,
}

fn plan(model: &Model, options: &EngineOptions) -> Result<Planned, EngineError> {
    let decoder: &DecoderSource = &model.description.decoder;
    let limit = decoder.context_length;
    let context = options.context.unwrap_or(limit);
    if context == 0 || context > limit {
        return Err(EngineError::Context { asked: context, limit });
    }
    let sequences = options.sequences.max(1);
    // No step has more rows than all sequences have positions.
    let chunk = options.chunk.clamp(1, context.saturating_mul(sequences));
    let layout = KvLayout::new(decoder.layers.iter().map(|layer| layer.attention.shape.window));
    let groups = layout.groups(sequences, context, chunk);
    let limits = BatchLimits { rows: chunk.max(sequences), logit_rows: sequences.max(SCORE_ROWS) };

    if let Device::Cuda(ordinal) = options.device {
        let cuda = CudaPlan::new(ordinal, model, &layout, &groups, limits, (sequences, context))?;
        let CudaPlan { weights, kv, workspace, .. } = cuda;
        let plan = MemoryPlan { weights, kv, workspace };
        let cuda = Some(cuda);
        return Ok(Planned { context, sequences, chunk, layout, groups, limits, plan, cuda });
    }
    let kv_elements = decoder.layers.iter().zip(&layout.group_of_layer).map(|(layer, group)| {
        let positions = groups[*group].blocks.saturating_mul(BLOCK_SIZE) as u64;
        positions.saturating_mul(2 * layer.attention.shape.kv_width() as u64)
    });
    let kv_elements = kv_elements.fold(0, u64::saturating_add);
    let workspace = workspace_elements(decoder, limits.rows, limits.logit_rows) as u64;
    let plan = MemoryPlan {
        weights: model.weight_bytes(),
        kv: kv_elements.saturating_mul(options.device.kv_bytes() as u64),
        workspace: workspace.saturating_mul(options.device.activation_bytes() as u64),
    };
    Ok(Planned { context, sequences, chunk, layout, groups, limits, plan, cuda: None })
}
