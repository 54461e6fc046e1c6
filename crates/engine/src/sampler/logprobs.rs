//! Log probabilities of the model, for reports.

use super::{SamplingError, highest};

/// What the model thought of a token and of the likeliest ones.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The natural logarithm of the chosen token's probability.
    pub chosen: f32,
    /// The likeliest tokens with their log probabilities, highest first, ties by lower id.
    pub top: Vec<(u32, f32)>,
}

/// The log-softmax of the model's logits, before temperature, penalties and filters, for the `chosen`
/// token and the `top` likeliest ones. Sums are in f64.
///
/// A token with a logit of -inf has the log probability -inf.
pub fn log_probabilities(
    logits: &[f32],
    chosen: u32,
    top: usize,
) -> Result<TokenLogprobs, SamplingError> {
    let Some(&chosen) = logits.get(chosen as usize) else {
        return Err(SamplingError::NoLogit { token: chosen, vocab_size: logits.len() });
    };
    let max = logits[highest(logits)? as usize];
    // Equal to the maximum is 0 even where the maximum is infinite.
    let shift = |logit: f32| if logit == max { 0.0 } else { f64::from(logit) - f64::from(max) };
    let log_sum = logits.iter().map(|&logit| shift(logit).exp()).sum::<f64>().ln();

    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let order = |a: &u32, b: &u32| {
        logits[*b as usize]
            .partial_cmp(&logits[*a as usize])
            .unwrap_or(std::cmp::Ordering::Equal)
            .then(a.cmp(b))
    };
    if top < ids.len() {
        ids.select_nth_unstable_by(top, order);
        ids.truncate(top);
    }
    ids.sort_unstable_by(order);
    let logprob = |logit| (shift(logit) - log_sum) as f32;
    Ok(TokenLogprobs {
        chosen: logprob(chosen),
        top: ids.into_iter().map(|id| (id, logprob(logits[id as usize]))).collect(),
    })
}
