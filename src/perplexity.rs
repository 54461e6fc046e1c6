//! `oxgpt perplexity`: how well a model predicts a text, and how far it is from another model.

use crate::args::{ModelArgs, PerplexityArgs};
use crate::open;
use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use oxgpt_engine::engine::{Engine, EngineError, EngineOptions};
use serde::Serialize;
use std::fs;
use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

/// Rows of logits that the other model may be ahead by.
const ROWS_AHEAD: usize = 64;

/// One window of the text, and which of its tokens are scored.
#[derive(Debug, PartialEq, Eq)]
struct Window {
    tokens: Range<usize>,
    /// The first token of the text that is scored here.
    first_scored: usize,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    perplexity: f64,
    /// Of the perplexity, from the spread of the tokens' log-probabilities.
    standard_error: f64,
    mean_negative_log_likelihood: f64,
    tokens: usize,
    scored_tokens: usize,
    context: usize,
    stride: usize,
    #[serde(flatten)]
    against: Option<Against>,
}

/// How far the model is from the other one.
#[derive(Serialize)]
struct Against {
    /// Mean over the scored tokens of `sum(p ln(p / q))`, `p` of the other model and `q` of this one.
    mean_kl_divergence: f64,
    /// Share of the scored tokens at which both have the same most probable token.
    top_1_agreement: f64,
    against_perplexity: f64,
}

/// Running sums over the scored tokens.
#[derive(Default)]
struct Sums {
    count: usize,
    nll: f64,
    nll_squared: f64,
    against_nll: f64,
    kl_divergence: f64,
    agreements: usize,
}

/// The top-level entry point for `perplexity`.
pub fn perplexity(model_args: &ModelArgs, args: &PerplexityArgs) -> Result<()> {
    let model = open::model(model_args)?;
    let path = model.checkpoint.path().display();
    let tokenizer =
        model.tokenizer.as_ref().with_context(|| format!("{path}: the model has no tokenizer"))?;
    let file = args.file.display();
    let text = fs::read_to_string(&args.file).with_context(|| file.to_string())?;
    let tokens = tokenizer.encode(&text)?;
    ensure!(
        tokens.len() >= 2,
        "{file}: expected a text of at least 2 tokens, found {}",
        tokens.len()
    );

    let (mut engine, device) = open::engine(&model, model_args, &args.engine)?;
    let context = engine.context();
    let stride = args.stride.unwrap_or(context);
    ensure!(stride <= context, "the stride of {stride} is longer than the context of {context}");
    ensure!(
        args.skip + 1 < context,
        "skipping {} tokens leaves none to score in a context of {context}",
        args.skip
    );
    let windows = windows(tokens.len(), context, stride, args.skip);

    let sums = match &args.against {
        None => sum(&mut engine, None, &tokens, &windows)?,
        Some(other) => {
            let other_device = args.against_device.map_or(Ok(device), open::device)?;
            let other = open::model_at(other)?;
            let options = EngineOptions {
                device: other_device,
                context: Some(context),
                threads: args.engine.threads,
                ..EngineOptions::default()
            };
            let widths = [&model, &other].map(|model| model.description.decoder.head.rows);
            if widths[0] != widths[1] {
                bail!("the models' vocabularies differ: {} and {} tokens", widths[0], widths[1]);
            }
            let mut other = open::load(&other, &options)?;
            sum_against(&mut engine, &mut other, &tokens, &windows)?
        }
    };
    print(&report(&sums, args, tokens.len(), context, stride), args.json)
}

/// Cuts a text into windows of at most `context` tokens, `stride` apart. A token is scored in the first window that
/// has it behind more than `skip` others.
fn windows(tokens: usize, context: usize, stride: usize, skip: usize) -> Vec<Window> {
    let mut windows = Vec::new();
    let mut scored_to = 0;
    let mut start = 0;
    loop {
        let end = (start + context).min(tokens);
        let first_scored = (start + skip + 1).max(scored_to);
        if first_scored < end {
            windows.push(Window { tokens: start..end, first_scored });
            scored_to = end;
        }
        if end == tokens {
            return windows;
        }
        start += stride;
    }
}

/// Scores the windows; with `other`, against its rows of logits.
fn sum(
    engine: &mut Engine,
    other: Option<&Receiver<Vec<f32>>>,
    tokens: &[u32],
    windows: &[Window],
) -> Result<Sums> {
    let mut sums = Sums::default();
    let bar = progress_bar(windows.iter().map(|window| window.tokens.len() as u64).sum());
    for window in windows {
        engine.score(&tokens[window.tokens.clone()], &mut |row, logits| {
            bar.inc(1);
            let predicted = window.tokens.start + row + 1;
            if predicted < window.first_scored || predicted >= window.tokens.end {
                return;
            }
            // A closed channel means that the other model failed; its error is reported in its place.
            let other = other.and_then(|rows| rows.recv().ok());
            sums.add(logits, other.as_deref(), tokens[predicted] as usize);
        })?;
    }
    bar.finish_and_clear();
    Ok(sums)
}

