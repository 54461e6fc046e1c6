//! `oxgpt run`: one prompt, one answer.

use crate::args::{MAX_SEED, ModelArgs, RunArgs};
use crate::open;
use crate::tokenize::read_stdin;
use anyhow::{Context, Result, anyhow, bail};
use oxgpt_engine::engine::Engine;
use oxgpt_engine::model::Model;
use oxgpt_engine::prompt::{ChatTemplate, Conversation, message};
use oxgpt_engine::sampler::{SamplingOptions, TokenLogprobs};
use oxgpt_engine::sequence::{Event, FinishReason, Request};
use oxgpt_engine::stop::StopMatcher;
use oxgpt_engine::tokenizer::{StreamDecoder, Tokenizer};
use serde::Serialize;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// The object that `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    prompt_tokens: &'a [u32],
    tokens: &'a [u32],
    text: Option<&'a str>,
    finish_reason: &'static str,
    seed: u64,
    device: String,
    logprobs: Option<Vec<TokenReport>>,
    timings: Timings,
}

/// The log-probability of one token, and of the most probable ones in its place.
#[derive(Serialize)]
struct TokenReport {
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

#[derive(Serialize)]
struct Timings {
    prompt_tokens: usize,
    prompt_seconds: f64,
    generated_tokens: usize,
    generate_seconds: f64,
}

/// What came out.
struct Answer {
    tokens: Vec<u32>,
    text: Option<String>,
    reason: FinishReason,
    logprobs: Vec<TokenLogprobs>,
    /// From the submission of the prompt to the first token.
    prompt_time: Duration,
    /// From the first token to the last.
    generate_time: Duration,
}

/// The top-level entry point for `run`.
pub fn run(model_args: &ModelArgs, args: &RunArgs) -> Result<()> {
    let model = open::model(model_args)?;
    let prompt = prompt_tokens(&model, args)?;
    let sampling = sampling(&model, args);
    let (mut engine, device) = open::engine(&model, model_args, &args.engine)?;
    let request = Request {
        tokens: prompt.clone(),
        max_tokens: args.max_tokens,
        sampling: sampling.clone(),
        choice: 0,
        end_tokens: if args.sampling.ignore_eos { Vec::new() } else { model.end_tokens() },
        logprobs: args.sampling.logprobs,
    };
    let tokenizer = model.tokenizer.as_ref();
    let out = Output {
        text: tokenizer.map(|tokenizer| tokenizer.decoder(true)),
        stop: StopMatcher::new(args.sampling.stop.clone())?,
        stream: !args.json,
        shown: String::new(),
    };
    let answer = generate(&mut engine, request, out)?;

    let timings = Timings {
        prompt_tokens: prompt.len(),
        prompt_seconds: answer.prompt_time.as_secs_f64(),
        generated_tokens: answer.tokens.len(),
        generate_seconds: answer.generate_time.as_secs_f64(),
    };
    let logprobs = args.sampling.logprobs.map(|_| token_reports(&answer, tokenizer));
    let mut stdout = io::stdout().lock();
    if args.json {
        let report = Report {
            prompt_tokens: &prompt,
            tokens: &answer.tokens,
            text: answer.text.as_deref(),
            finish_reason: match answer.reason {
                FinishReason::Stop => "stop",
                FinishReason::Length => "length",
            },
            seed: sampling.seed,
            device: device.to_string(),
            logprobs,
            timings,
        };
        writeln!(stdout, "{}", serde_json::to_string(&report)?)?;
    } else {
        writeln!(stdout)?;
        for token in logprobs.into_iter().flatten() {
            print_logprobs(&token);
        }
        print_timings(&timings);
    }
    Ok(stdout.flush()?)
}

/// The ids of the prompt, by whichever way it was given.
fn prompt_tokens(model: &Model, args: &RunArgs) -> Result<Vec<u32>> {
    if let Some(tokens) = &args.tokens {
        return Ok(tokens.0.clone());
    }
    let file = model.checkpoint.path().display();
    let Some(tokenizer) = &model.tokenizer else {
        bail!("{file}: the model has no tokenizer (give the prompt as ids with --tokens)");
    };
    let text = match &args.prompt {
        Some(text) => text.clone(),
        None => {
            let text = read_stdin()?;
            text.strip_suffix('\n').map_or(text.clone(), str::to_string)
        }
    };
    if text.is_empty() {
        bail!("the prompt is empty");
    }
    if args.raw {
        return Ok(tokenizer.encode(&text)?);
    }
    match ChatTemplate::from_tokenizer(tokenizer)? {
        Some(template) => {
            let system = args.system.as_deref().map(|system| message("system", system));
            let conversation = Conversation {
                messages: system.into_iter().chain([message("user", &text)]).collect(),
                add_generation_prompt: true,
                ..Conversation::default()
            };
            Ok(tokenizer.encode_segments(&template.render(&conversation)?.segments)?)
        }
        None if args.chat => bail!("{file}: the model has no chat template, which --chat needs"),
        None if args.system.is_some() => {
            bail!("{file}: the model has no chat template, which --system needs")
        }
        None => Ok(tokenizer.encode(&text)?),
    }
}

/// The sampling options: what was typed, over the model's own settings, over the defaults.
fn sampling(model: &Model, args: &RunArgs) -> SamplingOptions {
    let mut options = model.description.generation.over(SamplingOptions::default());
    args.sampling.apply(&mut options);
    options.seed = args.sampling.seed.unwrap_or_else(|| {
        // The standard library seeds its hash maps from the system's randomness.
        RandomState::new().hash_one(0) % MAX_SEED
    });
    options
}

/// Where the text of an answer goes.
struct Output<'a> {
    /// Tokens to text; `None` without a tokenizer.
    text: Option<StreamDecoder<'a>>,
    stop: StopMatcher,
    /// Whether text is printed as it comes.
    stream: bool,
    /// All text so far, up to a stop string.
    shown: String,
}

