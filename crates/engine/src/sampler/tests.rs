//! The sampler against obvious implementations, and its draws against the probabilities they claim.

use proptest::prelude::*;

use super::noise::Noise;
use super::*;

fn options() -> SamplingOptions {
    SamplingOptions::default()
}

fn sampler(options: SamplingOptions, logits: &[f32]) -> Sampler {
    Sampler::new(options, logits.len(), &[]).unwrap()
}

fn greedy(logits: &[f32]) -> Result<u32, SamplingError> {
    sampler(SamplingOptions { temperature: 0.0, ..options() }, logits).sample(logits, 0, 0)
}

/// Logits after bias and penalties, straight from their definitions.
fn obvious_logits(o: &SamplingOptions, logits: &[f32], prompt: &[u32], answer: &[u32]) -> Vec<f32> {
    let adjust = |(token, &logit): (u32, &f32)| {
        let mut logit = logit;
        for &(biased, bias) in &o.logit_bias {
            logit += if biased == token { bias } else { 0.0 };
        }
        if prompt.contains(&token) || answer.contains(&token) {
            logit = if logit > 0.0 { logit / o.repeat_penalty } else { logit * o.repeat_penalty };
        }
        let count = answer.iter().filter(|&&id| id == token).count();
        if count > 0 {
            logit -= o.frequency_penalty * count as f32;
            logit -= o.presence_penalty;
        }
        logit
    };
    (0..).zip(logits).map(adjust).collect()
}

/// Scaled logits of all tokens, and the filtered tokens with their probabilities: everything sorted, each
/// filter by its definition, in f64.
fn obvious_filter(o: &SamplingOptions, logits: &[f32]) -> (Vec<f32>, Vec<(u32, f64)>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scaled: Vec<f32> = logits.iter().map(|logit| (logit - max) / o.temperature).collect();
    let mut kept: Vec<(u32, f64)> =
        (0..).zip(&scaled).map(|(id, &x)| (id, f64::from(x).exp())).collect();
    // A stable sort keeps lower ids first.
    kept.sort_by(|a, b| scaled[b.0 as usize].total_cmp(&scaled[a.0 as usize]));
    if o.top_k > 0 {
        kept.truncate(o.top_k as usize);
    }
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    let mut sum = 0.0;
    let mut nucleus = 0;
    while nucleus < kept.len() && (nucleus == 0 || sum < f64::from(o.top_p) * total) {
        sum += kept[nucleus].1;
        nucleus += 1;
    }
    if o.top_p < 1.0 {
        kept.truncate(nucleus);
    }
    kept.retain(|(_, weight)| *weight >= f64::from(o.min_p));
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    (scaled, kept.into_iter().map(|(id, weight)| (id, weight / total)).collect())
}

fn obvious_choice(o: &SamplingOptions, logits: &[f32], position: u64, choice: u32) -> u32 {
    let noise = Noise::new(o.seed, choice, position);
    let (scaled, kept) = obvious_filter(o, logits);
    let score = |id: u32| scaled[id as usize] + noise.gumbel(id);
    let first = |a: &u32, b: &u32| score(*b).total_cmp(&score(*a)).then(a.cmp(b));
    kept.into_iter().map(|(id, _)| id).min_by(first).unwrap()
}

/// Pearson's statistic of `draws` against `expected`, in standard deviations above its mean. Tokens outside
/// `expected` must never be drawn.
fn surprise(expected: &[(u32, f64)], draws: &[u32]) -> f64 {
    let mut sum = 0.0;
    let mut found = 0;
    for &(id, probability) in expected {
        let count = draws.iter().filter(|&&draw| draw == id).count();
        let mean = probability * draws.len() as f64;
        sum += (count as f64 - mean).powi(2) / mean;
        found += count;
    }
    assert_eq!(found, draws.len(), "a token was drawn that the filters exclude");
    let freedom = (expected.len() - 1).max(1) as f64;
    (sum - freedom) / (2.0 * freedom).sqrt()
}