/// Scores the windows on both models at once, one handing its logits to the other.
fn sum_against(
    engine: &mut Engine,
    other: &mut Engine,
    tokens: &[u32],
    windows: &[Window],
) -> Result<Sums> {
    let (send, receive) = sync_channel(ROWS_AHEAD);
    thread::scope(|scope| {
        let feeder = scope.spawn(move || -> Result<(), EngineError> {
            for window in windows {
                other.score(&tokens[window.tokens.clone()], &mut |row, logits| {
                    let predicted = window.tokens.start + row + 1;
                    if predicted >= window.first_scored && predicted < window.tokens.end {
                        // The receiver is gone only if the first model failed, which is reported.
                        let _ = send.send(logits.to_vec());
                    }
                })?;
            }
            Ok(())
        });
        let sums = sum(engine, Some(&receive), tokens, windows);
        drop(receive);
        let fed =
            feeder.join().map_err(|_| anyhow::anyhow!("the other model's thread ended early"))?;
        fed.context("the model to compare with")?;
        sums
    })
}

impl Sums {
    /// Adds one predicted token.
    fn add(&mut self, logits: &[f32], other: Option<&[f32]>, token: usize) {
        let normalizer = log_sum_exp(logits);
        let nll = normalizer - f64::from(logits[token]);
        self.count += 1;
        self.nll += nll;
        self.nll_squared += nll * nll;
        let Some(other) = other else { return };
        let other_normalizer = log_sum_exp(other);
        self.against_nll += other_normalizer - f64::from(other[token]);
        for (logit, other) in logits.iter().zip(other) {
            let p = f64::from(*other) - other_normalizer;
            let q = f64::from(*logit) - normalizer;
            if p > f64::NEG_INFINITY {
                self.kl_divergence += p.exp() * (p - q);
            }
        }
        self.agreements += usize::from(first_max(logits) == first_max(other));
    }
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - f64::from(max)).exp()).sum();
    f64::from(max) + sum.ln()
}

fn first_max(logits: &[f32]) -> usize {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    best
}

fn report(
    sums: &Sums,
    args: &PerplexityArgs,
    tokens: usize,
    context: usize,
    stride: usize,
) -> Report {
    let count = sums.count as f64;
    let mean = sums.nll / count;
    let variance = (sums.nll_squared / count - mean * mean).max(0.0);
    let perplexity = mean.exp();
    Report {
        perplexity,
        standard_error: perplexity * (variance / count).sqrt(),
        mean_negative_log_likelihood: mean,
        tokens,
        scored_tokens: sums.count,
        context,
        stride,
        against: args.against.is_some().then(|| Against {
            mean_kl_divergence: sums.kl_divergence / count,
            top_1_agreement: sums.agreements as f64 / count,
            against_perplexity: (sums.against_nll / count).exp(),
        }),
    }
}

fn print(report: &Report, json: bool) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(report)?)?;
        return Ok(());
    }
    writeln!(out, "perplexity: {:.4} +/- {:.4}", report.perplexity, report.standard_error)?;
    writeln!(out, "mean negative log-likelihood: {:.6}", report.mean_negative_log_likelihood)?;
    writeln!(
        out,
        "tokens: {} ({} scored, context {}, stride {})",
        report.tokens, report.scored_tokens, report.context, report.stride
    )?;
    if let Some(against) = &report.against {
        writeln!(out, "mean KL divergence: {:.6}", against.mean_kl_divergence)?;
        writeln!(out, "top-1 agreement: {:.3} %", against.top_1_agreement * 100.0)?;
        writeln!(out, "perplexity of the other model: {:.4}", against.against_perplexity)?;
    }
    Ok(())
}

fn progress_bar(rows: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("scoring {bar:32} {pos}/{len} tokens {eta}");
    ProgressBar::new(rows).with_style(style.expect("the template is valid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(windows: &[Window]) -> Vec<usize> {
        windows.iter().flat_map(|window| window.first_scored..window.tokens.end).collect()
    }

    #[test]
    fn windows_side_by_side_score_all_but_their_first_tokens() {
        let windows = windows(25, 10, 10, 0);
        assert_eq!(windows.len(), 3);
        assert_eq!(scored(&windows), (1..25).filter(|i| i % 10 != 0).collect::<Vec<_>>());
    }

    #[test]
    fn overlapping_windows_score_every_token_but_the_first_once() {
        for stride in 1..10 {
            assert_eq!(scored(&windows(47, 10, stride, 0)), (1..47).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_text_that_fits_is_one_window() {
        assert_eq!(windows(7, 10, 10, 0), [Window { tokens: 0..7, first_scored: 1 }]);
    }

    #[test]
    fn skipped_tokens_are_context_only() {
        // Two windows of 8 of which the second half is scored, as llama.cpp does it.
        assert_eq!(scored(&windows(16, 8, 8, 4)), [5, 6, 7, 13, 14, 15]);
    }

    #[test]
    fn equal_logits_have_no_divergence() {
        let mut sums = Sums::default();
        sums.add(&[1.0, 2.0, 3.0], Some(&[2.0, 3.0, 4.0]), 2);
        assert!(sums.kl_divergence.abs() < 1e-12);
        assert_eq!(sums.agreements, 1);
        assert!((sums.nll - sums.against_nll).abs() < 1e-12);
    }
}
