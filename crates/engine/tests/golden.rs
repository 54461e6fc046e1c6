//! Every checkpoint of `testdata/golden` against the logits and greedy tokens that `transformers` computed.

mod common;

use common::{Golden, cases, engine, relative_l2};
use oxgpt_engine::engine::Device;
use oxgpt_engine::model::Model;
use oxgpt_engine::sampler::SamplingOptions;
use oxgpt_engine::sequence::{Event, Request};

/// The largest relative L2 distance from `transformers` in float32.
fn tolerance(device: Device) -> f64 {
    match device {
        Device::Reference => 1e-5,
        Device::Cpu => 1e-4,
        Device::Cuda(_) => unreachable!("cuda.rs tests GPUs"),
    }
}

#[test]
fn logits_equal_transformers() {
    let cases = cases();
    assert!(cases.len() >= 20, "the golden index is complete");
    let mut failures = Vec::new();
    for case in &cases {
        let model = Model::open(&case.model_path()).unwrap();
        let golden = Golden::read(&case.golden_path());
        for device in [Device::Reference, Device::Cpu] {
            let mut engine = engine(&model, device, 16, 1);
            for index in 0..case.sequences {
                let (tokens, expected) = (golden.ids("tokens", index), golden.logits(index));
                let mut found = Vec::new();
                engine.score(&tokens, &mut |_, row| found.extend_from_slice(row)).unwrap();
                let distance = relative_l2(&found, &expected);
                println!("{:<32} {index} {device:<10} {distance:.2e}", case.name);
                if distance.is_nan() || distance > tolerance(device) {
                    failures.push(format!("{} {index} {device}: {distance:.2e}", case.name));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn greedy_tokens_equal_transformers() {
    for case in &cases() {
        let model = Model::open(&case.model_path()).unwrap();
        let golden = Golden::read(&case.golden_path());
        for device in [Device::Reference, Device::Cpu] {
            let mut engine = engine(&model, device, 16, case.sequences);
            // All sequences at once: what runs beside a sequence must not show.
            let mut expected = Vec::new();
            for index in 0..case.sequences {
                let greedy = golden.ids("greedy", index);
                let id = engine
                    .submit(Request {
                        tokens: golden.ids("tokens", index),
                        max_tokens: Some(greedy.len()),
                        sampling: SamplingOptions { temperature: 0.0, ..Default::default() },
                        choice: 0,
                        end_tokens: Vec::new(),
                        logprobs: None,
                    })
                    .unwrap();
                expected.push((id, greedy, Vec::new()));
            }
            while !engine.is_idle() {
                for event in engine.step() {
                    if let Event::Token { sequence, token, .. } = event {
                        let (.., found) =
                            expected.iter_mut().find(|(id, ..)| *id == sequence).unwrap();
                        found.push(token);
                    }
                }
            }
            for (id, greedy, found) in expected {
                assert_eq!(found, greedy, "{} {id:?} on {device}", case.name);
            }
        }
    }
}
