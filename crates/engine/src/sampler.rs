//! From logits to the next token.
//!
//! The choice is a Gumbel-max draw: every token that passes the filters gets its scaled logit plus a
//! noise that is a pure function of (seed, choice, position, token), and the highest sum wins
//! (Gumbel 1954; Maddison et al. 2014, "A* Sampling"). That is a sample from the softmax, and it needs
//! no state, no order and no running sum, so a GPU kernel makes the same choice from the same logits.
//! `docs/sampling.md` is the exact definition.

mod adjust;
mod filter;
mod logprobs;
mod math;
pub mod noise;
mod options;
mod penalty;
mod pick;
#[cfg(test)]
mod tests;

pub use adjust::Adjustment;
use filter::Filter;
pub use logprobs::{TokenLogprobs, log_probabilities};
use noise::Noise;
pub use options::SamplingOptions;
use penalty::TokenCounts;
pub use pick::{Pick, Picked};

/// The widest head that can be sampled from: the fixed-point sums of top-p hold this many weights.
pub const MAX_VOCABULARY: usize = 1 << 22;

/// Why options were refused or no token could be chosen.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// An option outside its range.
    #[error("{option} must be {range}, not {value}")]
    OutOfRange {
        /// The option's name.
        option: &'static str,
        /// What it may be, in words.
        range: &'static str,
        /// What it was.
        value: f32,
    },
    /// A logit bias that is not finite or too large.
    #[error("the logit bias of token {token} must be between -100 and 100, not {value}")]
    BiasOutOfRange {
        /// The token with the bias.
        token: u32,
        /// The bias given.
        value: f32,
    },
    /// A token has two biases, and which one was meant is unknown.
    #[error("token {token} has more than one logit bias")]
    BiasRepeated {
        /// The token named more than once.
        token: u32,
    },
    /// A logit bias for a token that the model does not have.
    #[error("logit bias for token {token}, but the model has only tokens 0 to {}", .vocab_size.saturating_sub(1))]
    BiasToken {
        /// The token with the bias.
        token: u32,
        /// How many logits the model computes.
        vocab_size: usize,
    },
    /// More logits than can be sampled from.
    #[error("a vocabulary of {vocab_size} tokens is larger than {MAX_VOCABULARY}")]
    VocabularyTooLarge {
        /// How many logits the model computes.
        vocab_size: usize,
    },
    /// The logits are not as wide as the sampler was made for.
    #[error("expected {expected} logits, found {found}")]
    Width {
        /// The vocabulary the sampler was made for.
        expected: usize,
        /// How many logits were given.
        found: usize,
    },
    /// A logit is NaN: the model's computation went wrong.
    #[error("the logit of token {token} is NaN")]
    NotANumber {
        /// The first token whose logit is NaN.
        token: u32,
    },
    /// Every logit is minus infinity.
    #[error("no token can be chosen: every logit is -inf")]
    NoCandidate,
    /// A log probability was asked for a token that has no logit.
    #[error("token {token} has no logit among {vocab_size}")]
    NoLogit {
        /// The token asked for.
        token: u32,
        /// How many logits there are.
        vocab_size: usize,
    },
}

/// The tokens that may be chosen; the default is all of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed<'a> {
    /// Bit `t % 32` of word `t / 32` says whether token `t` may be chosen, and a token beyond the last word may not;
    /// `None` allows every token.
    pub mask: Option<&'a [u32]>,
    /// Tokens that may not be chosen whatever the mask says.
    pub except: &'a [u32],
}

