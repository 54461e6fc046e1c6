//! The operations of the CPU against the reference, on numbers from a seed.

use super::*;
use crate::backend::reference::{self, Reference};
use crate::batch::Logits;
use crate::format::{Bytes, DType};
use crate::model::spec::{Activation, ChoiceWeights, Longer, NormKind, RopeStyle};

/// Numbers from -1 to 1, by a linear congruential generator.
pub(super) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2) + 1;
    let next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn matrix(rows: usize, cols: usize, seed: u64) -> HostMatrix {
    let bytes: Vec<u8> =
        numbers(rows * cols, seed).iter().flat_map(|number| number.to_le_bytes()).collect();
    HostMatrix { rows, cols, dtype: DType::F32, bytes: Bytes::from(bytes) }
}

fn linear<B: Backend>(
    b: &mut B,
    rows: usize,
    cols: usize,
    seed: u64,
) -> Linear<B::Matrix, B::Vector> {
    let weight = b.matrix(matrix(rows, cols, seed));
    Linear { weight, bias: Some(b.vector(numbers(rows, seed + 1))) }
}

/// A buffer that holds rows of a matrix from this seed.
fn filled<B: Backend>(b: &mut B, rows: usize, width: usize, seed: u64) -> B::Buffer {
    let mut buffer = b.buffer(rows, width);
    let table = b.matrix(matrix(rows, width, seed));
    let all: Vec<u32> = (0..rows as u32).collect();
    b.embed(&mut buffer, &table, &all, 3.0);
    buffer
}

fn read<B: Backend>(b: &mut B, buffer: &B::Buffer) -> Vec<f32> {
    let mut out = Vec::new();
    b.read(&mut out, buffer);
    out
}

/// Runs the same on both backends and compares what comes out, relative to its length.
macro_rules! assert_same {
    ($what:expr, |$b:ident| $run:expr) => {{
        let run_cpu = |$b: &mut Cpu| $run;
        let run_reference = |$b: &mut Reference| $run;
        let mut cpu = Cpu::new(2).unwrap();
        let (found, expected) = (run_cpu(&mut cpu), run_reference(&mut Reference::default()));
        assert_eq!(found.len(), expected.len(), "{}", $what);
        assert!(expected.iter().any(|x| *x != 0.0), "{}: nothing to compare", $what);
        let square = |x: f32| f64::from(x) * f64::from(x);
        let error: f64 = found.iter().zip(&expected).map(|(a, b)| square(a - b)).sum();
        let length: f64 = expected.iter().map(|x| square(*x)).sum();
        let relative = (error / length).sqrt();
        assert!(relative < 1e-6, "{}: {relative}", $what);
    }};
}

#[test]
fn norms_of_rows_and_heads() {
    for kind in [NormKind::LayerNorm, NormKind::RmsNorm] {
        for bias in [false, true] {
            assert_same!(format!("{kind:?} {bias}"), |b| {
                let norm = Norm {
                    kind,
                    weight: b.vector(numbers(37, 1)),
                    bias: bias.then(|| b.vector(numbers(37, 2))),
                    eps: 1e-5,
                };
                let x = filled(b, 9, 37, 3);
                let mut out = b.buffer(9, 37);
                b.norm(&mut out, &x, &norm);
                read(b, &out)
            });
            assert_same!(format!("heads {kind:?} {bias}"), |b| {
                let norm = Norm {
                    kind,
                    weight: b.vector(numbers(7, 1)),
                    bias: bias.then(|| b.vector(numbers(7, 2))),
                    eps: 1e-5,
                };
                let mut x = filled(b, 9, 35, 3);
                b.norm_heads(&mut x, 1..4, &norm);
                read(b, &x)
            });
        }
    }
}

#[test]
fn products_side_by_side() {
    assert_same!("three products", |b| {
        let linears = [linear(b, 5, 24, 1), linear(b, 33, 24, 3), linear(b, 16, 24, 5)];
        let x = filled(b, 7, 24, 7);
        let mut out = b.buffer(7, 54);
        b.matmul(&mut out, &x, &linears);
        read(b, &out)
    });
}

#[test]
fn rotations_of_both_styles_and_lengths() {
    for style in [RopeStyle::Halves, RopeStyle::Pairs] {
        for is_long in [false, true] {
            let rope = Rope {
                style,
                inverse_frequencies: vec![1.0, 0.3, 0.01],
                magnitude: 1.25,
                longer: Some(Longer { than: 10, inverse_frequencies: vec![0.5, 0.2, 0.001] }),
            };
            // Eight wide heads of which six elements are rotated.
            let shape = AttentionShape {
                heads: 3,
                kv_heads: 1,
                head_dim: 8,
                scale: 1.0,
                window: None,
                soft_cap: None,
            };
            let mut batch = Batch::new(0);
            batch.push(&[0, 0, 0], 900, is_long, &[], Logits::None);
            assert_same!(format!("{style:?} {is_long}"), |b| {
                let mut qkv = filled(b, 3, shape.qkv_width(), 1);
                let mut rotations = b.buffer(3, 6);
                b.rotations(&mut rotations, &rope, &batch);
                b.rotate(&mut qkv, &rotations, &rope, &shape);
                read(b, &qkv)
            });
        }
    }
}

