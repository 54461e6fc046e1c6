//! A model that says what it is told: a GPT-2 whose next token depends on the position alone.

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

use super::testdata;

const WIDTH: usize = 256;
/// Tokens of the tokenizer in the test data.
const TOKENS: usize = 1124;

/// Tokens of harmony, in the order of their ids from 1124 on.
pub const HARMONY: [&str; 7] = [
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|channel|>",
    "<|constrain|>",
    "<|return|>",
    "<|call|>",
];

/// Writes a model directory with the tokenizer of the test data, more special tokens, and a chat template. `script` has,
/// for positions of the input, the token that follows it; elsewhere the first token follows.
pub fn write_model(
    folder: &Path,
    special: &[&str],
    template: Option<&str>,
    positions: usize,
    script: &[(usize, u32)],
) {
    let read = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(testdata("tokenizer/bpe").join(name)).unwrap()).unwrap()
    };
    let write =
        |name: &str, value: &Value| fs::write(folder.join(name), value.to_string()).unwrap();
    let rows = TOKENS + special.len();
    let mut config = read("config.json");
    for (key, value) in
        [("vocab_size", rows), ("n_positions", positions), ("n_embd", WIDTH), ("n_inner", 4)]
    {
        config[key] = value.into();
    }
    config["tie_word_embeddings"] = false.into();
    write("config.json", &config);
    let mut tokenizer = read("tokenizer.json");
    for (index, content) in special.iter().enumerate() {
        tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": TOKENS + index, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        }));
    }
    write("tokenizer.json", &tokenizer);
    let mut config = read("tokenizer_config.json");
    config["model_max_length"] = positions.into();
    if let Some(template) = template {
        config["chat_template"] = template.into();
    }
    write("tokenizer_config.json", &config);

    // Every position has a direction of its own, and the head of a token points to the positions before it.
    let directions: Vec<[f32; WIDTH]> = (0..positions).map(direction).collect();
    let mut head = vec![0.0; rows * WIDTH];
    for &(position, token) in script {
        let row = &mut head[token as usize * WIDTH..][..WIDTH];
        row.iter_mut().zip(directions[position]).for_each(|(weight, value)| *weight += value);
    }
    let zeros = |shape: &[usize]| vec![0.0f32; shape.iter().product()];
    let block = "transformer.h.0";
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = vec![
        ("transformer.wte.weight".into(), vec![rows, WIDTH], zeros(&[rows, WIDTH])),
        ("transformer.wpe.weight".into(), vec![positions, WIDTH], directions.concat()),
        ("transformer.ln_f.weight".into(), vec![WIDTH], vec![1.0; WIDTH]),
        ("transformer.ln_f.bias".into(), vec![WIDTH], zeros(&[WIDTH])),
        ("lm_head.weight".into(), vec![rows, WIDTH], head),
    ];
    for (name, shape) in [
        ("ln_1.weight", vec![WIDTH]),
        ("ln_1.bias", vec![WIDTH]),
        ("ln_2.weight", vec![WIDTH]),
        ("ln_2.bias", vec![WIDTH]),
        ("attn.c_attn.weight", vec![WIDTH, 3 * WIDTH]),
        ("attn.c_attn.bias", vec![3 * WIDTH]),
        ("attn.c_proj.weight", vec![WIDTH, WIDTH]),
        ("attn.c_proj.bias", vec![WIDTH]),
        ("mlp.c_fc.weight", vec![WIDTH, 4]),
        ("mlp.c_fc.bias", vec![4]),
        ("mlp.c_proj.weight", vec![4, WIDTH]),
        ("mlp.c_proj.bias", vec![WIDTH]),
    ] {
        let values = zeros(&shape);
        tensors.push((format!("{block}.{name}"), shape, values));
    }
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let file = folder.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &file).unwrap();
}

/// Signs that look random: as good as orthogonal to those of all other positions.
fn direction(position: usize) -> [f32; WIDTH] {
    let mut state = (position as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    std::array::from_fn(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if state & (1 << 40) == 0 { -1.0 } else { 1.0 }
    })
}
