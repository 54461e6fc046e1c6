//! Repacking and reading of every weight type: exactly the numbers of the engine's `quant` module.

use crate::common::{Random, Stored, cols, gpu, run};
use oxgpt_kernels::{Buf, WeightType, add_rows, embed, gather};

/// How far the farthest number is, in units of the largest of its row.
fn farthest(found: &[f32], expected: &[f32], cols: usize) -> f64 {
    let rows = found.chunks(cols).zip(expected.chunks(cols));
    rows.map(|(found, expected)| {
        let largest = expected.iter().fold(0.0f64, |most, e| most.max(f64::from(e.abs())));
        let differences =
            found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - f64::from(*e)).abs());
        differences.fold(0.0, f64::max) / largest
    })
    .fold(0.0, f64::max)
}

/// Types with a minimum: there a product and a difference are rounded at once instead of one by one.
fn rounds_differently(kind: WeightType) -> bool {
    matches!(
        kind,
        WeightType::Q4_1
            | WeightType::Q5_1
            | WeightType::Q2_K
            | WeightType::Q4_K
            | WeightType::Q5_K
    )
}

#[test]
fn rows_of_every_type_are_exact() {
    let Some(gpu) = gpu() else { return };
    for kind in WeightType::ALL {
        let mut random = Random(kind as u64 + 1);
        for (rows, about) in [(1, 1), (37, 70), (50, 700), (9, 5000)] {
            let cols = cols(kind, about);
            let stored = Stored::random(kind, [rows, cols], &mut random);
            let matrix = stored.upload(&gpu);
            let wanted: Vec<u32> = (0..rows + 3).map(|_| random.below(rows) as u32).collect();
            let on_device = Buf::from_slice(&gpu, &wanted).unwrap();
            let expected: Vec<f32> =
                wanted.iter().flat_map(|row| stored.row(*row as usize)).copied().collect();
            let found = run(&gpu, wanted.len() * cols, None, |out| {
                embed(&gpu, out, &matrix, &on_device, wanted.len(), 1.0)
            });
            if rounds_differently(kind) {
                let farthest = farthest(&found, &expected, cols);
                assert!(farthest < 2e-7, "{kind:?} {rows} x {cols}: {farthest:.1e}");
            } else {
                assert_eq!(found, expected, "{kind:?} {rows} x {cols}");
            }

            let start = random.normals(found.len());
            let added = run(&gpu, found.len(), Some(&start), |out| {
                add_rows(&gpu, out, &matrix, &on_device, wanted.len())
            });
            let sums: Vec<f32> = start.iter().zip(&expected).map(|(a, b)| a + b).collect();
            assert!(farthest(&added, &sums, cols) < 3e-7, "{kind:?} added");
        }
    }
}

#[test]
fn special_scales_of_mxfp4() {
    let Some(gpu) = gpu() else { return };
    // Every exponent with every number.
    let mut bytes = Vec::new();
    for e in 0..=255u8 {
        bytes.push(e);
        bytes.extend((0..16u8).map(|i| i | (15 - i) << 4));
    }
    let mut values = vec![0.0; 256 * 32];
    oxgpt_engine::quant::dequantize(oxgpt_engine::format::DType::MXFP4, &bytes, &mut values)
        .unwrap();
    let stored = Stored { kind: WeightType::MXFP4, shape: [256, 32], bytes, values };
    let matrix = stored.upload(&gpu);
    let rows: Vec<u32> = (0..256).collect();
    let rows = Buf::from_slice(&gpu, &rows).unwrap();
    let found = run(&gpu, 256 * 32, None, |out| embed(&gpu, out, &matrix, &rows, 256, 1.0));
    assert_eq!(found, stored.values);
}

#[test]
fn one_wrong_byte_is_seen() {
    let Some(gpu) = gpu() else { return };
    for kind in WeightType::ALL {
        let mut random = Random(kind as u64 + 100);
        let cols = cols(kind, 300);
        let mut stored = Stored::random(kind, [4, cols], &mut random);
        let byte = stored.bytes.len() / 2;
        stored.bytes[byte] ^= 0x24;
        let matrix = stored.upload(&gpu);
        let rows = Buf::from_slice(&gpu, &[0u32, 1, 2, 3]).unwrap();
        let found = run(&gpu, 4 * cols, None, |out| embed(&gpu, out, &matrix, &rows, 4, 1.0));
        assert_ne!(found, stored.values, "{kind:?}");
        assert!(farthest(&found, &stored.values, cols) > 1e-6, "{kind:?}");
    }
}

#[test]
fn a_scaled_embedding_and_a_gather() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(7);
    let stored = Stored::random(WeightType::F32, [11, 33], &mut random);
    let matrix = stored.upload(&gpu);
    let rows = [10u32, 0, 3];
    let on_device = Buf::from_slice(&gpu, &rows).unwrap();
    let found = run(&gpu, 3 * 33, None, |out| embed(&gpu, out, &matrix, &on_device, 3, 0.3));
    let picked = || rows.iter().flat_map(|row| stored.row(*row as usize)).copied();
    let scaled: Vec<f32> = picked().map(|w| 0.3 * w).collect();
    assert_eq!(found, scaled);

    let x = Buf::from_slice(&gpu, &stored.values).unwrap();
    let found = run(&gpu, 3 * 33, None, |out| gather(&gpu, out, &x, &on_device, 3, 33));
    assert_eq!(found, picked().collect::<Vec<_>>());
}
