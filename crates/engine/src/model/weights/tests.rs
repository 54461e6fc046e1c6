//! Reading weights out of every layout, each against indices worked out by hand.

use super::*;
use crate::format::Checkpoint;
use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

#[test]
fn transpose_moves_every_element() {
    let (rows, cols) = (37, 70);
    let original: Vec<u8> = (0..rows * cols).flat_map(|i| (i as u16).to_le_bytes()).collect();
    let transposed = transpose(&original, rows, cols, 2);
    for row in 0..rows {
        for col in 0..cols {
            let at = (col * rows + row) * 2;
            let value = u16::from_le_bytes([transposed[at], transposed[at + 1]]);
            assert_eq!(usize::from(value), row * cols + col);
        }
    }
}

/// A tensor of a test: its name, type, shape and bytes.
type Tensor<'a> = (&'a str, Dtype, &'a [usize], Vec<u8>);

/// A directory with these tensors.
fn checkpoint(tensors: &[Tensor]) -> (TempDir, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (*name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    (folder, checkpoint)
}

/// 0, 1, 2 ... as F32.
fn counting(count: usize) -> Vec<u8> {
    (0..count).flat_map(|number| (number as f32).to_le_bytes()).collect()
}

fn check(checkpoint: &Checkpoint, source: &TensorSource) -> Result<(), String> {
    Check { checkpoint }.check(source).map_err(|error| error.to_string())
}

/// The checked weight in F32, one row after another.
fn values(checkpoint: &Checkpoint, source: &TensorSource) -> Vec<f32> {
    check(checkpoint, source).unwrap();
    let matrix = read(checkpoint, source).unwrap();
    assert_eq!((matrix.rows, matrix.cols), (source.rows, source.cols));
    let mut values = vec![0.0; matrix.rows * matrix.cols];
    quant::dequantize(matrix.dtype, &matrix.bytes, &mut values).unwrap();
    values
}

#[test]
fn transposed_experts_with_interleaved_rows() {
    let (experts, cols, rows) = (3, 5, 4);
    let shape = [experts, cols, 2 * rows];
    let (_folder, checkpoint) =
        checkpoint(&[("m", Dtype::F32, &shape, counting(experts * cols * 2 * rows))]);
    for start in [0, 1] {
        let source = TensorSource::matrix("m", rows, cols, Layout::Transposed)
            .for_each_of(experts)
            .with_order(Rows::Every { start, step: 2 });
        let found = values(&checkpoint, &source);
        for (index, value) in found.iter().enumerate() {
            let (expert, row, col) = (index / (rows * cols), index / cols % rows, index % cols);
            let expected = (expert * cols + col) * 2 * rows + 2 * row + start;
            assert_eq!(*value, expected as f32, "expert {expert} row {row} column {col}");
        }
    }
}

#[test]
fn vectors_of_experts_with_interleaved_elements() {
    let (_folder, checkpoint) = checkpoint(&[("v", Dtype::F32, &[2, 6], counting(12))]);
    let odd =
        TensorSource::vector("v", 3).for_each_of(2).with_order(Rows::Every { start: 1, step: 2 });
    assert_eq!(values(&checkpoint, &odd), [1.0, 3.0, 5.0, 7.0, 9.0, 11.0]);
}

#[test]
fn a_part_of_a_matrix_and_of_its_bias() {
    let (_folder, checkpoint) = checkpoint(&[
        ("qkv", Dtype::F32, &[6, 2], counting(12)),
        ("bias", Dtype::F32, &[6], counting(6)),
        ("experts", Dtype::F32, &[2, 4, 2], counting(16)),
    ]);
    let order = Rows::From { start: 3, of: 6 };
    let part = TensorSource::matrix("qkv", 2, 2, Layout::RowMajor).with_order(order);
    assert_eq!(values(&checkpoint, &part), [6.0, 7.0, 8.0, 9.0]);
    let part = TensorSource::vector("bias", 2).with_order(order);
    assert_eq!(values(&checkpoint, &part), [3.0, 4.0]);
    let order = Rows::From { start: 2, of: 4 };
    let part =
        TensorSource::matrix("experts", 2, 2, Layout::RowMajor).for_each_of(2).with_order(order);
    assert_eq!(values(&checkpoint, &part), [4.0, 5.0, 6.0, 7.0, 12.0, 13.0, 14.0, 15.0]);
}

#[test]
fn a_tensor_for_each_expert_in_the_order_of_their_numbers() {
    let tensor = |name, first: f32| -> Tensor {
        (name, Dtype::F32, &[1, 2], [first, first + 0.5].map(f32::to_le_bytes).concat())
    };
    let (_folder, checkpoint) =
        checkpoint(&[tensor("e.1.w", 1.0), tensor("e.0.w", 0.0), tensor("e.2.w", 2.0)]);
    let all = TensorSource::matrix("e.{}.w", 1, 2, Layout::TensorForEach).for_each_of(3);
    assert_eq!(values(&checkpoint, &all), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]);
    let more = TensorSource::matrix("e.{}.w", 1, 2, Layout::TensorForEach).for_each_of(4);
    let error = check(&checkpoint, &more).unwrap_err();
    assert!(error.contains("`e.3.w` is missing"), "{error}");
}