#[test]
fn draws_have_the_probabilities_of_the_definition() {
    let logits = [1.0, 0.5, -0.5, 2.0, 0.5, -1.5, 1.25, 0.0, 0.5, 1.0, -3.0];
    let plain = options();
    let cases = [
        plain.clone(),
        SamplingOptions { temperature: 0.5, ..plain.clone() },
        SamplingOptions { temperature: 3.0, ..plain.clone() },
        SamplingOptions { top_k: 4, ..plain.clone() },
        SamplingOptions { top_k: 5, temperature: 2.0, ..plain.clone() },
        SamplingOptions { top_p: 0.7, ..plain.clone() },
        SamplingOptions { min_p: 0.2, ..plain.clone() },
        SamplingOptions { top_k: 8, top_p: 0.8, min_p: 0.25, temperature: 1.5, ..plain.clone() },
        SamplingOptions { logit_bias: vec![(3, -2.0), (10, 4.0)], ..plain.clone() },
        SamplingOptions {
            repeat_penalty: 1.5,
            frequency_penalty: 0.4,
            presence_penalty: -0.3,
            ..plain
        },
    ];
    let (prompt, answer) = ([3, 5, 3], [6, 6, 2]);
    for (seed, case) in (0..).zip(cases) {
        let case = SamplingOptions { seed, ..case };
        let (_, expected) =
            obvious_filter(&case, &obvious_logits(&case, &logits, &prompt, &answer));
        let mut sampler = Sampler::new(case.clone(), logits.len(), &prompt).unwrap();
        answer.iter().for_each(|&token| sampler.accept(token));
        let draws: Vec<u32> =
            (0..40_000).map(|position| sampler.sample(&logits, position, 0).unwrap()).collect();
        let surprise = surprise(&expected, &draws);
        assert!(surprise < 4.0, "{case:?}: {surprise} standard deviations");
        assert!(surprise > -4.0, "{case:?}: too even to be random, {surprise}");
    }
}

#[test]
fn choices_and_seeds_are_as_random_as_positions() {
    let logits = [0.0, 1.0, 0.5, -1.0, 0.25];
    let (_, expected) = obvious_filter(&options(), &logits);
    let mut by_choice = sampler(options(), &logits);
    let choices: Vec<u32> = (0..40_000).map(|c| by_choice.sample(&logits, 9, c).unwrap()).collect();
    let seeds: Vec<u32> = (0..40_000)
        .map(|seed| {
            sampler(SamplingOptions { seed, ..options() }, &logits).sample(&logits, 9, 0).unwrap()
        })
        .collect();
    assert!(surprise(&expected, &choices) < 4.0);
    assert!(surprise(&expected, &seeds) < 4.0);
    assert_ne!(choices, seeds);
}

#[test]
fn successive_draws_are_independent() {
    let logits = [0.0; 6];
    let mut sampler = sampler(options(), &logits);
    let draws: Vec<u32> = (0..60_001).map(|p| sampler.sample(&logits, p, 0).unwrap()).collect();
    let pairs: Vec<u32> = draws.windows(2).map(|pair| pair[0] * 6 + pair[1]).collect();
    let even: Vec<(u32, f64)> = (0..36).map(|pair| (pair, 1.0 / 36.0)).collect();
    assert!(surprise(&even, &pairs) < 4.0);
}

/// The tail of many unlikely tokens keeps its mass: coarse uniforms would lose it.
#[test]
fn many_rare_tokens_keep_their_share() {
    const TAIL: usize = 50_000;
    let mut logits = vec![0.0; TAIL + 1];
    logits[1000] = (TAIL as f32 * 99.0).ln();
    let mut sampler = sampler(options(), &logits);
    let draws: Vec<u32> = (0..10_000)
        .map(|position| u32::from(sampler.sample(&logits, position, 0).unwrap() != 1000))
        .collect();
    assert!(surprise(&[(0, 0.99), (1, 0.01)], &draws) < 4.0);
}

