//! Speculation changes no token: greedy and sampled, alone and beside others, where blocks run out, windows end and rotations change.

mod common;

use common::{Golden, case, testdata};
use oxgpt_engine::engine::{Device, Engine, EngineOptions, PrefixSharing};
use oxgpt_engine::model::Model;
use oxgpt_engine::sampler::SamplingOptions;
use oxgpt_engine::sequence::{Event, FinishReason, Request};
use oxgpt_engine::speculation::{Speculated, Speculation};

/// What an answer is: its tokens and why it ended.
type Answer = (Vec<u32>, Option<FinishReason>);

/// Has an engine work on requests until all is done.
fn answers(engine: &mut Engine, requests: Vec<Request>) -> Vec<Answer> {
    let ids: Vec<_> = requests.into_iter().map(|r| engine.submit(r).unwrap()).collect();
    let mut answers: Vec<Answer> = vec![Default::default(); ids.len()];
    while !engine.is_idle() {
        for event in engine.step() {
            let place = |id| ids.iter().position(|other| *other == id).unwrap();
            match event {
                Event::Token { sequence, token, .. } => answers[place(sequence)].0.push(token),
                Event::Finished { sequence, reason } => answers[place(sequence)].1 = Some(reason),
                Event::Failed { error, .. } => panic!("{error}"),
                Event::Started { .. } => {}
            }
        }
    }
    answers
}

fn engine(model: &Model, device: Device, speculation: Speculation, sequences: usize) -> Engine {
    let options = EngineOptions {
        device,
        speculation,
        sequences,
        threads: Some(2),
        sharing: PrefixSharing::All,
        ..EngineOptions::default()
    };
    Engine::new(model, &options, &mut |_, _| {}).unwrap()
}

fn add(sum: &mut Speculated, engine: &Engine) {
    let Speculated { drafted, kept } = engine.speculated();
    *sum = Speculated { drafted: sum.drafted + drafted, kept: sum.kept + kept };
}

/// Requests whose prompts say the same twice, with options of a kind each: greedy, sampled, hardly random, some that end, and some that
/// are not speculated about.
fn requests(tokens: &[u32], new_tokens: usize) -> Vec<Request> {
    let prompt: Vec<u32> = tokens.iter().copied().cycle().take(2 * tokens.len().min(9)).collect();
    let request = |sampling: SamplingOptions| Request {
        tokens: prompt.clone(),
        max_tokens: Some(new_tokens),
        sampling,
        ..Request::default()
    };
    let all = SamplingOptions { seed: 5, ..SamplingOptions::default() };
    let greedy = SamplingOptions { temperature: 0.0, ..all.clone() };
    let cold = SamplingOptions { temperature: 0.3, top_k: 5, ..all.clone() };
    vec![
        request(greedy.clone()),
        request(all.clone()),
        request(cold.clone()),
        Request { end_tokens: prompt[..5].to_vec(), min_tokens: 9, ..request(cold.clone()) },
        Request { choice: 3, ..request(SamplingOptions { top_p: 0.8, ..cold }) },
        request(SamplingOptions { repeat_penalty: 1.2, ..all }),
        Request { logprobs: Some(2), ..request(greedy) },
    ]
}

const NAMES: [&str; 7] = [
    "gpt2-base",
    "llama-linear",
    "mistral-window",
    "phi3-long",
    "gemma3-capped",
    "gpt-oss-mxfp4",
    "qwen3moe-sparse",
];

#[test]
fn answers_are_the_same_with_drafts() {
    for device in [Device::Cpu, Device::Reference] {
        let mut speculated = Speculated::default();
        for name in NAMES {
            let case = case(name);
            let model = Model::open(&case.model_path()).unwrap();
            let tokens = Golden::read(&case.golden_path()).ids("tokens", 0);
            let expected =
                answers(&mut engine(&model, device, Speculation::Off, 1), requests(&tokens, 40));
            assert!(expected.iter().all(|(tokens, _)| !tokens.is_empty()));
            for sequences in [1, 2, 3, 7] {
                let mut engine = engine(&model, device, Speculation::Always, sequences);
                let found = answers(&mut engine, requests(&tokens, 40));
                assert_eq!(found, expected, "{name} on {device}, {sequences} at once");
                // The blocks of these answers are what the next turn would have computed.
                let mut next = requests(&tokens, 12);
                for (request, (answer, _)) in next.iter_mut().zip(&expected) {
                    request.tokens.extend_from_slice(answer);
                }
                let next = || {
                    next.iter().map(|request| Request {
                        tokens: request.tokens.clone(),
                        max_tokens: request.max_tokens,
                        sampling: request.sampling.clone(),
                        ..Request::default()
                    })
                };
                let mut plain = self::engine(&model, device, Speculation::Off, 1);
                let plain = answers(&mut plain, next().collect());
                assert_eq!(answers(&mut engine, next().collect()), plain, "{name}: next turns");
                add(&mut speculated, &engine);
            }
        }
        let Speculated { drafted, kept } = speculated;
        assert!(kept > 500 && drafted > kept, "{kept} of {drafted} tokens on {device}");
    }
}

#[test]
fn answers_are_the_same_where_blocks_run_out() {
    for name in ["llama-linear", "gemma3-capped", "gpt-oss-mxfp4"] {
        let case = case(name);
        let model = Model::open(&case.model_path()).unwrap();
        let tokens = Golden::read(&case.golden_path()).ids("tokens", 0);
        for sharing in [PrefixSharing::All, PrefixSharing::Prompts] {
            let run = |speculation, kv_tokens| {
                let options = EngineOptions {
                    context: Some(96),
                    sequences: 4,
                    kv_tokens,
                    chunk: 16,
                    threads: Some(2),
                    sharing,
                    speculation,
                    ..EngineOptions::default()
                };
                let mut engine = Engine::new(&model, &options, &mut |_, _| {}).unwrap();
                (answers(&mut engine, requests(&tokens, 70)), engine)
            };
            let (expected, _) = run(Speculation::Off, None);
            let (found, engine) = run(Speculation::Always, Some(128));
            assert_eq!(found, expected, "{name}, {sharing:?}");
            assert!(engine.preemptions() > 0 && engine.speculated().kept > 0, "{name}");
        }
    }
}

/// By what steps take, which is another each time.
#[test]
fn answers_are_the_same_whenever_drafts_rest() {
    let model = Model::open(&testdata().join("../models/demo.gguf")).unwrap();
    let tokens: Vec<u32> = (0..60).map(|i| 300 + i * 7 % 12).collect();
    let run = |speculation| {
        let mut engine = engine(&model, Device::Cpu, speculation, 1);
        let answer = answers(&mut engine, requests(&tokens, 120));
        (answer, engine.speculated())
    };
    let (expected, none) = run(Speculation::Off);
    assert_eq!(none, Speculated::default());
    let (found, always) = run(Speculation::Always);
    assert_eq!(found, expected);
    assert!(always.kept > 0, "{always:?}");
    for _ in 0..3 {
        let (found, some) = run(Speculation::WhereItPays);
        assert_eq!(found, expected, "{some:?}, of {always:?}");
    }
}
