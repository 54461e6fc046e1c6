//! The CPU backend: weights stay in the file's own type and are read where the file is mapped.

mod attention;
pub mod bandwidth;
pub mod cores;
mod experts;
mod rotary;
pub mod simd;
pub mod threads;

use super::{Backend, HostMatrix};
use crate::batch::{Batch, BlockTables};
use crate::model::spec::{AttentionShape, Choice, Linear, Nonlinearity, Norm, Rope};
use crate::quant;
use simd::{Isa, TILE_ROWS};
use std::io;
use std::ops::Range;
use threads::Threads;

/// Tokens that a block of a product keeps in the second-level cache.
const TOKENS_PER_BLOCK: usize = 32;

/// Elements below which an elementwise operation is not worth sharing: some microseconds of one thread.
const ELEMENTS_PER_PIECE: usize = 8192;

/// The CPU backend.
pub struct Cpu {
    isa: Isa,
    threads: Threads,
    /// A product before it is transposed: (outputs, tokens).
    product: Vec<f32>,
    /// One of several products whose outputs go side by side.
    part: Buffer,
    attention: attention::Plan,
}

/// Rows of f32 activations.
#[derive(Default)]
pub struct Buffer {
    width: usize,
    data: Vec<f32>,
}

impl Buffer {
    fn rows(&self) -> usize {
        self.data.len() / self.width
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.width..][..self.width]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.width..][..self.width]
    }

    /// Gives it this shape; what it holds then is unspecified.
    fn set_shape(&mut self, rows: usize, width: usize) {
        self.width = width;
        self.data.resize(rows * width, 0.0);
    }
}

impl Cpu {
    /// A backend with `threads` threads and the best instruction set of the machine.
    ///
    /// # Errors
    /// When the threads cannot be started.
    pub fn new(threads: usize) -> io::Result<Self> {
        Self::with_isa(threads, Isa::best())
    }

    /// A backend with a given instruction set.
    ///
    /// # Errors
    /// When the threads cannot be started.
    pub fn with_isa(threads: usize, isa: Isa) -> io::Result<Self> {
        let threads = Threads::new(threads)?;
        Ok(Cpu {
            isa,
            threads,
            product: Vec::new(),
            part: Buffer::default(),
            attention: attention::Plan::default(),
        })
    }

    /// Computes `x * weight.transposed()` and calls `store(element of out, its output, product)` for each element.
    fn product(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        weight: &HostMatrix,
        store: impl Fn(&mut f32, usize, f32) + Sync,
    ) {
        let (isa, tokens, outputs) = (self.isa, x.rows(), weight.rows);
        if tokens == 0 {
            return;
        }
        // A few pieces for each thread even out what the system does beside us; whole tiles waste no row.
        let pieces = self.threads.count() * 4;
        let piece = outputs.div_ceil(pieces).next_multiple_of(TILE_ROWS);
        if tokens == 1 {
            self.threads.for_each_chunk(&mut out.data, piece, |index, out| {
                let mut product = [0.0; 64];
                for (tile, out) in out.chunks_mut(product.len()).enumerate() {
                    let first = index * piece + tile * product.len();
                    let product = &mut product[..out.len()];
                    isa.matmul_rows(product, weight, first, &x.data);
                    for (offset, (out, product)) in out.iter_mut().zip(product).enumerate() {
                        store(out, first + offset, *product);
                    }
                }
            });
            return;
        }
        // Threads share the outputs, so that each weight is read once; the result is turned around at the end.
        self.product.resize(outputs * TOKENS_PER_BLOCK.min(tokens), 0.0);
        let blocks = x.data.chunks(TOKENS_PER_BLOCK * x.width);
        for (x, out) in blocks.zip(out.data.chunks_mut(TOKENS_PER_BLOCK * outputs)) {
            let tokens = x.len() / weight.cols;
            let product = &mut self.product[..outputs * tokens];
            self.threads.for_each_chunk(product, piece * tokens, |index, product| {
                isa.matmul_rows(product, weight, index * piece, x);
            });
            self.threads.for_each_chunk(out, outputs, |token, out| {
                for (output, out) in out.iter_mut().enumerate() {
                    store(out, output, product[output * tokens + token]);
                }
            });
        }
    }
}

