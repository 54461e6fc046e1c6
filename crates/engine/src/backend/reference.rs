//! The definition: plain loops in f64 over exactly dequantized weights.
//!
//! Everything else is tested against this file. It is slow on purpose: where speed and clearness disagree, it is
//! clear. Activations, keys and values are f64 too; only logits are rounded to f32, when they are read.

use crate::backend::{Backend, HostMatrix};
use crate::batch::{Batch, BlockTables};
use crate::kv::BLOCK_SIZE;
use crate::model::spec::{Activation, AttentionShape, Linear, Norm};
use crate::quant;

/// The reference backend.
#[derive(Debug, Default)]
pub struct Reference;

/// Rows of f64 activations.
pub struct Buffer {
    width: usize,
    data: Vec<f64>,
}

impl Buffer {
    fn rows(&self) -> usize {
        self.data.len() / self.width
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.data[row * self.width..][..self.width]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f64] {
        &mut self.data[row * self.width..][..self.width]
    }

    fn set_rows(&mut self, rows: usize) {
        self.data.clear();
        self.data.resize(rows * self.width, 0.0);
    }
}

/// Keys and values of one layer, each (blocks, BLOCK_SIZE, kv_width).
pub struct Kv {
    keys: Vec<f64>,
    values: Vec<f64>,
}

/// Where the KV row of `position` starts.
fn kv_offset(table: &[u32], position: usize, width: usize) -> usize {
    (table[position / BLOCK_SIZE] as usize * BLOCK_SIZE + position % BLOCK_SIZE) * width
}

impl Backend for Reference {
    type Matrix = HostMatrix;
    type Vector = Vec<f32>;
    type Buffer = Buffer;
    type Kv = Kv;

    fn matrix(&mut self, matrix: HostMatrix) -> HostMatrix {
        matrix
    }

    fn vector(&mut self, vector: Vec<f32>) -> Vec<f32> {
        vector
    }

    fn buffer(&mut self, rows: usize, width: usize) -> Buffer {
        Buffer { width, data: Vec::with_capacity(rows * width) }
    }

    fn kv(&mut self, blocks: usize, shape: &AttentionShape) -> Kv {
        let elements = blocks * BLOCK_SIZE * shape.kv_width();
        Kv { keys: vec![0.0; elements], values: vec![0.0; elements] }
    }

    fn embed(&mut self, out: &mut Buffer, table: &HostMatrix, rows: &[u32]) {
        out.set_rows(rows.len());
        self.add_rows(out, table, rows);
    }

    fn add_rows(&mut self, out: &mut Buffer, table: &HostMatrix, rows: &[u32]) {
        for (index, row) in rows.iter().enumerate() {
            for (sum, weight) in out.row_mut(index).iter_mut().zip(weight_row(table, *row as usize))
            {
                *sum += f64::from(weight);
            }
        }
    }

    fn norm(&mut self, out: &mut Buffer, x: &Buffer, norm: &Norm<Vec<f32>>) {
        out.set_rows(x.rows());
        for row in 0..x.rows() {
            let x = x.row(row);
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64;
            let scale = 1.0 / (variance + f64::from(norm.eps)).sqrt();
            for (index, out) in out.row_mut(row).iter_mut().enumerate() {
                let (weight, bias) = (f64::from(norm.weight[index]), f64::from(norm.bias[index]));
                *out = (x[index] - mean) * scale * weight + bias;
            }
        }
    }

    fn matmul(&mut self, out: &mut Buffer, x: &Buffer, linear: &Linear<HostMatrix, Vec<f32>>) {
        out.set_rows(x.rows());
        self.matmul_add(out, x, linear);
    }

    fn matmul_add(&mut self, out: &mut Buffer, x: &Buffer, linear: &Linear<HostMatrix, Vec<f32>>) {
        for output in 0..linear.weight.rows {
            let weights = weight_row(&linear.weight, output);
            let bias = linear.bias.as_ref().map_or(0.0, |bias| f64::from(bias[output]));
            for row in 0..x.rows() {
                out.row_mut(row)[output] += dot(x.row(row), &weights) + bias;
            }
        }
    }

