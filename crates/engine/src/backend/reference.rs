//! The definition: plain loops in f64 over exactly dequantized weights.
//!
//! Everything else is tested against this file. It is slow on purpose: where speed and clearness disagree, it is
//! clear. Activations, keys and values are f64 too; only logits are rounded to f32, when they are read.

use crate::backend::{Backend, HostMatrix};
use crate::batch::{Batch, BlockTables};
use crate::kv::BLOCK_SIZE;
use crate::model::spec::{
    Activation, AttentionShape, Choice, ChoiceWeights, Linear, Nonlinearity, Norm, NormKind, Rope,
};
use crate::quant;
use std::ops::Range;

/// The reference backend.
#[derive(Debug, Default)]
pub struct Reference {
    /// See [`Reference::with_8_bit_inputs`].
    has_8_bit_inputs: bool,
}

impl Reference {
    /// The definition of what backends compute that round the inputs of products with block types to 8 bits: each
    /// sixteen, or each 32 for types with blocks of 256, become integers times a 127th of the largest magnitude among
    /// them. Everything else is as always.
    pub fn with_8_bit_inputs() -> Self {
        Reference { has_8_bit_inputs: true }
    }

    /// `x . weights` for a row of a matrix.
    fn product(&self, x: &[f64], matrix: &HostMatrix, row: usize) -> f64 {
        let weights = weight_row(matrix, row);
        if !self.has_8_bit_inputs || matrix.dtype.block_size() == 1 {
            return dot(x, &weights);
        }
        let shared = if matrix.dtype.block_size() == 32 { 16 } else { 32 };
        let blocks = x.chunks(shared).zip(weights.chunks(shared));
        blocks.map(|(x, weights)| dot(&rounded_to_8_bits(x), weights)).sum()
    }
}

fn rounded_to_8_bits(x: &[f64]) -> Vec<f64> {
    let largest = x.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
    let scale = if largest == 0.0 { 1.0 } else { largest / 127.0 };
    x.iter().map(|x| (x / scale).round_ties_even() * scale).collect()
}

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

    /// Zeros of this shape.
    fn reset(&mut self, rows: usize, width: usize) {
        self.width = width;
        self.data.clear();
        self.data.resize(rows * width, 0.0);
    }
}

/// The experts of every row.
#[derive(Default)]
pub struct Routes {
    /// How many experts there are to choose from.
    experts: usize,
    /// How many each row has.
    chosen: usize,
    /// The expert and the weight of its output, (rows, chosen).
    choices: Vec<(usize, f64)>,
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
    type Routes = Routes;

    fn matrix(&mut self, matrix: HostMatrix) -> HostMatrix {
        matrix
    }

    fn vector(&mut self, vector: Vec<f32>) -> Vec<f32> {
        vector
    }

    fn buffer(&mut self, rows: usize, width: usize) -> Buffer {
        Buffer { width, data: Vec::with_capacity(rows * width) }
    }

    fn routes(&mut self, _: usize, _: usize) -> Routes {
        Routes::default()
    }

    fn kv(&mut self, blocks: usize, shape: &AttentionShape) -> Kv {
        let elements = blocks * BLOCK_SIZE * shape.kv_width();
        Kv { keys: vec![0.0; elements], values: vec![0.0; elements] }
    }

    fn embed(&mut self, out: &mut Buffer, table: &HostMatrix, rows: &[u32], scale: f32) {
        out.reset(rows.len(), table.cols);
        self.add_rows(out, table, rows);
        out.data.iter_mut().for_each(|x| *x *= f64::from(scale));
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
        out.reset(x.rows(), x.width);
        out.data.copy_from_slice(&x.data);
        out.data.chunks_exact_mut(x.width).for_each(|row| normalize(row, norm));
    }

    fn norm_heads(&mut self, x: &mut Buffer, heads: Range<usize>, norm: &Norm<Vec<f32>>) {
        let head_dim = norm.weight.len();
        for row in 0..x.rows() {
            let heads = &mut x.row_mut(row)[heads.start * head_dim..heads.end * head_dim];
            heads.chunks_exact_mut(head_dim).for_each(|head| normalize(head, norm));
        }
    }