impl Cpu {
    /// Calls `work` with the index of each row and the row, on as many threads as that many elements are worth.
    fn for_each_row(&mut self, x: &mut Buffer, work: impl Fn(usize, &mut [f32]) + Sync) {
        let width = x.width;
        let rows = ELEMENTS_PER_PIECE.div_ceil(width);
        self.threads.for_each_chunk(&mut x.data, rows * width, |piece, x| {
            for (index, row) in x.chunks_exact_mut(width).enumerate() {
                work(piece * rows + index, row);
            }
        });
    }

    fn matmul_one(&mut self, out: &mut Buffer, x: &Buffer, linear: &Linear<HostMatrix, Vec<f32>>) {
        match &linear.bias {
            Some(bias) => {
                self.product(out, x, &linear.weight, |out, i, product| *out = product + bias[i]);
            }
            None => self.product(out, x, &linear.weight, |out, _, product| *out = product),
        }
    }
}

impl Backend for Cpu {
    type Matrix = HostMatrix;
    type Vector = Vec<f32>;
    type Buffer = Buffer;
    type Kv = attention::Kv;
    type Routes = experts::Routes;

    fn matrix(&mut self, matrix: HostMatrix) -> HostMatrix {
        matrix
    }

    fn vector(&mut self, vector: Vec<f32>) -> Vec<f32> {
        vector
    }

    fn buffer(&mut self, rows: usize, width: usize) -> Buffer {
        Buffer { width, data: Vec::with_capacity(rows * width) }
    }

    fn routes(&mut self, _: usize, _: usize) -> experts::Routes {
        experts::Routes::default()
    }

    fn kv(&mut self, blocks: usize, shape: &AttentionShape) -> attention::Kv {
        attention::Kv::new(blocks, shape)
    }

    fn embed(&mut self, out: &mut Buffer, table: &HostMatrix, rows: &[u32], scale: f32) {
        out.set_shape(rows.len(), table.cols);
        for (out, row) in out.data.chunks_exact_mut(table.cols).zip(rows) {
            dequantize_row(out, table, *row);
            if scale != 1.0 {
                out.iter_mut().for_each(|x| *x *= scale);
            }
        }
    }

    fn add_rows(&mut self, out: &mut Buffer, table: &HostMatrix, rows: &[u32]) {
        let mut addend = vec![0.0; table.cols];
        for (out, row) in out.data.chunks_exact_mut(table.cols).zip(rows) {
            dequantize_row(&mut addend, table, *row);
            for (out, addend) in out.iter_mut().zip(&addend) {
                *out += addend;
            }
        }
    }

    fn norm(&mut self, out: &mut Buffer, x: &Buffer, norm: &Norm<Vec<f32>>) {
        out.set_shape(x.rows(), x.width);
        let isa = self.isa;
        self.for_each_row(out, |row, out| {
            out.copy_from_slice(x.row(row));
            isa.normalize(out, norm);
        });
    }

    fn norm_heads(&mut self, x: &mut Buffer, heads: Range<usize>, norm: &Norm<Vec<f32>>) {
        let (isa, head_dim) = (self.isa, norm.weight.len());
        let heads = heads.start * head_dim..heads.end * head_dim;
        self.for_each_row(x, |_, row| {
            row[heads.clone()]
                .chunks_exact_mut(head_dim)
                .for_each(|head| isa.normalize(head, norm));
        });
    }

    fn matmul(&mut self, out: &mut Buffer, x: &Buffer, linears: &[Linear<HostMatrix, Vec<f32>>]) {
        if let [linear] = linears {
            out.set_shape(x.rows(), linear.weight.rows);
            return self.matmul_one(out, x, linear);
        }
        out.set_shape(x.rows(), linears.iter().map(|linear| linear.weight.rows).sum());
        let mut part = std::mem::take(&mut self.part);
        let mut start = 0;
        for linear in linears {
            part.set_shape(x.rows(), linear.weight.rows);
            self.matmul_one(&mut part, x, linear);
            for row in 0..x.rows() {
                out.row_mut(row)[start..start + part.width].copy_from_slice(part.row(row));
            }
            start += part.width;
        }
        self.part = part;
    }

