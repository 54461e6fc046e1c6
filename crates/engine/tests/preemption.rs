//! Sequences that have to give up their keys and values to others have the answers that they have alone.

mod common;

use common::{Golden, case};
use oxgpt_engine::engine::{
    Device, Embedding, Engine, EngineError, EngineOptions, Pooling, PrefixSharing,
};
use oxgpt_engine::model::Model;
use oxgpt_engine::sampler::SamplingOptions;
use oxgpt_engine::sequence::{Constraint, Event, Request, SequenceId};
use std::collections::BTreeMap;

/// One checkpoint for each way to keep positions: all of them, windows, both, and two rotations.
const MODELS: &[&str] =
    &["gpt2-base", "mistral-window", "phi3-long", "gemma3-capped", "gpt-oss-mxfp4"];

/// What is in an answer: the tokens, and the bits of their log-probabilities.
type Answer = Vec<(u32, u32)>;

/// Positions of each sequence: no more than any of the models has.
const CONTEXT: usize = 96;

/// Blocks of 32 positions of each group for all of them: one context, and one block more.
const POOL: usize = CONTEXT + 32;

fn engine(model: &Model, device: Device, sequences: usize, kv_tokens: Option<usize>) -> Engine {
    sharing(PrefixSharing::All, model, device, sequences, kv_tokens)
}

fn sharing(
    sharing: PrefixSharing,
    model: &Model,
    device: Device,
    sequences: usize,
    kv_tokens: Option<usize>,
) -> Engine {
    let options = EngineOptions {
        device,
        sharing,
        context: Some(CONTEXT),
        chunk: 16,
        sequences,
        kv_tokens,
        threads: Some(2),
        ..EngineOptions::default()
    };
    Engine::new(model, &options, &mut |_, _| {}).unwrap()
}

/// The start of the goldens' tokens, in which one differs from those of the other requests.
fn request(tokens: &[u32], which: usize, length: usize) -> Request {
    let mut tokens: Vec<u32> = tokens.iter().copied().cycle().take(length).collect();
    tokens[which] = 3 + which as u32;
    Request {
        tokens,
        max_tokens: Some((CONTEXT - length).saturating_sub(which)),
        sampling: SamplingOptions {
            seed: 5,
            repeat_penalty: 1.1,
            frequency_penalty: 0.2,
            ..Default::default()
        },
        logprobs: Some(0),
        ..Request::default()
    }
}

/// Steps until nothing is left, and adds to the answers; the order in which sequences ended.
fn finish(engine: &mut Engine, answers: &mut BTreeMap<SequenceId, Answer>) -> Vec<SequenceId> {
    let mut ended = Vec::new();
    let mut steps = 0;
    while !engine.is_idle() {
        take(engine.step(), answers, &mut ended);
        steps += 1;
        assert!(steps < 10_000, "it goes on");
    }
    assert_eq!(engine.kv_usage(), 0.0, "everything was given back");
    ended
}

fn take(
    events: Vec<Event>,
    answers: &mut BTreeMap<SequenceId, Answer>,
    ended: &mut Vec<SequenceId>,
) {
    for event in events {
        match event {
            Event::Started { sequence, .. } => {
                assert!(answers.insert(sequence, Vec::new()).is_none(), "it starts once");
            }
            Event::Token { sequence, token, logprobs } => answers
                .get_mut(&sequence)
                .expect("it has started")
                .push((token, logprobs.map_or(0, |logprobs| logprobs.chosen.to_bits()))),
            Event::Finished { sequence, .. } => ended.push(sequence),
            Event::Failed { error, .. } => panic!("{error}"),
        }
    }
}

fn alone(model: &Model, device: Device, request: Request) -> Answer {
    let mut engine = engine(model, device, 1, None);
    let id = engine.submit(request).unwrap();
    let mut answers = BTreeMap::new();
    finish(&mut engine, &mut answers);
    answers.remove(&id).unwrap()
}

