//! Choosing tokens: the same ones as the sampler of the CPU.

use crate::common::{Random, gpu};
use oxgpt_engine::sampler::{Allowed, Sampler, SamplingError, SamplingOptions};
use oxgpt_kernels::{
    Arena, Buf, Choice, ChoiceOptions, Chooser, FOLLOWS_NONE, Gpu, LogitEdit, Staging,
};

/// One choice: what it is asked for, and what it is made from.
struct Case {
    logits: Vec<f32>,
    sampler: Sampler,
    mask: Option<Vec<u32>>,
    except: Vec<u32>,
    position: u64,
    choice: u32,
}

fn one<T: Copy>(of: &[T], random: &mut Random) -> T {
    of[random.below(of.len())]
}

/// Logits of every sort: flat, peaked, with ties, with infinities, and some that no token can be chosen by.
fn logits(width: usize, random: &mut Random) -> Vec<f32> {
    let scale = one(&[0.0, 0.01, 1.0, 4.0, 30.0, 1e38], random);
    let sort = random.below(12);
    let mut logits: Vec<f32> = (0..width)
        .map(|_| {
            let x = scale * random.normal();
            match sort {
                0 | 1 => x.round(),
                2 if random.below(3) == 0 => f32::NEG_INFINITY,
                3 if random.below(64) == 0 => f32::INFINITY,
                4 => -0.0 * x,
                _ => x,
            }
        })
        .collect();
    match sort {
        5 => logits.fill(f32::NEG_INFINITY),
        6 => {
            for _ in 0..2 {
                logits[random.below(width)] = f32::NAN;
            }
        }
        _ => {}
    }
    logits
}

fn case(width: usize, random: &mut Random) -> Case {
    let token = |random: &mut Random| random.below(width) as u32;
    let mut logit_bias: Vec<(u32, f32)> = Vec::new();
    if random.below(3) == 0 {
        let biases = (0..1 + random.below(20)).map(|_| (token(random), 100.0 * random.normal()));
        logit_bias = biases.map(|(token, bias)| (token, bias.clamp(-100.0, 100.0))).collect();
        logit_bias.sort_by_key(|(token, _)| *token);
        logit_bias.dedup_by_key(|(token, _)| *token);
    }
    let penalizes = random.below(3) == 0;
    let penalty = |values: &[f32], none, random: &mut Random| {
        if penalizes { one(values, random) } else { none }
    };
    let options = SamplingOptions {
        temperature: one(&[0.0, 1e-40, 1e-6, 0.3, 0.8, 1.0, 1.0, 1.5, 40.0, 1e38], random),
        top_k: one(&[0, 0, 0, 1, 2, 40, 1000, width as u32, u32::MAX], random),
        top_p: one(&[1.0, 1.0, 0.0, 1e-6, 0.1, 0.5, 0.9, 0.95, 0.999_999_9], random),
        min_p: one(&[0.0, 0.0, 0.0, 1e-40, 0.01, 0.2, 1.0], random),
        repeat_penalty: penalty(&[1.0, 1.1, 0.7, 20.0], 1.0, random),
        frequency_penalty: penalty(&[0.0, 0.5, 2.0, -2.0], 0.0, random),
        presence_penalty: penalty(&[0.0, 0.3, -2.0], 0.0, random),
        logit_bias,
        seed: random.bits(),
    };
    // Tokens may have no logit.
    let beyond = |random: &mut Random| random.below(width + width / 8 + 1) as u32;
    let prompt: Vec<u32> = (0..random.below(60)).map(|_| beyond(random)).collect();
    let mut sampler = Sampler::new(options, width, &prompt).unwrap();
    for _ in 0..random.below(60) {
        let again = prompt.first().filter(|_| random.below(3) == 0);
        sampler.accept(again.copied().unwrap_or_else(|| beyond(random)));
    }
    let mask = (random.below(4) == 0).then(|| {
        let words = one(&[width.div_ceil(32), width.div_ceil(64), width.div_ceil(32) + 3], random);
        (0..words).map(|_| random.bits() as u32 & random.bits() as u32).collect()
    });
    let except = (0..random.below(4)).map(|_| beyond(random)).collect();
    let position = one(&[0, 7, 1 << 31, 1 << 40], random) + random.below(1000) as u64;
    let choice = random.below(3) as u32;
    Case { logits: logits(width, random), sampler, mask, except, position, choice }
}

