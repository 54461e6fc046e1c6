//! Every checkpoint of `testdata/golden` against the logits and greedy tokens that `transformers` computed.

mod common;

use common::{Golden, cases, engine, relative_l2, score_with_8_bit_inputs};
use oxgpt_engine::engine::Device;
use oxgpt_engine::model::Model;
use oxgpt_engine::sampler::SamplingOptions;
use oxgpt_engine::sequence::{Event, Request};

/// The largest relative L2 distance from the reference with rounded activations. Where f32 and f64 round one activation to
/// different integers, some logits move, and by no more than this; most goldens have no such activation.
const ROUNDED_TOLERANCE: f64 = 3e-2;

/// Whether the device rounds activations to 8 bits: `cpu` does for block types.
fn is_rounded(device: Device, model: &Model) -> bool {
    let types = model.weight_bytes_by_type();
    device == Device::Cpu && types.iter().any(|(dtype, _)| dtype.block_size() > 1)
}

/// The largest relative L2 distance from `transformers` in float32.
fn tolerance(device: Device, model: &Model) -> f64 {
    match device {
        Device::Reference => 1e-5,
        // The checkpoints have peaked attention, which makes more of a rounding than trained models do. A mistake that
        // would hide behind this is seen by the comparison with the rounded reference.
        Device::Cpu if is_rounded(device, model) => 0.2,
        Device::Cpu => 1e-4,
        Device::Cuda(_) => unreachable!("cuda.rs tests GPUs"),
    }
}

#[test]
fn logits_equal_transformers() {
    let cases = cases();
    assert!(cases.len() >= 20, "the golden index is complete");
    let (mut failures, mut rounded_distances) = (Vec::new(), Vec::new());
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
                if is_rounded(device, &model) {
                    let rounded = score_with_8_bit_inputs(&model, &tokens);
                    let distance = relative_l2(&found, &rounded);
                    println!("{:<32} {index} {device:<10} {distance:.2e} rounded", case.name);
                    rounded_distances.push(distance);
                    if distance.is_nan() || distance > ROUNDED_TOLERANCE {
                        failures.push(format!("{} {index} rounded: {distance:.2e}", case.name));
                    }
                }
                if distance.is_nan() || distance > tolerance(device, &model) {
                    failures.push(format!("{} {index} {device}: {distance:.2e}", case.name));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    let equal = rounded_distances.iter().filter(|distance| **distance < 1e-5).count();
    assert!(2 * equal > rounded_distances.len(), "{rounded_distances:?}");
}

#[test]
fn greedy_tokens_equal_transformers() {
    for case in &cases() {
        let model = Model::open(&case.model_path()).unwrap();
        let golden = Golden::read(&case.golden_path());
        for device in [Device::Reference, Device::Cpu] {
            // The greedy choices of the goldens are closer than what rounding moves.
            if is_rounded(device, &model) {
                continue;
            }
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
                        ..Request::default()
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
