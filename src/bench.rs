//! `oxgpt bench`: how fast a model runs, and how far that is from what the memory can deliver.
//!
//! Every sequence is fed its own random tokens from a fixed seed: what a model of random weights would sample says
//! nothing, and models with experts would send all tokens the same way.

mod profile;

use crate::args::{BenchArgs, EngineArgs, ModelArgs};
use crate::memory;
use crate::open;
use anyhow::{Context, Result, ensure};
use oxgpt_engine::backend::LaunchTime;
use oxgpt_engine::backend::cpu::bandwidth::read_bandwidth;
use oxgpt_engine::backend::cpu::cores::physical_cores;
use oxgpt_engine::backend::cuda;
use oxgpt_engine::batch::{Logits, Origin};
use oxgpt_engine::engine::{Device, Engine, EngineOptions, HeldSequence};
use oxgpt_engine::kv::KvType;
use oxgpt_engine::model::Model;
use profile::Step;
use serde::Serialize;
use std::io::{self, Write};
use std::time::Instant;

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    model: String,
    device: String,
    threads: usize,
    batch: usize,
    depth: usize,
    /// Bytes a second that the threads, or the GPU, read from memory, measured before the tests.
    read_bandwidth: f64,
    /// The most bytes that were resident while the model was loaded and tested; null where the system does not say.
    peak_resident: Option<u64>,
    tests: Vec<Test>,
    /// With `--profile`.
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<Vec<Step>>,
}

/// One test, repeated.
#[derive(Serialize)]
struct Test {
    name: String,
    /// Tokens a second of all sequences together: the median, and the least and the most of the repeats.
    tokens_per_second: f64,
    slowest: f64,
    fastest: f64,
    /// Bytes of weights, keys and values read a second; for decoding only.
    bytes_per_second: Option<f64>,
    /// Of the read bandwidth.
    share_of_bandwidth: Option<f64>,
}

/// The top-level entry point for `bench`.
pub fn bench(model_args: &ModelArgs, args: &BenchArgs) -> Result<()> {
    ensure!(args.prompt + args.generate > 0, "there is nothing to measure: -p and -n are both 0");
    let model = open::model(model_args)?;
    let context = args.depth + args.prompt.max(args.generate);
    let limit = model.description.decoder.context_length;
    ensure!(
        context <= limit,
        "the tests need {context} positions, but the model's context has {limit}"
    );
    let (threads, deterministic) = (args.threads, args.deterministic);
    let engine_args = EngineArgs { ctx: Some(context), threads, deterministic };
    let options =
        EngineOptions { sequences: args.batch, ..open::options(model_args, &engine_args)? };
    ensure!(
        !args.profile || matches!(options.device, Device::Cuda(_)),
        "--profile shows the launches of a GPU, and the device is {}",
        options.device
    );
    let threads = threads.unwrap_or_else(physical_cores);
    let read_bandwidth = match options.device {
        Device::Cuda(ordinal) => cuda::read_bandwidth(ordinal)?,
        Device::Cpu | Device::Reference => read_bandwidth(threads)?,
    };
    // What that took is no part of what the model takes.
    memory::reset_peak_resident();
    let mut bench = Bench {
        engine: open::load(&model, &options)?,
        batch: args.batch,
        depth: args.depth,
        random: Random(1),
        vocab_size: model.description.decoder.embedding.vocab_size as u64,
    };

    let mut tests = Vec::new();
    if args.prompt > 0 {
        let seconds = bench.repeat(args.repeats, |bench, held| bench.prefill(held, args.prompt))?;
        tests.push(test("pp", args.prompt, args, &seconds));
    }
    if args.generate > 0 {
        let seconds =
            bench.repeat(args.repeats, |bench, held| bench.decode(held, args.generate))?;
        let mut test = test("tg", args.generate, args, &seconds);
        let steps_per_second = test.tokens_per_second / args.batch as f64;
        let bytes = step_bytes(&model, (options.device, options.kv), args) * steps_per_second;
        test.bytes_per_second = Some(bytes);
        test.share_of_bandwidth = Some(bytes / read_bandwidth);
        tests.push(test);
    }
    let profile = args.profile.then(|| bench.profile()).transpose()?;
    let report = Report {
        model: model.checkpoint.path().display().to_string(),
        device: options.device.to_string(),
        threads,
        batch: args.batch,
        depth: args.depth,
        read_bandwidth,
        peak_resident: memory::peak_resident(),
        tests,
        profile: profile.map(|launches| profile::steps(&launches, read_bandwidth)),
    };
    print(&report, args.json)
}

/// Bytes that one step of decoding reads: the weights once, and for each sequence the keys and values so far, in the
/// middle of the test.
fn step_bytes(model: &Model, (device, kv): (Device, KvType), args: &BenchArgs) -> f64 {
    let layers = &model.description.decoder.layers;
    let position = args.depth + args.generate / 2;
    let kv_bytes: usize = layers
        .iter()
        .map(|layer| {
            let shape = layer.attention.shape;
            let of_position = 2 * shape.kv_heads * device.kv_bytes(kv, shape.head_dim);
            of_position * (position - shape.first_visible(position))
        })
        .sum();
    model.decode_bytes() as f64 + (args.batch * kv_bytes) as f64
}