    fn matmul(&mut self, out: &mut Buffer, x: &Buffer, linears: &[Linear<HostMatrix, Vec<f32>>]) {
        out.reset(x.rows(), linears.iter().map(|linear| linear.weight.rows).sum());
        let mut start = 0;
        for linear in linears {
            for output in 0..linear.weight.rows {
                for row in 0..x.rows() {
                    out.row_mut(row)[start + output] =
                        self.product(x.row(row), &linear.weight, output) + bias(linear, output);
                }
            }
            start += linear.weight.rows;
        }
    }

    fn matmul_add(&mut self, out: &mut Buffer, x: &Buffer, linear: &Linear<HostMatrix, Vec<f32>>) {
        for output in 0..linear.weight.rows {
            for row in 0..x.rows() {
                out.row_mut(row)[output] +=
                    self.product(x.row(row), &linear.weight, output) + bias(linear, output);
            }
        }
    }

    fn project(&mut self, out: &mut Buffer, x: &Buffer, weight: &HostMatrix) {
        out.reset(x.rows(), weight.rows);
        for output in 0..weight.rows {
            for row in 0..x.rows() {
                out.row_mut(row)[output] = self.product(x.row(row), weight, output);
            }
        }
    }

    fn add(&mut self, out: &mut Buffer, x: &Buffer) {
        out.data.iter_mut().zip(&x.data).for_each(|(out, x)| *out += x);
    }

    fn zero_like(&mut self, out: &mut Buffer, like: &Buffer) {
        out.reset(like.rows(), like.width);
    }

    fn soft_cap(&mut self, x: &mut Buffer, cap: f32) {
        x.data.iter_mut().for_each(|x| *x = soft_cap(*x, cap));
    }

    fn rotations(&mut self, out: &mut Buffer, rope: &Rope, batch: &Batch) {
        let pairs = rope.pairs();
        out.reset(batch.rows(), 2 * pairs);
        for (row, sequence) in batch.rows_with_sequence() {
            let (cosines, sines) = out.row_mut(row).split_at_mut(pairs);
            for pair in 0..pairs {
                (cosines[pair], sines[pair]) =
                    rope.rotation(pair, batch.positions[row], batch.is_long[sequence]);
            }
        }
    }