impl Output<'_> {
    /// Takes a token and says whether a stop string was completed.
    fn push(&mut self, token: u32, first: bool) -> Result<bool> {
        let Some(decoder) = &mut self.text else {
            if self.stream {
                let separator = if first { "" } else { "," };
                let mut stdout = io::stdout().lock();
                write!(stdout, "{separator}{token}")?;
                stdout.flush()?;
            }
            return Ok(false);
        };
        let text = decoder.push(token)?;
        let emit = self.stop.push(&text);
        self.show(&emit.text)?;
        Ok(emit.matched.is_some())
    }

    /// Shows what was held back for a character or a stop string that did not come.
    fn finish(mut self) -> Result<Option<String>> {
        let Some(decoder) = self.text.take() else { return Ok(None) };
        let last = self.stop.push(&decoder.finish());
        self.show(&last.text)?;
        if last.matched.is_none() {
            let held_back = self.stop.clone().finish();
            self.show(&held_back)?;
        }
        Ok(Some(self.shown))
    }

    fn show(&mut self, text: &str) -> Result<()> {
        self.shown.push_str(text);
        if self.stream && !text.is_empty() {
            let mut stdout = io::stdout().lock();
            stdout.write_all(text.as_bytes())?;
            stdout.flush()?;
        }
        Ok(())
    }
}

/// Runs a request to its end.
fn generate(engine: &mut Engine, request: Request, mut out: Output<'_>) -> Result<Answer> {
    let start = Instant::now();
    let mut first_token = None;
    let (mut tokens, mut logprobs) = (Vec::new(), Vec::new());
    let id = engine.submit(request)?;
    let mut reason = None;
    while reason.is_none() {
        for event in engine.step() {
            match event {
                Event::Token { token, logprobs: token_logprobs, .. } => {
                    first_token.get_or_insert_with(Instant::now);
                    tokens.push(token);
                    logprobs.extend(token_logprobs);
                    if out.push(token, tokens.len() == 1)? {
                        engine.cancel(id);
                        reason = Some(FinishReason::Stop);
                        break;
                    }
                }
                Event::Finished { reason: finished, .. } => reason = Some(finished),
                Event::Failed { error, .. } => return Err(anyhow!(error)).context("generation"),
            }
        }
    }
    let end = Instant::now();
    let first_token = first_token.unwrap_or(end);
    Ok(Answer {
        tokens,
        text: out.finish()?,
        reason: reason.expect("the loop ends with a reason"),
        logprobs,
        prompt_time: first_token - start,
        generate_time: end - first_token,
    })
}

fn token_reports(answer: &Answer, tokenizer: Option<&Tokenizer>) -> Vec<TokenReport> {
    let text = |token: u32| {
        let bytes = tokenizer?.token_bytes(token)?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    };
    let pairs = answer.tokens.iter().zip(&answer.logprobs);
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

/// One line on standard error: the token, its log-probability, and those of the most probable ones.
fn print_logprobs(token: &TokenReport) {
    let name = |id: u32, text: &Option<String>| match text {
        Some(text) => format!("{text:?}"),
        None => id.to_string(),
    };
    let top: Vec<String> = token
        .top
        .iter()
        .map(|top| format!("{} {:.4}", name(top.token, &top.text), top.logprob))
        .collect();
    eprintln!("{} {:.4}  [{}]", name(token.token, &token.text), token.logprob, top.join(", "));
}

fn print_timings(timings: &Timings) {
    let rate = |tokens: usize, seconds: f64| tokens as f64 / seconds.max(1e-9);
    eprintln!(
        "prompt: {} tokens in {:.3} s ({:.1} tokens/s); generated: {} tokens, {:.1} tokens/s after the first",
        timings.prompt_tokens,
        timings.prompt_seconds,
        rate(timings.prompt_tokens, timings.prompt_seconds),
        timings.generated_tokens,
        rate(timings.generated_tokens.saturating_sub(1), timings.generate_seconds),
    );
}
