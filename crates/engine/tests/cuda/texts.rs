//! Texts: the demo model beside the CPU, and perplexity beside figures that others computed.

use crate::common::{engine, relative_l2, testdata};
use crate::{GPU, TOLERANCE, answers, demo, has_gpu, is_checked, request, score};
use oxgpt_engine::engine::{Device, Engine};
use oxgpt_engine::model::Model;
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Deserialize)]
struct Greedy {
    cases: Vec<GreedyCase>,
}

#[derive(Deserialize)]
struct GreedyCase {
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    /// How far the highest logit is above the next.
    margins: Vec<f64>,
}

#[derive(Deserialize)]
struct Perplexity {
    window: usize,
    scored_tokens: usize,
    q8_0: Figure,
}

#[derive(Deserialize)]
struct Figure {
    perplexity: f64,
}

fn read<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(testdata().join(name)).unwrap()).unwrap()
}

#[test]
fn the_demo_is_near_the_reference_and_the_cpu() {
    if !has_gpu() {
        return;
    }
    let model = demo();
    let tokens: Vec<u32> = (0..500).map(|i| i * 11 % 3000).collect();
    let found = score(&model, GPU, 64, &tokens);
    for device in [Device::Reference, Device::Cpu] {
        let expected = score(&model, device, 64, &tokens);
        let distance = relative_l2(&found, &expected);
        println!("{device}: {distance:.2e}");
        assert!(distance < TOLERANCE, "{device}: {distance:.2e}");
    }
}

#[test]
fn the_demo_goes_on_as_in_pytorch() {
    if !has_gpu() {
        return;
    }
    let Greedy { cases } = read("demo/greedy.json");
    let model = demo();
    let mut engine = engine(&model, GPU, 64, cases.len());
    let requests =
        cases.iter().map(|case| request(case.prompt_ids.clone(), case.greedy_ids.len())).collect();
    for (found, case) in answers(&mut engine, requests).into_iter().zip(&cases) {
        // Up to the first near tie.
        let sure = case.margins.iter().take_while(|margin| **margin > 0.05).count();
        assert_eq!(found[..sure], case.greedy_ids[..sure], "{:?}", case.prompt_ids);
    }
}

/// Perplexity of a text in windows of `window` tokens, of which all but the first `before` are scored.
pub fn perplexity(
    engine: &mut Engine,
    tokens: &[u32],
    window: usize,
    before: usize,
) -> (f64, usize) {
    let (mut sum, mut count) = (0.0, 0);
    for chunk in tokens.chunks(window) {
        let mut score = |row: usize, logits: &[f32]| {
            let Some(next) = chunk.get(row + 1) else { return };
            if row + 1 < before {
                return;
            }
            let highest = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
            let exps: f64 = logits.iter().map(|logit| (f64::from(*logit) - highest).exp()).sum();
            sum -= f64::from(logits[*next as usize]) - highest - exps.ln();
            count += 1;
        };
        engine.score(chunk, &mut score).unwrap();
    }
    ((sum / count as f64).exp(), count)
}

#[test]
fn the_demo_is_as_surprised_by_new_text_as_in_pytorch() {
    if !has_gpu() || is_checked() {
        return;
    }
    let model = demo();
    let expected: Perplexity = read("demo/perplexity.json");
    let text = std::fs::read_to_string(testdata().join("demo/heldout.txt")).unwrap();
    let tokens = model.tokenizer.as_ref().unwrap().encode(&text).unwrap();
    let (found, scored) = perplexity(&mut engine(&model, GPU, 512, 1), &tokens, expected.window, 1);
    println!("{found:.6}, in PyTorch {:.6}", expected.q8_0.perplexity);
    assert_eq!(scored, expected.scored_tokens);
    assert!((found / expected.q8_0.perplexity - 1.0).abs() < 0.005, "{found}");
}

/// What others computed for a published model.
#[derive(Deserialize)]
struct Published {
    tokens: Vec<u32>,
    /// Tokens of a chunk, of whose second half the perplexity is.
    context: usize,
    exact_perplexity: f64,
}

#[test]
fn smollm2_is_as_surprised_as_in_transformers() {
    if !has_gpu() || is_checked() {
        return;
    }
    let name = "SmolLM2-135M-Instruct.Q4_1";
    let named = std::env::var_os("OXGPT_TEST_MODELS").map(PathBuf::from);
    let folder = named.clone().unwrap_or(testdata().join("../target/test-models"));
    let path = folder.join(format!("{name}.gguf"));
    if !path.exists() {
        assert!(named.is_none(), "{} is not there", path.display());
        println!("skipped: {} is not there (tools/fetch-test-models gets it)", path.display());
        return;
    }
    let Published { tokens, context, exact_perplexity } = read(&format!("real-models/{name}.json"));
    let model = Model::open(&path).unwrap();
    let (found, scored) =
        perplexity(&mut engine(&model, GPU, 512, 1), &tokens, context, context / 2 + 1);
    println!("{found:.6}, in transformers {exact_perplexity:.6}");
    assert_eq!(scored, tokens.len() / context * (context / 2 - 1));
    assert!((found / exact_perplexity - 1.0).abs() < 0.005, "{found}");
}