    fn rotate(&mut self, qkv: &mut Buffer, rotations: &Buffer, rope: &Rope, s: &AttentionShape) {
        let pairs = rope.pairs();
        for row in 0..qkv.rows() {
            let (cosines, sines) = rotations.row(row).split_at(pairs);
            for head in s.query_heads().start..s.key_heads().end {
                let head = &mut qkv.row_mut(row)[head * s.head_dim..][..s.head_dim];
                for pair in 0..pairs {
                    let (first, second) = rope.style.elements(pair, pairs);
                    let (a, b) = (head[first], head[second]);
                    head[first] = a * cosines[pair] - b * sines[pair];
                    head[second] = b * cosines[pair] + a * sines[pair];
                }
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
        sinks: Option<&Vec<f32>>,
    ) {
        out.reset(batch.rows(), shape.query_width());
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
                        let score = product * f64::from(shape.scale);
                        shape.soft_cap.map_or(score, |cap| soft_cap(score, cap))
                    })
                    .collect();
                let sink = sinks.map(|sinks| f64::from(sinks[head]));
                let max = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
                let sum = weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - max).exp());
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

    fn activate(&mut self, out: &mut Buffer, x: &Buffer, nonlinearity: Nonlinearity) {
        let width = if nonlinearity.is_gated() { x.width / 2 } else { x.width };
        out.reset(x.rows(), width);
        for row in 0..x.rows() {
            for (index, out) in out.row_mut(row).iter_mut().enumerate() {
                let up = x.row(row).get(width + index).copied().unwrap_or_default();
                *out = between(x.row(row)[index], up, nonlinearity);
            }
        }
    }

    fn route(&mut self, routes: &mut Routes, router: &Buffer, choice: Choice) {
        *routes = Routes { experts: router.width, chosen: choice.count, choices: Vec::new() };
        for row in 0..router.rows() {
            routes.choices.extend(choose(router.row(row), choice));
        }
    }

    fn expert_matmul(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        linears: &[Linear<HostMatrix, Vec<f32>>],
        routes: &Routes,
    ) {
        let this = &*self;
        let outputs = |linear: &Linear<HostMatrix, _>| linear.weight.rows / routes.experts;
        out.reset(routes.choices.len(), linears.iter().map(outputs).sum());
        for (index, (expert, _)) in routes.choices.iter().enumerate() {
            let x = x.row(index / routes.chosen);
            let products = linears.iter().flat_map(|linear| {
                let first = expert * outputs(linear);
                (first..first + outputs(linear)).map(move |output| {
                    this.product(x, &linear.weight, output) + bias(linear, output)
                })
            });
            out.row_mut(index).iter_mut().zip(products).for_each(|(out, product)| *out = product);
        }
    }

    fn expert_matmul_add(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        linear: &Linear<HostMatrix, Vec<f32>>,
        routes: &Routes,
    ) {
        let outputs = linear.weight.rows / routes.experts;
        for (index, (expert, weight)) in routes.choices.iter().enumerate() {
            for (output, sum) in out.row_mut(index / routes.chosen).iter_mut().enumerate() {
                let row = expert * outputs + output;
                let product = self.product(x.row(index), &linear.weight, row);
                *sum += weight * (product + bias(linear, row));
            }
        }
    }

    fn gather(&mut self, out: &mut Buffer, x: &Buffer, rows: &[u32]) {
        out.reset(rows.len(), x.width);
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

fn bias(linear: &Linear<HostMatrix, Vec<f32>>, output: usize) -> f64 {
    linear.bias.as_ref().map_or(0.0, |bias| f64::from(bias[output]))
}

/// See [`NormKind`].
fn normalize(x: &mut [f64], norm: &Norm<Vec<f32>>) {
    let count = x.len() as f64;
    let mean = match norm.kind {
        NormKind::LayerNorm => x.iter().sum::<f64>() / count,
        NormKind::RmsNorm => 0.0,
    };
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
    let scale = 1.0 / (variance + f64::from(norm.eps)).sqrt();
    for (index, x) in x.iter_mut().enumerate() {
        let bias = norm.bias.as_ref().map_or(0.0, |bias| f64::from(bias[index]));
        *x = (*x - mean) * scale * f64::from(norm.weight[index]) + bias;
    }
}

fn soft_cap(x: f64, cap: f32) -> f64 {
    let cap = f64::from(cap);
    cap * (x / cap).tanh()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The chosen experts, the best first, and the weights of their outputs.
pub fn choose(router: &[f64], choice: Choice) -> Vec<(usize, f64)> {
    let max = router.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = router.iter().map(|output| (output - max).exp()).collect();
    let mut experts: Vec<usize> = (0..router.len()).collect();
    // A stable sort: the lower expert comes first among equals.
    experts.sort_by(|a, b| router[*b].total_cmp(&router[*a]));
    experts.truncate(choice.count);
    let sum: f64 = match choice.weights {
        ChoiceWeights::SoftmaxOfChosen => experts.iter().map(|expert| weights[*expert]).sum(),
        ChoiceWeights::SoftmaxOfAll => weights.iter().sum(),
    };
    experts.into_iter().map(|expert| (expert, weights[expert] / sum)).collect()
}

/// See [`Nonlinearity`]; `up` is for the gated ones.
pub fn between(x: f64, up: f64, nonlinearity: Nonlinearity) -> f64 {
    match nonlinearity {
        Nonlinearity::Plain(activation) => activate(x, activation),
        Nonlinearity::Gated(activation) => activate(x, activation) * up,
        Nonlinearity::ClampedSwiglu { alpha, limit } => {
            let limit = f64::from(limit);
            let (gate, up) = (x.min(limit), up.clamp(-limit, limit));
            gate * sigmoid(f64::from(alpha) * gate) * (up + 1.0)
        }
    }
}

/// The activation functions as their papers write them.
pub fn activate(x: f64, activation: Activation) -> f64 {
    use std::f64::consts::{FRAC_1_SQRT_2, PI};
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
