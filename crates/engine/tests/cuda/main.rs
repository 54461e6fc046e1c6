//! Models on a GPU: the logits and greedy tokens of `transformers`, the same bits in every batch, nothing left behind.
//!
//! Without a CUDA driver the tests say so and pass; with `OXGPT_REQUIRE_GPU=1` they fail then. `OXGPT_TESTDATA` names the
//! test data where it is not in the source tree.

mod batches;
#[path = "../common/mod.rs"]
mod common;
mod kv;
mod sampling;
mod speculation;
mod texts;

use common::{Golden, cases, engine, relative_l2, testdata};
use oxgpt_engine::backend::cuda;
use oxgpt_engine::batch::{Logits, Origin};
use oxgpt_engine::engine::{Device, Engine, EngineError, EngineOptions, MemoryPlan};
use oxgpt_engine::model::Model;
use oxgpt_engine::sampler::SamplingOptions;
use oxgpt_engine::sequence::{Event, Request};

const GPU: Device = Device::Cuda(0);

/// The largest relative L2 distance from `transformers` in float32: products of prompts have operands of 11 significant bits,
/// and keys and values are stored as F16.
const TOLERANCE: f64 = 1e-2;

/// Whether there is a GPU, or a word on why the test is skipped.
fn has_gpu() -> bool {
    match cuda::device(0) {
        Ok(_) => true,
        Err(error) => {
            let required = std::env::var_os("OXGPT_REQUIRE_GPU").is_some_and(|value| value == "1");
            assert!(!required, "OXGPT_REQUIRE_GPU=1, but {error}");
            println!("skipped: {error}");
            false
        }
    }
}

/// Whether every access to memory is checked, so that each launch takes long.
fn is_checked() -> bool {
    std::env::var_os("OXGPT_FEW_ROUNDS").is_some()
}

