//! A small GPT-2 in a GGUF file whose matrices are all of one type, for the types that no golden checkpoint has.

use super::testdata;
use oxgpt_engine::format::DType;
use safetensors::SafeTensors;
use std::path::Path;

/// Inputs of every matrix: whole blocks of every type.
const WIDTH: usize = 256;
const VOCABULARY: usize = 64;
const CONTEXT: usize = 80;

/// Writes the model. Its blocks are the ordinary ones of `testdata/quant`.
pub fn write_gpt2(path: &Path, dtype: DType) {
    let file = std::fs::read(testdata().join(format!("quant/{dtype}.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let blocks = file.tensor("blocks").unwrap().data();
    let ordinary = &blocks[..blocks.len() / 2];
    let mut tensors = Tensors::default();
    let matrix = |tensors: &mut Tensors, name: &str, rows: usize| {
        // Starting elsewhere in the blocks makes the tensors differ.
        let start = tensors.count as usize * 5 * dtype.block_bytes();
        let bytes = dtype.bytes_for(rows * WIDTH).unwrap();
        let data: Vec<u8> = ordinary.iter().cycle().skip(start).take(bytes).copied().collect();
        tensors.push(&format!("{name}.weight"), &[WIDTH, rows], dtype, &data);
    };
    let vector = |tensors: &mut Tensors, name: &str, value: f32, length: usize| {
        tensors.push(name, &[length], DType::F32, &value.to_le_bytes().repeat(length));
    };
    matrix(&mut tensors, "token_embd", VOCABULARY);
    matrix(&mut tensors, "position_embd", CONTEXT);
    for norm in ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"] {
        vector(&mut tensors, &format!("{norm}.weight"), 0.5, WIDTH);
        vector(&mut tensors, &format!("{norm}.bias"), 0.1, WIDTH);
    }
    for (part, rows) in [("attn_qkv", 3), ("attn_output", 1), ("ffn_up", 1), ("ffn_down", 1)] {
        let name = format!("blk.0.{part}");
        matrix(&mut tensors, &name, rows * WIDTH);
        vector(&mut tensors, &format!("{name}.bias"), 0.1, rows * WIDTH);
    }

    let mut pairs = Vec::new();
    pair(&mut pairs, "general.architecture", 8, &string("gpt2"));
    for (key, value) in [
        ("context_length", CONTEXT),
        ("embedding_length", WIDTH),
        ("feed_forward_length", WIDTH),
        ("block_count", 1),
        ("attention.head_count", 4),
    ] {
        pair(&mut pairs, &format!("gpt2.{key}"), 4, &(value as u32).to_le_bytes());
    }
    pair(&mut pairs, "gpt2.attention.layer_norm_epsilon", 6, &1e-5f32.to_le_bytes());
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(tensors.count.to_le_bytes());
    bytes.extend(7u64.to_le_bytes());
    bytes.extend(pairs);
    bytes.extend(tensors.descriptions);
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes.extend(tensors.data);
    std::fs::write(path, bytes).unwrap();
}

const ALIGNMENT: usize = 32;

/// The part of a GGUF file that is about tensors.
#[derive(Default)]
struct Tensors {
    count: u64,
    descriptions: Vec<u8>,
    data: Vec<u8>,
}

impl Tensors {
    /// `shape` is innermost first.
    fn push(&mut self, name: &str, shape: &[usize], dtype: DType, data: &[u8]) {
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        self.descriptions.extend(string(name));
        self.descriptions.extend((shape.len() as u32).to_le_bytes());
        self.descriptions.extend(shape.iter().flat_map(|size| (*size as u64).to_le_bytes()));
        self.descriptions.extend(dtype.ggml_id().unwrap().to_le_bytes());
        self.descriptions.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(data);
        self.count += 1;
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn pair(pairs: &mut Vec<u8>, key: &str, id: u32, value: &[u8]) {
    pairs.extend([&string(key)[..], &id.to_le_bytes(), value].concat());
}