#[test]
fn experts_of_several_types_are_refused() {
    let (_folder, checkpoint) = checkpoint(&[
        ("e.0.w", Dtype::F32, &[1, 2], counting(2)),
        ("e.1.w", Dtype::F16, &[1, 2], vec![0; 4]),
    ]);
    let all = TensorSource::matrix("e.{}.w", 1, 2, Layout::TensorForEach).for_each_of(2);
    let error = check(&checkpoint, &all).unwrap_err();
    assert!(error.contains("`e.1.w` has type F16") && error.contains("F32"), "{error}");
}

const PAIR: Layout = Layout::Mxfp4Pair { blocks: "_blocks", scales: "_scales" };

#[test]
fn pairs_of_numbers_and_exponents_with_interleaved_rows() {
    // The table of the OCP Microscaling specification.
    let table = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let (experts, rows, blocks) = (2, 3, 2);
    let bytes = experts * 2 * rows * blocks * 16;
    let numbers: Vec<u8> = (0..bytes).map(|index| (index * 37 + index / 16) as u8).collect();
    let exponents: Vec<u8> = (0..bytes / 16).map(|index| 120 + index as u8 % 13).collect();
    let (_folder, checkpoint) = checkpoint(&[
        ("m_blocks", Dtype::U8, &[experts, 2 * rows, blocks, 16], numbers.clone()),
        ("m_scales", Dtype::U8, &[experts, 2 * rows, blocks], exponents.clone()),
    ]);
    for start in [0, 1] {
        let source = TensorSource::matrix("m", rows, 32 * blocks, PAIR)
            .for_each_of(experts)
            .with_order(Rows::Every { start, step: 2 });
        for (index, value) in values(&checkpoint, &source).iter().enumerate() {
            let (row, col) = (index / (32 * blocks), index % (32 * blocks));
            let block = (row / rows * 2 * rows + row % rows * 2 + start) * blocks + col / 32;
            let byte = numbers[block * 16 + col % 32 / 2];
            let code = if col % 2 == 0 { byte & 15 } else { byte >> 4 };
            let sign = if code & 8 == 0 { 1.0 } else { -1.0 };
            let expected =
                sign * table[usize::from(code & 7)] * 2f32.powi(i32::from(exponents[block]) - 127);
            assert_eq!(*value, expected, "row {row} column {col}");
        }
    }
}

#[test]
fn pairs_that_do_not_belong_together_are_refused() {
    let numbers = || vec![0; 2 * 4 * 16];
    let source = TensorSource::matrix("m", 4, 32, PAIR).for_each_of(2);
    let refused = |tensors: &[Tensor], part: &str| {
        let (_folder, checkpoint) = checkpoint(tensors);
        let error = check(&checkpoint, &source).unwrap_err();
        assert!(error.contains(part), "{error}");
    };
    let blocks: &Tensor = &("m_blocks", Dtype::U8, &[2, 4, 1, 16], numbers());
    refused(std::slice::from_ref(blocks), "`m_scales` is missing");
    let scales = |dtype, shape, length| -> Tensor { ("m_scales", dtype, shape, vec![0; length]) };
    refused(
        &[blocks.clone(), scales(Dtype::U8, &[2, 4], 8)],
        "`m_scales`: expected shape [2, 4, 1], found [2, 4]",
    );
    refused(
        &[blocks.clone(), scales(Dtype::U8, &[2, 2, 1], 4)],
        "`m_scales`: expected shape [2, 4, 1], found [2, 2, 1]",
    );
    refused(&[blocks.clone(), scales(Dtype::I8, &[2, 4, 1], 8)], "`m_scales` has type I8");
    let flat: Tensor = ("m_blocks", Dtype::U8, &[2, 4, 16], numbers());
    refused(&[flat, scales(Dtype::U8, &[2, 4, 1], 8)], "`m_blocks`: expected shape [2, 4, 1, 16]");
}
