//! An answer is the same bits whether the start of its prompt was computed now or for an earlier request.

mod common;

use common::{Golden, case, engine};
use oxgpt_engine::engine::{Device, Engine, EngineOptions, PrefixSharing};
use oxgpt_engine::kv::{KvType, PrefixMiss, PrefixUse};
use oxgpt_engine::model::Model;
use oxgpt_engine::sampler::SamplingOptions;
use oxgpt_engine::sequence::{Constraint, Event, FinishReason, Request, SequenceId};

/// One checkpoint for each way to keep positions: all of them, windows, both, and two rotations.
const MODELS: &[&str] = &[
    "gpt2-base",
    "gpt2-blocks-Q8_0.gguf",
    "llama-base-F32.gguf",
    "mistral-window",
    "phi3-long",
    "gemma3-capped",
    "gpt-oss-mxfp4",
    "qwen3moe-mixed",
];

/// What is in an answer: the tokens, and the bits of their log-probabilities.
type Answer = Vec<(u32, u32)>;

fn request(tokens: &[u32], max_tokens: usize) -> Request {
    Request {
        tokens: tokens.to_vec(),
        max_tokens: Some(max_tokens),
        sampling: SamplingOptions { seed: 5, ..Default::default() },
        logprobs: Some(0),
        ..Request::default()
    }
}

/// Runs requests together; what each took over and answered.
fn answers(engine: &mut Engine, requests: Vec<Request>) -> Vec<(PrefixUse, Answer)> {
    let ids: Vec<SequenceId> =
        requests.into_iter().map(|request| engine.submit(request).unwrap()).collect();
    let mut started = vec![None; ids.len()];
    let mut answers = vec![Vec::new(); ids.len()];
    let place = |id: SequenceId| ids.iter().position(|other| *other == id).unwrap();
    while !engine.is_idle() {
        for event in engine.step() {
            match event {
                Event::Started { sequence, prefix } => started[place(sequence)] = Some(prefix),
                Event::Token { sequence, token, logprobs } => answers[place(sequence)]
                    .push((token, logprobs.expect("asked for").chosen.to_bits())),
                Event::Finished { .. } => {}
                Event::Failed { error, .. } => panic!("{error}"),
            }
        }
    }
    started.into_iter().map(|prefix| prefix.expect("it ran")).zip(answers).collect()
}

fn answer(engine: &mut Engine, tokens: &[u32], max_tokens: usize) -> (PrefixUse, Answer) {
    answers(engine, vec![request(tokens, max_tokens)]).remove(0)
}

/// Seventy tokens of the goldens.
fn prompt(name: &str) -> (Model, Vec<u32>) {
    let case = case(name);
    let tokens = Golden::read(&case.golden_path()).ids("tokens", 0);
    let tokens = tokens.iter().copied().cycle().take(70).collect();
    (Model::open(&case.model_path()).unwrap(), tokens)
}

#[test]
fn a_warm_prefix_changes_no_bit() {
    for name in MODELS {
        let (model, prompt) = prompt(name);
        for device in [Device::Reference, Device::Cpu] {
            let cold =
                |tokens: &[u32], count| answer(&mut engine(&model, device, 16, 1), tokens, count);
            let mut warm = engine(&model, device, 16, 2);
            let (first, one) = answer(&mut warm, &prompt, 8);
            assert_eq!(first.miss, Some(PrefixMiss::New { position: 0 }), "{name}");
            let (again, two) = answer(&mut warm, &prompt, 8);
            assert_eq!(again, PrefixUse { cached: 64, miss: None }, "{name} on {device}");
            assert_eq!(one, two, "{name} on {device}");

            let mut other = prompt[..68].to_vec();
            other[40] ^= 1;
            let (differs, answered) = answer(&mut warm, &other, 8);
            assert!(differs.miss.is_some());
            assert_eq!(answered, cold(&other, 8).1, "{name} on {device}: {differs:?}");

            // The next turn, after the first answer. Beyond the short context phi3 has other keys.
            let mut next = prompt.clone();
            next.extend(one.iter().map(|(token, _)| *token));
            next.truncate(76);
            let (turn, answered) = answer(&mut warm, &next, 4);
            assert_eq!(turn.cached, 64, "{name} on {device}");
            assert_eq!(answered, cold(&next, 4).1, "{name} on {device}");
        }
    }
}

/// In 8 bits too, alone, after an equal prompt, and among more sequences than there is room for.
#[test]
fn keys_and_values_in_8_bits_are_shared_and_given_up() {
    for name in ["gpt2-base", "mistral-window", "gpt-oss-mxfp4"] {
        let (model, prompt) = prompt(name);
        let start = |kv, sequences, kv_tokens| {
            let (context, chunk) = (Some(96), 16);
            let options = EngineOptions {
                kv,
                sequences,
                kv_tokens,
                context,
                chunk,
                threads: Some(2),
                ..EngineOptions::default()
            };
            Engine::new(&model, &options, &mut |_, _| {}).unwrap()
        };
        let mut warm = start(KvType::Q8, 2, None);
        let (_, one) = answer(&mut warm, &prompt, 8);
        let (again, two) = answer(&mut warm, &prompt, 8);
        assert_eq!(again, PrefixUse { cached: 64, miss: None }, "{name}");
        assert_eq!(one, two, "{name}");
        let (_, full) = answer(&mut start(KvType::Full, 1, None), &prompt, 8);
        assert_ne!(one, full, "{name}: nothing was rounded");

        let other: Vec<u32> = prompt.iter().rev().copied().take(60).collect();
        let alone = |tokens: &[u32]| answer(&mut start(KvType::Q8, 1, None), tokens, 20).1;
        let together = vec![request(&prompt, 20), request(&other, 20)];
        let together = answers(&mut start(KvType::Q8, 2, Some(128)), together);
        assert_eq!(together[0].1, alone(&prompt), "{name}");
        assert_eq!(together[1].1, alone(&other), "{name}");
    }
}