fn options(case: &Case, row: usize) -> ChoiceOptions {
    let options = case.sampler.options();
    let (top_p, floor) = case.sampler.bounds();
    ChoiceOptions {
        seed: options.seed,
        position: case.position,
        top_p: top_p.unwrap_or(1 << 32),
        temperature: options.temperature,
        floor,
        repeat_penalty: options.repeat_penalty,
        frequency_penalty: options.frequency_penalty,
        presence_penalty: options.presence_penalty,
        top_k: options.top_k,
        choice: case.choice,
        row: row as u32,
    }
}

fn edits(case: &Case, choice: u32) -> Vec<LogitEdit> {
    let adjustments = case.sampler.adjustments(&case.except).into_iter();
    let bit = |applies: bool, bit: u32| if applies { bit } else { 0 };
    adjustments
        .map(|adjustment| LogitEdit {
            choice,
            token: adjustment.token,
            bias: adjustment.bias.unwrap_or(f32::NAN),
            generated: adjustment.generated.unwrap_or(u32::MAX),
            what: bit(adjustment.bias.is_some(), LogitEdit::BIAS)
                | bit(adjustment.generated.is_some(), LogitEdit::OCCURRED)
                | bit(adjustment.forbidden, LogitEdit::FORBIDDEN),
        })
        .collect()
}

fn expected(case: &mut Case) -> Choice {
    let allowed = Allowed { mask: case.mask.as_deref(), except: &case.except };
    match case.sampler.sample_among(&case.logits, allowed, case.position, case.choice) {
        Ok(token) => Choice::Token(token),
        Err(SamplingError::NotANumber { token }) => Choice::NotANumber(token),
        Err(SamplingError::NoCandidate) => Choice::NoCandidate,
        Err(error) => panic!("{error}"),
    }
}

/// The choices of the device, in rows that are not the order of the cases; twice, and the same.
fn found(gpu: &Gpu, width: usize, cases: &[Case]) -> Vec<Choice> {
    let count = cases.len();
    let row = |index: usize| (index * 7 + 3) % (count + 1);
    assert!(!(count + 1).is_multiple_of(7), "each case has a row of its own");
    let mut all = vec![f32::NAN; (count + 1) * width];
    for (index, case) in cases.iter().enumerate() {
        all[row(index) * width..][..width].copy_from_slice(&case.logits);
    }
    let options: Vec<ChoiceOptions> =
        cases.iter().enumerate().map(|(index, case)| options(case, row(index))).collect();
    let edits: Vec<LogitEdit> = cases.iter().zip(0..).flat_map(|(c, i)| edits(c, i)).collect();
    let masks = cases.iter().enumerate();
    let masks = masks.filter_map(|(index, case)| Some((row(index) as u32, case.mask.as_deref()?)));
    let masks: Vec<(u32, &[u32])> = masks.collect();

    let mut arena = Arena::new(gpu, Chooser::bytes(count, width)).unwrap();
    let mut chooser = Chooser::new(gpu, &mut arena, count, width).unwrap();
    assert_eq!(arena.used(), Chooser::bytes(count, width));
    // Whatever memory held before.
    arena.fill_bytes(0xFF).unwrap();
    // The second is begun before the first is read.
    let mut logits = [Buf::from_slice(gpu, &all).unwrap(), Buf::from_slice(gpu, &all).unwrap()];
    for logits in &mut logits {
        chooser.choose(gpu, logits, &options, &edits, &masks).unwrap();
    }
    let first = chooser.read().unwrap();
    assert_eq!(chooser.read().unwrap(), first, "two runs differ");
    first
}

#[test]
fn choices_are_those_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let few = std::env::var_os("OXGPT_FEW_ROUNDS").is_some();
    let mut random = Random(81);
    let mut seen = [0usize; 3];
    for (width, rounds) in [
        (1, 6),
        (2, 10),
        (31, 20),
        (32, 10),
        (1000, 30),
        (4097, 10),
        (8191, 10),
        (50_257, 8),
        (201_088, 5),
    ] {
        for round in 0..if few { 1 } else { rounds } {
            // From one row to as many as a batch has.
            let count = one(&[1, 3, 9, 64], &mut random).min(if few { 9 } else { 64 });
            let mut cases: Vec<Case> = (0..count).map(|_| case(width, &mut random)).collect();
            let found = found(&gpu, width, &cases);
            for (index, (case, found)) in cases.iter_mut().zip(found).enumerate() {
                let expected = expected(case);
                seen[match expected {
                    Choice::Token(_) => 0,
                    Choice::NotANumber(_) => 1,
                    Choice::NoCandidate => 2,
                }] += 1;
                let options = case.sampler.options();
                assert_eq!(found, expected, "{width} tokens, round {round}, {index}: {options:?}");
            }
        }
    }
    println!("{} tokens, {} NaN, {} without a candidate", seen[0], seen[1], seen[2]);
    assert!(few || seen.iter().all(|count| *count > 20), "{seen:?}");
}

