//! Attention of every instruction set against the reference, and against itself in other portions.

use super::*;
use crate::backend::Backend;
use crate::backend::HostMatrix;
use crate::backend::cpu::tests::numbers;
use crate::backend::reference::Reference;
use crate::batch::Logits;
use crate::format::{Bytes, DType};
use crate::kv::KvType;

/// Rows of queries, keys and values from a seed, as a matrix that any backend can embed.
fn inputs(rows: usize, width: usize) -> HostMatrix {
    let numbers = numbers(rows * width, 7);
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| (3.0 * number).to_le_bytes()).collect();
    HostMatrix { rows, cols: width, dtype: DType::F32, bytes: Bytes::from(bytes) }
}

/// The attention of all rows of one sequence, computed in chunks of these sizes (the last again and again).
fn run<B: Backend>(
    b: &mut B,
    inputs: &HostMatrix,
    shape: &AttentionShape,
    with_sinks: bool,
    chunks: &[usize],
    prepare: impl Fn(&mut B::Kv),
) -> Vec<f32> {
    let blocks = inputs.rows.div_ceil(BLOCK_SIZE);
    // Blocks out of order, as a pool that was used before gives them.
    let table: Vec<u32> = (0..blocks as u32).rev().collect();
    let mut kv = b.kv(blocks, shape);
    prepare(&mut kv);
    let sinks = with_sinks.then(|| b.vector(numbers(shape.heads, 5)));
    let matrix = b.matrix(inputs.clone());
    let (mut qkv, mut out) =
        (b.buffer(inputs.rows, inputs.cols), b.buffer(inputs.rows, inputs.cols));
    let (mut all, mut some) = (Vec::new(), Vec::new());
    let mut first = 0;
    let mut chunks = chunks.iter().chain(std::iter::repeat(chunks.last().unwrap()));
    while first < inputs.rows {
        let end = inputs.rows.min(first + chunks.next().unwrap());
        let mut batch = Batch::new(1);
        batch.push(&vec![0; end - first], first, false, std::slice::from_ref(&table), Logits::None);
        let rows: Vec<u32> = (first as u32..end as u32).collect();
        b.embed(&mut qkv, &matrix, &rows, 1.0);
        let tables = &batch.block_tables[0];
        b.append(&mut kv, &qkv, &batch, tables, shape);
        b.attend(&mut out, &qkv, &kv, &batch, tables, shape, sinks.as_ref());
        b.read(&mut some, &out);
        all.extend_from_slice(&some);
        first = end;
    }
    all
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionShape { heads, kv_heads, head_dim, scale, window: None, soft_cap: None }
}

/// Shapes, sinks and rows: every kind of head, of more and of less than a split.
fn cases() -> Vec<(AttentionShape, bool, usize)> {
    let windowed = |shape, window| AttentionShape { window: Some(window), ..shape };
    let capped = |shape, cap| AttentionShape { soft_cap: Some(cap), ..shape };
    vec![
        (shape(2, 2, 64), false, 150),
        (shape(3, 1, 80), true, 70),
        (shape(1, 1, 5), false, 1100),
        (shape(5, 1, 16), true, 1100),
        (shape(4, 2, 33), false, 90),
        (windowed(shape(4, 2, 16), 40), true, 200),
        (windowed(shape(2, 1, 12), 600), false, 1300),
        (windowed(shape(2, 2, 8), 1), true, 70),
        (capped(shape(4, 1, 24), 1.5), true, 130),
        (capped(windowed(shape(40, 1, 4), 33), 0.7), false, 100),
    ]
}

const BOTH: [KvType; 2] = [KvType::Full, KvType::Q8];

