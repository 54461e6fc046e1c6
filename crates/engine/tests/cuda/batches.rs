//! Batches whose sizes change: what they are padded with, and what is beside a prompt, changes no bit; they take no memory.

use crate::common::{Golden, case};
use crate::{GPU, bits, demo, has_gpu, is_checked, request};
use oxgpt_engine::backend::cuda;
use oxgpt_engine::batch::{Logits, Origin};
use oxgpt_engine::engine::{Engine, EngineOptions, PrefixSharing};
use oxgpt_engine::model::Model;
use oxgpt_engine::sampler::TokenLogprobs;
use oxgpt_engine::sequence::{Event, Request};
use oxgpt_engine::speculation::Speculation;

/// Checkpoints of a kind each, with tokens: experts and windows, neither, norms of heads and outputs, experts and norms of heads.
pub fn models() -> impl Iterator<Item = (&'static str, Model, Vec<u32>)> {
    ["gpt-oss-mxfp4", "llama-linear", "gemma3-capped", "qwen3moe-sparse"].into_iter().map(|name| {
        let case = case(name);
        let tokens = Golden::read(&case.golden_path()).ids("tokens", 0);
        (name, Model::open(&case.model_path()).unwrap(), tokens)
    })
}

fn engine(model: &Model, sequences: usize, options: EngineOptions) -> Engine {
    let options = EngineOptions { device: GPU, sequences, sharing: PrefixSharing::Off, ..options };
    Engine::new(model, &options, &mut |_, _| {}).unwrap()
}

/// The logits of all of `count` sequences at each of a few steps, after prompts of different lengths.
fn steps(engine: &mut Engine, count: usize, tokens: &[u32]) -> Vec<Vec<u32>> {
    let mut held: Vec<_> = (0..count).map(|_| engine.hold(24).unwrap()).collect();
    let token = |index: usize| tokens[index % tokens.len()];
    for (index, held) in held.iter_mut().enumerate() {
        let prompt: Vec<u32> = (0..1 + index * 5 % 17).map(|i| token(i + index)).collect();
        engine
            .compute(std::slice::from_mut(held), &[&prompt], Origin::Prompt, Logits::Last)
            .unwrap();
    }
    let mut all = Vec::new();
    for step in 0..5 {
        let next: Vec<[u32; 1]> = (0..count).map(|index| [token(3 * step + index)]).collect();
        let next: Vec<&[u32]> = next.iter().map(|token| &token[..]).collect();
        all.push(bits(engine.compute(&mut held, &next, Origin::Generated, Logits::Last).unwrap()));
    }
    held.into_iter().for_each(|held| engine.release(held));
    all
}

/// With room for as many sequences as there are, a pass of so many rows was recorded. With more, it is padded to the next larger one.
#[test]
fn a_larger_recorded_pass_gives_the_same_bits() {
    if !has_gpu() {
        return;
    }
    for (name, model, tokens) in models() {
        for deterministic in [true, false] {
            let options = || EngineOptions { deterministic, ..EngineOptions::default() };
            let mut large = engine(&model, 24, options());
            for count in [9, 13, 17, 23] {
                let exact = steps(&mut engine(&model, count, options()), count, &tokens);
                let padded = steps(&mut large, count, &tokens);
                assert_eq!(padded, exact, "{name}, {count}, deterministic: {deterministic}");
            }
        }
    }
}

/// Steps an engine until a request is through, and returns its tokens. `before` is told how many steps there were.
fn answer(
    engine: &mut Engine,
    request: Request,
    mut before: impl FnMut(&mut Engine, usize, usize),
) -> Vec<(u32, TokenLogprobs)> {
    let id = engine.submit(request).unwrap();
    let (mut answer, mut steps, mut is_through) = (Vec::new(), 0, false);
    while !is_through {
        before(engine, steps, answer.len());
        for event in engine.step() {
            match event {
                Event::Token { sequence, token, logprobs } if sequence == id => {
                    answer.push((token, logprobs.unwrap()));
                }
                Event::Finished { sequence, .. } => is_through |= sequence == id,
                Event::Failed { error, .. } => panic!("{error}"),
                Event::Token { .. } | Event::Started { .. } => {}
            }
        }
        steps += 1;
    }
    answer
}

/// Most of a prompt is computed beside ten tokens that are generated, which are multiplied another way than fewer are. What it leaves
/// in keys and values shows in all that follows, once the others are gone.
#[test]
fn a_prompt_beside_many_generated_tokens_has_the_same_bits() {
    if !has_gpu() {
        return;
    }
    const OTHERS: u32 = 10;
    for (name, model, tokens) in models() {
        // Of which a step takes six beside the others.
        let options = || EngineOptions { chunk: 16, ..EngineOptions::default() };
        let prompt: Vec<u32> = tokens.iter().copied().cycle().take(40).collect();
        let prompt = || Request { logprobs: Some(4), ..request(prompt.clone(), 12) };
        let alone = answer(&mut engine(&model, 1, options()), prompt(), |_, _, _| {});
        assert_eq!(alone.len(), 12);

        let mut together = engine(&model, 12, options());
        let others: Vec<_> = (0..OTHERS)
            .map(|token| together.submit(request(vec![token + 3], 80)).unwrap())
            .collect();
        let mut begun = 0;
        while begun < OTHERS {
            let events = together.step();
            begun += events.iter().filter(|e| matches!(e, Event::Token { .. })).count() as u32;
        }
        let beside = answer(&mut together, prompt(), |engine, steps, tokens| {
            if steps == 5 {
                assert_eq!(tokens, 0, "{name}: the prompt is not through yet");
                others.iter().for_each(|other| engine.cancel(*other));
            }
        });
        assert_eq!(beside, alone, "{name}");
    }
}

/// Not beside other tests, since all that is free on the device is looked at.
#[test]
#[ignore = "needs the device to itself"]
fn nothing_is_taken_once_a_model_is_loaded() {
    if !has_gpu() {
        return;
    }
    let rounds = if is_checked() { 1 } else { 3 };
    let all = models().map(|(name, model, _)| (name, model)).chain([("demo", demo())]);
    for (name, model) in all {
        for deterministic in [true, false] {
            let speculation =
                if deterministic { Speculation::Always } else { Speculation::WhereItPays };
            let options =
                EngineOptions { chunk: 64, deterministic, speculation, ..EngineOptions::default() };
            let mut engine = engine(&model, 70, options);
            let before = cuda::device(0).unwrap().free;
            let context = engine.context();
            for round in 0..rounds {
                for count in [1, 2, 5, 8, 9, 20, 33, 64, 70] {
                    for index in 0..count {
                        let length = 1 + (index * 37 + round * 5) % (context - 4);
                        let tokens = (0..length).map(|i| (i * 7 % 100) as u32).collect();
                        let logprobs = (index == 3).then_some(2);
                        engine.submit(Request { logprobs, ..request(tokens, 4) }).unwrap();
                    }
                    while !engine.is_idle() {
                        for event in engine.step() {
                            if let Event::Failed { error, .. } = event {
                                panic!("{error}");
                            }
                        }
                    }
                }
            }
            let after = cuda::device(0).unwrap().free;
            assert_eq!(after, before, "{name}, deterministic: {deterministic}");
        }
    }
}
