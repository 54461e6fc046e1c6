//! Damaged and hostile files, through full model construction and a forward pass: an error or a working model, never a
//! panic, a hang or more than 1 GiB allocated.

mod common;

use cap::Cap;
use common::{case, testdata};
use oxgpt_engine::engine::{Device, Engine, EngineOptions};
use oxgpt_engine::model::Model;
use proptest::prelude::*;
use std::alloc::System;
use std::fs;
use std::path::{Path, PathBuf};

/// An allocation beyond the limit aborts the test.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, 1 << 30);

/// What is done to a file.
#[derive(Clone, Debug)]
enum Damage {
    /// One byte gets another value.
    Set { place: f64, value: u8 },
    /// One bit is turned.
    Flip { place: f64, bit: u8 },
    /// Eight bytes become a number, as a count or an offset would be.
    Number { place: f64, value: u64 },
    /// The end is missing.
    Truncate { place: f64 },
}

/// A place in a file, as a share of its length. Half of the places are near the start, where the headers are.
fn place() -> impl Strategy<Value = f64> {
    prop_oneof![0.0..1.0f64, (0.0..1.0f64).prop_map(|place| place * place * place * 0.2)]
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (place(), any::<u8>()).prop_map(|(place, value)| Damage::Set { place, value }),
        (place(), 0..8u8).prop_map(|(place, bit)| Damage::Flip { place, bit }),
        (place(), prop_oneof![any::<u64>(), 0..1_000_000u64, Just(u64::MAX), Just(1 << 40)])
            .prop_map(|(place, value)| Damage::Number { place, value }),
        place().prop_map(|place| Damage::Truncate { place }),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    let at = |place: f64| (place * bytes.len() as f64) as usize;
    match *damage {
        Damage::Set { place, value } => {
            let at = at(place);
            bytes[at] = value;
        }
        Damage::Flip { place, bit } => {
            let at = at(place);
            bytes[at] ^= 1 << bit;
        }
        Damage::Number { place, value } => {
            let at = at(place);
            let end = (at + 8).min(bytes.len());
            bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
        }
        Damage::Truncate { place } => bytes.truncate(at(place).max(1)),
    }
}

/// Opens a model and computes with it; says whether it worked.
fn use_model(path: &Path) -> bool {
    let Ok(model) = Model::open(path) else { return false };
    if let Some(tokenizer) = &model.tokenizer
        && let Ok(ids) = tokenizer.encode("Hello, world! 1234 <|endoftext|> \u{1F600}")
    {
        tokenizer.decode(&ids).unwrap();
    }
    let options = EngineOptions { device: Device::Cpu, threads: Some(1), ..Default::default() };
    let Ok(mut engine) = Engine::new(&model, &options, &mut |_, _| {}) else { return false };
    let tokens: Vec<u32> = (0..engine.context().min(5) as u32).collect();
    engine.score(&tokens, &mut |_, _| {}).is_ok()
}

/// Damages one file of a copy of `files` and uses what is at `model` among them.
fn check(files: &[PathBuf], model: &str, which: usize, damages: &[Damage]) {
    let folder = tempfile::tempdir().unwrap();
    let damaged = which % files.len();
    for (index, file) in files.iter().enumerate() {
        let mut bytes = fs::read(file).unwrap();
        if index == damaged {
            damages.iter().for_each(|damage| apply(&mut bytes, damage));
        }
        fs::write(folder.path().join(file.file_name().unwrap()), bytes).unwrap();
    }
    use_model(&folder.path().join(model));
}

fn files_of(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| !file.ends_with("golden.safetensors") && !file.ends_with("README.md"));
    files.sort();
    assert!(!files.is_empty());
    files
}

#[test]
fn undamaged_files_work() {
    for path in [
        case("gpt2-blocks-Q8_0.gguf").model_path(),
        case("gpt2-sharded").model_path(),
        case("gpt-oss-mxfp4-MXFP4.gguf").model_path(),
        case("gpt-oss-mxfp4-openai").model_path(),
        case("qwen3moe-mixed").model_path(),
        testdata().join("tokenizer/bpe"),
        testdata().join("tokenizer/bpe.gguf"),
    ] {
        assert!(use_model(&path), "{}", path.display());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn damaged_gguf(damages in prop::collection::vec(damage(), 1..4)) {
        let path = case("gpt2-blocks-Q8_0.gguf").model_path();
        check(&[path], "gpt2-blocks-Q8_0.gguf", 0, &damages);
    }

    #[test]
    fn damaged_gguf_with_tokenizer(damages in prop::collection::vec(damage(), 1..4)) {
        check(&[testdata().join("tokenizer/bpe.gguf")], "bpe.gguf", 0, &damages);
    }

    #[test]
    fn damaged_split_gguf(which in 0..3usize, damages in prop::collection::vec(damage(), 1..4)) {
        let first = case("gpt2-one-head-F32-split.gguf").model_path();
        let name = first.file_name().unwrap().to_str().unwrap();
        let parts: Vec<PathBuf> = (1..=3)
            .map(|part| first.with_file_name(name.replace("-00001-", &format!("-0000{part}-"))))
            .collect();
        check(&parts, name, which, &damages);
    }

    #[test]
    fn damaged_hugging_face_directory(which in 0..8usize, damages in prop::collection::vec(damage(), 1..4)) {
        check(&files_of(&case("gpt2-sharded").model_path()), "", which, &damages);
    }

    #[test]
    fn damaged_gguf_with_experts(damages in prop::collection::vec(damage(), 1..4)) {
        let path = case("gpt-oss-mxfp4-MXFP4.gguf").model_path();
        check(&[path], "gpt-oss-mxfp4-MXFP4.gguf", 0, &damages);
    }

    #[test]
    fn damaged_directory_with_experts(which in 0..2usize, damages in prop::collection::vec(damage(), 1..4)) {
        for case_name in ["gpt-oss-mxfp4", "gpt-oss-mxfp4-openai", "gpt-oss-bfloat16", "qwen3moe-sparse"] {
            check(&files_of(&case(case_name).model_path()), "", which, &damages);
        }
    }

    #[test]
    fn damaged_tokenizer_files(which in 0..8usize, damages in prop::collection::vec(damage(), 1..4)) {
        check(&files_of(&testdata().join("tokenizer/bpe")), "", which, &damages);
    }
}