fn open(name: &str) -> (Model, Vec<u32>) {
    let case = case(name);
    let tokens = Golden::read(&case.golden_path()).ids("tokens", 0);
    (Model::open(&case.model_path()).unwrap(), tokens)
}

#[test]
fn answers_are_those_of_sequences_alone_however_often_they_are_preempted() {
    for name in MODELS {
        let (model, tokens) = open(name);
        let cases = [
            (Device::Reference, PrefixSharing::All),
            (Device::Cpu, PrefixSharing::All),
            // As on devices that compute generated tokens in another way than prompts.
            (Device::Cpu, PrefixSharing::Prompts),
            (Device::Cpu, PrefixSharing::Off),
        ];
        for (device, shared) in cases {
            let requests = || (0..5).map(|which| request(&tokens, which, 20 + 9 * which));
            let mut small = sharing(shared, &model, device, 5, Some(POOL));
            let ids: Vec<_> = requests().map(|request| small.submit(request).unwrap()).collect();
            let mut answers = BTreeMap::new();
            finish(&mut small, &mut answers);
            // With nothing but a short window a sequence never needs more than when it started.
            assert_eq!(small.preemptions() > 0, *name != "mistral-window", "{name} on {device}");
            for (id, request) in ids.iter().zip(requests()) {
                assert_eq!(answers[id], alone(&model, device, request), "{name} on {device}");
            }
        }
    }
}

#[test]
fn with_room_for_all_nobody_is_preempted() {
    let (model, tokens) = open("gpt2-base");
    let mut engine = engine(&model, Device::Cpu, 5, None);
    for which in 0..5 {
        engine.submit(request(&tokens, which, 30)).unwrap();
    }
    finish(&mut engine, &mut BTreeMap::new());
    assert_eq!(engine.preemptions(), 0);
}

#[test]
fn whole_contexts_run_together_where_there_is_room_for_all() {
    let (model, tokens) = open("gpt2-base");
    let mut engine = engine(&model, Device::Cpu, 3, None);
    for which in 0..3 {
        let whole = Request { max_tokens: Some(1), ..request(&tokens, which, CONTEXT) };
        engine.submit(whole).unwrap();
    }
    let mut answers = BTreeMap::new();
    take(engine.step(), &mut answers, &mut Vec::new());
    assert_eq!(engine.waiting(), 0);
    finish(&mut engine, &mut answers);
    assert_eq!(engine.preemptions(), 0);
}

#[test]
fn who_came_first_ends_first() {
    let (model, tokens) = open("gpt-oss-mxfp4");
    let mut engine = engine(&model, Device::Cpu, 4, Some(POOL));
    let submit = |which| {
        let request = Request { max_tokens: Some(60), ..request(&tokens, which, 20) };
        engine.submit(request).unwrap()
    };
    let ids: Vec<_> = (0..12).map(submit).collect();
    let ended = finish(&mut engine, &mut BTreeMap::new());
    assert_eq!(ended, ids);
    assert!(engine.preemptions() > 0);
}

#[test]
fn a_sequence_can_be_cancelled_while_it_is_preempted() {
    let (model, tokens) = open("gpt-oss-mxfp4");
    let mut small = engine(&model, Device::Cpu, 2, Some(POOL));
    let ids = [0, 1].map(|which| small.submit(request(&tokens, which, 30)).unwrap());
    let (mut answers, mut ended) = (BTreeMap::new(), Vec::new());
    while small.preemptions() == 0 {
        assert!(!small.is_idle());
        take(small.step(), &mut answers, &mut ended);
    }
    assert_eq!(small.waiting(), 1, "the one that came last");
    small.cancel(ids[1]);
    assert_eq!(small.waiting(), 0);
    let so_far = answers[&ids[1]].len();
    assert_eq!(finish(&mut small, &mut answers), [ids[0]]);
    assert_eq!(answers[&ids[1]].len(), so_far);
    assert_eq!(answers[&ids[0]], alone(&model, Device::Cpu, request(&tokens, 0, 30)));
}

