//! One request on its way: its tokens, its limits, and how far it is computed.

use crate::backend::DeviceError;
use crate::kv::{KvSequence, PrefixUse};
use crate::sampler::{Allowed, Pick, Sampler, SamplingError, SamplingOptions, TokenLogprobs};
use crate::speculation::Draft;
use std::fmt;

/// The name of a sequence, unique in its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// Which tokens may come next, such as those that a grammar allows.
///
/// The engine calls [`compute`](Constraint::compute) on a thread of its own while it computes the logits, then
/// [`allowed`](Constraint::allowed), then [`accept`](Constraint::accept) with the token that was chosen.
pub trait Constraint: Send + fmt::Debug {
    /// Works out which tokens may come next.
    ///
    /// # Errors
    /// In words, when that cannot be said, such as for a grammar that has become too large.
    fn compute(&mut self) -> Result<(), String>;
    /// A bit for each token that may come next: that of token `t` is bit `t % 32` of word `t / 32`, and a token beyond
    /// the last word may not. `None` if every token may.
    fn allowed(&self) -> Option<&[u32]>;
    /// Takes the token that was chosen.
    ///
    /// # Errors
    /// In words, when it was not one of those that may come.
    fn accept(&mut self, token: u32) -> Result<(), String>;
    /// Whether the answer is complete, so that nothing may follow.
    fn is_complete(&self) -> bool;
}

/// What to generate.
#[derive(Debug, Default)]
pub struct Request {
    /// The prompt; not empty, and no longer than the context.
    pub tokens: Vec<u32>,
    /// The most tokens to generate; as many as the context holds if `None`.
    pub max_tokens: Option<usize>,
    /// How to choose tokens.
    pub sampling: SamplingOptions,
    /// Which of several answers to the same prompt this is; part of the key of the random numbers.
    pub choice: u32,
    /// Tokens that end the answer.
    pub end_tokens: Vec<u32>,
    /// Tokens of the answer before which no end token is chosen.
    pub min_tokens: usize,
    /// How many of the most probable tokens to report beside each chosen one; no log-probabilities if `None`.
    pub logprobs: Option<usize>,
    /// What limits the choice of tokens beyond the model.
    pub constraint: Option<Box<dyn Constraint>>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token was chosen, or the constraint allows nothing more.
    Stop,
    /// The most tokens were generated, or the context is full.
    Length,
}

/// What a step did.
#[derive(Clone, Debug)]
pub enum Event {
    /// A sequence runs: it has waited long enough.
    Started {
        /// This sequence.
        sequence: SequenceId,
        /// What it took over from earlier ones.
        prefix: PrefixUse,
    },
    /// A token was chosen.
    Token {
        /// For this sequence.
        sequence: SequenceId,
        /// The token.
        token: u32,
        /// Its log-probability and those of the most probable tokens, if asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// A sequence ended; no more events of it follow.
    Finished {
        /// This sequence.
        sequence: SequenceId,
        /// Why.
        reason: FinishReason,
    },
    /// A sequence cannot go on; no more events of it follow.
    Failed {
        /// This sequence.
        sequence: SequenceId,
        /// Why.
        error: GenerationError,
    },
}

/// Why a sequence cannot go on.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerationError {
    /// No token can be chosen.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The device failed; nothing runs on it any more.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The constraint does not say which tokens may come next.
    #[error("the answer cannot be held to its grammar: {message}")]
    Constraint {
        /// In the constraint's own words.
        message: String,
    },
}

/// A request that waits or runs.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub id: SequenceId,
    /// Prompt and chosen tokens.
    pub tokens: Vec<u32>,
    /// Tokens that are computed in chunks before the next one is chosen.
    pub prompt_tokens: usize,
    /// Length at which the answer may end.
    pub min_length: usize,
    /// Tokens whose keys and values are stored.
    pub computed: usize,
    /// Whether it is rotated as the long sequences are.
    pub is_long: bool,
    /// The length at which the answer is cut.
    pub max_length: usize,
    pub sampler: Sampler,
    pub choice: u32,
    pub end_tokens: Vec<u32>,
    pub logprobs: Option<usize>,
    pub constraint: Option<Box<dyn Constraint>>,
    /// Whether it has run before.
    pub was_started: bool,
    /// The blocks, while it runs.
    pub kv: Option<KvSequence>,
    /// What it may go on with.
    pub draft: Draft,
}

impl Sequence {
    /// Positions whose keys and values will be stored at the most: the last token chosen is never computed.
    pub fn max_positions(&self) -> usize {
        self.max_length.saturating_sub(1).max(self.prompt_tokens)
    }

    /// What the next token is chosen by, with the logits of row `row`, and those after each token of the draft, with the rows that
    /// follow. `ahead` more tokens are there than are known yet.
    pub fn picks(&mut self, row: usize, ahead: usize) -> impl Iterator<Item = Pick<'_>> {
        let Sequence { sampler, draft, constraint, end_tokens, .. } = self;
        let (length, min_length) = (self.tokens.len() + ahead, self.min_length);
        let (choice, logprobs) = (self.choice, self.logprobs);
        let mask = constraint.as_ref().and_then(|constraint| constraint.allowed());
        let end_tokens: &[u32] = end_tokens;
        let drafted = draft.tokens.len();
        while draft.samplers.len() < drafted {
            draft.samplers.push(sampler.clone());
        }
        let samplers = std::iter::once(sampler).chain(&mut draft.samplers[..drafted]);
        samplers.enumerate().map(move |(index, sampler)| {
            let length = length + index;
            let except = if length >= min_length { &[] } else { end_tokens };
            let (row, position) = (row + index, length as u64);
            Pick { row, sampler, allowed: Allowed { mask, except }, position, choice, logprobs }
        })
    }

    /// Whether the token that was chosen last is the next of the draft: it is computed then, and the choice after it counts.
    pub fn keeps_draft(&mut self) -> bool {
        let keeps = self.tokens.last().is_some_and(|token| self.draft.keeps(*token));
        self.computed += usize::from(keeps);
        keeps
    }

    /// Whether the token after the next can be chosen without knowing the next.
    pub fn can_run_ahead(&self) -> bool {
        self.constraint.is_none() && self.logprobs.is_none() && !self.sampler.remembers()
    }

    /// Appends the token that was chosen.
    ///
    /// # Errors
    /// When the constraint does not take it.
    pub fn accept(&mut self, token: u32) -> Result<(), GenerationError> {
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(token).map_err(|message| GenerationError::Constraint { message })?;
        }
        self.sampler.accept(token);
        self.tokens.push(token);
        Ok(())
    }

    /// Whether what is left to compute is more than the token just chosen.
    pub fn in_prefill(&self) -> bool {
        self.computed < self.prompt_tokens
    }
}
