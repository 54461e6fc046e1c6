//! Keys and values in 8 bits: as on the CPU, and with the same bits in every batch.

use crate::common::{Golden, cases, relative_l2, testdata};
use crate::texts::perplexity;
use crate::{GPU, answers, bits, demo, has_gpu, is_checked, request};
use oxgpt_engine::batch::{Logits, Origin};
use oxgpt_engine::engine::{Device, Engine, EngineOptions, MemoryPlan, PrefixSharing};
use oxgpt_engine::kv::KvType;
use oxgpt_engine::model::Model;
use oxgpt_engine::sequence::Event;

/// The largest relative L2 distance from the CPU with keys and values in 8 bits, which move these logits by 5e-3 to 2.5e-2: prompts are
/// multiplied with operands of 11 significant bits, so now and then an element is rounded to the next code.
const TOLERANCE: f64 = 2.5e-2;

fn options(device: Device, kv: KvType) -> EngineOptions {
    EngineOptions { device, kv, chunk: 16, threads: Some(2), ..EngineOptions::default() }
}

fn start(model: &Model, options: &EngineOptions) -> Engine {
    Engine::new(model, options, &mut |_, _| {}).unwrap()
}

fn score(model: &Model, device: Device, kv: KvType, tokens: &[u32]) -> Vec<f32> {
    let mut logits = Vec::new();
    let mut engine = start(model, &options(device, kv));
    engine.score(tokens, &mut |_, row| logits.extend_from_slice(row)).unwrap();
    logits
}

#[test]
fn logits_are_near_those_of_the_cpu() {
    if !has_gpu() {
        return;
    }
    // Weights in blocks have the CPU round what they are multiplied with, too.
    for case in cases().iter().filter(|case| case.model_path().to_string_lossy().contains("F32")) {
        let model = Model::open(&case.model_path()).unwrap();
        let tokens = Golden::read(&case.golden_path()).ids("tokens", 0);
        let found = score(&model, GPU, KvType::Q8, &tokens);
        let full = relative_l2(&found, &score(&model, GPU, KvType::Full, &tokens));
        let distance = relative_l2(&found, &score(&model, Device::Cpu, KvType::Q8, &tokens));
        println!("{:<40} {distance:.2e}, {full:.2e} from F16", case.name);
        assert!(distance < TOLERANCE, "{}: {distance:.2e}", case.name);
        assert!(full > 1e-3, "{}: nothing was rounded", case.name);
    }
}

/// Alone, among few and among many, recorded or not, and where rows see what is stored for those before them.
#[test]
fn a_sequence_has_the_same_bits_beside_others() {
    if !has_gpu() {
        return;
    }
    for name in ["gpt2-base", "gpt-oss-mxfp4", "llama-linear", "gemma3-capped"] {
        let case = cases().into_iter().find(|case| case.name == name).unwrap();
        let model = Model::open(&case.model_path()).unwrap();
        let tokens = Golden::read(&case.golden_path()).ids("tokens", 0);
        let tokens = &tokens[..tokens.len().min(40)];
        let steps = |sequences: usize, deterministic: bool| -> Vec<Vec<u32>> {
            let options = EngineOptions { sequences, deterministic, ..options(GPU, KvType::Q8) };
            let mut engine = start(&model, &options);
            let held: Option<Vec<_>> = (0..sequences).map(|_| engine.hold(tokens.len())).collect();
            let mut held = held.unwrap();
            let next = |step: usize| {
                let next = (0..sequences).map(move |s| [tokens[(step + s) % tokens.len()]]);
                next.collect::<Vec<[u32; 1]>>()
            };
            (0..tokens.len())
                .map(|step| {
                    let next = next(step);
                    let next: Vec<&[u32]> = next.iter().map(|token| &token[..]).collect();
                    let logits =
                        engine.compute(&mut held, &next, Origin::Generated, Logits::Last).unwrap();
                    bits(&logits[..logits.len() / sequences])
                })
                .collect()
        };
        let alone = steps(1, true);
        for sequences in [2, 8, 9] {
            assert_eq!(steps(sequences, true), alone, "{name}, {sequences}");
        }
        let wide = steps(9, false);
        assert_eq!(steps(64, false), wide, "{name}, 64");
        for chunk in [1, 5, 64] {
            let options = EngineOptions { chunk, ..options(GPU, KvType::Q8) };
            let mut logits = Vec::new();
            let mut engine = start(&model, &options);
            engine.score(tokens, &mut |_, row| logits.extend_from_slice(row)).unwrap();
            let whole = score(&model, GPU, KvType::Q8, tokens);
            assert_eq!(bits(&logits), bits(&whole), "{name}, chunks of {chunk}");
        }
    }
}

