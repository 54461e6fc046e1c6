//! `oxgpt run`: one prompt, one answer.

use crate::args::{ChatOptions, MAX_SEED, ModelArgs, RunArgs, SamplingArgs};
use crate::generate::{Ending, TokenReport, generate};
use crate::grammar::{Grammar, Grammars, Rules, Shape};
use crate::open;
use crate::output::{Output, Reader};
use crate::tokenize::read_stdin;
use anyhow::{Context, Result, bail};
use oxgpt_engine::model::Model;
use oxgpt_engine::prompt::{ChatFormat, Conversation, message};
use oxgpt_engine::sampler::SamplingOptions;
use oxgpt_engine::sequence::{Constraint, Request};
use oxgpt_engine::stop::StopMatcher;
use oxgpt_engine::tokenizer::Tokenizer;
use serde::Serialize;
use serde_json::Value;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::Path;

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
    /// For a format that keeps them apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    commentary: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Vec<ToolCallReport<'a>>>,
}

/// A call of a tool, as the model wrote it.
#[derive(Serialize)]
struct ToolCallReport<'a> {
    name: &'a str,
    arguments: &'a str,
}

#[derive(Serialize)]
struct Timings {
    prompt_tokens: usize,
    prompt_seconds: f64,
    generated_tokens: usize,
    generate_seconds: f64,
    /// Tokens of drafts, and those of them that were chosen; with `--speculate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    drafted_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_tokens: Option<u64>,
}

/// The top-level entry point for `run`.
pub fn run(model_args: &ModelArgs, args: &RunArgs) -> Result<()> {
    let model = open::model(model_args)?;
    let tokenizer = model.tokenizer.as_ref();
    let format = if args.raw || args.tokens.is_some() { None } else { ChatFormat::of(&model)? };
    let prompt = prompt_tokens(&model, format.as_ref(), args)?;
    let constraint = constraint(&model, format.as_ref(), args, &prompt)?;
    let sampling = sampling(&model, &args.sampling);
    let (mut engine, device) = open::answering(&model, model_args, &args.engine, args.speculate)?;
    let request = Request {
        tokens: prompt.clone(),
        max_tokens: args.max_tokens,
        sampling: sampling.clone(),
        choice: 0,
        end_tokens: end_tokens(&model, format.as_ref(), &args.sampling),
        logprobs: args.sampling.logprobs,
        constraint,
        ..Request::default()
    };
    let stop = StopMatcher::new(args.sampling.stop.clone())?;
    let reader = reader(tokenizer, format.as_ref());
    let out = Output::new(reader, stop, !args.json, !args.chat_options.hide_reasoning);
    let answer = generate(&mut engine, request, out, &|| false)?;

    let speculated = args.speculate.then(|| engine.speculated());
    let timings = Timings {
        prompt_tokens: prompt.len(),
        prompt_seconds: answer.prompt_time.as_secs_f64(),
        generated_tokens: answer.tokens.len(),
        generate_seconds: answer.generate_time.as_secs_f64(),
        drafted_tokens: speculated.map(|speculated| speculated.drafted),
        kept_tokens: speculated.map(|speculated| speculated.kept),
    };
    let logprobs = args.sampling.logprobs.map(|_| answer.token_reports(tokenizer));
    let parts = answer.spoken.parts.as_ref();
    let mut stdout = io::stdout().lock();
    if args.json {
        let report = Report {
            prompt_tokens: &prompt,
            tokens: &answer.tokens,
            text: answer.spoken.text.as_deref(),
            finish_reason: if answer.ending == Ending::Length { "length" } else { "stop" },
            seed: sampling.seed,
            device: device.to_string(),
            logprobs,
            timings,
            reasoning: parts.map(|parts| parts.reasoning.as_str()),
            commentary: parts.map(|parts| parts.commentary.as_str()),
            tool_calls: parts.map(|parts| {
                let calls = parts.tool_calls.iter();
                calls
                    .map(|call| ToolCallReport { name: &call.name, arguments: &call.arguments })
                    .collect()
            }),
        };
        writeln!(stdout, "{}", serde_json::to_string(&report)?)?;
    } else {
        writeln!(stdout)?;
        for token in logprobs.into_iter().flatten() {
            token.print();
        }
        print_timings(&timings);
    }
    Ok(stdout.flush()?)
}

/// The ids of the prompt, by whichever way it was given.
fn prompt_tokens(model: &Model, format: Option<&ChatFormat>, args: &RunArgs) -> Result<Vec<u32>> {
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
    let options = &args.chat_options;
    let Some(format) = format else {
        for (is_used, option) in [
            (args.chat, "--chat"),
            (options.system.is_some(), "--system"),
            (options.reasoning_effort.is_some(), "--reasoning-effort"),
        ] {
            if is_used {
                bail!("{file}: the model has no chat template, which {option} needs");
            }
        }
        return Ok(tokenizer.encode(&text)?);
    };
    let system = options.system.as_deref().map(|system| message("system", system));
    let messages = system.into_iter().chain([message("user", &text)]).collect();
    chat_tokens(tokenizer, format, messages, options)
}

