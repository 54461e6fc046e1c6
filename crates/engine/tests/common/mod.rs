//! Reading `testdata/golden`, and what tests do with it.
// Each test file uses its own part of this.
#![allow(dead_code, reason = "compiled into several test files, each of which uses a part")]

pub mod gguf;

use oxgpt_engine::backend::reference::Reference;
use oxgpt_engine::batch::{Batch, Logits};
use oxgpt_engine::engine::{Device, Engine, EngineOptions};
use oxgpt_engine::kv::{KvLayout, KvPools};
use oxgpt_engine::model::Model;
use oxgpt_engine::model::executor::{BatchLimits, load};
use safetensors::SafeTensors;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// One line of `testdata/golden/index.json`.
#[derive(Debug, Deserialize)]
pub struct Case {
    pub name: String,
    pub family: String,
    pub model: String,
    pub golden: String,
    pub dtype: String,
    pub sequences: usize,
}

impl Case {
    pub fn model_path(&self) -> PathBuf {
        testdata().join("golden").join(&self.model)
    }

    pub fn golden_path(&self) -> PathBuf {
        testdata().join("golden").join(&self.golden)
    }
}

/// The folder of test data, which a copied test program is told.
pub fn testdata() -> PathBuf {
    match std::env::var_os("OXGPT_TESTDATA") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata"),
    }
}

/// All golden checkpoints.
pub fn cases() -> Vec<Case> {
    let index = std::fs::read(testdata().join("golden/index.json")).unwrap();
    serde_json::from_slice(&index).unwrap()
}

/// The golden checkpoint called `name`.
pub fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).unwrap()
}

/// What `transformers` computed for one checkpoint.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn read(path: &Path) -> Self {
        Golden(std::fs::read(path).unwrap())
    }

    pub fn ids(&self, kind: &str, sequence: usize) -> Vec<u32> {
        self.words(&format!("{kind}.{sequence}")).map(u32::from_le_bytes).collect()
    }

    pub fn logits(&self, sequence: usize) -> Vec<f32> {
        self.words(&format!("logits.{sequence}")).map(f32::from_le_bytes).collect()
    }

    fn words(&self, name: &str) -> impl Iterator<Item = [u8; 4]> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let data = file.tensor(name).unwrap().data().to_vec();
        let words: Vec<[u8; 4]> = data.as_chunks().0.to_vec();
        words.into_iter()
    }
}

/// An engine with room for `sequences` sequences that computes prompts in chunks of `chunk`.
pub fn engine(model: &Model, device: Device, chunk: usize, sequences: usize) -> Engine {
    let options = EngineOptions {
        device,
        chunk,
        sequences,
        threads: Some(2),
        deterministic: true,
        ..EngineOptions::default()
    };
    Engine::new(model, &options, &mut |_, _| {}).unwrap()
}

/// The logits that the definition gives for a backend which rounds the inputs of products with block types to 8 bits.
pub fn score_with_8_bit_inputs(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let decoder = &model.description.decoder;
    let layout = KvLayout::new(decoder.layers.iter().map(|layer| layer.attention.shape.window));
    let groups = layout.groups(1, decoder.context_length, tokens.len());
    let limits = BatchLimits { rows: tokens.len(), logit_rows: tokens.len() };
    let reference = Reference::with_8_bit_inputs();
    let mut executor = load(reference, model, layout, &groups, limits, &mut |_| {}).unwrap();
    let count = groups.len();
    let mut pools = KvPools::new(groups, tokens.len());
    let mut kv = pools.reserve(tokens.len()).unwrap();
    assert_eq!(pools.extend(&mut kv, 0, tokens.len()), tokens.len());
    let mut batch = Batch::new(count);
    batch.push(tokens, 0, false, &kv.tables, Logits::All);
    let mut logits = Vec::new();
    executor.forward(&batch).unwrap();
    executor.read(&mut logits).unwrap();
    logits
}

/// `|found - expected| / |expected|`
pub fn relative_l2(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let difference: f64 =
        found.iter().zip(expected).map(|(f, e)| square(f64::from(*f) - f64::from(*e))).sum();
    let norm: f64 = expected.iter().map(|e| square(f64::from(*e))).sum();
    (difference / norm).sqrt()
}