/// Keys and values in 8 bits give what keys and values give that were rounded before.
#[test]
fn eight_bits_are_rounded_ones() {
    let round = |piece: &[f32]| {
        let most = piece.iter().map(|x| x.abs()).fold(0.0, f32::max);
        let step = half::f16::from_f32(most / 127.0).to_f32();
        piece.iter().map(|x| (x / step).round().clamp(-127.0, 127.0) * step).collect::<Vec<_>>()
    };
    for (heads, kv_heads, head_dim, rows) in [(3, 1, 64, 150), (2, 2, 32, 700), (4, 2, 40, 90)] {
        let shape = shape(heads, kv_heads, head_dim);
        let exact = inputs(rows, shape.qkv_width());
        let numbers: Vec<f32> =
            exact.bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let mut rounded = Vec::new();
        for row in numbers.chunks(shape.qkv_width()) {
            let (queries, kv) = row.split_at(shape.query_width());
            rounded.extend_from_slice(queries);
            let heads = kv.chunks(head_dim).flat_map(|head| head.chunks(32));
            rounded.extend(heads.flat_map(round));
        }
        let bytes: Vec<u8> = rounded.iter().flat_map(|x| x.to_le_bytes()).collect();
        let rounded = HostMatrix { bytes: Bytes::from(bytes), ..exact.clone() };
        let attend = |inputs: &HostMatrix, kv| {
            let mut cpu = Cpu::new(2).unwrap().with_kv(kv);
            let out = run(&mut cpu, inputs, &shape, false, &[rows], |_| {});
            out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let found = attend(&exact, KvType::Q8);
        assert!(found == attend(&rounded, KvType::Full), "{shape:?}");
        assert!(found != attend(&exact, KvType::Full), "{shape:?}");
    }
}

fn poison(kv: &mut Kv) {
    match kv {
        Kv::Full { keys, values } => [keys, values].into_iter().for_each(|all| all.fill(f32::NAN)),
        Kv::Q8 { keys, values } => {
            [keys, values].into_iter().for_each(|all| all.scales.fill(half::f16::NAN));
        }
    }
}

#[test]
fn every_instruction_set_agrees_with_the_reference() {
    for (shape, with_sinks, rows) in cases() {
        let inputs = inputs(rows, shape.qkv_width());
        let expected = run(&mut Reference::default(), &inputs, &shape, with_sinks, &[rows], |_| {});
        for isa in Isa::all() {
            let mut cpu = Cpu::with_isa(2, isa).unwrap();
            let found = run(&mut cpu, &inputs, &shape, with_sinks, &[rows], |_| {});
            let width = shape.query_width();
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                // Values are below 3 and scores below 30, and a score's error is one of its weight.
                let (row, error) = (index / width, (found - expected).abs());
                assert!(error < 1e-5, "{isa:?} {shape:?} row {row}: {found} {expected}");
            }
        }
    }
}

/// What a row sees decides its bits: neither the rows beside it, nor the threads, nor what else lies in the blocks.
#[test]
fn no_portion_and_no_number_of_threads_changes_a_bit() {
    for (shape, with_sinks, rows) in cases() {
        let inputs = inputs(rows, shape.qkv_width());
        for (isa, kv) in Isa::all().into_iter().flat_map(|isa| BOTH.map(|kv| (isa, kv))) {
            let bits = |threads, chunks: &[usize], prepare: fn(&mut Kv)| {
                let mut cpu = Cpu::with_isa(threads, isa).unwrap().with_kv(kv);
                let out = run(&mut cpu, &inputs, &shape, with_sinks, chunks, prepare);
                out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let one_by_one = bits(1, &[1], |_| {});
            for (threads, chunks) in
                [(3, &[1][..]), (1, &[rows]), (2, &[33, 2, 7, 1, 100]), (5, &[64])]
            {
                let found = bits(threads, chunks, poison);
                assert!(
                    found == one_by_one,
                    "{isa:?} {kv:?} {shape:?} {threads} threads {chunks:?}"
                );
            }
        }
    }
}

#[test]
fn vector_sets_agree_bit_for_bit() {
    let sets = Isa::all();
    let Some((first, rest)) = sets.get(1..).and_then(|sets| sets.split_first()) else { return };
    for (shape, with_sinks, rows) in cases() {
        let inputs = inputs(rows, shape.qkv_width());
        let bits = |isa: &Isa| {
            let mut cpu = Cpu::with_isa(2, *isa).unwrap();
            let out = run(&mut cpu, &inputs, &shape, with_sinks, &[rows], |_| {});
            out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        for isa in rest {
            assert!(bits(first) == bits(isa), "{isa:?} {shape:?}");
        }
    }
}

/// Several sequences in one batch, of lengths that ask for all kinds of tasks.
#[test]
fn sequences_of_one_batch_do_not_meet() {
    let shape = shape(4, 2, 16);
    let lengths = [1, 40, 1, 0, 7];
    let inputs = inputs(49, shape.qkv_width());
    let mut cpu = Cpu::new(3).unwrap();
    let mut kv = cpu.kv(8, &shape);
    poison(&mut kv);
    let mut batch = Batch::new(1);
    for (sequence, length) in lengths.into_iter().enumerate() {
        // The second one needs two blocks.
        let table = vec![sequence as u32, 6 - sequence as u32];
        batch.push(&vec![0; length], 0, false, &[table], Logits::None);
    }
    let (mut qkv, mut out) = (cpu.buffer(49, inputs.cols), cpu.buffer(49, inputs.cols));
    let table = cpu.matrix(inputs.clone());
    cpu.embed(&mut qkv, &table, &(0..49).collect::<Vec<u32>>(), 1.0);
    cpu.append(&mut kv, &qkv, &batch, &batch.block_tables[0], &shape);
    cpu.attend(&mut out, &qkv, &kv, &batch, &batch.block_tables[0], &shape, None);
    let mut first = 0;
    for length in lengths {
        let rows = length * inputs.cols * 4;
        let start = first * inputs.cols * 4;
        let bytes = Bytes::from(inputs.bytes[start..start + rows].to_vec());
        if length > 0 {
            let alone = HostMatrix { rows: length, bytes, ..inputs.clone() };
            let expected = run(&mut Reference::default(), &alone, &shape, false, &[length], |_| {});
            let found = &out.data[first * shape.query_width()..][..expected.len()];
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-5, "{length}: {found} {expected}");
            }
        }
        first += length;
    }
}