struct Bench {
    engine: Engine,
    batch: usize,
    depth: usize,
    random: Random,
    vocab_size: u64,
}

impl Bench {
    /// Seconds of each of `repeats` runs of `work`, each on fresh sequences of `depth` tokens, after one that does not
    /// count.
    fn repeat(
        &mut self,
        repeats: usize,
        work: impl Fn(&mut Self, &mut [HeldSequence]) -> Result<()>,
    ) -> Result<Vec<f64>> {
        let mut seconds = Vec::new();
        for run in 0..=repeats {
            let context = self.engine.context();
            let held: Option<Vec<HeldSequence>> =
                (0..self.batch).map(|_| self.engine.hold(context)).collect();
            let mut held = held.context("the engine has room for every sequence of the batch")?;
            self.prefill(&mut held, self.depth)?;
            let start = Instant::now();
            work(self, &mut held)?;
            if run > 0 {
                seconds.push(start.elapsed().as_secs_f64());
            }
            held.into_iter().for_each(|sequence| self.engine.release(sequence));
        }
        Ok(seconds)
    }

    /// Prompts of `count` tokens, one sequence after another, in chunks.
    fn prefill(&mut self, held: &mut [HeldSequence], count: usize) -> Result<()> {
        let chunk = self.engine.chunk();
        for sequence in held {
            let tokens = self.tokens(count);
            for (index, tokens) in tokens.chunks(chunk).enumerate() {
                let sequence = std::slice::from_mut(sequence);
                if (index + 1) * chunk >= count {
                    self.engine.begin_next(sequence, &[tokens], Origin::Prompt)?;
                    self.engine.chosen_next()?;
                } else {
                    self.engine.compute(sequence, &[tokens], Origin::Prompt, Logits::None)?;
                }
            }
        }
        Ok(())
    }

    /// `count` steps of one token for each sequence; each ends with the choice of the next ones, which are not taken. As when it
    /// generates, the engine is told the next step before it is asked what was chosen in the last.
    fn decode(&mut self, held: &mut [HeldSequence], count: usize) -> Result<()> {
        for step in 0..count {
            let tokens = self.tokens(held.len());
            let tokens: Vec<&[u32]> = tokens.chunks(1).collect();
            self.engine.begin_next(held, &tokens, Origin::Generated)?;
            if step > 0 {
                self.engine.chosen_next()?;
            }
        }
        self.engine.chosen_next()?;
        Ok(())
    }

    /// What each launch of a step takes that gives each sequence a token.
    fn profile(&mut self) -> Result<Vec<LaunchTime>> {
        let context = self.engine.context();
        let held: Option<Vec<HeldSequence>> =
            (0..self.batch).map(|_| self.engine.hold(context)).collect();
        let mut held = held.context("the engine has room for every sequence of the batch")?;
        self.prefill(&mut held, self.depth)?;
        let tokens = self.tokens(held.len());
        let tokens: Vec<&[u32]> = tokens.chunks(1).collect();
        let launches = self.engine.profile_next(&mut held, &tokens)?;
        held.into_iter().for_each(|sequence| self.engine.release(sequence));
        Ok(launches)
    }

    fn tokens(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| (self.random.next() % self.vocab_size) as u32).collect()
    }
}

/// Steele, Lea and Flood's SplitMix64 (2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

fn test(kind: &str, count: usize, args: &BenchArgs, seconds: &[f64]) -> Test {
    let tokens = (count * args.batch) as f64;
    let mut rates: Vec<f64> = seconds.iter().map(|seconds| tokens / seconds).collect();
    rates.sort_by(f64::total_cmp);
    let depth = if args.depth > 0 { format!(" @ d{}", args.depth) } else { String::new() };
    Test {
        name: format!("{kind}{count}{depth}"),
        tokens_per_second: rates[rates.len() / 2],
        slowest: rates[0],
        fastest: rates[rates.len() - 1],
        bytes_per_second: None,
        share_of_bandwidth: None,
    }
}

fn print(report: &Report, json: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(report)?)?;
        return Ok(());
    }
    writeln!(
        out,
        "{} on {}, {} threads, {} sequences; read bandwidth {:.1} GB/s",
        report.model,
        report.device,
        report.threads,
        report.batch,
        report.read_bandwidth / 1e9
    )?;
    writeln!(out, "{:<16}{:>12}{:>22}{:>10}{:>8}", "test", "tokens/s", "spread", "GB/s", "share")?;
    for test in &report.tests {
        let spread = format!("{:.1} to {:.1}", test.slowest, test.fastest);
        write!(out, "{:<16}{:>12.1}{spread:>22}", test.name, test.tokens_per_second)?;
        if let (Some(bytes), Some(share)) = (test.bytes_per_second, test.share_of_bandwidth) {
            write!(out, "{:>10.1}{:>7.0}%", bytes / 1e9, share * 100.0)?;
        }
        writeln!(out)?;
    }
    if let Some(steps) = &report.profile {
        profile::print(&mut out, steps)?;
    }
    if let Some(bytes) = report.peak_resident {
        writeln!(out, "resident memory: at most {:.1} MB", bytes as f64 / 1e6)?;
    }
    Ok(())
}
