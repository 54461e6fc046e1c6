//! Configurations that contradict themselves or ask for what we do not have: an error that names the key.

mod common;

use common::{case, testdata};
use oxgpt_engine::format::gguf::{Array, Existing, TensorHeader, Value, Writer};
use oxgpt_engine::format::{Checkpoint, Source, TensorInfo};
use oxgpt_engine::model::Model;
use serde_json::{Value as Json, json};
use std::fs;

/// The error of the golden directory `case` with `value` at the path `key` of its configuration.
fn directory_error(case: &str, key: &str, value: &Json) -> String {
    let from = testdata().join("golden").join(case);
    let folder = tempfile::tempdir().unwrap();
    let mut config: Json =
        serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    let mut at = &mut config;
    for part in key.split('.') {
        at = &mut at[part];
    }
    *at = value.clone();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    fs::copy(from.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    match Model::open(folder.path()) {
        Ok(_) => format!("no error for {key} {value}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn directories_that_make_no_model_are_refused_by_the_key() {
    for (case, key, value, named) in [
        ("llama-base", "num_attention_heads", json!(0), "num_attention_heads: expected a positive"),
        ("llama-base", "num_key_value_heads", json!(3), "num_key_value_heads: expected a divisor"),
        ("llama-base", "num_key_value_heads", json!(8), "num_key_value_heads: expected a divisor"),
        ("llama-base", "head_dim", json!(7), "head_dim: expected an even"),
        ("llama-base", "head_dim", json!(u32::MAX), "head_dim: expected at most"),
        ("llama-base", "head_dim", json!(12), "q_proj.weight`: expected shape [48, 40]"),
        ("llama-base", "num_hidden_layers", json!(4_000_000_000u32), "num_hidden_layers"),
        ("llama-base", "num_hidden_layers", json!(3), "layers.2."),
        ("llama-base", "rms_norm_eps", json!(-1.0), "rms_norm_eps"),
        ("llama-base", "vocab_size", json!(130), "embed_tokens.weight`: expected shape [130, 40]"),
        ("llama-base", "hidden_act", json!("gelux"), "hidden_act: expected gelu"),
        ("llama-base", "rope_parameters.rope_theta", json!(0), "rope_parameters.rope_theta"),
        ("llama-base", "rope_parameters.rope_theta", json!(1e300), "rope_parameters.rope_theta"),
        ("llama-base", "rope_parameters.rope_type", json!("dynamic"), "found dynamic"),
        (
            "llama-base",
            "rope_parameters.partial_rotary_factor",
            json!(0.4),
            "partial_rotary_factor",
        ),
        ("llama-base", "rope_parameters.partial_rotary_factor", json!(-3), "partial_rotary_factor"),
        ("llama-base", "rope_scaling", json!({"type": "ntk"}), "rope_scaling.type"),
        ("llama-base", "rope_scaling", json!({"type": "linear"}), "rope_scaling.factor"),
        ("llama-linear", "rope_parameters.factor", json!(0), "rope_parameters.factor"),
        ("llama-llama3", "rope_parameters.high_freq_factor", json!(1), "high_freq_factor"),
        ("llama-yarn", "rope_parameters.beta_fast", json!("many"), "rope_parameters.beta_fast"),
        ("mistral-window", "sliding_window", json!(0), "sliding_window"),
        ("mistral-window", "layer_types", json!(["full_attention"]), "layer_types"),
        ("phi3-long", "rope_parameters.short_factor", json!([1.0]), "short_factor: expected 6"),
        ("phi3-long", "rope_parameters.long_factor", json!([1, 1, 0, 1, 1, 1]), "long_factor"),
        ("phi3-long", "rope_parameters.rope_type", json!("yarn"), "longrope, the only one of phi3"),
        ("gemma3-capped", "layer_types", json!(["full_attention"]), "layer_types: expected 3"),
        ("gemma3-capped", "attn_logit_softcapping", json!(50.0), "attn_logit_softcapping"),
        ("gemma3-capped", "use_bidirectional_attention", json!(true), "use_bidirectional"),
        ("gemma3-capped", "sliding_window", json!(null), "sliding_window"),
        ("gemma3-capped", "final_logit_softcapping", json!(-2.0), "final_logit_softcapping"),
        ("gemma3-base-images", "text_config", json!(null), "text_config"),
    ] {
        let error = directory_error(case, key, &value);
        assert!(error.contains(named), "{case}, {key} {value}: {error}");
    }
}

/// The error of the GGUF file of the golden `case` with `value` at `key`.
fn gguf_error(case_name: &str, key: &str, value: Value) -> String {
    let checkpoint = Checkpoint::open(&case(case_name).model_path()).unwrap();
    let Source::Gguf(metadata) = checkpoint.source() else { panic!("not GGUF") };
    let mut metadata = metadata.clone();
    metadata.set(key, value);
    let header = |tensor: &TensorInfo| TensorHeader {
        name: tensor.name.clone(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
    };
    let headers: Vec<_> = checkpoint.tensors().iter().map(header).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let mut writer = Writer::create(&path, Existing::Refuse, &metadata, &headers).unwrap();
    for tensor in checkpoint.tensors() {
        writer.write(&checkpoint.bytes(tensor)).unwrap();
    }
    writer.finish().unwrap();
    match Model::open(&path) {
        Ok(_) => format!("no error for {key}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn gguf_files_that_make_no_model_are_refused_by_the_key() {
    let (llama, phi3, gemma3) =
        ("llama-yarn-F32.gguf", "phi3-long-F32.gguf", "gemma3-capped-F32.gguf");
    for (case, key, value) in [
        (llama, "llama.block_count", Value::U32(1_000_000)),
        (llama, "llama.attention.head_count", Value::U32(0)),
        (llama, "llama.attention.head_count_kv", Value::U32(3)),
        (phi3, "phi3.attention.key_length", Value::U32(u32::MAX)),
        (llama, "llama.attention.value_length", Value::U32(5)),
        (llama, "llama.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN)),
        (llama, "llama.feed_forward_length", Value::U32(0)),
        (llama, "llama.expert_count", Value::U32(8)),
        (llama, "llama.rope.dimension_count", Value::U32(7)),
        (llama, "llama.rope.dimension_count", Value::U32(18)),
        (llama, "llama.rope.freq_base", Value::F32(f32::NAN)),
        (llama, "llama.rope.scaling.type", Value::String("dynamic".to_string())),
        (llama, "llama.rope.scaling.factor", Value::F32(-4.0)),
        (llama, "llama.rope.scaling.yarn_log_multiplier", Value::F32(f32::INFINITY)),
        (llama, "llama.rope.scaling.yarn_beta_fast", Value::F32(f32::NAN)),
        (phi3, "phi3.rope.scaling.attn_factor", Value::F32(0.0)),
        (phi3, "phi3.rope.scaling.original_context_length", Value::U32(0)),
        (gemma3, "gemma3.attention.sliding_window_pattern", Value::Array(Array::Bool(vec![true]))),
        (gemma3, "gemma3.final_logit_softcapping", Value::F32(f32::NAN)),
        (gemma3, "gemma3.rope.freq_base_swa", Value::F32(0.0)),
    ] {
        let error = gguf_error(case, key, value.clone());
        assert!(error.contains(key), "{case}, {key} {value}: {error}");
    }
    // The divisors of phi3 have the length of the rotated part.
    let error = gguf_error(phi3, "phi3.rope.dimension_count", Value::U32(14));
    assert!(error.contains("rope_factors_long.weight"), "{error}");
}
