//! Configurations that contradict themselves, the weights, or what is run: refused by the name of the setting.

mod common;

use common::testdata;
use oxgpt_engine::model::Model;
use serde_json::{Map, Value, json};
use std::fs;
use tempfile::TempDir;

/// The golden directory `case` with another configuration.
fn changed(case: &str, change: impl FnOnce(&mut Map<String, Value>)) -> TempDir {
    let (folder, source) = (tempfile::tempdir().unwrap(), testdata().join("golden").join(case));
    for entry in fs::read_dir(source).unwrap().map(|entry| entry.unwrap()) {
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    fs::remove_file(folder.path().join("golden.safetensors")).ok();
    let path = folder.path().join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
    folder
}

/// Why a golden directory is refused whose configuration has `value` at `key`, which is a path with dots.
fn refusal(case: &str, key: &str, value: Value) -> String {
    let folder = changed(case, |config| {
        let (outer, last) = key.rsplit_once('.').unwrap_or(("", key));
        let object = match outer {
            "" => config,
            outer => config[outer].as_object_mut().unwrap(),
        };
        object.insert(last.to_string(), value);
    });
    match Model::open(folder.path()) {
        Ok(_) => panic!("{case} with another {key} must be refused"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn settings_of_gpt_oss() {
    for (case, key, value, parts) in [
        ("gpt-oss-mxfp4", "num_local_experts", json!(5), &["[5, ", "found [4, "][..]),
        ("gpt-oss-mxfp4", "num_local_experts", json!(0), &["num_local_experts", "positive"]),
        ("gpt-oss-mxfp4", "num_local_experts", json!(4_000_000_000u32), &["num_local_experts"]),
        (
            "gpt-oss-mxfp4",
            "num_experts_per_tok",
            json!(5),
            &["num_experts_per_tok", "at most the 4"],
        ),
        ("gpt-oss-mxfp4", "num_hidden_layers", json!(4), &["layer_types", "4 kinds"]),
        ("gpt-oss-mxfp4", "layer_types", json!(["a", "b", "c"]), &["layer_types", "found a"]),
        ("gpt-oss-mxfp4", "sliding_window", json!(null), &["sliding_window", "found null"]),
        ("gpt-oss-mxfp4", "intermediate_size", json!(48), &["intermediate_size", "multiple of 32"]),
        (
            "gpt-oss-mxfp4",
            "intermediate_size",
            json!(64),
            &["gate_up_proj_blocks", "[4, 128, 2, 16]"],
        ),
        ("gpt-oss-mxfp4", "hidden_act", json!("gelu"), &["hidden_act", "silu"]),
        ("gpt-oss-mxfp4", "swiglu_limit", json!(-1.0), &["swiglu_limit", "positive"]),
        ("gpt-oss-mxfp4", "swiglu_limit", json!(0), &["swiglu_limit", "positive"]),
        ("gpt-oss-mxfp4", "head_dim", json!(17), &["head_dim", "even"]),
        ("gpt-oss-mxfp4", "rope_parameters.rope_type", json!("dynamic"), &["rope_type", "dynamic"]),
        ("gpt-oss-bfloat16", "num_local_experts", json!(3), &["[3, ", "found [4, "]),
        ("gpt-oss-bfloat16", "intermediate_size", json!(25), &["gate_up_proj`"]),
        ("gpt-oss-mxfp4-openai", "num_experts", json!(3), &["[3, ", "found [4, "]),
        ("gpt-oss-mxfp4-openai", "experts_per_token", json!(9), &["experts_per_token", "at most"]),
        ("gpt-oss-mxfp4-openai", "rope_scaling_factor", json!(0), &["rope_scaling_factor"]),
        ("gpt-oss-mxfp4-openai", "rope_ntk_beta", json!(-3), &["rope_ntk_beta", "positive"]),
        ("gpt-oss-mxfp4-openai", "rope_theta", json!(1), &["rope_theta", "above 1"]),
        ("gpt-oss-mxfp4-openai", "head_dim", json!(15), &["head_dim", "even"]),
        ("gpt-oss-mxfp4-openai", "initial_context_length", json!(0), &["initial_context_length"]),
    ] {
        let found = refusal(case, key, value);
        assert!(parts.iter().all(|part| found.contains(part)), "{case} {key}: {found}");
    }
}

#[test]
fn settings_of_qwen() {
    for (case, key, value, parts) in [
        (
            "qwen2-windows",
            "layer_types",
            json!(["full_attention"]),
            &["layer_types", "3 kinds"][..],
        ),
        (
            "qwen2-windows",
            "use_sliding_window",
            json!(false),
            &["layer_types", "use_sliding_window"],
        ),
        (
            "qwen2-windows",
            "rope_parameters.rope_type",
            json!("proportional"),
            &["rope_type", "proportional"],
        ),
        ("qwen2-windows", "rope_parameters.factor", json!(-4.0), &["factor", "positive"]),
        ("qwen2-tied", "num_key_value_heads", json!(4), &["num_key_value_heads", "divisor"]),
        ("qwen2-tied", "hidden_act", json!("xielu"), &["hidden_act", "xielu"]),
        ("qwen3-tied", "head_dim", json!(8), &["q_proj", "[32, 40]"]),
        ("qwen3moe-sparse", "num_experts", json!(8), &["mlp.gate.weight", "[8, 36]"]),
        (
            "qwen3moe-sparse",
            "num_experts_per_tok",
            json!(8),
            &["num_experts_per_tok", "at most the 7"],
        ),
        ("qwen3moe-sparse", "moe_intermediate_size", json!(21), &["gate_proj", "[21, 36]"]),
        (
            "qwen3moe-sparse-fused",
            "moe_intermediate_size",
            json!(21),
            &["gate_up_proj", "[7, 42, 36]"],
        ),
        (
            "qwen3moe-mixed",
            "mlp_only_layers",
            json!([0, 1, 2, 3, 4]),
            &["layers.1.mlp.gate_proj", "missing"],
        ),
        ("qwen3moe-mixed", "decoder_sparse_step", json!(0), &["decoder_sparse_step", "positive"]),
    ] {
        let found = refusal(case, key, value);
        assert!(parts.iter().all(|part| found.contains(part)), "{case} {key}: {found}");
    }
}

#[test]
fn quantizations_that_are_not_run_are_refused_by_name() {
    for case in ["gpt-oss-bfloat16", "qwen2-tied", "qwen3moe-sparse"] {
        for method in ["fp8", "awq", "gptq", "bitsandbytes"] {
            let found = refusal(case, "quantization_config", json!({"quant_method": method}));
            assert!(found.contains(&format!("the {method} quantization")), "{case}: {found}");
        }
    }
    // MXFP4 is a quantization of gpt-oss alone.
    let found = refusal("qwen3moe-sparse", "quantization_config", json!({"quant_method": "mxfp4"}));
    assert!(found.contains("the mxfp4 quantization"), "{found}");
}

#[test]
fn a_directory_that_does_not_say_what_it_is() {
    let folder = changed("gpt-oss-mxfp4-openai", |config| {
        config.remove("initial_context_length");
    });
    let Err(error) = Model::open(folder.path()) else { panic!("must be refused") };
    assert!(error.to_string().contains("model_type"), "{error}");
}

#[test]
fn gpt_oss_without_rope_settings_has_those_of_the_published_models() {
    let folder = changed("gpt-oss-mxfp4", |config| {
        config.remove("rope_parameters");
    });
    let model = Model::open(folder.path()).unwrap();
    let rope = &model.description.decoder.ropes[0];
    // 0.1 ln 32 + 1, as OpenAI's code has it.
    assert!((rope.magnitude - 1.346_573_6).abs() < 1e-6);
    let last = rope.inverse_frequencies.len() - 1;
    let expected = 150_000f64.powf(-(last as f64) / (last as f64 + 1.0)) / 32.0;
    assert!((f64::from(rope.inverse_frequencies[last]) / expected - 1.0).abs() < 1e-6);
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_embedding_has_rows() {
    let folder = changed("gpt2-base", |_| {});
    let tokenizer = testdata().join("tokenizer/bpe/tokenizer.json");
    let destination = folder.path().join("tokenizer.json");
    fs::copy(&tokenizer, &destination).unwrap();
    let Err(error) = Model::open(folder.path()) else { panic!("the tokenizer must be refused") };
    let error = error.to_string();
    assert!(error.contains("the tokenizer has token 257 (and ids up to"), "{error}");
    assert!(error.ends_with("expected all below the 257 rows of the embedding"), "{error}");

    // Special tokens without a row are common: they are refused where they are used.
    let text = fs::read_to_string(&tokenizer).unwrap();
    let mut small: Value = serde_json::from_str(&text).unwrap();
    small["model"]["merges"] = json!([]);
    small["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64() < Some(257));
    let special = json!({"id": 257, "content": "<|image|>", "special": true, "lstrip": false,
        "rstrip": false, "normalized": false, "single_word": false});
    small["added_tokens"] = json!([special]);
    fs::write(&destination, small.to_string()).unwrap();
    let tokenizer = Model::open(folder.path()).map(|model| model.tokenizer.unwrap()).unwrap();
    assert_eq!(tokenizer.token_id("<|image|>"), Some(257));
}