/// Passing over blocks that cannot win changes no choice.
#[test]
fn a_large_vocabulary_equals_the_obvious_draw() {
    let noise = Noise::new(77, 0, 0);
    let logits: Vec<f32> = (0..30_001).map(|token| 2.0 * noise.gumbel(token)).collect();
    for temperature in [0.3, 1.0, 2.0, 50.0] {
        let o = SamplingOptions { temperature, ..options() };
        let mut sampler = sampler(o.clone(), &logits);
        for position in 0..20 {
            assert_eq!(
                sampler.sample(&logits, position, 0).unwrap(),
                obvious_choice(&o, &logits, position, 0)
            );
        }
    }
}

#[test]
fn equal_keys_draw_equally_in_any_order() {
    let logits: Vec<f32> = (0..1000).map(|i| ((i * 37) % 100) as f32 / 20.0).collect();
    let o = SamplingOptions { top_p: 0.9, seed: 5, ..options() };
    let mut sampler = sampler(o.clone(), &logits);
    let mut other = Sampler::new(o, logits.len(), &[]).unwrap();
    let forward: Vec<_> = (0..50).map(|p| sampler.sample(&logits, p, 1).unwrap()).collect();
    let mut backward: Vec<_> =
        (0..50).rev().map(|p| other.sample(&logits, p, 1).unwrap()).collect();
    backward.reverse();
    assert_eq!(forward, backward);
}

