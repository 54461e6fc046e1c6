//! The fields that say how tokens are chosen and when an answer ends: the same for every endpoint.

use super::error::ApiError;
use super::fields::{Fields, short, wrong};
use crate::run::random_seed;
use oxgpt_engine::sampler::SamplingOptions;
use oxgpt_engine::stop::StopMatcher;
use serde_json::Value;

/// The most stop strings, each of at most [`MAX_STOP_BYTES`].
const MAX_STOPS: usize = 64;
const MAX_STOP_BYTES: usize = 4096;
/// The most log-probabilities beside that of the chosen token, as in OpenAI's API.
pub const MAX_TOP_LOGPROBS: u64 = 20;

/// How to generate an answer.
#[derive(Clone, Debug)]
pub struct Sampling {
    pub options: SamplingOptions,
    pub stop: StopMatcher,
    pub ignore_eos: bool,
    pub min_tokens: usize,
    /// Answers to the same prompt.
    pub choices: u32,
}

impl Sampling {
    /// Takes the fields out of a request; what is absent is as in `defaults`, the model's own settings.
    pub fn take(fields: &mut Fields, defaults: &SamplingOptions) -> Result<Self, ApiError> {
        let mut options = defaults.clone();
        for (name, option) in [
            ("temperature", &mut options.temperature),
            ("top_p", &mut options.top_p),
            ("min_p", &mut options.min_p),
            ("repeat_penalty", &mut options.repeat_penalty),
            ("frequency_penalty", &mut options.frequency_penalty),
            ("presence_penalty", &mut options.presence_penalty),
        ] {
            if let Some(value) = fields.number(name)? {
                *option = value;
            }
        }
        // As vLLM calls it.
        if let Some(value) = fields.number("repetition_penalty")? {
            options.repeat_penalty = value;
        }
        if let Some(top_k) = fields.integer("top_k", 0..=u64::from(u32::MAX))? {
            options.top_k = top_k as u32;
        }
        options.seed = fields.integer("seed", 0..=u64::MAX)?.unwrap_or_else(random_seed);
        options.logit_bias = logit_bias(fields)?;
        options.validate()?;
        let choices = fields.integer("n", 1..=128)?.unwrap_or(1);
        Ok(Sampling {
            options,
            stop: StopMatcher::new(stop(fields, "stop")?)?,
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            min_tokens: fields.integer("min_tokens", 0..=u64::from(u32::MAX))?.unwrap_or(0)
                as usize,
            choices: choices as u32,
        })
    }
}

impl Sampling {
    /// Ends answers before these strings, whatever was said before.
    pub fn set_stop(&mut self, stops: Vec<String>) -> Result<(), ApiError> {
        self.stop = StopMatcher::new(stops)?;
        Ok(())
    }
}

/// Takes stop strings: one, or an array.
pub fn stop(fields: &mut Fields, field: &str) -> Result<Vec<String>, ApiError> {
    let name = fields.name(field);
    let stops = match fields.take(field) {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(values)) => {
            let texts = values.into_iter().map(|value| match value {
                Value::String(text) => Ok(text),
                other => Err(wrong(&name, "strings", &other)),
            });
            texts.collect::<Result<_, _>>()?
        }
        Some(other) => return Err(wrong(&name, "a string or an array of strings", &other)),
    };
    if stops.len() > MAX_STOPS {
        let message = format!("`{name}` has {} strings, more than {MAX_STOPS}", stops.len());
        return Err(ApiError::field(name, message));
    }
    if let Some(long) = stops.iter().find(|stop| stop.len() > MAX_STOP_BYTES) {
        let message =
            format!("`{name}` has a string of {} bytes, more than {MAX_STOP_BYTES}", long.len());
        return Err(ApiError::field(name, message));
    }
    Ok(stops)
}

/// An object from token ids to what is added to their logits.
fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(value) = fields.take("logit_bias") else { return Ok(Vec::new()) };
    let Value::Object(entries) = value else {
        return Err(wrong("logit_bias", "an object from token ids to numbers", &value));
    };
    let entry = |(id, bias): (String, Value)| match (id.parse(), bias.as_f64()) {
        (Ok(id), Some(bias)) => Ok((id, bias as f32)),
        (Err(_), _) => {
            let id = short(&Value::String(id));
            Err(ApiError::field("logit_bias", format!("`logit_bias`: {id} is not a token id")))
        }
        (_, None) => Err(wrong("logit_bias", "numbers", &bias)),
    };
    entries.into_iter().map(entry).collect()
}
