//! Directories of `testdata/golden` converted to GGUF: the same tensors as the `gguf` package wrote, the same logits.

mod common;

use common::{Case, Golden, cases, engine, relative_l2, testdata};
use oxgpt_engine::convert::convert;
use oxgpt_engine::engine::Device;
use oxgpt_engine::format::gguf::Existing;
use oxgpt_engine::format::{Checkpoint, DType, Source};
use oxgpt_engine::model::Model;
use oxgpt_engine::quantize::{Target, quantize};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The golden directories that GGUF cannot express, and the option that it has no key for.
const REFUSED: &[(&str, &str)] = &[
    ("gpt2-erf", "activation_function: expected gelu_new"),
    ("gpt2-quick-gelu", "activation_function: expected gelu_new"),
    ("gpt2-relu-eps", "activation_function: expected gelu_new"),
    ("gpt2-silu", "activation_function: expected gelu_new"),
    ("gpt2-bfloat16", "activation_function: expected gelu_new"),
    ("gpt2-unscaled", "scale_attn_weights: expected true"),
    ("gpt2-layer-scale", "scale_attn_by_inverse_layer_idx: expected false"),
    ("llama-yarn-own", "truncate: expected true"),
    ("gemma3-own-scale", "attention_bias: expected false"),
    ("gpt-oss-float32", "swiglu_alpha: expected 1.702"),
    ("qwen2-windows", "use_sliding_window: expected false"),
    ("qwen3-biases", "attention_bias: expected false"),
    ("qwen3moe-mixed", "norm_topk_prob: expected true"),
];

/// Families whose queries and keys have their rows in another order in GGUF: sums of scores come in another order too.
const REORDERED: [&str; 2] = ["llama", "mistral"];

fn run(source: &Path, destination: &Path) -> Result<Vec<String>, String> {
    let converted = convert(source, destination, Existing::Refuse, &mut |_, _| {});
    converted.map(|conversion| conversion.unused).map_err(|error| error.to_string())
}

/// Converts a golden directory into a folder that lives as long as the file is needed.
fn converted(case: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("converted.gguf");
    run(&testdata().join("golden").join(case), &path).unwrap();
    (folder, path)
}

fn directories() -> Vec<Case> {
    cases().into_iter().filter(|case| case.model_path().is_dir()).collect()
}

fn score(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let mut found = Vec::new();
    let mut engine = engine(model, Device::Reference, 16, 1);
    engine.score(tokens, &mut |_, row| found.extend_from_slice(row)).unwrap();
    found
}

#[test]
fn logits_stay_those_of_the_directory() {
    let mut count = 0;
    for case in directories() {
        if REFUSED.iter().any(|(name, _)| *name == case.name) {
            continue;
        }
        let (_folder, path) = converted(&case.name);
        let (before, after) =
            (Model::open(&case.model_path()).unwrap(), Model::open(&path).unwrap());
        assert_eq!(before.end_tokens(), after.end_tokens(), "{}", case.name);
        let golden = Golden::read(&case.golden_path());
        for index in 0..case.sequences {
            let tokens = golden.ids("tokens", index);
            let found = score(&after, &tokens);
            assert!(relative_l2(&found, &golden.logits(index)) < 1e-4, "{} {index}", case.name);
            let before = score(&before, &tokens);
            if REORDERED.contains(&case.family.as_str()) {
                assert!(relative_l2(&found, &before) < 1e-6, "{} {index}", case.name);
            } else {
                assert_eq!(found, before, "{} {index}: the same bits", case.name);
            }
        }
        count += 1;
    }
    assert!(count >= 7, "only {count} directories");
}

