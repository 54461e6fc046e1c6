//! Every instruction set of this machine against f64, and against the others.

use super::*;
use crate::backend::HostMatrix;
use crate::backend::cpu::threads::Threads;
use crate::format::{Bytes, DType};
use crate::quant;
use std::ops::Range;

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

/// The blocks of `testdata/quant`, and how many bytes of them have ordinary scales: those of the first half.
fn blocks(dtype: DType) -> (Vec<u8>, usize) {
    let path = format!("{}/../../testdata/quant/{dtype}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let file = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    let blocks = file.tensor("blocks").unwrap().data().to_vec();
    let ordinary = blocks.len() / 2;
    (blocks, ordinary)
}

/// Random blocks of a type, whose scales are neither special nor large.
fn matrix(dtype: DType, rows: usize, cols: usize) -> HostMatrix {
    let (all, ordinary) = blocks(dtype);
    let ordinary = &all[..ordinary];
    // Another step at each turn makes the rows differ.
    let blocks: Vec<&[u8]> = ordinary.chunks(dtype.block_bytes()).collect();
    let count = rows * cols / dtype.block_size();
    let bytes: Vec<u8> = (0..count)
        .flat_map(|i| blocks[(i + 5 * (i / blocks.len())) % blocks.len()])
        .copied()
        .collect();
    HostMatrix { rows, cols, dtype, bytes: Bytes::from(bytes) }
}

/// The weights as numbers.
fn dequantized(weights: &HostMatrix) -> Vec<f32> {
    let mut values = vec![0.0; weights.rows * weights.cols];
    quant::dequantize(weights.dtype, &weights.bytes, &mut values).unwrap();
    values
}

/// The activations that a product of a type really takes: for block types rounded to 127ths of the largest of each
/// sixteen, or each 32 for types of 256.
fn as_taken(dtype: DType, x: &[f32]) -> Vec<f64> {
    if dtype.block_size() == 1 {
        return x.iter().map(|x| f64::from(*x)).collect();
    }
    let shared = if dtype.block_size() == 32 { 16 } else { 32 };
    let blocks = x.chunks(shared).flat_map(|block| {
        let largest = block.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let (scale, inverse) = (largest / 127.0, 127.0 / largest);
        block.iter().map(move |x| f64::from((x * inverse).round_ties_even()) * f64::from(scale))
    });
    blocks.collect()
}

/// `x * weights.transposed()` as (tokens, rows).
fn product(isa: Isa, weights: &PackedMatrix, x: &[f32]) -> Vec<f32> {
    product_of(isa, weights, 0..weights.rows(), x)
}

fn product_of(isa: Isa, weights: &PackedMatrix, rows: Range<usize>, x: &[f32]) -> Vec<f32> {
    let mut activations = Activations::default();
    activations.set(isa, x.len() / weights.cols(), weights.cols());
    let width = rows.len();
    let mut out = vec![f32::NAN; activations.tokens() * width];
    let target = Target { out: &mut out, width, first_column: 0 };
    let finish = Finish { bias: None, add: false };
    isa.product(&mut threads(), target, x, &mut activations, weights, rows, finish);
    out
}

fn threads() -> Threads {
    Threads::new(2).unwrap()
}

fn packed(weights: &HostMatrix) -> PackedMatrix {
    PackedMatrix::new(weights, &mut Arena::default(), &mut threads())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Rows, columns and tokens: whole groups and tiles and what sticks out of them, whole steps and rests.
const SHAPES: [(usize, usize, usize); 11] = [
    (1, 32, 1),
    (16, 64, 5),
    (15, 96, 4),
    (17, 320, 3),
    (40, 768, 6),
    (5, 33, 2),
    (2, 1, 7),
    (70, 47, 4),
    (100, 256, 1),
    (33, 512, 9),
    (130, 256, 29),
];

/// The shapes that a type can have.
fn shapes(dtype: DType) -> impl Iterator<Item = (usize, usize, usize)> {
    SHAPES.into_iter().filter(move |(_, cols, _)| cols.is_multiple_of(dtype.block_size()))
}

#[test]
fn rows_of_every_type_are_read_back_exactly() {
    for dtype in quant::SUPPORTED {
        for (rows, cols, _) in shapes(*dtype) {
            let weights = matrix(*dtype, rows, cols);
            let (packed, expected) = (packed(&weights), dequantized(&weights));
            assert_eq!((packed.rows(), packed.cols()), (rows, cols));
            for (row, expected) in expected.chunks(cols).enumerate() {
                let mut found = vec![f32::NAN; cols];
                packed.dequantize_row(row, &mut found);
                assert_eq!(bits(&found), bits(expected), "{dtype} row {row} of {rows}x{cols}");
            }
        }
    }
}

#[test]
fn special_scales_are_read_back_exactly() {
    for dtype in quant::SUPPORTED {
        let (all, _) = blocks(*dtype);
        let cols = dtype.block_size();
        let rows = all.len() / dtype.block_bytes();
        let weights = HostMatrix { rows, cols, dtype: *dtype, bytes: Bytes::from(all) };
        let (packed, expected) = (packed(&weights), dequantized(&weights));
        for (row, expected) in expected.chunks(cols).enumerate() {
            let mut found = vec![0.0; cols];
            packed.dequantize_row(row, &mut found);
            for (found, expected) in found.iter().zip(expected) {
                let both_nan = found.is_nan() && expected.is_nan();
                assert!(both_nan || found.to_bits() == expected.to_bits(), "{dtype} row {row}");
            }
        }
    }
}

#[test]
fn packed_weights_take_hardly_more_memory() {
    for dtype in quant::SUPPORTED {
        let weights = matrix(*dtype, 256, 512);
        let (file, packed) = (weights.bytes.len() as f64, packed(&weights).byte_len() as f64);
        assert!(packed < file * 1.04, "{dtype}: {file} {packed}");
    }
}

#[test]
fn products_are_right_for_every_type_and_odd_shape() {
    for dtype in quant::SUPPORTED {
        for (rows, cols, tokens) in shapes(*dtype) {
            let weights = matrix(*dtype, rows, cols);
            let (packed, values) = (packed(&weights), dequantized(&weights));
            let x = numbers(11, tokens * cols);
            let taken = as_taken(*dtype, &x);
            for isa in Isa::all() {
                let found = product(isa, &packed, &x);
                for (token, taken) in taken.chunks(cols).enumerate() {
                    for (row, weights) in values.chunks(cols).enumerate() {
                        let terms = taken.iter().zip(weights).map(|(x, w)| x * f64::from(*w));
                        let expected: f64 = terms.sum();
                        // Rounding errors grow with what is added up, and with minima that is more than the weights.
                        let largest = weights.iter().fold(0.0f32, |most, w| most.max(w.abs()));
                        let magnitude: f64 = taken.iter().map(|x| x.abs()).sum();
                        let found = found[token * rows + row];
                        let error = (f64::from(found) - expected).abs();
                        assert!(
                            error <= 1e-6 * magnitude * f64::from(largest),
                            "{dtype} {isa:?} {rows}x{cols}, row {row}: {found} {expected}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn small_and_large_exponents_of_mxfp4_are_multiplied_right() {
    // Above them, 32 products of 127 with the largest code are no F32; below, scales are denormal.
    let exponents = 0..=235u8;
    let bytes: Vec<u8> = exponents
        .clone()
        .flat_map(|exponent| [[exponent; 1].as_slice(), &[0x22; 16]].concat())
        .collect();
    let weights =
        HostMatrix { rows: exponents.len(), cols: 32, dtype: DType::MXFP4, bytes: bytes.into() };
    let packed = packed(&weights);
    for isa in Isa::all() {
        for (exponent, found) in exponents.clone().zip(product(isa, &packed, &[1.0; 32])) {
            let expected = 2.0f64.powi(i32::from(exponent) - 127 + 5);
            assert!(
                (f64::from(found) / expected - 1.0).abs() < 1e-6,
                "{isa:?} {exponent}: {found}"
            );
        }
    }
}

#[test]
fn a_product_does_not_depend_on_the_rows_and_tokens_beside_it() {
    for dtype in quant::SUPPORTED {
        let (rows, cols, tokens) = (83, 160usize.next_multiple_of(dtype.block_size()), 13);
        let weights = packed(&matrix(*dtype, rows, cols));
        let x = numbers(5, tokens * cols);
        for isa in Isa::all() {
            let all = product(isa, &weights, &x);
            for (token, x) in x.chunks(cols).enumerate() {
                for range in [0..rows, 0..1, 7..40, 32..64, 82..83, 15..17] {
                    let some = product_of(isa, &weights, range.clone(), x);
                    let expected = &all[token * rows..][range.clone()];
                    assert_eq!(bits(&some), bits(expected), "{dtype} {isa:?} {token} {range:?}");
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
        let weights = packed(&matrix(*dtype, 38, cols));
        let x = numbers(3, 13 * cols);
        let expected = bits(&product(*first, &weights, &x));
        for isa in rest {
            assert_eq!(bits(&product(*isa, &weights, &x)), expected, "{dtype} {isa:?}");
        }
    }
}

#[test]
fn products_share_activations_and_go_where_they_belong() {
    let (cols, tokens) = (256, 11);
    let x = numbers(7, tokens * cols);
    // Types that want different things of the same activations.
    let types = [DType::Q8_0, DType::F16, DType::Q4_K, DType::Q6_K, DType::Q2_K, DType::Q8_0];
    let factors: Vec<PackedMatrix> = types
        .iter()
        .zip([20, 1, 33, 16, 40, 7])
        .map(|(t, rows)| packed(&matrix(*t, rows, cols)))
        .collect();
    let width = 5 + factors.iter().map(PackedMatrix::rows).sum::<usize>();
    for isa in Isa::all() {
        let mut activations = Activations::default();
        activations.set(isa, tokens, cols);
        let (before, bias) = (numbers(8, tokens * width), numbers(9, 40));
        let mut out = before.clone();
        let mut first_column = 2;
        for (index, weights) in factors.iter().enumerate() {
            let target = Target { out: &mut out, width, first_column };
            let bias = (index % 2 == 0).then_some(&bias[..]);
            let finish = Finish { bias, add: index % 3 == 0 };
            isa.product(
                &mut threads(),
                target,
                &x,
                &mut activations,
                weights,
                0..weights.rows(),
                finish,
            );
            first_column += weights.rows();
        }
        let mut expected = before;
        let mut first_column = 2;
        for (index, weights) in factors.iter().enumerate() {
            for (token, product) in product(isa, weights, &x).chunks(weights.rows()).enumerate() {
                for (row, product) in product.iter().enumerate() {
                    let out = &mut expected[token * width + first_column + row];
                    let product = if index % 2 == 0 { product + bias[row] } else { *product };
                    *out = if index % 3 == 0 { *out + product } else { product };
                }
            }
            first_column += weights.rows();
        }
        assert_eq!(bits(&out), bits(&expected), "{isa:?}");
    }
}
