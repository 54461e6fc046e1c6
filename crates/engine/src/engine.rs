//! The engine: submit requests, step, read events.

mod embedding;
mod error;
mod memory;
mod options;
mod timed;

pub use self::embedding::{Embedding, Pooling};
pub use self::error::EngineError;
pub use self::memory::{KvPerToken, MemoryPlan};
pub use self::options::{Device, EngineOptions};
pub use crate::scheduler::PrefixSharing;

use self::memory::{Planned, plan};
use self::timed::Timed;
use crate::backend::cpu::Cpu;
use crate::backend::cpu::cores::physical_cores;
use crate::backend::cuda::{self, Cuda, CudaPlan};
use crate::backend::reference::Reference;
use crate::backend::{DeviceError, LaunchTime};
use crate::batch::{Batch, Logits, Origin};
use crate::kv::{KvPools, KvSequence};
use crate::model::Model;
use crate::model::executor::{Executor, load};
use crate::sampler::{Allowed, Pick, Picked, Sampler, SamplingError, SamplingOptions};
use crate::scheduler::{Plan, Scheduler};
use crate::sequence::{Event, FinishReason, GenerationError, Request, Sequence, SequenceId};
use crate::speculation::{Costs, Draft, Speculated, Speculation};
use std::thread;
use std::time::Instant;

/// The most rows that get logits at once when a text is scored: enough to keep a product busy, few enough that the
/// logits of a large vocabulary stay small.
const SCORE_ROWS: usize = 64;

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
    executor: Timed,
    scheduler: Scheduler,
    kv: KvPools,
    groups: usize,
    context: usize,
    chunk: usize,
    vocab_size: usize,
    logit_width: usize,
    hidden_width: usize,
    /// See [`crate::model::spec::Longer`].
    short_context: Option<usize>,
    logits: Vec<f32>,
    next_id: u64,
    /// Tokens that are being chosen while those before them are handed out.
    ahead: Option<OnTheWay>,
    /// What steps with and without drafts take.
    costs: Costs,
    speculated: Speculated,
}