#[test]
fn tensors_and_keys_are_those_of_the_gguf_package() {
    for (case, file) in [
        ("gpt2-base", "gpt2-base-F32.gguf"),
        ("gpt2-one-head", "gpt2-one-head-F32-align64.gguf"),
        ("gpt2-untied", "gpt2-untied-F32.gguf"),
        ("llama-base", "llama-base-F32.gguf"),
        ("llama-linear", "llama-linear-F32.gguf"),
        ("llama-yarn", "llama-yarn-F32.gguf"),
        ("mistral-window", "mistral-window-F32.gguf"),
        ("phi3-window", "phi3-window-F32.gguf"),
        ("phi3-long", "phi3-long-F32.gguf"),
        ("gemma3-base", "gemma3-base-F32.gguf"),
        ("gemma3-capped", "gemma3-capped-F32.gguf"),
        ("gpt-oss-mxfp4", "gpt-oss-mxfp4-MXFP4.gguf"),
        ("gpt-oss-mxfp4-openai", "gpt-oss-mxfp4-MXFP4.gguf"),
        ("qwen2-tied", "qwen2-tied-F32.gguf"),
        ("qwen3-tied", "qwen3-tied-F32.gguf"),
        ("qwen3moe-sparse", "qwen3moe-sparse-F32.gguf"),
        ("qwen3moe-sparse-fused", "qwen3moe-sparse-F32.gguf"),
    ] {
        let (_folder, path) = converted(case);
        let found = Checkpoint::open(&path).unwrap();
        let expected = Checkpoint::open(&testdata().join("golden").join(file)).unwrap();
        assert_eq!(found.tensors().len(), expected.tensors().len(), "{case}");
        for tensor in expected.tensors() {
            let ours = found.tensor(&tensor.name).unwrap_or_else(|| panic!("{}", tensor.name));
            assert_eq!((ours.dtype, &ours.shape), (tensor.dtype, &tensor.shape), "{}", ours.name);
            assert!(*found.bytes(ours) == *expected.bytes(tensor), "{}", ours.name);
        }
        let (Source::Gguf(found), Source::Gguf(expected)) = (found.source(), expected.source())
        else {
            panic!("not directories")
        };
        let prefix = format!("{}.", expected.architecture().unwrap());
        for (key, value) in expected.iter().filter(|(key, _)| key.starts_with(&prefix)) {
            assert_eq!(found.get(key), Some(value), "{case}: {key}");
        }
        assert_eq!(found.string("tokenizer.ggml.model").unwrap(), Some("no_vocab"));
    }
}

#[test]
fn what_gguf_has_no_key_for_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    for (case, option) in REFUSED.iter().copied() {
        let path = folder.path().join("converted.gguf");
        let error = run(&testdata().join("golden").join(case), &path).unwrap_err();
        assert!(error.contains(option) && error.contains("config.json"), "{case}: {error}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn types_are_kept_and_vectors_and_positions_become_f32() {
    let (_folder, path) = converted("gpt2-float16");
    let found = Checkpoint::open(&path).unwrap();
    for tensor in found.tensors() {
        let keeps = tensor.shape.len() == 2 && tensor.name != "position_embd.weight";
        assert_eq!(tensor.dtype.name(), if keeps { "F16" } else { "F32" }, "{}", tensor.name);
    }
    let Source::Gguf(metadata) = found.source() else { panic!("not a directory") };
    assert_eq!(metadata.u32("general.file_type").unwrap(), Some(1));
    assert_eq!(metadata.string("general.name").unwrap(), Some("gpt2-float16"));
}

#[test]
fn masks_are_left_out_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let source = testdata().join("golden/gpt2-old-names");
    let unused = run(&source, &folder.path().join("m.gguf")).unwrap();
    assert!(unused.contains(&"h.0.attn.masked_bias".to_string()), "{unused:?}");
    assert!(unused.iter().all(|name| name.ends_with("bias")), "{unused:?}");
}

