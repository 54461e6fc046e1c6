//! One answer: a request run to its end, its text shown as it comes.

use crate::output::{Output, Spoken};
use anyhow::{Context, Result, anyhow};
use oxgpt_engine::engine::Engine;
use oxgpt_engine::sampler::TokenLogprobs;
use oxgpt_engine::sequence::{Event, FinishReason, Request};
use oxgpt_engine::tokenizer::Tokenizer;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The model ended it, or a stop string.
    Stop,
    /// The most tokens were generated, or the context is full.
    Length,
    /// The user stopped it.
    Interrupted,
}

/// What came out.
pub struct Answer {
    pub tokens: Vec<u32>,
    pub spoken: Spoken,
    pub ending: Ending,
    logprobs: Vec<TokenLogprobs>,
    /// From the submission of the prompt to the first token.
    pub prompt_time: Duration,
    /// From the first token to the last.
    pub generate_time: Duration,
}

/// The log-probability of one token, and of the most probable ones in its place.
#[derive(Serialize)]
pub struct TokenReport {
    token: u32,
    text: Option<String>,
    logprob: f32,
    top: Vec<TopReport>,
}

#[derive(Serialize)]
struct TopReport {
    token: u32,
    text: Option<String>,
    logprob: f32,
}

/// Runs a request to its end. `is_interrupted` is asked between steps.
pub fn generate(
    engine: &mut Engine,
    request: Request,
    mut out: Output<'_>,
    is_interrupted: &dyn Fn() -> bool,
) -> Result<Answer> {
    let start = Instant::now();
    let mut first_token = None;
    let (mut tokens, mut logprobs) = (Vec::new(), Vec::new());
    let id = engine.submit(request)?;
    let mut ending = None;
    while ending.is_none() {
        if is_interrupted() {
            engine.cancel(id);
            ending = Some(Ending::Interrupted);
            break;
        }
        for event in engine.step() {
            match event {
                Event::Started { .. } => {}
                Event::Token { token, logprobs: token_logprobs, .. } => {
                    first_token.get_or_insert_with(Instant::now);
                    tokens.push(token);
                    logprobs.extend(token_logprobs);
                    if out.push(token, tokens.len() == 1)? {
                        engine.cancel(id);
                        ending = Some(Ending::Stop);
                        break;
                    }
                }
                Event::Finished { reason, .. } => {
                    ending = Some(match reason {
                        FinishReason::Stop => Ending::Stop,
                        FinishReason::Length => Ending::Length,
                    });
                }
                Event::Failed { error, .. } => return Err(anyhow!(error)).context("generation"),
            }
        }
    }
    let end = Instant::now();
    let first_token = first_token.unwrap_or(end);
    Ok(Answer {
        tokens,
        spoken: out.finish()?,
        ending: ending.expect("the loop ends with a reason"),
        logprobs,
        prompt_time: first_token - start,
        generate_time: end - first_token,
    })
}

impl Answer {
    /// The log-probabilities of every token, if they were asked for.
    pub fn token_reports(&self, tokenizer: Option<&Tokenizer>) -> Vec<TokenReport> {
        let text = |token: u32| {
            let bytes = tokenizer?.token_bytes(token)?;
            Some(String::from_utf8_lossy(bytes).into_owned())
        };
        let pairs = self.tokens.iter().zip(&self.logprobs);
        pairs
            .map(|(&token, logprobs)| TokenReport {
                token,
                text: text(token),
                logprob: logprobs.chosen,
                top: logprobs
                    .top
                    .iter()
                    .map(|&(token, logprob)| TopReport { token, text: text(token), logprob })
                    .collect(),
            })
            .collect()
    }
}

impl TokenReport {
    /// One line on standard error: the token, its log-probability, and those of the most probable ones.
    pub fn print(&self) {
        let name = |id: u32, text: &Option<String>| match text {
            Some(text) => format!("{text:?}"),
            None => id.to_string(),
        };
        let top: Vec<String> = self
            .top
            .iter()
            .map(|top| format!("{} {:.4}", name(top.token, &top.text), top.logprob))
            .collect();
        eprintln!("{} {:.4}  [{}]", name(self.token, &self.text), self.logprob, top.join(", "));
    }
}