    fn project(&mut self, out: &mut Buffer, x: &Buffer, weight: &HostMatrix) {
        out.set_rows(x.rows());
        for output in 0..weight.rows {
            let weights = weight_row(weight, output);
            for row in 0..x.rows() {
                out.row_mut(row)[output] = dot(x.row(row), &weights);
            }
        }
    }

    fn append(
        &mut self,
        kv: &mut Kv,
        qkv: &Buffer,
        batch: &Batch,
        tables: &BlockTables,
        shape: &AttentionShape,
    ) {
        let (queries, width) = (shape.query_width(), shape.kv_width());
        for (row, sequence) in batch.rows_with_sequence() {
            let position = batch.positions[row] as usize;
            let offset = kv_offset(tables.of(sequence), position, width);
            let (keys, values) = qkv.row(row)[queries..].split_at(width);
            kv.keys[offset..offset + width].copy_from_slice(keys);
            kv.values[offset..offset + width].copy_from_slice(values);
        }
    }

    fn attend(
        &mut self,
        out: &mut Buffer,
        qkv: &Buffer,
        kv: &Kv,
        batch: &Batch,
        tables: &BlockTables,
        shape: &AttentionShape,
    ) {
        out.set_rows(batch.rows());
        let (head_dim, width) = (shape.head_dim, shape.kv_width());
        for (row, sequence) in batch.rows_with_sequence() {
            let position = batch.positions[row] as usize;
            let visible = shape.first_visible(position)..=position;
            for head in 0..shape.heads {
                let kv_head = head / (shape.heads / shape.kv_heads);
                let query = &qkv.row(row)[head * head_dim..][..head_dim];
                let offset = |position: usize| {
                    kv_offset(tables.of(sequence), position, width) + kv_head * head_dim
                };
                let scores: Vec<f64> = visible
                    .clone()
                    .map(|position| {
                        let key = &kv.keys[offset(position)..][..head_dim];
                        let product: f64 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                        product * f64::from(shape.scale)
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let out = &mut out.row_mut(row)[head * head_dim..][..head_dim];
                for (position, weight) in visible.clone().zip(&weights) {
                    let value = &kv.values[offset(position)..][..head_dim];
                    for (out, value) in out.iter_mut().zip(value) {
                        *out += weight / sum * value;
                    }
                }
            }
        }
    }

    fn activate(&mut self, x: &mut Buffer, activation: Activation) {
        for x in &mut x.data {
            *x = activate(*x, activation);
        }
    }

    fn gather(&mut self, out: &mut Buffer, x: &Buffer, rows: &[u32]) {
        out.set_rows(rows.len());
        for (index, row) in rows.iter().enumerate() {
            out.row_mut(index).copy_from_slice(x.row(*row as usize));
        }
    }

    fn read(&mut self, out: &mut Vec<f32>, x: &Buffer) {
        out.clear();
        out.extend(x.data.iter().map(|value| *value as f32));
    }
}

fn weight_row(matrix: &HostMatrix, row: usize) -> Vec<f32> {
    let mut weights = vec![0.0; matrix.cols];
    quant::dequantize(matrix.dtype, matrix.row(row), &mut weights)
        .expect("types and lengths were checked when the model was opened");
    weights
}

fn dot(x: &[f64], weights: &[f32]) -> f64 {
    x.iter().zip(weights).map(|(x, weight)| x * f64::from(*weight)).sum()
}

/// The activation functions as their papers write them.
pub fn activate(x: f64, activation: Activation) -> f64 {
    use std::f64::consts::{FRAC_1_SQRT_2, PI};
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        Activation::GeluErf => 0.5 * x * (1.0 + libm::erf(x * FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::GeluSigmoid => x * sigmoid(1.702 * x),
        Activation::Relu => x.max(0.0),
        Activation::Silu => x * sigmoid(x),
        Activation::Tanh => x.tanh(),
    }
}
