//! Attention for the rows of prompts.

use crate::attention::{Case, SHAPES, shape};
use crate::common::{Random, assert_near, bits, distance, gpu};
use oxgpt_kernels::{AttentionShape, Gpu, KvElement};

/// Queries and weights of values have 11 significant bits.
const TOLERANCE: f64 = 6e-4;

fn found(case: &Case, gpu: &Gpu, random: &mut Random) -> Vec<f32> {
    case.found_as(gpu, KvElement::F16, true, random)
}

#[test]
fn every_shape_of_heads() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(141);
    // More heads than a block takes, heads between the widths of the kernels, and those of SHAPES.
    let more =
        [(20, 1, 64), (16, 1, 16), (3, 1, 77), (4, 2, 96), (6, 2, 100), (2, 2, 129), (5, 1, 250)];
    for (heads, kv_heads, dim) in SHAPES.into_iter().chain(more) {
        let shape = shape(heads, kv_heads, dim);
        let case = Case::new(shape, &[1, 33, 300, 700], &[1, 33, 65, 200], &mut random);
        let found = found(&case, &gpu, &mut random);
        let what = format!("{heads} heads, {kv_heads} of keys, {dim} wide");
        assert_near(&found, &case.expected(), TOLERANCE, &what);
    }
}

#[test]
fn windows_sinks_and_soft_caps() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(142);
    for window in [None, Some(1), Some(7), Some(128), Some(300), Some(5000)] {
        for soft_cap in [None, Some(3.0)] {
            for with_sinks in [false, true] {
                let shape = AttentionShape { window, soft_cap, ..shape(8, 2, 64) };
                let mut case = Case::new(shape, &[5, 270, 1000], &[5, 20, 150], &mut random);
                case.sinks = with_sinks.then(|| random.normals(8));
                let found = found(&case, &gpu, &mut random);
                let what = format!("window {window:?}, cap {soft_cap:?}, sinks {with_sinks}");
                assert_near(&found, &case.expected(), TOLERANCE, &what);
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_batch() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(144);
    for (window, with_sinks, dim) in
        [(None, false, 64), (Some(128), true, 64), (None, true, 128), (Some(40), false, 256)]
    {
        let shape = AttentionShape { window, ..shape(16, 2, dim) };
        let mut case = Case::new(shape, &[650, 400], &[300, 1], &mut random);
        case.sinks = with_sinks.then(|| random.normals(16));
        let together = found(&case, &gpu, &mut random);
        assert_near(&together, &case.expected(), TOLERANCE, "300 rows");
        // The last rows of the first sequence, by themselves and behind others.
        let width = 16 * dim;
        for (new, beside) in [(1, 1), (1, 40), (37, 0), (64, 1), (250, 399)] {
            case.new = vec![new, beside];
            let found = found(&case, &gpu, &mut random);
            let what = format!("{new} rows beside {beside}, window {window:?}, {dim} wide");
            let expected = &together[(300 - new) * width..300 * width];
            assert_eq!(bits(&found[..new * width]), bits(expected), "{what}");
        }
    }
}

#[test]
fn one_wrong_key_is_seen() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(145);
    let mut case = Case::new(shape(2, 2, 16), &[100], &[20], &mut random);
    let found = found(&case, &gpu, &mut random);
    let width = case.width();
    case.qkv[0][50 * width + 40] += 0.5;
    assert!(distance(&found, &case.expected()) > 2.0 * TOLERANCE);
}
