//! Sampled answers: the tokens that the sampler of the CPU chooses by the same logits, alone and beside others.

use crate::common::engine;
use crate::{GPU, answers, demo, has_gpu, is_checked};
use oxgpt_engine::batch::{Logits, Origin};
use oxgpt_engine::engine::Engine;
use oxgpt_engine::sampler::{Allowed, Sampler, SamplingOptions, log_probabilities};
use oxgpt_engine::sequence::{Constraint, Event, Request};
use std::collections::BTreeSet;

const PROMPT: [u32; 5] = [2115, 323, 555, 259, 621];
const TOKENS: usize = 24;

/// Allows the tokens whose ids have one remainder by `every`, and another after each token.
#[derive(Debug)]
struct Remainders {
    every: u32,
    chosen: u32,
    mask: Vec<u32>,
}

impl Remainders {
    fn new(every: u32, vocab_size: usize) -> Self {
        Remainders { every, chosen: 0, mask: vec![0; vocab_size.div_ceil(32)] }
    }

    fn fill(&mut self) {
        let (every, remainder) = (self.every, self.chosen % self.every);
        self.mask.fill(0);
        for token in (remainder..32 * self.mask.len() as u32).step_by(every as usize) {
            self.mask[token as usize / 32] |= 1 << (token % 32);
        }
    }
}

impl Constraint for Remainders {
    fn compute(&mut self) -> Result<(), String> {
        self.fill();
        Ok(())
    }

    fn allowed(&self) -> Option<&[u32]> {
        Some(&self.mask)
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        if token % self.every != self.chosen % self.every {
            return Err(format!("{token} is not allowed"));
        }
        self.chosen += 1;
        Ok(())
    }

    fn is_complete(&self) -> bool {
        false
    }
}

fn options() -> Vec<SamplingOptions> {
    let all = SamplingOptions { seed: 7, ..SamplingOptions::default() };
    vec![
        SamplingOptions { temperature: 0.0, ..all.clone() },
        all.clone(),
        SamplingOptions { temperature: 0.7, top_k: 40, top_p: 0.9, ..all.clone() },
        SamplingOptions { temperature: 1.5, min_p: 0.02, seed: 1 << 50, ..all.clone() },
        SamplingOptions { repeat_penalty: 1.3, presence_penalty: 0.5, ..all.clone() },
        SamplingOptions {
            temperature: 0.0,
            frequency_penalty: 1.5,
            logit_bias: vec![(305, -100.0), (12, 3.0)],
            ..all
        },
    ]
}

/// All options, with and without tokens that may not end the answer, or a constraint.
fn requests(vocab_size: usize) -> Vec<Request> {
    let plain = options().into_iter().map(|sampling| Request { sampling, ..Request::default() });
    let no_end = options().into_iter().map(|sampling| Request {
        sampling,
        end_tokens: vec![12, 260],
        min_tokens: TOKENS,
        choice: 1,
        ..Request::default()
    });
    let held = options().into_iter().map(|sampling| Request {
        sampling,
        constraint: Some(Box::new(Remainders::new(3, vocab_size))),
        choice: 2,
        ..Request::default()
    });
    let request =
        |request: Request| Request { tokens: PROMPT.to_vec(), max_tokens: Some(TOKENS), ..request };
    let all = plain.chain(no_end).chain(held).map(request);
    // Of each kind one.
    all.step_by(if is_checked() { 7 } else { 1 }).collect()
}

/// What the CPU's sampler makes of the logits of the same passes.
fn chosen_by_the_cpu(engine: &mut Engine, mut request: Request) -> Vec<u32> {
    let mut sampler =
        Sampler::new(request.sampling, engine.logit_width(), &request.tokens).unwrap();
    let mut held = [engine.hold(PROMPT.len() + TOKENS).unwrap()];
    let mut next = request.tokens;
    let (mut origin, mut answer) = (Origin::Prompt, Vec::new());
    while answer.len() < TOKENS {
        if let Some(constraint) = &mut request.constraint {
            constraint.compute().unwrap();
        }
        let mask = request.constraint.as_ref().and_then(|constraint| constraint.allowed());
        let allowed = Allowed { mask, except: &request.end_tokens };
        let logits = engine.compute(&mut held, &[&next], origin, Logits::Last).unwrap();
        let position = (PROMPT.len() + answer.len()) as u64;
        let token = sampler.sample_among(logits, allowed, position, request.choice).unwrap();
        sampler.accept(token);
        if let Some(constraint) = &mut request.constraint {
            constraint.accept(token).unwrap();
        }
        answer.push(token);
        (next, origin) = (vec![token], Origin::Generated);
    }
    held.into_iter().for_each(|held| engine.release(held));
    answer
}

#[test]
fn tokens_are_those_of_the_cpu_sampler_alone_and_together() {
    if !has_gpu() {
        return;
    }
    let model = demo();
    let mut alone = engine(&model, GPU, 64, 1);
    let width = alone.logit_width();
    let count = requests(width).len();
    let mut together = engine(&model, GPU, 64, count);
    let all = answers(&mut together, requests(width));
    let again = answers(&mut together, requests(width));
    assert_eq!(again, all, "the same requests twice");
    for (index, request) in requests(width).into_iter().enumerate() {
        let what = format!("{:?}", request.sampling);
        let expected = chosen_by_the_cpu(&mut alone, request);
        assert_eq!(all[index], expected, "{index}, beside others: {what}");
        let request = requests(width).swap_remove(index);
        assert_eq!(answers(&mut alone, vec![request])[0], expected, "{index}, alone: {what}");
    }
    let different: BTreeSet<&Vec<u32>> = all.iter().collect();
    assert!(different.len() >= count - 3, "{} of {count} answers", different.len());
}