/// What the answer is held to.
fn constraint(
    model: &Model,
    format: Option<&ChatFormat>,
    args: &RunArgs,
    prompt: &[u32],
) -> Result<Option<Box<dyn Constraint>>> {
    let read = |file: &Path| fs::read_to_string(file).with_context(|| file.display().to_string());
    let (file, body) = match (&args.json_schema, &args.grammar) {
        (Some(file), _) => {
            let schema: Value = serde_json::from_str(&read(file)?)
                .with_context(|| format!("{}: not valid JSON", file.display()))?;
            (file, Grammar::Schema(schema))
        }
        (None, Some(file)) => (file, Grammar::Lark(read(file)?)),
        (None, None) => return Ok(None),
    };
    let Some(tokenizer) = &model.tokenizer else {
        bail!("the model has no tokenizer, which a grammar needs");
    };
    let end_tokens = end_tokens(model, format, &args.sampling);
    let grammars = Grammars::new(tokenizer, model.description.decoder.head.rows, &end_tokens)?;
    let shape = match format {
        Some(ChatFormat::Harmony(_)) => Shape::Harmony,
        Some(ChatFormat::Template(template)) if template.source().contains("<think>") => {
            let text = tokenizer.decode(prompt)?;
            Shape::think(tokenizer, text.trim_end().ends_with("<think>"))
        }
        _ => Shape::Bare,
    };
    grammars.compile(&body).with_context(|| file.display().to_string())?;
    let (calls, body) = (Vec::new(), Some(body));
    let rules = Rules { shape, body, calls, must_call: false, many_calls: false };
    let held = grammars.compile(&rules.grammar());
    Ok(Some(Box::new(held.with_context(|| file.display().to_string())?)))
}

/// The ids of a conversation, up to where the answer begins.
pub fn chat_tokens(
    tokenizer: &Tokenizer,
    format: &ChatFormat,
    messages: Vec<Value>,
    options: &ChatOptions,
) -> Result<Vec<u32>> {
    let effort = options.reasoning_effort.map(|effort| effort.name().into());
    let conversation = Conversation {
        messages,
        add_generation_prompt: true,
        variables: effort
            .map(|effort| ("reasoning_effort".to_string(), effort))
            .into_iter()
            .collect(),
        ..Conversation::default()
    };
    Ok(tokenizer.encode_segments(&format.render(&conversation)?.segments)?)
}

/// The sampling options: what was typed, over the model's own settings, over the defaults.
pub fn sampling(model: &Model, args: &SamplingArgs) -> SamplingOptions {
    let mut options = model.description.generation.over(SamplingOptions::default());
    args.apply(&mut options);
    options.seed = args.seed.unwrap_or_else(random_seed);
    options
}

/// A seed that is another one each time.
pub fn random_seed() -> u64 {
    // The standard library seeds its hash maps from the system's randomness.
    RandomState::new().hash_one(0) % MAX_SEED
}

/// The tokens that end an answer.
pub fn end_tokens(model: &Model, format: Option<&ChatFormat>, args: &SamplingArgs) -> Vec<u32> {
    if args.ignore_eos {
        return Vec::new();
    }
    let ids = model.end_tokens();
    match format {
        Some(format) => format.end_tokens(ids),
        None => ids,
    }
}

/// What turns the tokens of an answer into text.
pub fn reader<'a>(tokenizer: Option<&'a Tokenizer>, format: Option<&ChatFormat>) -> Reader<'a> {
    let Some(tokenizer) = tokenizer else { return Reader::Ids };
    match format.and_then(|format| format.parser(tokenizer)) {
        Some(parser) => Reader::Harmony(Box::new(parser)),
        None => Reader::Plain(tokenizer.decoder(true)),
    }
}

fn print_timings(timings: &Timings) {
    let rate = |tokens: usize, seconds: f64| tokens as f64 / seconds.max(1e-9);
    let drafts = match (timings.drafted_tokens, timings.kept_tokens) {
        (Some(drafted), Some(kept)) => format!(", {kept} of {drafted} drafted ones kept"),
        _ => String::new(),
    };
    eprintln!(
        "prompt: {} tokens in {:.3} s ({:.1} tokens/s); generated: {} tokens, {:.1} tokens/s after the first{drafts}",
        timings.prompt_tokens,
        timings.prompt_seconds,
        rate(timings.prompt_tokens, timings.prompt_seconds),
        timings.generated_tokens,
        rate(timings.generated_tokens.saturating_sub(1), timings.generate_seconds),
    );
}