/// The filters end in the middle of many tokens with one logit, where the order of ids decides.
#[test]
fn filters_cut_ties_by_the_id() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(82);
    let all = [(777, 0.41), (0, 0.37), (777, 1.0), (1500, 0.999), (1, 0.5)];
    // The largest of the few is one of two slices: what watches for races takes long.
    let few = std::env::var_os("OXGPT_FEW_ROUNDS").is_some();
    for width in if few { [2000, 8192] } else { [2000, 50_257] } {
        let mut cases = Vec::new();
        for (top_k, top_p) in all.into_iter().take(if few { 1 } else { 5 }) {
            for levels in [1, 3] {
                let logits = (0..width).map(|_| random.below(levels) as f32).collect();
                let seed = random.bits();
                let options = SamplingOptions { top_k, top_p, seed, ..SamplingOptions::default() };
                let sampler = Sampler::new(options, width, &[]).unwrap();
                let (mask, except) = (None, Vec::new());
                cases.push(Case { logits, sampler, mask, except, position: 5, choice: 0 });
            }
        }
        let found = found(&gpu, width, &cases);
        let expected: Vec<Choice> = cases.iter_mut().map(expected).collect();
        assert_eq!(found, expected, "{width} tokens");
    }
}

#[test]
fn tokens_follow_what_was_chosen() {
    let Some(gpu) = gpu() else { return };
    let width = 300;
    // Tokens 250 and 7, and nothing to choose.
    let mut all = vec![0.0; 3 * width];
    (all[250], all[width + 7]) = (1.0, 1.0);
    all[2 * width..].fill(f32::NAN);
    let mut arena = Arena::new(&gpu, Chooser::bytes(3, width)).unwrap();
    let mut chooser = Chooser::new(&gpu, &mut arena, 3, width).unwrap();
    let greedy = SamplingOptions { temperature: 0.0, ..SamplingOptions::default() };
    let sampler = Sampler::new(greedy, width, &[]).unwrap();
    let case = Case {
        logits: Vec::new(),
        sampler,
        mask: None,
        except: Vec::new(),
        position: 0,
        choice: 0,
    };
    let options = [2, 0, 1].map(|row| options(&case, row));
    let mut logits = Buf::from_slice(&gpu, &all).unwrap();
    chooser.choose(&gpu, &mut logits, &options, &[], &[]).unwrap();

    let mut tokens = Buf::from_slice(&gpu, &[90u32, 91, 92, 93, 94, 95]).unwrap();
    let mut follows = Buf::from_slice(&gpu, &[9u32; 8]).unwrap();
    let mut staging = Staging::new(&gpu, 64, 2).unwrap();
    // Two rows of three into rows of four, over and over, as fast as the host can.
    for round in 0..9 {
        staging.begin().unwrap();
        let rows = [1, 2, FOLLOWS_NONE, round, round, round];
        staging.write_rows(&mut follows, 4, &rows, 2).unwrap();
        staging.write(&mut tokens, &[40, 41]).unwrap();
        staging.end().unwrap();
    }
    let mut found = [0; 8];
    follows.read(&mut found).unwrap();
    assert_eq!(found, [1, 2, FOLLOWS_NONE, 9, 8, 8, 8, 9]);
    let mut follow = |vocab_size| {
        chooser.follow(&gpu, &mut tokens, &follows, 3, vocab_size).unwrap();
        let mut found = [0; 6];
        tokens.read(&mut found).unwrap();
        found
    };
    assert_eq!(follow(300), [250, 7, 92, 93, 94, 95]);
    assert_eq!(follow(250), [0, 7, 92, 93, 94, 95], "no token of that number");
    follows.write(&[0, 0]).unwrap();
    let mut found = [1; 2];
    chooser.follow(&gpu, &mut tokens, &follows, 2, 300).unwrap();
    tokens.read(&mut found).unwrap();
    assert_eq!(found, [0, 0], "nothing was chosen");
    let chosen = chooser.read().unwrap();
    assert_eq!(chosen, [Choice::NotANumber(0), Choice::Token(250), Choice::Token(7)]);
}