#[test]
fn nonlinearities() {
    for nonlinearity in [
        Nonlinearity::Plain(Activation::GeluErf),
        Nonlinearity::Gated(Activation::Silu),
        Nonlinearity::Gated(Activation::GeluTanh),
        Nonlinearity::ClampedSwiglu { alpha: 1.702, limit: 2.0 },
    ] {
        assert_same!(format!("{nonlinearity:?}"), |b| {
            let x = filled(b, 5, 46, 1);
            let mut out = b.buffer(5, 46);
            b.activate(&mut out, &x, nonlinearity);
            read(b, &out)
        });
    }
}

#[test]
fn sums_zeros_and_soft_caps() {
    assert_same!("soft cap", |b| {
        let (mut sum, x) = (filled(b, 5, 21, 1), filled(b, 5, 21, 2));
        b.add(&mut sum, &x);
        b.soft_cap(&mut sum, 2.5);
        read(b, &sum)
    });
    assert_same!("zeros", |b| {
        let (mut sum, x) = (filled(b, 2, 8, 1), filled(b, 5, 21, 2));
        b.zero_like(&mut sum, &x);
        b.add(&mut sum, &x);
        read(b, &sum)
    });
}

#[test]
fn experts() {
    for weights in [ChoiceWeights::SoftmaxOfChosen, ChoiceWeights::SoftmaxOfAll] {
        for count in [1, 2, 6] {
            let choice = Choice { count, weights };
            assert_same!(format!("{choice:?}"), |b| {
                let router = filled(b, 11, 6, 1);
                let x = filled(b, 11, 32, 2);
                let up = [linear(b, 6 * 5, 32, 3), linear(b, 6 * 7, 32, 5)];
                let down = linear(b, 6 * 9, 12, 7);
                let mut sum = filled(b, 11, 9, 9);
                let mut routes = b.routes(11, count);
                let mut intermediate = b.buffer(11 * count, 12);
                b.route(&mut routes, &router, choice);
                b.expert_matmul(&mut intermediate, &x, &up, &routes);
                b.expert_matmul_add(&mut sum, &intermediate, &down, &routes);
                read(b, &sum)
            });
        }
    }
}

#[test]
fn the_lower_expert_comes_first_among_equals() {
    let choice = Choice { count: 2, weights: ChoiceWeights::SoftmaxOfAll };
    let chosen = reference::choose(&[1.0, 3.0, 3.0, 3.0], choice);
    assert_eq!(chosen.iter().map(|(expert, _)| *expert).collect::<Vec<_>>(), [1, 2]);
    assert_same!("equal router outputs", |b| {
        let table = b.matrix(HostMatrix {
            rows: 1,
            cols: 4,
            dtype: DType::F32,
            bytes: Bytes::from([1f32, 3.0, 3.0, 3.0].map(f32::to_le_bytes).concat()),
        });
        let mut router = b.buffer(1, 4);
        b.embed(&mut router, &table, &[0], 1.0);
        let x = filled(b, 1, 16, 1);
        let up = [linear(b, 4 * 3, 16, 2)];
        let mut routes = b.routes(1, 2);
        let mut out = b.buffer(2, 3);
        b.route(&mut routes, &router, choice);
        b.expert_matmul(&mut out, &x, &up, &routes);
        read(b, &out)
    });
}

#[test]
fn attention_with_sinks_windows_and_soft_caps() {
    for (kv_heads, window, soft_cap, with_sinks) in [
        (4, None, None, true),
        (2, Some(40), None, true),
        (1, Some(5), Some(0.7), false),
        (2, None, Some(1.5), true),
    ] {
        let shape =
            AttentionShape { heads: 4, kv_heads, head_dim: 12, scale: 0.6, window, soft_cap };
        let rows = 70;
        let mut batch = Batch::new(1);
        // Blocks out of order, as a pool that was used before gives them.
        batch.push(&vec![0; rows], 0, false, &[vec![2, 0, 1]], Logits::None);
        assert_same!(format!("{shape:?} {with_sinks}"), |b| {
            let qkv = filled(b, rows, shape.qkv_width(), 1);
            let sinks = with_sinks.then(|| b.vector(numbers(4, 5)));
            let mut kv = b.kv(3, &shape);
            let mut out = b.buffer(rows, shape.query_width());
            b.append(&mut kv, &qkv, &batch, &batch.block_tables[0], &shape);
            let tables = &batch.block_tables[0];
            b.attend(&mut out, &qkv, &kv, &batch, tables, &shape, sinks.as_ref());
            read(b, &out)
        });
    }
}
