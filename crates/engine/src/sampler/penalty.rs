//! Penalties for tokens that occurred before.

use super::SamplingOptions;

/// The distinct tokens of the prompt and the answer.
#[derive(Clone, Debug, Default)]
pub(super) struct TokenCounts {
    /// (token, how often it was generated), ascending by token. A sequence has few distinct tokens
    /// beside the vocabulary, so this stays small where a dense table per sequence would not.
    seen: Vec<(u32, u32)>,
}

impl TokenCounts {
    pub(super) fn new(prompt: &[u32]) -> Self {
        let mut seen: Vec<_> = prompt.iter().map(|&token| (token, 0)).collect();
        seen.sort_unstable();
        seen.dedup();
        Self { seen }
    }

    pub(super) fn add_generated(&mut self, token: u32) {
        match self.seen.binary_search_by_key(&token, |entry| entry.0) {
            Ok(at) => self.seen[at].1 = self.seen[at].1.saturating_add(1),
            Err(at) => self.seen.insert(at, (token, 1)),
        }
    }

    /// The tokens, ascending, each with how often it is in the answer.
    pub(super) fn seen(&self) -> &[(u32, u32)] {
        &self.seen
    }

    /// Applies the repeat penalty (prompt and answer), then the frequency and the presence penalty
    /// (answer only). A token beyond the logits has nothing to penalize.
    pub(super) fn penalize(&self, options: &SamplingOptions, logits: &mut [f32]) {
        for &(token, generated) in &self.seen {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            if *logit > 0.0 {
                *logit /= options.repeat_penalty;
            } else {
                *logit *= options.repeat_penalty;
            }
            if generated > 0 {
                *logit -= options.frequency_penalty * generated as f32;
                *logit -= options.presence_penalty;
            }
        }
    }
}
