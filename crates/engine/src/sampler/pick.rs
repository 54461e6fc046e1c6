//! The choice of one token in a batch of choices.

use super::{Allowed, Sampler, SamplingError, TokenLogprobs, log_probabilities};

/// What the next token of a sequence is chosen by.
#[derive(Debug)]
pub struct Pick<'a> {
    /// Which row of the logits.
    pub row: usize,
    /// The options, and the tokens so far.
    pub sampler: &'a mut Sampler,
    /// The tokens that may be chosen.
    pub allowed: Allowed<'a>,
    /// The absolute position of the token.
    pub position: u64,
    /// Which of parallel answers.
    pub choice: u32,
    /// How many of the most probable tokens to report; no log-probabilities if `None`.
    pub logprobs: Option<usize>,
}

/// The token that was chosen, with its log-probabilities if they were asked for.
pub type Picked = Result<(u32, Option<TokenLogprobs>), SamplingError>;

impl Pick<'_> {
    /// Chooses by the logits, which are the row's.
    ///
    /// # Errors
    /// As [`Sampler::sample_among`] and [`log_probabilities`].
    pub fn among(&mut self, logits: &[f32]) -> Picked {
        let Pick { allowed, position, choice, .. } = *self;
        let token = self.sampler.sample_among(logits, allowed, position, choice)?;
        self.with_logprobs(token, logits)
    }

    /// The log-probabilities that were asked for beside `token`, by the logits of the row.
    ///
    /// # Errors
    /// As [`log_probabilities`].
    pub fn with_logprobs(&self, token: u32, logits: &[f32]) -> Picked {
        let top = self.logprobs.map(|top| log_probabilities(logits, token, top));
        Ok((token, top.transpose()?))
    }
}