/// The sequences that get tokens from a batch that was begun, as often as they have choices, and the tokens where they had to be
/// asked for.
struct OnTheWay {
    ids: Vec<SequenceId>,
    picked: Option<Vec<Picked>>,
    /// The sequences and the rows of a batch of nothing but generated tokens.
    generated: Option<(usize, usize)>,
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
                load(cpu.with_kv(options.kv), model, layout.clone(), &groups, limits, &mut loaded)?
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
                let speculates = options.speculation != Speculation::Off;
                let cuda = Cuda::new(ordinal, model, cuda, options.deterministic, speculates)?;
                load(cuda, model, layout.clone(), &groups, limits, &mut loaded)?
            }
        };
        let mut scheduler = Scheduler::new(sequences, limits.rows, options.sharing);
        scheduler.speculate(options.speculation);
        Ok(Engine {
            executor: Timed::new(executor),
            scheduler,
            groups: groups.len(),
            kv: KvPools::new(groups, limits.rows),
            context,
            chunk,
            vocab_size: decoder.embedding.vocab_size,
            logit_width: decoder.head.rows,
            hidden_width: decoder.hidden,
            short_context: decoder.short_context(),
            logits: Vec::new(),
            next_id: 0,
            ahead: None,
            costs: Costs::default(),
            speculated: Speculated::default(),
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
        let id = self.new_id();
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
            was_started: false,
            kv: None,
            draft: Draft::default(),
        });
        Ok(id)
    }

    fn new_id(&mut self) -> SequenceId {
        self.next_id += 1;
        SequenceId(self.next_id - 1)
    }

    /// Forgets a sequence; no more events of it follow.
    pub fn cancel(&mut self, id: SequenceId) {
        self.scheduler.remove(id, &mut self.kv);
    }

    /// Sequences that were submitted and do not run now.
    pub fn waiting(&self) -> usize {
        self.scheduler.waiting()
    }

    /// The share of the room for keys and values that sequences use, from 0 to 1.
    pub fn kv_usage(&self) -> f64 {
        self.kv.usage()
    }

    /// How many times a sequence had to give up its keys and values to others, to be computed once more later.
    pub fn preemptions(&self) -> u64 {
        self.scheduler.preemptions()
    }

    /// Seconds so far in which the device, or the CPU in its place, was given work or waited for. What else a step takes is the
    /// host's: planning, looking for prefixes, handing out tokens.
    pub fn device_seconds(&self) -> f64 {
        self.executor.seconds
    }

    /// What became of drafts so far.
    pub fn speculated(&self) -> Speculated {
        self.speculated
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// Computes one batch: plan, forward, choose, commit. Where the device can do that, the batch after it is begun before its
    /// tokens are known here.
    pub fn step(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        if let Err(error) = self.work(&mut events) {
            self.ahead = None;
            for sequence in self.scheduler.running() {
                self.scheduler.remove(sequence, &mut self.kv);
                events.push(Event::Failed { sequence, error: error.clone().into() });
            }
        }
        events
    }

    fn work(&mut self, events: &mut Vec<Event>) -> Result<(), DeviceError> {
        let start = Instant::now();
        let begun = match self.ahead.take() {
            Some(ahead) => Some(ahead),
            None => self.begin(events)?,
        };
        let Some(OnTheWay { ids, picked, generated }) = begun else { return Ok(()) };
        if picked.is_none() && self.executor.runs_ahead() {
            let (groups, short) = (self.groups, self.short_context);
            if let Some(plan) = self.scheduler.plan_ahead(&ids, &mut self.kv, groups, short) {
                self.executor.forward(&plan.batch)?;
                let ids = self.choose(&plan.sampled, 1)?;
                let generated = Some((ids.len(), ids.len()));
                self.ahead = Some(OnTheWay { ids, picked: None, generated });
            }
        }
        let picked = match picked {
            Some(picked) => picked,
            None => self.executor.chosen()?,
        };
        let mut cost = None;
        if let Some((sequences, rows)) = generated {
            self.costs.add(rows, start.elapsed().as_secs_f64());
            cost = self.costs.ratio(rows, sequences);
        }
        // The sequence whose further choices do not count: they follow tokens that were not chosen.
        let mut over = None;
        for (id, picked) in ids.into_iter().zip(picked) {
            if over == Some(id) {
                continue;
            }
            let Some(sequence) = self.scheduler.running_mut(id) else { continue };
            let goes_on = commit(sequence, picked, events);
            let length = sequence.tokens.len();
            let becomes_long = !sequence.is_long && is_long(self.short_context, length);
            if goes_on && !becomes_long && sequence.keeps_draft() {
                continue;
            }
            over = Some(id);
            let Speculated { drafted, kept } = sequence.draft.judge(cost);
            self.speculated.drafted += drafted;
            self.speculated.kept += kept;
            if !goes_on {
                self.scheduler.remove(id, &mut self.kv);
            } else if becomes_long {
                // What was stored so far was rotated otherwise.
                self.scheduler.restart_as_long(id, &mut self.kv);
            }
        }
        Ok(())
    }

    /// Computes the next batch, if there is one, and begins to choose tokens.
    fn begin(&mut self, events: &mut Vec<Event>) -> Result<Option<OnTheWay>, DeviceError> {
        let Plan { batch, sampled, started } = self.scheduler.plan(&mut self.kv, self.groups);
        let started = started.into_iter();
        events.extend(started.map(|(sequence, prefix)| Event::Started { sequence, prefix }));
        if batch.is_empty() {
            return Ok(None);
        }
        let (computed, refused) = self.forward(&batch, &sampled);
        computed?;
        self.scheduler.stored(&mut self.kv);
        for (sequence, message) in refused {
            self.scheduler.remove(sequence, &mut self.kv);
            let error = GenerationError::Constraint { message };
            events.push(Event::Failed { sequence, error });
        }
        let is_generated = batch.generated == batch.rows();
        let generated = is_generated.then(|| (batch.sequences(), batch.rows()));
        let ids = self.choose(&sampled, 0)?;
        Ok(Some(OnTheWay { ids, picked: None, generated }))
    }

    /// Begins to choose the next tokens of each of the `sampled` sequences that still run, by the logits of the last batch, and
    /// returns the sequence of each choice. `ahead` of the tokens of each are not known yet.
    fn choose(
        &mut self,
        sampled: &[SequenceId],
        ahead: usize,
    ) -> Result<Vec<SequenceId>, DeviceError> {
        let (mut ids, mut picks) = (Vec::new(), Vec::new());
        for (sequence, row) in self.scheduler.sampled(sampled) {
            let id = sequence.id;
            picks.extend(sequence.picks(row, ahead));
            ids.resize(picks.len(), id);
        }
        self.executor.choose(&mut picks)?;
        Ok(ids)
    }

    /// Computes a batch and beside it, on a thread of its own, which tokens the `sampled` sequences may choose. The second
    /// result has those of which that cannot be said, and why.
    fn forward(
        &mut self,
        batch: &Batch,
        sampled: &[SequenceId],
    ) -> (Result<(), DeviceError>, Vec<(SequenceId, String)>) {
        let Engine { executor, scheduler, .. } = self;
        let mut constraints = scheduler.constraints(sampled);
        if constraints.is_empty() {
            return (executor.forward(batch), Vec::new());
        }
        let all: Vec<SequenceId> = constraints.iter().map(|(id, _)| *id).collect();
        let fail = |message: &str| all.iter().map(|id| (*id, message.to_string())).collect();
        thread::scope(|scope| {
            let work = move || {
                let computed = constraints.iter_mut().map(|(id, c)| (*id, c.compute()));
                computed.filter_map(|(id, result)| Some((id, result.err()?))).collect::<Vec<_>>()
            };
            let worker = thread::Builder::new().spawn_scoped(scope, work);
            let computed = executor.forward(batch);
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
        let batch = self.batch(sequences, tokens, origin, wanted);
        self.executor.forward(&batch)?;
        self.executor.read(&mut self.logits)?;
        Ok(&self.logits)
    }

    /// As [`Engine::compute`], but begins to choose the likeliest next token of each sequence, where the logits are.
    /// [`Engine::chosen_next`] has them; another batch may be begun before.
    ///
    /// # Errors
    /// When the device failed.
    pub fn begin_next(
        &mut self,
        sequences: &mut [HeldSequence],
        tokens: &[&[u32]],
        origin: Origin,
    ) -> Result<(), EngineError> {
        // What was chosen first is asked for first.
        if let Some(OnTheWay { picked: picked @ None, .. }) = &mut self.ahead {
            *picked = Some(self.executor.chosen()?);
        }
        let batch = self.batch(sequences, tokens, origin, Logits::Last);
        self.executor.forward(&batch)?;
        let options = SamplingOptions { temperature: 0.0, ..SamplingOptions::default() };
        let sampler = Sampler::new(options, self.logit_width, &[])?;
        let mut samplers = vec![sampler; sequences.len()];
        let (allowed, position, choice, logprobs) = (Allowed::default(), 0, 0, None);
        let pick = |(row, sampler)| Pick { row, sampler, allowed, position, choice, logprobs };
        let mut picks: Vec<Pick<'_>> = samplers.iter_mut().enumerate().map(pick).collect();
        Ok(self.executor.choose(&mut picks)?)
    }

    /// What each launch takes that computes the next token of each sequence, without the choice of the tokens after them; nothing on
    /// the CPU.
    ///
    /// # Errors
    /// When the device failed.
    pub fn profile_next(
        &mut self,
        sequences: &mut [HeldSequence],
        tokens: &[&[u32]],
    ) -> Result<Vec<LaunchTime>, EngineError> {
        let batch = self.batch(sequences, tokens, Origin::Generated, Logits::Last);
        Ok(self.executor.profile(&batch)?)
    }

    /// The tokens of the batch that was begun first and not asked for yet.
    ///
    /// # Errors
    /// When the device failed, or no token can be chosen.
    pub fn chosen_next(&mut self) -> Result<Vec<u32>, EngineError> {
        let picked = self.executor.chosen()?.into_iter();
        Ok(picked.map(|picked| Ok(picked?.0)).collect::<Result<_, SamplingError>>()?)
    }

    /// The next tokens of each sequence as one batch.
    fn batch(
        &mut self,
        sequences: &mut [HeldSequence],
        tokens: &[&[u32]],
        origin: Origin,
        wanted: Logits,
    ) -> Batch {
        let mut batch = Batch::new(self.groups);
        for (sequence, tokens) in sequences.iter_mut().zip(tokens) {
            let end = sequence.positions + tokens.len();
            let reached = self.kv.extend(&mut sequence.kv, sequence.positions, end);
            assert_eq!(reached, end, "a sequence stays within the positions that it holds");
            let HeldSequence { kv, is_long, positions } = sequence;
            batch.push(tokens, *positions, *is_long, &kv.tables, wanted);
            sequence.positions = end;
        }
        if origin == Origin::Generated {
            assert_eq!(batch.rows(), batch.sequences(), "one token for each sequence");
            batch.generated = batch.rows();
        }
        batch
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

/// Takes over what was chosen as the next token of a sequence, and says whether the sequence goes on.
fn commit(sequence: &mut Sequence, picked: Picked, events: &mut Vec<Event>) -> bool {
    let id = sequence.id;
    let finish = |events: &mut Vec<Event>, reason| {
        events.push(Event::Finished { sequence: id, reason });
        false
    };
    if sequence.tokens.len() >= sequence.max_length {
        return finish(events, FinishReason::Length);
    }
    let (token, logprobs) = match picked.map_err(GenerationError::from).and_then(|picked| {
        sequence.accept(picked.0)?;
        Ok(picked)
    }) {
        Ok(picked) => picked,
        Err(error) => {
            events.push(Event::Failed { sequence: id, error });
            return false;
        }
    };
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