#[test]
fn keys_and_values_of_the_reference_are_not_in_8_bits() {
    let (model, _) = prompt("gpt2-base");
    let options =
        EngineOptions { device: Device::Reference, kv: KvType::Q8, ..EngineOptions::default() };
    let error = Engine::new(&model, &options, &mut |_, _| {}).err().unwrap();
    let said = "keys and values in 8 bits are for the cpu and for GPUs, not for reference";
    assert_eq!(error.to_string(), said);
}

#[test]
fn a_prompt_waits_for_an_equal_one_that_is_under_way() {
    for name in ["gpt2-base", "gpt-oss-mxfp4"] {
        let (model, prompt) = prompt(name);
        let mut other = prompt.clone();
        other[1] ^= 1;
        let requests = || [&prompt, &other, &prompt, &prompt].map(|tokens| request(tokens, 6));
        let mut shared = engine(&model, Device::Cpu, 16, 4);
        let together = answers(&mut shared, requests().into());
        let cached: Vec<usize> = together.iter().map(|(prefix, _)| prefix.cached).collect();
        assert_eq!(cached, [0, 0, 64, 64], "{name}");
        for (request, (_, found)) in requests().into_iter().zip(&together) {
            let alone = answers(&mut engine(&model, Device::Cpu, 16, 1), vec![request]).remove(0).1;
            assert_eq!(*found, alone, "{name}");
        }
    }
}

#[test]
fn nothing_is_shared_when_that_is_off_and_no_answers_when_only_prompts_are() {
    let (model, prompt) = prompt("gpt2-base");
    let with = |sharing| {
        let options = EngineOptions { sharing, threads: Some(2), ..Default::default() };
        Engine::new(&model, &options, &mut |_, _| {}).unwrap()
    };
    let short = &prompt[..40];
    for (sharing, cached) in
        [(PrefixSharing::Off, 0), (PrefixSharing::Prompts, 32), (PrefixSharing::All, 64)]
    {
        let mut engine = with(sharing);
        let (_, said) = answer(&mut engine, short, 40);
        let mut next = short.to_vec();
        next.extend(said.iter().map(|(token, _)| *token));
        let (turn, _) = answer(&mut engine, &next, 2);
        assert_eq!(turn.cached, cached, "{sharing:?}");
    }
}

#[test]
fn the_answer_does_not_end_before_its_least_length() {
    let (model, prompt) = prompt("gpt2-base");
    let every_token: Vec<u32> = (1..257).collect();
    let mut engine = engine(&model, Device::Cpu, 64, 1);
    let with = |min_tokens| Request {
        end_tokens: every_token.clone(),
        min_tokens,
        ..request(&prompt[..10], 9)
    };
    let (_, at_once) = answers(&mut engine, vec![with(0)]).remove(0);
    assert_eq!(at_once.len(), 1, "every token but one ends it");
    let (_, later) = answers(&mut engine, vec![with(4)]).remove(0);
    assert_eq!(later.len(), 5);
    assert!(later[..4].iter().all(|(token, _)| *token == 0), "only that one does not end it");
}

/// Counts upwards from a token, and is over after some of them.
#[derive(Debug)]
struct Counting {
    next: u32,
    end: u32,
    mask: Vec<u32>,
}

impl Constraint for Counting {
    fn compute(&mut self) -> Result<(), String> {
        if self.next == 13 {
            return Err("13 is not a number".to_string());
        }
        self.mask = vec![0; 1 + self.next as usize / 32];
        self.mask[self.next as usize / 32] = 1 << (self.next % 32);
        Ok(())
    }

    fn allowed(&self) -> Option<&[u32]> {
        Some(&self.mask)
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        assert_eq!(token, self.next);
        self.next += 1;
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.next == self.end
    }
}

#[test]
fn a_constraint_has_the_last_word() {
    let (model, prompt) = prompt("gpt2-base");
    let mut engine = engine(&model, Device::Cpu, 64, 3);
    let counting = |next, end| Request {
        constraint: Some(Box::new(Counting { next, end, mask: Vec::new() })),
        ..request(&prompt[..10], 9)
    };
    let ids = [
        engine.submit(counting(60, 66)).unwrap(),
        engine.submit(counting(10, 20)).unwrap(),
        engine.submit(request(&prompt[..10], 9)).unwrap(),
    ];
    let (mut tokens, mut ends) = (vec![Vec::new(); 3], vec![String::new(); 3]);
    let place = |id: SequenceId| ids.iter().position(|other| *other == id).unwrap();
    while !engine.is_idle() {
        for event in engine.step() {
            match event {
                Event::Started { .. } => {}
                Event::Token { sequence, token, .. } => tokens[place(sequence)].push(token),
                Event::Finished { sequence, reason } => {
                    assert_eq!(reason == FinishReason::Stop, place(sequence) == 0);
                    ends[place(sequence)] = "ended".to_string();
                }
                Event::Failed { sequence, error } => ends[place(sequence)] = error.to_string(),
            }
        }
    }
    assert_eq!(tokens[0], [60, 61, 62, 63, 64, 65]);
    assert_eq!(tokens[1], [10, 11, 12]);
    assert_eq!(ends[1], "the answer cannot be held to its grammar: 13 is not a number");
    let alone = common::engine(&model, Device::Cpu, 64, 1);
    let (mut alone, plain) = (alone, vec![request(&prompt[..10], 9)]);
    let expected: Vec<u32> =
        answers(&mut alone, plain).remove(0).1.into_iter().map(|(token, _)| token).collect();
    assert_eq!(tokens[2], expected, "the others are not limited");
}