fn score(model: &Model, device: Device, chunk: usize, tokens: &[u32]) -> Vec<f32> {
    let mut logits = Vec::new();
    let mut engine = engine(model, device, chunk, 1);
    engine.score(tokens, &mut |_, row| logits.extend_from_slice(row)).unwrap();
    logits
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

#[test]
fn logits_equal_transformers() {
    if !has_gpu() {
        return;
    }
    let mut failures = Vec::new();
    for case in &cases() {
        let model = Model::open(&case.model_path()).unwrap();
        let golden = Golden::read(&case.golden_path());
        for index in 0..case.sequences {
            let (tokens, expected) = (golden.ids("tokens", index), golden.logits(index));
            let distance = relative_l2(&score(&model, GPU, 16, &tokens), &expected);
            println!("{:<40} {index} {distance:.2e}", case.name);
            if distance.is_nan() || distance > TOLERANCE {
                failures.push(format!("{} {index}: {distance:.2e}", case.name));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn greedy_tokens_equal_transformers() {
    if !has_gpu() {
        return;
    }
    for case in &cases() {
        let model = Model::open(&case.model_path()).unwrap();
        let golden = Golden::read(&case.golden_path());
        let mut engine = engine(&model, GPU, 16, case.sequences);
        // All sequences at once: what runs beside a sequence must not show.
        let expected: Vec<Vec<u32>> =
            (0..case.sequences).map(|index| golden.ids("greedy", index)).collect();
        let requests = expected.iter().enumerate().map(|(index, greedy)| {
            let tokens = golden.ids("tokens", index);
            request(tokens, greedy.len())
        });
        assert_eq!(answers(&mut engine, requests.collect()), expected, "{}", case.name);
    }
}

fn demo() -> Model {
    Model::open(&testdata().join("../models/demo.gguf")).unwrap()
}

/// Has an engine work on requests until all is done, and returns the tokens of each.
fn answers(engine: &mut Engine, requests: Vec<Request>) -> Vec<Vec<u32>> {
    let ids: Vec<_> = requests.into_iter().map(|r| engine.submit(r).unwrap()).collect();
    let mut answers = vec![Vec::new(); ids.len()];
    while !engine.is_idle() {
        for event in engine.step() {
            match event {
                Event::Token { sequence, token, .. } => {
                    answers[ids.iter().position(|id| *id == sequence).unwrap()].push(token);
                }
                Event::Failed { error, .. } => panic!("{error}"),
                Event::Started { .. } | Event::Finished { .. } => {}
            }
        }
    }
    answers
}

/// Generated tokens have other bits than those of prompts, so they are computed once more one by one.
#[test]
fn preempted_sequences_have_the_tokens_that_they_have_alone() {
    if !has_gpu() {
        return;
    }
    for name in ["gpt-oss-mxfp4", "llama-linear", "gemma3-capped"] {
        let case = cases().into_iter().find(|case| case.name == name).unwrap();
        let model = Model::open(&case.model_path()).unwrap();
        let tokens = Golden::read(&case.golden_path()).ids("tokens", 0);
        let requests = || {
            (0..4).map(|which| {
                let mut tokens: Vec<u32> = tokens.iter().copied().cycle().take(20).collect();
                tokens[which] = 3;
                let mut request = request(tokens, 70);
                request.sampling = SamplingOptions { seed: 3, ..Default::default() };
                request
            })
        };
        let engine = |sequences, kv_tokens| {
            let options = EngineOptions {
                device: GPU,
                context: Some(96),
                chunk: 16,
                sequences,
                kv_tokens,
                sharing: GPU.sharing(),
                ..EngineOptions::default()
            };
            Engine::new(&model, &options, &mut |_, _| {}).unwrap()
        };
        let alone =
            requests().map(|request| answers(&mut engine(1, None), vec![request]).remove(0));
        let alone: Vec<_> = alone.collect();
        let mut small = engine(4, Some(128));
        assert_eq!(answers(&mut small, requests().collect()), alone, "{name}");
        assert!(small.preemptions() > 0, "{name}");
    }
}

fn request(tokens: Vec<u32>, max_tokens: usize) -> Request {
    Request {
        tokens,
        max_tokens: Some(max_tokens),
        sampling: SamplingOptions { temperature: 0.0, ..Default::default() },
        ..Request::default()
    }
}

#[test]
fn chunks_and_repeats_do_not_change_a_bit() {
    if !has_gpu() {
        return;
    }
    for case in &cases() {
        let model = Model::open(&case.model_path()).unwrap();
        let tokens = Golden::read(&case.golden_path()).ids("tokens", 0);
        let one_by_one = bits(&score(&model, GPU, 1, &tokens));
        for chunk in [2, 3, 5, 8, 17, 64] {
            let chunked = bits(&score(&model, GPU, chunk, &tokens));
            assert_eq!(chunked, one_by_one, "{} in chunks of {chunk}", case.name);
        }
    }
    let model = demo();
    let tokens: Vec<u32> = (0..400).map(|i| i * 7 % 1000).collect();
    let first = bits(&score(&model, GPU, 256, &tokens));
    let mut engine = engine(&model, GPU, 256, 1);
    for round in 0..100 {
        let mut again = Vec::new();
        engine.score(&tokens, &mut |_, row| again.extend_from_slice(row)).unwrap();
        assert_eq!(bits(&again), first, "round {round}");
    }
}

#[test]
fn generated_tokens_have_the_same_bits_beside_others() {
    if !has_gpu() {
        return;
    }
    for case in &cases() {
        let model = Model::open(&case.model_path()).unwrap();
        let tokens = Golden::read(&case.golden_path()).ids("tokens", 0);
        let tokens = &tokens[..tokens.len().min(12)];
        // The logits of the first sequence at each step; the others have the same tokens in another order.
        let first_of_with = |sequences: usize, deterministic: bool| -> Vec<Vec<u32>> {
            let options =
                EngineOptions { device: GPU, sequences, deterministic, ..EngineOptions::default() };
            let mut engine = Engine::new(&model, &options, &mut |_, _| {}).unwrap();
            let mut held: Vec<_> =
                (0..sequences).map(|_| engine.hold(tokens.len()).unwrap()).collect();
            let mut steps = Vec::new();
            for step in 0..tokens.len() {
                let next: Vec<[u32; 1]> =
                    (0..sequences).map(|s| [tokens[(step + s) % tokens.len()]]).collect();
                let next: Vec<&[u32]> = next.iter().map(|token| &token[..]).collect();
                let logits =
                    engine.compute(&mut held, &next, Origin::Generated, Logits::Last).unwrap();
                steps.push(bits(&logits[..logits.len() / sequences]));
            }
            steps
        };
        let first_of = |sequences| first_of_with(sequences, true);
        let alone = first_of(1);
        assert_eq!(first_of(1), alone, "{} again", case.name);
        assert_eq!(first_of_with(8, false), alone, "{} of 8", case.name);
        for sequences in [2, 3, 8, 9] {
            assert_eq!(first_of(sequences), alone, "{} of {sequences}", case.name);
        }
        // With more than eight there is a faster way, which has the bits of prompts.
        let wide = first_of_with(9, false);
        assert_eq!(first_of_with(9, false), wide, "{} again", case.name);
        assert_eq!(first_of_with(20, false), wide, "{} of 20", case.name);
        for (step, (wide, alone)) in wide.iter().zip(&alone).enumerate() {
            let numbers =
                |bits: &[u32]| -> Vec<f32> { bits.iter().map(|b| f32::from_bits(*b)).collect() };
            let distance = relative_l2(&numbers(wide), &numbers(alone));
            assert!(distance < TOLERANCE, "{} step {step}: {distance:.2e}", case.name);
        }
    }
}

#[test]
fn nothing_is_left_on_the_device() {
    if !has_gpu() {
        return;
    }
    let case = &cases()[0];
    let model = Model::open(&case.model_path()).unwrap();
    let tokens = Golden::read(&case.golden_path()).ids("tokens", 0);
    let round = || {
        let mut engine = engine(&model, GPU, 16, 1);
        engine.submit(request(tokens.clone(), 2)).unwrap();
        while !engine.is_idle() {
            engine.step();
        }
    };
    let rounds = if is_checked() { 10 } else { 1000 };
    round();
    let before = cuda::device(0).unwrap().free;
    (0..rounds).for_each(|_| round());
    // Tests beside this one take and give back memory too; a leak of a thousand rounds would be far larger.
    let after = cuda::device(0).unwrap().free;
    let lost = before.saturating_sub(after);
    assert!(lost < 512 << 20, "{lost} bytes are gone after {rounds} rounds");
}

#[test]
fn one_byte_too_few_is_refused_with_the_plan() {
    if !has_gpu() {
        return;
    }
    let model = demo();
    let options = EngineOptions { device: GPU, ..EngineOptions::default() };
    let total = MemoryPlan::new(&model, &options).unwrap().total();
    let limited = |limit| {
        let options = EngineOptions { memory_limit: Some(limit), ..options.clone() };
        Engine::new(&model, &options, &mut |_, _| {})
    };
    assert!(limited(total).is_ok());
    match limited(total - 1).err() {
        Some(EngineError::MemoryLimit { limit, plan, .. }) => {
            assert_eq!((limit, plan.total()), (total - 1, total));
        }
        other => panic!("{other:?}"),
    }
    // More than any card has.
    let options = EngineOptions { sequences: 1 << 24, ..options };
    let error = Engine::new(&model, &options, &mut |_, _| {}).err().unwrap();
    assert!(matches!(error, EngineError::DeviceMemory { .. }), "{error}");
}

#[test]
fn a_request_that_is_too_long_fails_alone() {
    if !has_gpu() {
        return;
    }
    let model = demo();
    let options =
        EngineOptions { device: GPU, context: Some(64), sequences: 2, ..EngineOptions::default() };
    let mut engine = Engine::new(&model, &options, &mut |_, _| {}).unwrap();
    let tokens = |count: u32| (0..count).map(|i| i * 13 % 1000).collect::<Vec<u32>>();
    let alone = answers(&mut engine, vec![request(tokens(40), 10)]);
    let running = engine.submit(request(tokens(40), 10)).unwrap();
    engine.step();
    let error = engine.submit(request(tokens(65), 1)).unwrap_err();
    assert_eq!(error.to_string(), "the prompt has 65 tokens, but the context holds 64");
    // A request of as many positions as there are cannot be held beside the other, and waits for it.
    let long = engine.submit(request(tokens(60), 100)).unwrap();
    let mut found = [vec![], vec![]];
    let mut finished = 0;
    while !engine.is_idle() {
        for event in engine.step() {
            match event {
                Event::Token { sequence, token, .. } => {
                    found[usize::from(sequence == long)].push(token);
                }
                Event::Finished { .. } => finished += 1,
                Event::Failed { error, .. } => panic!("{error}"),
                Event::Started { .. } => {}
            }
        }
    }
    assert_eq!((finished, found[1].len()), (2, 5), "{running:?} and {long:?}");
    assert_eq!(found[0], alone[0][1..], "the first token came before");
}
