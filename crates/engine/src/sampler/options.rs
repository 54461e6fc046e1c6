//! What a user may ask of the sampler, and the ranges.

use super::{MAX_VOCABULARY, SamplingError};

/// How the next token is chosen. The default samples from the model as it is: temperature 1 and
/// everything else off.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// Divides the logits; 0 takes the highest logit.
    pub temperature: f32,
    /// Keeps this many tokens with the highest logits; 0 is off.
    pub top_k: u32,
    /// Keeps the smallest set of most likely tokens whose probabilities sum to at least this; 1 is
    /// off, 0 keeps one token (Holtzman et al. 2019, nucleus sampling).
    pub top_p: f32,
    /// Keeps the tokens with at least this share of the highest probability; 0 is off
    /// (Nguyen et al. 2024).
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in the prompt or the answer; 1 is off
    /// (Keskar et al. 2019, CTRL).
    pub repeat_penalty: f32,
    /// Subtracted from a token's logit once per occurrence in the answer; 0 is off (OpenAI's API).
    pub frequency_penalty: f32,
    /// Subtracted once from the logit of each token in the answer; 0 is off (OpenAI's API).
    pub presence_penalty: f32,
    /// Added to the logits of single tokens; each token at most once.
    pub logit_bias: Vec<(u32, f32)>,
    /// Chooses the noise: equal seeds give equal answers.
    pub seed: u64,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplingOptions {
    /// Checks every range that does not depend on the model.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let check = |ok: bool, option, range, value| {
            if ok { Ok(()) } else { Err(SamplingError::OutOfRange { option, range, value }) }
        };
        let Self { temperature, top_p, min_p, repeat_penalty, .. } = *self;
        let (frequency, presence) = (self.frequency_penalty, self.presence_penalty);
        check(
            temperature >= 0.0 && temperature.is_finite(),
            "temperature",
            "finite and at least 0",
            temperature,
        )?;
        check((0.0..=1.0).contains(&top_p), "top_p", "between 0 and 1", top_p)?;
        check((0.0..=1.0).contains(&min_p), "min_p", "between 0 and 1", min_p)?;
        check(
            repeat_penalty > 0.0 && repeat_penalty.is_finite(),
            "repeat_penalty",
            "finite and above 0",
            repeat_penalty,
        )?;
        let penalties = -2.0..=2.0;
        check(penalties.contains(&frequency), "frequency_penalty", "between -2 and 2", frequency)?;
        check(penalties.contains(&presence), "presence_penalty", "between -2 and 2", presence)?;

        let mut biased = Vec::with_capacity(self.logit_bias.len());
        for &(token, value) in &self.logit_bias {
            if !(-100.0..=100.0).contains(&value) {
                return Err(SamplingError::BiasOutOfRange { token, value });
            }
            biased.push(token);
        }
        biased.sort_unstable();
        match biased.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(SamplingError::BiasRepeated { token: pair[0] }),
            None => Ok(()),
        }
    }

    /// Checks what depends on the model: `vocab_size` is the number of its logits.
    pub fn validate_vocabulary(&self, vocab_size: usize) -> Result<(), SamplingError> {
        if vocab_size > MAX_VOCABULARY {
            return Err(SamplingError::VocabularyTooLarge { vocab_size });
        }
        match self.logit_bias.iter().find(|&&(token, _)| token as usize >= vocab_size) {
            Some(&(token, _)) => Err(SamplingError::BiasToken { token, vocab_size }),
            None => Ok(()),
        }
    }

    /// Whether any penalty is on, so that tokens have to be counted.
    pub(super) fn penalizes(&self) -> bool {
        self.repeat_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }
}