#[test]
fn log_probabilities_are_of_the_model() {
    if !has_gpu() {
        return;
    }
    let model = demo();
    let mut engine = engine(&model, GPU, 64, 2);
    let mut held = [engine.hold(PROMPT.len()).unwrap()];
    let logits = engine.compute(&mut held, &[&PROMPT], Origin::Prompt, Logits::Last).unwrap();
    let logits = logits.to_vec();
    held.into_iter().for_each(|held| engine.release(held));
    // A request beside it that reports none, and what changes logits.
    let request = |logprobs| Request {
        tokens: PROMPT.to_vec(),
        max_tokens: Some(1),
        logprobs,
        sampling: SamplingOptions { logit_bias: vec![(5, 99.0)], ..SamplingOptions::default() },
        ..Request::default()
    };
    engine.submit(request(None)).unwrap();
    let reported = engine.submit(request(Some(4))).unwrap();
    let mut found = None;
    while !engine.is_idle() {
        for event in engine.step() {
            if let Event::Token { sequence, token, logprobs } = event
                && sequence == reported
            {
                found = Some((token, logprobs));
            }
        }
    }
    let expected = log_probabilities(&logits, 5, 4).unwrap();
    assert_eq!(found, Some((5, Some(expected))));
}

#[test]
fn the_next_token_is_chosen_where_the_logits_are() {
    if !has_gpu() {
        return;
    }
    let model = demo();
    let mut engine = engine(&model, GPU, 64, 2);
    let prompts: [&[u32]; 2] = [&PROMPT, &PROMPT[1..]];
    let mut held = [engine.hold(8).unwrap(), engine.hold(8).unwrap()];
    engine.begin_next(&mut held, &prompts, Origin::Prompt).unwrap();
    let chosen = engine.chosen_next().unwrap();
    held.into_iter().for_each(|held| engine.release(held));
    let mut held = [engine.hold(8).unwrap(), engine.hold(8).unwrap()];
    let width = engine.logit_width();
    let logits = engine.compute(&mut held, &prompts, Origin::Prompt, Logits::Last).unwrap();
    for (row, chosen) in logits.chunks(width).zip(chosen) {
        let highest = row.iter().copied().fold(f32::MIN, f32::max);
        assert_eq!(row.iter().position(|logit| *logit == highest), Some(chosen as usize));
    }
    held.into_iter().for_each(|held| engine.release(held));
}

/// Sequences that end, are given up and begin while the batch after theirs is on its way.
#[test]
fn sequences_come_and_go_while_the_device_is_ahead() {
    if !has_gpu() {
        return;
    }
    let model = demo();
    let mut alone = engine(&model, GPU, 64, 1);
    let request = |first: u32, max_tokens| Request {
        tokens: [&PROMPT[..], &[first]].concat(),
        max_tokens: Some(max_tokens),
        sampling: SamplingOptions { seed: first.into(), ..SamplingOptions::default() },
        ..Request::default()
    };
    let expected: Vec<Vec<u32>> =
        (0..6).map(|i| answers(&mut alone, vec![request(i, 30)]).remove(0)).collect();
    // Ends with its own tenth token, which nobody knows before.
    let ending = |i: usize| Request { end_tokens: vec![expected[i][9]], ..request(i as u32, 30) };
    let end = |i: usize| expected[i].iter().position(|token| *token == expected[i][9]).unwrap() + 1;

    let mut together = engine(&model, GPU, 64, 3);
    let mut ids =
        vec![together.submit(ending(0)).unwrap(), together.submit(request(1, 7)).unwrap()];
    let mut found: Vec<Vec<u32>> = vec![Vec::new(); 6];
    let mut steps = 0;
    while !together.is_idle() {
        for event in together.step() {
            match event {
                Event::Token { sequence, token, .. } => {
                    found[ids.iter().position(|id| *id == sequence).unwrap()].push(token);
                }
                Event::Failed { error, .. } => panic!("{error}"),
                Event::Started { .. } | Event::Finished { .. } => {}
            }
        }
        steps += 1;
        match steps {
            4 => ids.push(together.submit(request(2, 30)).unwrap()),
            6 => {
                ids.push(together.submit(request(3, 30)).unwrap());
                ids.push(together.submit(ending(4)).unwrap());
            }
            9 => {
                together.cancel(ids[2]);
                ids.push(together.submit(request(5, 30)).unwrap());
            }
            _ => {}
        }
    }
    let lengths = [end(0), 7, found[2].len(), 30, end(4), 30];
    assert!((1..30).contains(&found[2].len()), "{} tokens of what was given up", found[2].len());
    for (i, length) in lengths.into_iter().enumerate() {
        assert_eq!(found[i], expected[i][..length], "request {i}");
    }
}
