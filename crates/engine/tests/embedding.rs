//! The vectors of texts are the hidden states that the head makes logits of.

mod common;

use common::{Golden, case, engine, relative_l2};
use oxgpt_engine::engine::{Device, Embedding, Engine, EngineError, Pooling};
use oxgpt_engine::model::Model;
use safetensors::SafeTensors;

fn embed(engine: &mut Engine, tokens: &[u32], pooling: Pooling) -> Vec<f32> {
    let mut embedding = Embedding::new(tokens.to_vec(), pooling);
    loop {
        if let Some(vector) = engine.embed(&mut embedding).unwrap() {
            return vector;
        }
    }
}

#[test]
fn the_head_makes_logits_of_the_last_one() {
    let case = case("gpt2-base");
    let model = Model::open(&case.model_path()).unwrap();
    let tokens = Golden::read(&case.golden_path()).ids("tokens", 0);
    let bytes = std::fs::read(case.model_path().join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let name = file.names().into_iter().find(|name| name.ends_with("wte.weight")).unwrap();
    let head: Vec<f32> = file
        .tensor(name)
        .unwrap()
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect();
    for device in [Device::Reference, Device::Cpu] {
        let mut engine = engine(&model, device, 7, 1);
        let mut logits = Vec::new();
        engine.score(&tokens, &mut |_, row| logits = row.to_vec()).unwrap();
        let hidden = embed(&mut engine, &tokens, Pooling::Last);
        let product: Vec<f32> = head
            .chunks_exact(hidden.len())
            .map(|row| {
                row.iter().zip(&hidden).map(|(w, h)| f64::from(*w) * f64::from(*h)).sum::<f64>()
                    as f32
            })
            .collect();
        assert!(relative_l2(&product, &logits) < 1e-5, "{device}");
    }
}

#[test]
fn the_mean_is_that_of_every_prefix_and_no_chunk_changes_it() {
    for name in ["llama-base-F32.gguf", "gpt-oss-mxfp4"] {
        let case = case(name);
        let model = Model::open(&case.model_path()).unwrap();
        let tokens = Golden::read(&case.golden_path()).ids("tokens", 0);
        let tokens = &tokens[..tokens.len().min(20)];
        let mut whole = engine(&model, Device::Cpu, 64, 1);
        let mean = embed(&mut whole, tokens, Pooling::Mean);
        let mut sum = vec![0.0; mean.len()];
        for end in 1..=tokens.len() {
            let last = embed(&mut whole, &tokens[..end], Pooling::Last);
            sum.iter_mut().zip(&last).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        let expected: Vec<f32> = sum.iter().map(|sum| (sum / tokens.len() as f64) as f32).collect();
        assert_eq!(mean, expected, "{name}");
        for chunk in [1, 3, 32] {
            assert_eq!(
                embed(&mut engine(&model, Device::Cpu, chunk, 1), tokens, Pooling::Mean),
                mean
            );
        }
    }
}

#[test]
fn texts_that_cannot_be_are_refused_and_those_given_up_leave_nothing_behind() {
    let case = case("gpt2-base");
    let model = Model::open(&case.model_path()).unwrap();
    let mut engine = engine(&model, Device::Cpu, 4, 1);
    let mut refused =
        |tokens: Vec<u32>| engine.embed(&mut Embedding::new(tokens, Pooling::Mean)).unwrap_err();
    assert!(matches!(refused(Vec::new()), EngineError::EmptyPrompt));
    assert!(matches!(refused(vec![1; 1000]), EngineError::PromptTooLong { .. }));
    assert!(matches!(refused(vec![100_000]), EngineError::UnknownToken { .. }));
    for _ in 0..20 {
        let mut embedding = Embedding::new(vec![1; 60], Pooling::Mean);
        assert_eq!(engine.embed(&mut embedding).unwrap(), None);
        engine.give_up(embedding);
    }
    assert_eq!(engine.kv_usage(), 0.0);
}
