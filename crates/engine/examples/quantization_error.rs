//! How far quantized weights are from what they were, beside another quantizer's.
//!
//! ```sh
//! cargo run --release -p oxgpt-engine --example quantization_error -- WEIGHTS.gguf [QUANTIZED.gguf ...]
//! ```
//!
//! `WEIGHTS.gguf` has the weights as F32, F16 or BF16. Each other file has the same tensors as another quantizer made
//! them, such as llama.cpp's `llama-quantize --pure WEIGHTS.gguf QUANTIZED.gguf Q4_K`. For every block type in them, the
//! tensors of that type are quantized here too, and the table has the root of the mean squared error of both, in
//! thousandths of the root of the weights' mean square. Types that no other file has get our figure alone, on all
//! matrices whose rows their blocks divide.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use oxgpt_engine::format::{Checkpoint, DType, TensorInfo};
use oxgpt_engine::quant;

type Failure = Box<dyn std::error::Error>;

/// Elements that are held as numbers at once, to within a row.
const VALUES: usize = 1 << 20;

/// Sums over the tensors of a type.
#[derive(Default)]
struct Sums {
    tensors: usize,
    elements: usize,
    /// Of the weights.
    squares: f64,
    /// Of our errors, and of theirs.
    ours: f64,
    theirs: Option<f64>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    let mut files = std::env::args_os().skip(1);
    let weights = files.next().ok_or("expected WEIGHTS.gguf [QUANTIZED.gguf ...]")?;
    let weights = Checkpoint::open(Path::new(&weights))?;
    let is_matrix =
        |tensor: &&TensorInfo| tensor.shape.len() >= 2 && tensor.dtype.block_size() == 1;
    let matrices: Vec<&TensorInfo> = weights.tensors().iter().filter(is_matrix).collect();

    let mut found: BTreeMap<&str, (DType, Sums)> = BTreeMap::new();
    for file in files {
        let other = Checkpoint::open(Path::new(&file))?;
        for theirs in other.tensors().iter().filter(|tensor| tensor.dtype.block_size() > 1) {
            let Some(tensor) = matrices.iter().find(|tensor| tensor.name == theirs.name) else {
                continue;
            };
            if tensor.shape != theirs.shape || !quant::QUANTIZABLE.contains(&theirs.dtype) {
                continue;
            }
            let (_, sums) =
                found.entry(theirs.dtype.name()).or_insert((theirs.dtype, Sums::default()));
            add(sums, &weights, tensor, theirs.dtype, Some((&other, theirs)))?;
        }
    }
    for &dtype in quant::QUANTIZABLE.iter().filter(|dtype| **dtype != DType::F32) {
        if found.contains_key(dtype.name()) {
            continue;
        }
        let mut sums = Sums::default();
        for tensor in &matrices {
            if columns(tensor).is_multiple_of(dtype.block_size()) {
                add(&mut sums, &weights, tensor, dtype, None)?;
            }
        }
        found.insert(dtype.name(), (dtype, sums));
    }

    println!("| type | tensors | weights | error | theirs | ratio |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    for (name, (_, sums)) in found.iter().filter(|(_, (_, sums))| sums.tensors > 0) {
        let thousandths = |errors: f64| 1000.0 * (errors / sums.squares).sqrt();
        let ours = thousandths(sums.ours);
        let (theirs, ratio) = match sums.theirs.map(thousandths) {
            Some(theirs) => (format!("{theirs:.2}"), format!("{:.3}", ours / theirs)),
            None => (String::new(), String::new()),
        };
        let millions = sums.elements as f64 / 1e6;
        println!(
            "| {name} | {} | {millions:.1} M | {ours:.2} | {theirs} | {ratio} |",
            sums.tensors
        );
    }
    Ok(())
}

/// Adds the errors of a tensor as `dtype`: ours, and what another file made of it.
fn add(
    sums: &mut Sums,
    weights: &Checkpoint,
    tensor: &TensorInfo,
    dtype: DType,
    other: Option<(&Checkpoint, &TensorInfo)>,
) -> Result<(), Failure> {
    let cols = columns(tensor);
    let row_bytes = |dtype| quant::row_bytes(dtype, cols);
    let rows = (VALUES / cols).max(1);
    let stored = weights.bytes(tensor);
    let other = other.map(|(file, tensor)| file.bytes(tensor));
    let (mut values, mut bytes, mut back) = (Vec::new(), Vec::new(), Vec::new());
    for (index, piece) in stored.chunks(rows * row_bytes(tensor.dtype)?).enumerate() {
        let count = piece.len() / row_bytes(tensor.dtype)?;
        values.resize(count * cols, 0.0);
        back.resize(count * cols, 0.0);
        bytes.resize(count * row_bytes(dtype)?, 0);
        quant::dequantize(tensor.dtype, piece, &mut values)?;
        quant::quantize(dtype, &values, &mut bytes)?;
        quant::dequantize(dtype, &bytes, &mut back)?;
        sums.squares += values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
        sums.ours += squared_distance(&values, &back);
        if let Some(other) = &other {
            let start = index * rows * row_bytes(dtype)?;
            quant::dequantize(dtype, &other[start..start + bytes.len()], &mut back)?;
            *sums.theirs.get_or_insert(0.0) += squared_distance(&values, &back);
        }
    }
    sums.tensors += 1;
    sums.elements += tensor.elements();
    Ok(())
}

fn columns(tensor: &TensorInfo) -> usize {
    tensor.shape.last().copied().unwrap_or(1)
}

fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}