/// A directory with the files of `case`, its configuration changed by `change` and `head` beside its tensors.
fn changed(case: &str, change: (&str, &str), head: Option<&str>) -> TempDir {
    let (folder, source) = (tempfile::tempdir().unwrap(), testdata().join("golden").join(case));
    let config = fs::read_to_string(source.join("config.json")).unwrap();
    assert!(config.contains(change.0));
    fs::write(folder.path().join("config.json"), config.replace(change.0, change.1)).unwrap();
    let file = fs::read(source.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let mut tensors: Vec<(String, TensorView)> = file.tensors();
    if let Some(copied) = head {
        tensors.push(("lm_head.weight".to_string(), file.tensor(copied).unwrap()));
    }
    let bytes = safetensors::serialize(tensors, None).unwrap();
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

#[test]
fn a_copy_of_the_embedding_is_no_head_of_its_own() {
    let name = "transformer.wte.weight";
    for (head, has_output) in [(Some(name), false), (None, false)] {
        let source = changed("gpt2-base", ("gelu_new", "gelu_new"), head);
        let out = source.path().join("m.gguf");
        run(source.path(), &out).unwrap();
        let found = Checkpoint::open(&out).unwrap();
        assert_eq!(found.tensor("output.weight").is_some(), has_output);
    }
    let (_folder, path) = converted("gpt2-other-head");
    assert!(Checkpoint::open(&path).unwrap().tensor("output.weight").is_some());
}

#[test]
fn end_tokens_are_kept_as_far_as_there_are_keys() {
    let eos = |list| changed("gpt2-base", ("\"eos_token_id\": 256", list), None);
    let source = eos("\"eos_token_id\": [256, 7, 9]");
    let out = source.path().join("m.gguf");
    run(source.path(), &out).unwrap();
    assert_eq!(Model::open(&out).unwrap().end_tokens(), [7, 9, 256]);
    let source = eos("\"eos_token_id\": [1, 2, 3, 4]");
    let error = run(source.path(), &source.path().join("m.gguf")).unwrap_err();
    assert!(error.contains("eos_token_id"), "{error}");
}

#[test]
fn the_source_and_what_is_there_stay_untouched() {
    let source = changed("gpt2-base", ("gelu_new", "gelu_new"), None);
    let weights = source.path().join("model.safetensors");
    let before = fs::read(&weights).unwrap();
    for existing in [Existing::Refuse, Existing::Replace] {
        let error = convert(source.path(), &weights, existing, &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().contains("part of the model"), "{error}");
    }
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("m.gguf");
    fs::write(&path, "older").unwrap();
    assert!(run(source.path(), &path).unwrap_err().contains("is there already"));
    assert_eq!(fs::read(&path).unwrap(), b"older");
    convert(source.path(), &path, Existing::Replace, &mut |_, _| {}).unwrap();
    let error = run(&path, &out.path().join("again.gguf")).unwrap_err();
    assert!(error.contains("a GGUF file already"), "{error}");
    assert_eq!(fs::read(&weights).unwrap(), before);
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1);
}

#[test]
fn progress_ends_at_the_total() {
    let (folder, mut last) = (tempfile::tempdir().unwrap(), (0, 0));
    let source = testdata().join("golden/gpt2-sharded");
    let mut progress = |done, total| {
        assert!(done > last.0 && done <= total);
        last = (done, total);
    };
    convert(&source, &folder.path().join("m.gguf"), Existing::Refuse, &mut progress).unwrap();
    assert!(last.0 == last.1 && last.1 > 0);
}

#[test]
fn experts_keep_mxfp4_beside_blocks_and_become_numbers_beside_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let source = testdata().join("golden/gpt-oss-mxfp4-MXFP4.gguf");
    let before = Model::open(&source).unwrap();
    let quantized = |name: &str| {
        let path = folder.path().join(format!("{name}.gguf"));
        let target = Target::from_name(name).unwrap();
        quantize(&source, &path, target, Existing::Refuse, &mut |_, _| {}).unwrap();
        path
    };
    let types = |path: &Path| {
        let checkpoint = Checkpoint::open(path).unwrap();
        let experts = checkpoint.tensors().iter().filter(|t| t.name.contains("_exps.weight"));
        let types: Vec<_> = experts.map(|tensor| tensor.dtype).collect();
        assert_eq!(types.len(), 3 * 3, "three matrices in three layers");
        types
    };
    assert!(types(&quantized("Q8_0")).iter().all(|&dtype| dtype == DType::MXFP4));
    let plain = quantized("F32");
    assert!(types(&plain).iter().all(|&dtype| dtype == DType::F32));
    let tokens: Vec<u32> = (3..23).collect();
    assert_eq!(score(&Model::open(&plain).unwrap(), &tokens), score(&before, &tokens));
}
