//! The CPU backend: weights keep the precision of the file, in an order that suits vector instructions.

mod attention;
pub mod bandwidth;
pub mod cores;
mod experts;
pub(crate) mod kv;
mod rotary;
pub mod simd;
pub mod threads;

use super::{Backend, HostMatrix};
use crate::batch::{Batch, BlockTables};
use crate::kv::KvType;
use crate::model::spec::{AttentionShape, Choice, Linear, Nonlinearity, Norm, Rope};
use simd::{Activations, Arena, Finish, Isa, PackedMatrix, Target};
use std::io;
use std::ops::Range;
use threads::Threads;

/// Elements below which an elementwise operation is not worth sharing: some microseconds of one thread.
const ELEMENTS_PER_PIECE: usize = 8192;

/// The CPU backend.
pub struct Cpu {
    isa: Isa,
    threads: Threads,
    /// Where the weights are.
    arena: Arena,
    /// The inputs of the latest product.
    activations: Activations,
    attention: attention::Plan,
    /// Of the keys and values that are asked for.
    kv_type: KvType,
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
            arena: Arena::default(),
            activations: Activations::default(),
            attention: attention::Plan::default(),
            kv_type: KvType::default(),
        })
    }

    /// The same with keys and values of another type.
    pub fn with_kv(self, kv_type: KvType) -> Self {
        Cpu { kv_type, ..self }
    }

    /// Products of the rows `x` with several matrices, the outputs of one after those of the other.
    fn products<'a>(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        factors: impl Iterator<Item = (&'a PackedMatrix, Range<usize>, Finish<'a>)>,
    ) {
        self.activations.set(self.isa, x.rows(), x.width);
        let mut first_column = 0;
        for (weights, rows, finish) in factors {
            let target = Target { width: out.width, out: &mut out.data, first_column };
            first_column += rows.len();
            let (threads, activations) = (&mut self.threads, &mut self.activations);
            self.isa.product(threads, target, &x.data, activations, weights, rows, finish);
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
}

/// A whole matrix as a factor of [`Cpu::products`].
fn whole<'a>(
    linear: &'a Linear<PackedMatrix, Vec<f32>>,
    add: bool,
) -> (&'a PackedMatrix, Range<usize>, Finish<'a>) {
    let finish = Finish { bias: linear.bias.as_deref(), add };
    (&linear.weight, 0..linear.weight.rows(), finish)
}

impl Backend for Cpu {
    type Matrix = PackedMatrix;
    type Vector = Vec<f32>;
    type Buffer = Buffer;
    type Kv = kv::Kv;
    type Routes = experts::Routes;

    fn matrix(&mut self, matrix: HostMatrix) -> PackedMatrix {
        let packed = PackedMatrix::new(&matrix, &mut self.arena, &mut self.threads);
        // Whoever needs these bytes again reads the file again.
        matrix.bytes.release();
        packed
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

    fn kv(&mut self, blocks: usize, shape: &AttentionShape) -> kv::Kv {
        kv::Kv::new(blocks, shape, self.kv_type)
    }

    fn embed(&mut self, out: &mut Buffer, table: &PackedMatrix, rows: &[u32], scale: f32) {
        out.set_shape(rows.len(), table.cols());
        for (out, row) in out.data.chunks_exact_mut(table.cols()).zip(rows) {
            table.dequantize_row(*row as usize, out);
            if scale != 1.0 {
                out.iter_mut().for_each(|x| *x *= scale);
            }
        }
    }

    fn add_rows(&mut self, out: &mut Buffer, table: &PackedMatrix, rows: &[u32]) {
        let mut addend = vec![0.0; table.cols()];
        for (out, row) in out.data.chunks_exact_mut(table.cols()).zip(rows) {
            table.dequantize_row(*row as usize, &mut addend);
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

    fn matmul(&mut self, out: &mut Buffer, x: &Buffer, linears: &[Linear<PackedMatrix, Vec<f32>>]) {
        out.set_shape(x.rows(), linears.iter().map(|linear| linear.weight.rows()).sum());
        self.products(out, x, linears.iter().map(|linear| whole(linear, false)));
    }

    fn matmul_add(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        linear: &Linear<PackedMatrix, Vec<f32>>,
    ) {
        self.products(out, x, std::iter::once(whole(linear, true)));
    }

    fn project(&mut self, out: &mut Buffer, x: &Buffer, weight: &PackedMatrix) {
        out.set_shape(x.rows(), weight.rows());
        let finish = Finish { bias: None, add: false };
        self.products(out, x, std::iter::once((weight, 0..weight.rows(), finish)));
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
        kv: &mut kv::Kv,
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
        kv: &kv::Kv,
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
        linears: &[Linear<PackedMatrix, Vec<f32>>],
        routes: &experts::Routes,
    ) {
        experts::matmul(self, out, x, linears, routes);
    }

    fn expert_matmul_add(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        linear: &Linear<PackedMatrix, Vec<f32>>,
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

#[cfg(test)]
mod tests;
