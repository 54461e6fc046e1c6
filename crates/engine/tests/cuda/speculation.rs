//! Drafts on a GPU, where a pass has several rows of one sequence: the tokens that there are without.

use crate::batches::models;
use crate::{GPU, answers, has_gpu, request};
use oxgpt_engine::engine::{Engine, EngineOptions};
use oxgpt_engine::model::Model;
use oxgpt_engine::sampler::SamplingOptions;
use oxgpt_engine::sequence::Request;
use oxgpt_engine::speculation::Speculation;

fn engine(model: &Model, speculation: Speculation, sequences: usize) -> Engine {
    let options = EngineOptions {
        device: GPU,
        speculation,
        sequences,
        sharing: GPU.sharing(),
        ..EngineOptions::default()
    };
    Engine::new(model, &options, &mut |_, _| {}).unwrap()
}

/// Greedy and sampled, after prompts that say the same again and again.
fn requests(tokens: &[u32], length: usize) -> Vec<Request> {
    let prompt: Vec<u32> = tokens[..9].iter().copied().cycle().take(length).collect();
    let samplings = [(0.0, 1), (0.3, 1), (1.0, 1), (0.3, 2), (0.0, 2), (1.0, 2), (0.5, 3)];
    let requests = samplings.into_iter().map(|(temperature, seed)| {
        let sampling = SamplingOptions { temperature, seed, ..SamplingOptions::default() };
        Request { sampling, ..request(prompt.clone(), 40) }
    });
    requests.collect()
}

#[test]
fn answers_are_the_same_with_drafts() {
    if !has_gpu() {
        return;
    }
    let mut kept = 0;
    for (name, model, tokens) in models() {
        // To where a context is split for attention, where the model has so many positions.
        let context = engine(&model, Speculation::Off, 1).context();
        for length in [20, 490].into_iter().filter(|length| length + 40 <= context) {
            let mut plain = engine(&model, Speculation::Off, 1);
            let expected = answers(&mut plain, requests(&tokens, length));
            // Seven at once have no room for drafts at first.
            for sequences in [1, 2, 4, 7] {
                for speculation in [Speculation::Always, Speculation::WhereItPays] {
                    let mut engine = engine(&model, speculation, sequences);
                    let found = answers(&mut engine, requests(&tokens, length));
                    assert_eq!(found, expected, "{name}, {length}, {sequences}: {speculation:?}");
                    kept += engine.speculated().kept;
                }
            }
        }
    }
    assert!(kept > 500, "{kept}");
}