prop_compose! {
    /// Options with any subset of the filters on.
    fn any_filters()(
        temperature in prop_oneof![Just(1.0f32), 0.1f32..4.0],
        top_k in prop_oneof![Just(0u32), 1u32..40, 1u32..3000],
        top_p in prop_oneof![Just(1.0f32), Just(0.0), Just(0.5), 0.0f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 0.0f32..1.0],
        seed in any::<u64>(),
    ) -> SamplingOptions {
        SamplingOptions { temperature, top_k, top_p, min_p, seed, ..SamplingOptions::default() }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn filters_equal_the_obvious_ones_among_ties(
        o in any_filters(),
        logits in prop_oneof![
            prop::collection::vec((-6i8..6).prop_map(|l| f32::from(l) / 2.0), 1..80),
            prop::collection::vec((-12i8..4).prop_map(|l| f32::from(l) / 2.0), 1000..4000),
            prop::collection::vec(-9.0f32..9.0, 1..3000),
        ],
        choice in any::<u32>(),
        start in any::<u32>(),
    ) {
        let mut sampler = sampler(o.clone(), &logits);
        for position in (u64::from(start)..).take(12) {
            prop_assert_eq!(
                sampler.sample(&logits, position, choice).unwrap(),
                obvious_choice(&o, &logits, position, choice)
            );
        }
    }

    #[test]
    fn bias_and_penalties_equal_the_obvious_ones(
        logits in prop::collection::vec(-9.0f32..9.0, 40),
        prompt in prop::collection::vec(0u32..50, 0..20),
        answer in prop::collection::vec(0u32..50, 0..40),
        bias in prop::collection::btree_map(0u32..40, -100.0f32..100.0, 0..4),
        repeat_penalty in prop_oneof![Just(1.0f32), 0.2f32..3.0],
        frequency_penalty in prop_oneof![Just(0.0f32), -2.0f32..2.0],
        presence_penalty in prop_oneof![Just(0.0f32), -2.0f32..2.0],
    ) {
        let o = SamplingOptions {
            repeat_penalty,
            frequency_penalty,
            presence_penalty,
            logit_bias: bias.into_iter().collect(),
            ..options()
        };
        let adjusted = obvious_logits(&o, &logits, &prompt, &answer);
        let greedy = SamplingOptions { temperature: 0.0, ..o.clone() };
        let mut random = Sampler::new(o.clone(), logits.len(), &prompt).unwrap();
        let mut greedy = Sampler::new(greedy, logits.len(), &prompt).unwrap();
        for token in answer {
            random.accept(token);
            greedy.accept(token);
        }
        let best = (0..40).rev().max_by(|&a, &b| adjusted[a].total_cmp(&adjusted[b])).unwrap();
        prop_assert_eq!(greedy.sample(&logits, 0, 0).unwrap(), best as u32);
        for position in 0..8 {
            prop_assert_eq!(
                random.sample(&logits, position, 0).unwrap(),
                obvious_choice(&o, &adjusted, position, 0)
            );
        }
    }

    #[test]
    fn no_logits_and_no_options_panic(
        o in any_filters(),
        temperature in prop_oneof![Just(0.0f32), Just(1e-45), Just(1e-30), Just(3e38)],
        logits in prop::collection::vec(
            prop_oneof![
                any::<f32>().prop_filter("a number", |l| !l.is_nan()),
                Just(f32::INFINITY), Just(f32::NEG_INFINITY), Just(f32::MAX), Just(f32::MIN),
            ],
            0..200,
        ),
    ) {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let chosen = sampler(SamplingOptions { temperature, ..o }, &logits).sample(&logits, 3, 0);
        if max == f32::NEG_INFINITY {
            prop_assert_eq!(chosen, Err(SamplingError::NoCandidate));
        } else {
            let logit = logits[chosen.unwrap() as usize];
            prop_assert!(logit > f32::NEG_INFINITY);
            prop_assert!(max < f32::INFINITY || logit == max);
        }
    }
}

#[test]
fn temperature_zero_takes_the_highest_and_lowest_id() {
    assert_eq!(greedy(&[0.0, 3.0, -1.0, 3.0]), Ok(1));
    let mut logits = vec![-5.0; 1000];
    logits[998] = 1.0;
    assert_eq!(greedy(&logits), Ok(998));
    logits[17] = 1.0;
    assert_eq!(greedy(&logits), Ok(17));
    assert_eq!(greedy(&[f32::NEG_INFINITY, f32::MIN]), Ok(1));
    assert_eq!(greedy(&[f32::MAX, f32::INFINITY, f32::INFINITY]), Ok(1));
}

#[test]
fn logits_without_a_choice_are_errors() {
    assert_eq!(greedy(&[f32::NEG_INFINITY; 40]), Err(SamplingError::NoCandidate));
    assert_eq!(greedy(&[]), Err(SamplingError::NoCandidate));
    for width in [5, 16, 40] {
        for token in [0, 3, width - 1] {
            let mut logits = vec![1.0; width];
            logits[token] = f32::NAN;
            let expected = SamplingError::NotANumber { token: token as u32 };
            assert_eq!(greedy(&logits), Err(expected.clone()));
            assert_eq!(sampler(options(), &logits).sample(&logits, 0, 0), Err(expected));
        }
    }
    let error = sampler(options(), &[0.0; 4]).sample(&[0.0; 3], 0, 0).unwrap_err();
    assert_eq!(error.to_string(), "expected 4 logits, found 3");
}

#[test]
fn tiny_temperatures_are_greedy() {
    let logits = [1e4, -3e38, 1.0001e4, 0.0];
    for temperature in [1e-6, 1e-30, 1e-45] {
        for o in [
            SamplingOptions { temperature, ..options() },
            SamplingOptions { temperature, top_k: 3, top_p: 0.99, min_p: 0.01, ..options() },
        ] {
            let mut sampler = sampler(o, &logits);
            assert!((0..100).all(|position| sampler.sample(&logits, position, 0) == Ok(2)));
        }
    }
}

#[test]
fn infinite_logits_share_the_draws_evenly() {
    let logits = [9.0, f32::INFINITY, f32::NEG_INFINITY, f32::INFINITY];
    for o in [options(), SamplingOptions { top_k: 3, top_p: 0.9, ..options() }] {
        let mut sampler = sampler(o, &logits);
        let draws: Vec<u32> = (0..1000).map(|p| sampler.sample(&logits, p, 0).unwrap()).collect();
        assert!(surprise(&[(1, 0.5), (3, 0.5)], &draws) < 4.0);
    }
}

#[test]
fn options_out_of_range_are_named() {
    let message = |o: SamplingOptions| Sampler::new(o, 10, &[]).unwrap_err().to_string();
    let base = options();
    let cases = [
        (
            SamplingOptions { temperature: -0.5, ..base.clone() },
            "temperature must be finite and at least 0, not -0.5",
        ),
        (
            SamplingOptions { temperature: f32::INFINITY, ..base.clone() },
            "temperature must be finite and at least 0, not inf",
        ),
        (
            SamplingOptions { top_p: f32::NAN, ..base.clone() },
            "top_p must be between 0 and 1, not NaN",
        ),
        (SamplingOptions { min_p: 1.5, ..base.clone() }, "min_p must be between 0 and 1, not 1.5"),
        (
            SamplingOptions { repeat_penalty: 0.0, ..base.clone() },
            "repeat_penalty must be finite and above 0, not 0",
        ),
        (
            SamplingOptions { frequency_penalty: 2.5, ..base.clone() },
            "frequency_penalty must be between -2 and 2, not 2.5",
        ),
        (
            SamplingOptions { presence_penalty: f32::NAN, ..base.clone() },
            "presence_penalty must be between -2 and 2, not NaN",
        ),
        (
            SamplingOptions { logit_bias: vec![(1, 101.0)], ..base.clone() },
            "the logit bias of token 1 must be between -100 and 100, not 101",
        ),
        (
            SamplingOptions { logit_bias: vec![(1, 1.0), (2, 1.0), (1, 1.0)], ..base.clone() },
            "token 1 has more than one logit bias",
        ),
        (
            SamplingOptions { logit_bias: vec![(10, 1.0)], ..base.clone() },
            "logit bias for token 10, but the model has only tokens 0 to 9",
        ),
    ];
    for (o, expected) in cases {
        assert_eq!(message(o), expected);
    }
    assert_eq!(
        Sampler::new(base, MAX_VOCABULARY + 1, &[]).unwrap_err(),
        SamplingError::VocabularyTooLarge { vocab_size: MAX_VOCABULARY + 1 }
    );
}

#[test]
fn log_probabilities_are_the_log_softmax() {
    let logits = [1.0, 3.0, f32::NEG_INFINITY, 3.0, -2.0];
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    let exact = |logit: f32| (f64::from(logit) - sum.ln()) as f32;
    let found = log_probabilities(&logits, 4, 3).unwrap();
    assert!((found.chosen - exact(-2.0)).abs() < 1e-6);
    let ids: Vec<u32> = found.top.iter().map(|entry| entry.0).collect();
    assert_eq!(ids, [1, 3, 0]);
    assert!(found.top.iter().all(|&(id, l)| (l - exact(logits[id as usize])).abs() < 1e-6));

    let all = log_probabilities(&logits, 2, 100).unwrap();
    assert_eq!(all.chosen, f32::NEG_INFINITY);
    assert_eq!(all.top.len(), 5);
    assert_eq!(log_probabilities(&logits, 0, 0).unwrap().top, []);
    assert_eq!(
        log_probabilities(&logits, 5, 1).unwrap_err().to_string(),
        "token 5 has no logit among 5"
    );
    let infinite = log_probabilities(&[0.0, f32::INFINITY, f32::INFINITY], 1, 1).unwrap();
    assert_eq!(infinite.chosen, -std::f32::consts::LN_2);
    assert_eq!(
        log_probabilities(&[0.0, f32::NAN], 0, 1),
        Err(SamplingError::NotANumber { token: 1 })
    );
}