/// Allows every token but the one that came last.
#[derive(Debug)]
struct NoRepeats(Vec<u32>);

impl Constraint for NoRepeats {
    fn compute(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn allowed(&self) -> Option<&[u32]> {
        Some(&self.0)
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        self.0.fill(u32::MAX);
        self.0[token as usize / 32] ^= 1 << (token % 32);
        Ok(())
    }

    fn is_complete(&self) -> bool {
        false
    }
}

#[test]
fn constraints_go_on_where_they_were() {
    let (model, tokens) = open("gpt2-base");
    let with = |which| Request {
        constraint: Some(Box::new(NoRepeats(vec![u32::MAX; 8]))),
        ..request(&tokens, which, 30)
    };
    let mut small = engine(&model, Device::Cpu, 3, Some(POOL));
    let ids = [0, 1, 2].map(|which| small.submit(with(which)).unwrap());
    let mut answers = BTreeMap::new();
    finish(&mut small, &mut answers);
    assert!(small.preemptions() > 0);
    for (which, id) in ids.iter().enumerate() {
        assert_eq!(answers[id], alone(&model, Device::Cpu, with(which)));
    }
}

#[test]
fn vectors_of_texts_and_answers_wait_for_one_another() {
    let (model, tokens) = open("llama-linear");
    let text: Vec<u32> = tokens.iter().copied().cycle().take(POOL).collect();
    let embedding = || Embedding::new(text.clone(), Pooling::Mean);
    let engine = |kv_tokens| {
        let options = EngineOptions {
            context: Some(POOL),
            chunk: 16,
            sequences: 2,
            kv_tokens,
            threads: Some(2),
            ..EngineOptions::default()
        };
        Engine::new(&model, &options, &mut |_, _| {}).unwrap()
    };
    let mut roomy = engine(None);
    let mut expected = embedding();
    let expected = std::iter::repeat_with(|| roomy.embed(&mut expected).unwrap()).flatten().next();

    // Answers keep coming, and one or the other always holds a block of the four that the text needs.
    let mut small = engine(Some(POOL));
    let short = |which| Request { max_tokens: Some(20), ..request(&tokens, which % 8, 8) };
    let mut ids = Vec::new();
    let (mut answers, mut ended) = (BTreeMap::new(), Vec::new());
    let (mut wanted, mut given_up) = (embedding(), embedding());
    let mut found = None;
    for step in 0..200 {
        if step % 7 == 0 {
            ids.push(small.submit(short(ids.len())).unwrap());
        }
        take(small.step(), &mut answers, &mut ended);
        if step > 10 && found.is_none() {
            found = small.embed(&mut wanted).unwrap();
            small.embed(&mut given_up).unwrap();
        }
    }
    assert_eq!(found, expected);
    small.give_up(given_up);
    let late = ids.last().unwrap();
    finish(&mut small, &mut answers);
    assert_eq!(
        answers[late],
        alone(&model, Device::Cpu, short(ids.len() - 1)),
        "the others as well"
    );
}

#[test]
fn what_can_never_fit_is_refused_alone() {
    let (model, tokens) = open("gpt2-base");
    let mut small = engine(&model, Device::Cpu, 2, Some(POOL));
    let good = small.submit(request(&tokens, 0, 30)).unwrap();
    let long = Request { tokens: vec![1; CONTEXT + 1], ..Request::default() };
    let error = small.submit(long).unwrap_err();
    assert_eq!(error.to_string(), "the prompt has 97 tokens, but the context holds 96");
    let mut answers = BTreeMap::new();
    finish(&mut small, &mut answers);
    assert_eq!(answers[&good], alone(&model, Device::Cpu, request(&tokens, 0, 30)));

    let options =
        EngineOptions { context: Some(96), kv_tokens: Some(95), ..EngineOptions::default() };
    let Err(error) = Engine::new(&model, &options, &mut |_, _| {}) else {
        panic!("it is too small")
    };
    assert!(matches!(error, EngineError::KvTokens { tokens: 95, context: 96 }));
}
