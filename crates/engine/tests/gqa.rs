//! Grouped-query and multi-head attention are one: with as many KV heads as heads nothing is shared, and heads that share
//! one compute what they would with a copy of it each.

mod common;

use common::{Golden, case, engine, testdata};
use oxgpt_engine::engine::Device;
use oxgpt_engine::model::Model;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// The bits of the logits of both sequences of the golden `case` by the model in `directory`.
fn logits(directory: &Path, case_name: &str, device: Device) -> Vec<u32> {
    let (model, case) = (Model::open(directory).unwrap(), case(case_name));
    let golden = Golden::read(&case.golden_path());
    let mut bits = Vec::new();
    for index in 0..case.sequences {
        let mut engine = engine(&model, device, 7, 1);
        let mut collect = |_: usize, row: &[f32]| bits.extend(row.iter().map(|x| x.to_bits()));
        engine.score(&golden.ids("tokens", index), &mut collect).unwrap();
    }
    bits
}

/// Writes the directory of `case` to `to` with a changed configuration and, in place of the rows of each KV head, as many
/// copies as there are query heads to it.
fn write_changed(case: &str, to: &Path, change: impl Fn(&mut Value), copies: usize) {
    let from = testdata().join("golden").join(case);
    let mut config: Value =
        serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    let kv_heads = config["num_key_value_heads"].as_u64().unwrap() as usize;
    change(&mut config);
    fs::write(to.join("config.json"), config.to_string()).unwrap();
    let file = fs::read(from.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let tensors: Vec<(String, Vec<usize>, Dtype, Vec<u8>)> = file
        .tensors()
        .into_iter()
        .map(|(name, tensor)| {
            let (mut shape, mut data) = (tensor.shape().to_vec(), tensor.data().to_vec());
            if name.contains("k_proj") || name.contains("v_proj") {
                let head = data.len() / kv_heads;
                data = data.chunks_exact(head).flat_map(|head| head.repeat(copies)).collect();
                shape[0] *= copies;
            }
            (name, shape, tensor.dtype(), data)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, dtype, data)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(to.join("model.safetensors"), bytes).unwrap();
}

#[test]
fn shared_kv_heads_equal_copies_of_them_bit_for_bit() {
    for (case, copies) in [
        ("llama-base", 2),
        ("llama-llama3", 3),
        ("mistral-window", 2),
        ("gemma3-base", 4),
        ("llama-yarn", 4),
    ] {
        let folder = tempfile::tempdir().unwrap();
        write_changed(
            case,
            folder.path(),
            |config| config["num_key_value_heads"] = config["num_attention_heads"].clone(),
            copies,
        );
        for device in [Device::Reference, Device::Cpu] {
            let grouped = logits(&testdata().join("golden").join(case), case, device);
            let multi = logits(folder.path(), case, device);
            assert!(grouped == multi, "{case} on {device}");
        }
    }
}

#[test]
fn as_many_kv_heads_as_heads_are_multi_head_attention_bit_for_bit() {
    let case = "llama-linear";
    let folder = tempfile::tempdir().unwrap();
    write_changed(case, folder.path(), |config| config["num_key_value_heads"] = json!(null), 1);
    for device in [Device::Reference, Device::Cpu] {
        let named = logits(&testdata().join("golden").join(case), case, device);
        assert!(named == logits(folder.path(), case, device), "{device}");
    }
}