    fn matmul_add(&mut self, out: &mut Buffer, x: &Buffer, linear: &Linear<HostMatrix, Vec<f32>>) {
        match &linear.bias {
            Some(bias) => {
                self.product(out, x, &linear.weight, |out, i, product| *out += product + bias[i]);
            }
            None => self.product(out, x, &linear.weight, |out, _, product| *out += product),
        }
    }

    fn project(&mut self, out: &mut Buffer, x: &Buffer, weight: &HostMatrix) {
        out.set_shape(x.rows(), weight.rows);
        self.product(out, x, weight, |out, _, product| *out = product);
    }

    fn add(&mut self, out: &mut Buffer, x: &Buffer) {
        out.data.iter_mut().zip(&x.data).for_each(|(out, x)| *out += x);
    }

    fn zero_like(&mut self, out: &mut Buffer, like: &Buffer) {
        out.set_shape(like.rows(), like.width);
        out.data.fill(0.0);
    }

    fn soft_cap(&mut self, x: &mut Buffer, cap: f32) {
        let isa = self.isa;
        let pieces = |_, x: &mut [f32]| isa.soft_cap(x, cap);
        self.threads.for_each_chunk(&mut x.data, ELEMENTS_PER_PIECE, pieces);
    }

    fn rotations(&mut self, out: &mut Buffer, rope: &Rope, batch: &Batch) {
        rotary::rotations(self, out, rope, batch);
    }

    fn rotate(
        &mut self,
        qkv: &mut Buffer,
        rotations: &Buffer,
        rope: &Rope,
        shape: &AttentionShape,
    ) {
        rotary::rotate(self, qkv, rotations, rope, shape);
    }

    fn append(
        &mut self,
        kv: &mut attention::Kv,
        qkv: &Buffer,
        batch: &Batch,
        tables: &BlockTables,
        shape: &AttentionShape,
    ) {
        kv.append(qkv, batch, tables, shape);
    }

    fn attend(
        &mut self,
        out: &mut Buffer,
        qkv: &Buffer,
        kv: &attention::Kv,
        batch: &Batch,
        tables: &BlockTables,
        shape: &AttentionShape,
        sinks: Option<&Vec<f32>>,
    ) {
        attention::attend(self, out, qkv, kv, batch, tables, shape, sinks.map(Vec::as_slice));
    }

    fn activate(&mut self, out: &mut Buffer, x: &Buffer, nonlinearity: Nonlinearity) {
        let width = if nonlinearity.is_gated() { x.width / 2 } else { x.width };
        out.set_shape(x.rows(), width);
        let isa = self.isa;
        self.for_each_row(out, |row, out| {
            let (gate, up) = x.row(row).split_at(width);
            isa.activate(out, gate, up, nonlinearity);
        });
    }

    fn route(&mut self, routes: &mut experts::Routes, router: &Buffer, choice: Choice) {
        routes.choose(self.isa, router, choice);
    }

    fn expert_matmul(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        linears: &[Linear<HostMatrix, Vec<f32>>],
        routes: &experts::Routes,
    ) {
        experts::matmul(self, out, x, linears, routes);
    }

    fn expert_matmul_add(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        linear: &Linear<HostMatrix, Vec<f32>>,
        routes: &experts::Routes,
    ) {
        experts::matmul_add(self, out, x, linear, routes);
    }

    fn gather(&mut self, out: &mut Buffer, x: &Buffer, rows: &[u32]) {
        out.set_shape(rows.len(), x.width);
        for (out, row) in out.data.chunks_exact_mut(x.width).zip(rows) {
            out.copy_from_slice(x.row(*row as usize));
        }
    }

    fn read(&mut self, out: &mut Vec<f32>, x: &Buffer) {
        out.clear();
        out.extend_from_slice(&x.data);
    }
}

fn dequantize_row(out: &mut [f32], matrix: &HostMatrix, row: u32) {
    quant::dequantize(matrix.dtype, matrix.row(row as usize), out)
        .expect("types and lengths were checked when the model was opened");
}

#[cfg(test)]
mod tests;