impl Allowed<'_> {
    fn is_everything(&self) -> bool {
        self.mask.is_none() && self.except.is_empty()
    }

    /// Sets the logits of all other tokens to -inf.
    fn limit(&self, logits: &mut [f32]) {
        if let Some(mask) = self.mask {
            for (index, logits) in logits.chunks_mut(32).enumerate() {
                let word = mask.get(index).copied().unwrap_or(0);
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
        for token in self.except {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// Chooses the tokens of one sequence.
///
/// It remembers the options and, where penalties need them, the tokens so far; the randomness has no
/// state. The scratch space is allocated by the first [`Sampler::sample`] and reused from then on.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    vocab_size: usize,
    counts: TokenCounts,
    /// The logits after bias and penalties, where there are any.
    adjusted: Vec<f32>,
    filter: Filter,
}

impl Sampler {
    /// A sampler for a model with `vocab_size` logits (the rows of the head, which may be more than
    /// the tokenizer has tokens) that continues `prompt`.
    pub fn new(
        options: SamplingOptions,
        vocab_size: usize,
        prompt: &[u32],
    ) -> Result<Self, SamplingError> {
        options.validate()?;
        options.validate_vocabulary(vocab_size)?;
        let counts =
            if options.penalizes() { TokenCounts::new(prompt) } else { TokenCounts::default() };
        let filter = Filter::new(&options);
        Ok(Self { options, vocab_size, counts, adjusted: Vec::new(), filter })
    }

    /// Chooses the token at the absolute position `position`; `choice` tells parallel answers to one
    /// prompt apart.
    ///
    /// This does not count the token for the penalties: [`Sampler::accept`] does, once it is certain
    /// that the token stays.
    pub fn sample(
        &mut self,
        logits: &[f32],
        position: u64,
        choice: u32,
    ) -> Result<u32, SamplingError> {
        self.sample_among(logits, Allowed::default(), position, choice)
    }

    /// As [`Sampler::sample`], among some tokens: the others are as if their logits were -inf.
    pub fn sample_among(
        &mut self,
        logits: &[f32],
        allowed: Allowed<'_>,
        position: u64,
        choice: u32,
    ) -> Result<u32, SamplingError> {
        if logits.len() != self.vocab_size {
            return Err(SamplingError::Width { expected: self.vocab_size, found: logits.len() });
        }
        let is_adjusted = !self.options.logit_bias.is_empty() || self.options.penalizes();
        let logits = if !is_adjusted && allowed.is_everything() {
            logits
        } else {
            self.adjusted.clear();
            self.adjusted.extend_from_slice(logits);
            for &(token, bias) in &self.options.logit_bias {
                self.adjusted[token as usize] += bias;
            }
            self.counts.penalize(&self.options, &mut self.adjusted);
            allowed.limit(&mut self.adjusted);
            &self.adjusted
        };
        let best = highest(logits)?;
        if self.options.temperature == 0.0 {
            return Ok(best);
        }
        let scale = Scale { max: logits[best as usize], temperature: self.options.temperature };
        let noise = Noise::new(self.options.seed, choice, position);
        Ok(self.filter.draw(logits, scale, best, &noise))
    }

    /// What it was asked for.
    pub fn options(&self) -> &SamplingOptions {
        &self.options
    }

    /// Whether choices depend on the tokens before them.
    pub fn remembers(&self) -> bool {
        self.options.penalizes()
    }

    /// top-p in units of 2^-32, rounded up, if it is on; and ln(min-p), the lowest scaled logit that is kept.
    pub fn bounds(&self) -> (Option<u64>, f32) {
        self.filter.bounds()
    }

    /// Counts a token of the answer for the penalties, whether it was sampled or forced.
    pub fn accept(&mut self, token: u32) {
        if self.options.penalizes() {
            self.counts.add_generated(token);
        }
    }
}

/// The step from a logit to the exponent of its softmax weight.
#[derive(Clone, Copy)]
struct Scale {
    max: f32,
    temperature: f32,
}

impl Scale {
    /// `(logit - max) / temperature`: 0 for the highest logit, below for the others.
    ///
    /// Subtracting first keeps tiny temperatures from overflowing, and the comparison keeps
    /// `inf - inf` from becoming NaN when the highest logit is infinite.
    #[inline(always)]
    fn apply(self, logit: f32) -> f32 {
        let scaled = (logit - self.max) / self.temperature;
        if logit == self.max { 0.0 } else { scaled }
    }
}

/// The token with the highest logit, the lowest id among ties.
fn highest(logits: &[f32]) -> Result<u32, SamplingError> {
    // Independent lanes, so that the compiler can use vector instructions.
    const LANES: usize = 16;
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut nan = [false; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            max[lane] = if chunk[lane] > max[lane] { chunk[lane] } else { max[lane] };
            nan[lane] |= chunk[lane].is_nan();
        }
    }
    let max = max.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    if nan.contains(&true) || rest.iter().any(|logit| logit.is_nan()) {
        let token = logits.iter().position(|logit| logit.is_nan()).unwrap_or_default();
        return Err(SamplingError::NotANumber { token: token as u32 });
    }
    if max == f32::NEG_INFINITY {
        return Err(SamplingError::NoCandidate);
    }
    Ok(logits.iter().position(|&logit| logit == max).unwrap_or_default() as u32)
}
