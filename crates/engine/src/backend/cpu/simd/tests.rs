//! Every instruction set of this machine against f64, and against the others.

use super::*;
use crate::format::{Bytes, DType};
use crate::quant;

/// A few thousand numbers around zero, from a seed.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Random blocks of a type, whose scales are neither special nor large.
fn matrix(dtype: DType, rows: usize, cols: usize) -> HostMatrix {
    let path = format!("{}/../../testdata/quant/{dtype}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let file = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    // The first half has ordinary scales. Another step at each turn makes the rows differ.
    let blocks = file.tensor("blocks").unwrap();
    let ordinary = &blocks.data()[..blocks.data().len() / 2];
    let blocks: Vec<&[u8]> = ordinary.chunks(dtype.block_bytes()).collect();
    let count = rows * cols / dtype.block_size();
    let bytes: Vec<u8> = (0..count)
        .flat_map(|i| blocks[(i + 5 * (i / blocks.len())) % blocks.len()])
        .copied()
        .collect();
    HostMatrix { rows, cols, dtype, bytes: Bytes::from(bytes) }
}

/// The same weights as F32.
fn dequantized(weights: &HostMatrix) -> HostMatrix {
    let mut values = vec![0.0; weights.rows * weights.cols];
    quant::dequantize(weights.dtype, &weights.bytes, &mut values).unwrap();
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let (rows, cols) = (weights.rows, weights.cols);
    HostMatrix { rows, cols, dtype: DType::F32, bytes: Bytes::from(bytes) }
}

/// Products, and the sums of the magnitudes that they add up, which is what rounding errors grow with.
fn product_in_f64(weights: &HostMatrix, x: &[f32]) -> Vec<(f64, f64)> {
    let mut row = vec![0.0; weights.cols];
    (0..weights.rows)
        .flat_map(|r| {
            quant::dequantize(weights.dtype, weights.row(r), &mut row).unwrap();
            x.chunks(weights.cols)
                .map(|x| {
                    let terms = x.iter().zip(&row).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    (terms.clone().sum(), terms.map(f64::abs).sum())
                })
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Rows, columns and tokens: whole tiles and what sticks out of them, whole steps of lanes and rests.
const SHAPES: [(usize, usize, usize); 10] = [
    (1, 32, 1),
    (3, 64, 5),
    (4, 96, 4),
    (7, 320, 3),
    (9, 768, 6),
    (5, 33, 2),
    (2, 1, 7),
    (6, 47, 4),
    (1, 256, 1),
    (7, 512, 9),
];

#[test]
fn products_are_right_for_every_type_and_odd_shape() {
    for dtype in quant::SUPPORTED {
        for (rows, cols, tokens) in SHAPES {
            if !cols.is_multiple_of(dtype.block_size()) {
                continue;
            }
            let weights = matrix(*dtype, rows, cols);
            let x = numbers(11, tokens * cols);
            let expected = product_in_f64(&weights, &x);
            for isa in Isa::all() {
                let mut out = vec![f32::NAN; rows * tokens];
                isa.matmul_rows(&mut out, &weights, 0, &x);
                for (found, (expected, magnitude)) in out.iter().zip(&expected) {
                    let error = (f64::from(*found) - expected).abs();
                    assert!(
                        error < 2e-6 * magnitude,
                        "{dtype} {isa:?} {rows}x{cols}: {found} {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_product_is_that_of_the_dequantized_weights_bit_for_bit() {
    for dtype in quant::SUPPORTED {
        let weights = matrix(*dtype, 7, 768);
        let (plain, x) = (dequantized(&weights), numbers(13, 6 * 768));
        for isa in Isa::all() {
            let (mut found, mut expected) = ([f32::NAN; 42], [0.0; 42]);
            isa.matmul_rows(&mut found, &weights, 0, &x);
            isa.matmul_rows(&mut expected, &plain, 0, &x);
            assert_eq!(found.map(f32::to_bits), expected.map(f32::to_bits), "{dtype} {isa:?}");
        }
    }
}

#[test]
fn a_product_does_not_depend_on_the_rows_and_tokens_beside_it() {
    for dtype in quant::SUPPORTED {
        let (rows, cols, tokens) = (11, 160usize.next_multiple_of(dtype.block_size()), 9);
        let weights = matrix(*dtype, rows, cols);
        let x = numbers(5, tokens * cols);
        for isa in Isa::all() {
            let mut all = vec![0.0; rows * tokens];
            isa.matmul_rows(&mut all, &weights, 0, &x);
            for row in 0..rows {
                for token in 0..tokens {
                    let mut one = [0.0];
                    isa.matmul_rows(&mut one, &weights, row, &x[token * cols..][..cols]);
                    assert_eq!(one[0].to_bits(), all[row * tokens + token].to_bits());
                }
            }
        }
    }
}

#[test]
fn vector_sets_agree_bit_for_bit() {
    let sets = Isa::all();
    let Some((first, rest)) = sets.get(1..).and_then(|sets| sets.split_first()) else { return };
    for dtype in quant::SUPPORTED {
        let cols = 224usize.next_multiple_of(dtype.block_size());
        let weights = matrix(*dtype, 6, cols);
        let x = numbers(3, 5 * cols);
        let run = |isa: &Isa| {
            let mut out = vec![0.0; 30];
            isa.matmul_rows(&mut out, &weights, 0, &x);
            out.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        for isa in rest {
            assert_eq!(run(first), run(isa), "{dtype} {isa:?}");
        }
    }
}