#[test]
fn prefixes_are_shared_and_blocks_given_up() {
    if !has_gpu() {
        return;
    }
    for name in ["gpt2-base", "gpt-oss-mxfp4"] {
        let case = cases().into_iter().find(|case| case.name == name).unwrap();
        let model = Model::open(&case.model_path()).unwrap();
        let golden = Golden::read(&case.golden_path()).ids("tokens", 0);
        let prompt: Vec<u32> = golden.iter().copied().cycle().take(70).collect();
        let other: Vec<u32> = prompt.iter().rev().copied().take(60).collect();
        let engine = |kv, sequences, kv_tokens| {
            let context = Some(96);
            let options = EngineOptions {
                sequences,
                kv_tokens,
                context,
                sharing: PrefixSharing::Prompts,
                deterministic: true,
                ..options(GPU, kv)
            };
            start(&model, &options)
        };
        let alone = |kv, tokens: &[u32]| {
            answers(&mut engine(kv, 1, None), vec![request(tokens.to_vec(), 20)]).remove(0)
        };
        let (one, two) = (alone(KvType::Q8, &prompt), alone(KvType::Q8, &other));
        let mut warm = engine(KvType::Q8, 1, None);
        assert_eq!(answers(&mut warm, vec![request(prompt.clone(), 20)])[0], one, "{name}");
        warm.submit(request(prompt.clone(), 20)).unwrap();
        let mut again = Vec::new();
        while !warm.is_idle() {
            for event in warm.step() {
                match event {
                    Event::Started { prefix, .. } => assert_eq!(prefix.cached, 64, "{name}"),
                    Event::Token { token, .. } => again.push(token),
                    Event::Finished { .. } => {}
                    Event::Failed { error, .. } => panic!("{error}"),
                }
            }
        }
        assert_eq!(again, one, "{name} again");
        let requests = vec![request(prompt.clone(), 20), request(other.clone(), 20)];
        let together = answers(&mut engine(KvType::Q8, 2, Some(128)), requests);
        assert_eq!(together, [one, two], "{name}");
    }
}

#[test]
fn the_plan_says_what_they_take() {
    let model = demo();
    let kv = |kv| MemoryPlan::new(&model, &options(GPU, kv)).unwrap().kv;
    let layers = &model.description.decoder.layers;
    let positions = model.description.decoder.context_length as u64;
    let of_position = |bytes: fn(usize) -> usize| -> u64 {
        let shapes = layers.iter().map(|layer| layer.attention.shape);
        shapes.map(|shape| (2 * shape.kv_heads * bytes(shape.head_dim)) as u64).sum()
    };
    assert!(positions.is_multiple_of(32) && layers[0].attention.shape.head_dim == 64);
    assert_eq!(kv(KvType::Full), positions * of_position(|dim| 2 * dim));
    assert_eq!(kv(KvType::Q8), positions * of_position(|dim| dim + dim / 16));
}

#[test]
fn the_demo_is_about_as_surprised() {
    if !has_gpu() || is_checked() {
        return;
    }
    let model = demo();
    let text = std::fs::read_to_string(testdata().join("demo/heldout.txt")).unwrap();
    let tokens = model.tokenizer.as_ref().unwrap().encode(&text[..24_000]).unwrap();
    let of = |kv| {
        perplexity(
            &mut start(&model, &EngineOptions { chunk: 512, ..options(GPU, kv) }),
            &tokens,
            256,
            1,
        )
        .0
    };
    let (full, found) = (of(KvType::Full), of(KvType::Q8));
    println!("{found:.4} in 8 bits, {full:.4} in F16");
    assert!((found / full - 1.0).abs() < 0.002, "{found} in 8 bits, {full} in F16");
}
