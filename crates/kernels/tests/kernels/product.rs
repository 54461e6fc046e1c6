//! Products of every weight type.

use crate::common::{Random, Stored, assert_near, bits, cols, distance, gpu, run};
use oxgpt_kernels::{Arena, Buf, Gpu, Matrix, Place, Uploader, WeightType, product};

/// Sums of f32 products of this many terms stay nearer than this.
const TOLERANCE: f64 = 2e-6;

/// `x * weight.transposed() + bias`
fn expected(stored: &Stored, x: &[f32], bias: Option<&[f32]>) -> Vec<f64> {
    let [rows, cols] = stored.shape;
    let mut out = Vec::new();
    for x in x.chunks(cols) {
        for row in 0..rows {
            let dot: f64 =
                x.iter().zip(stored.row(row)).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            out.push(dot + bias.map_or(0.0, |bias| f64::from(bias[row])));
        }
    }
    out
}

fn multiply(gpu: &Gpu, matrix: &Matrix, x: &[f32], bias: Option<&Buf<f32>>) -> Vec<f32> {
    let tokens = x.len() / matrix.cols();
    let x = Buf::from_slice(gpu, x).unwrap();
    let place = Place { start: 0, stride: matrix.rows() };
    run(gpu, tokens * matrix.rows(), None, |out| {
        product(gpu, out, place, &x, matrix, bias, tokens, false)
    })
}

#[test]
fn products_of_every_type() {
    let Some(gpu) = gpu() else { return };
    for kind in WeightType::ALL {
        let mut random = Random(kind as u64 + 1000);
        for (rows, about) in [(1, 1), (37, 70), (130, 1500), (48, 1536), (16, 64)] {
            let cols = cols(kind, about);
            let stored = Stored::random(kind, [rows, cols], &mut random);
            let matrix = stored.upload(&gpu);
            let bias = random.normals(rows);
            let bias_on_device = Buf::from_slice(&gpu, &bias).unwrap();
            let x = random.normals(17 * cols);
            let alone: Vec<u32> =
                x.chunks(cols).flat_map(|x| bits(&multiply(&gpu, &matrix, x, None))).collect();
            for tokens in [1, 2, 3, 4, 5, 8, 9, 17] {
                let what = format!("{kind:?} {rows} x {cols}, {tokens} tokens");
                let x = &x[..tokens * cols];
                let found = multiply(&gpu, &matrix, x, None);
                assert_near(&found, &expected(&stored, x, None), TOLERANCE, &what);
                assert_eq!(bits(&found), alone[..tokens * rows], "{what}: alone or with others");
                let found = multiply(&gpu, &matrix, x, Some(&bias_on_device));
                assert_near(&found, &expected(&stored, x, Some(&bias)), TOLERANCE, &what);
            }
        }
    }
}

#[test]
fn repeats_have_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    for kind in [WeightType::F16, WeightType::Q8_0, WeightType::Q4_K, WeightType::MXFP4] {
        let mut random = Random(kind as u64 + 300);
        // More tiles than multiprocessors, and rows in several pieces.
        let stored = Stored::random(kind, [2064, cols(kind, 4096)], &mut random);
        let matrix = stored.upload(&gpu);
        let x = random.normals(8 * matrix.cols());
        for tokens in [1, 3, 8] {
            let x = &x[..tokens * matrix.cols()];
            let first = bits(&multiply(&gpu, &matrix, x, None));
            for round in 1..100 {
                let found = bits(&multiply(&gpu, &matrix, x, None));
                assert_eq!(found, first, "{kind:?}, {tokens} tokens, round {round}");
            }
        }
    }
}

#[test]
fn products_with_many_rows_and_many_columns() {
    let Some(gpu) = gpu() else { return };
    for kind in [WeightType::F16, WeightType::Q8_0, WeightType::Q4_K, WeightType::MXFP4] {
        let mut random = Random(kind as u64 + 2000);
        // Rows enough for four to a warp; columns for more than a tile.
        for (rows, about) in [(9001, 64), (70, 11_000), (5008, 2880)] {
            let cols = cols(kind, about);
            let stored = Stored::random(kind, [rows, cols], &mut random);
            let matrix = stored.upload(&gpu);
            let x = random.normals(6 * cols);
            let together = multiply(&gpu, &matrix, &x, None);
            assert_near(&together, &expected(&stored, &x, None), TOLERANCE, &format!("{kind:?}"));
            let alone: Vec<u32> =
                x.chunks(cols).flat_map(|x| bits(&multiply(&gpu, &matrix, x, None))).collect();
            assert_eq!(bits(&together), alone, "{kind:?} {rows} x {cols}");
        }
    }
}

#[test]
fn recorded_products_are_the_same() {
    let Some(gpu) = gpu() else { return };
    let gpu = gpu.with_own_stream().unwrap();
    let mut random = Random(9);
    let stored = Stored::random(WeightType::Q4_0, [40, 64], &mut random);
    let bytes = stored.kind.matrix_bytes(40, 64) + 2 * Arena::padded(4 * 64);
    let mut arena = Arena::new(&gpu, bytes).unwrap();
    let mut uploader = Uploader::new(&gpu).unwrap();
    let matrix = uploader.matrix(&mut arena, stored.kind, (40, 64), &stored.bytes).unwrap();
    uploader.finish().unwrap();
    let (mut x_device, mut out) = (arena.buffer(64).unwrap(), arena.buffer(40).unwrap());
    let place = Place { start: 0, stride: 40 };
    let launch = |out: &mut Buf<f32>, x: &Buf<f32>| {
        product(&gpu, out, place, x, &matrix, None, 1, false).unwrap();
    };
    launch(&mut out, &x_device);
    gpu.start_recording().unwrap();
    launch(&mut out, &x_device);
    let graph = gpu.finish_recording(&arena).unwrap();
    for _ in 0..3 {
        let x = random.normals(64);
        x_device.write(&x).unwrap();
        out.fill_bytes(0xFF).unwrap();
        graph.launch().unwrap();
        let mut found = vec![0.0; 40];
        out.read(&mut found).unwrap();
        assert_near(&found, &expected(&stored, &x, None), TOLERANCE, "recorded");
    }
}

#[test]
fn products_go_beside_each_other() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(4);
    let stored = Stored::random(WeightType::F16, [10, 24], &mut random);
    let matrix = stored.upload(&gpu);
    for tokens in [1, 2, 7] {
        let x = random.normals(tokens * 24);
        let on_device = Buf::from_slice(&gpu, &x).unwrap();
        let start = random.normals(tokens * 33);
        let found = run(&gpu, tokens * 33, Some(&start), |out| {
            let place = Place { start: 5, stride: 33 };
            product(&gpu, out, place, &on_device, &matrix, None, tokens, false)
        });
        let mut all: Vec<f64> = start.iter().map(|x| f64::from(*x)).collect();
        for (row, products) in expected(&stored, &x, None).chunks(10).enumerate() {
            all[row * 33 + 5..][..10].copy_from_slice(products);
        }
        assert_near(&found, &all, TOLERANCE, "beside");
        let touched = |i: usize| (5..15).contains(&(i % 33));
        let same = found.iter().zip(&start).enumerate();
        assert!(same.into_iter().all(|(i, (f, s))| touched(i) || f.to_bits() == s.to_bits()));
    }
}

#[test]
fn products_are_added_to_what_is_there() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(5);
    let stored = Stored::random(WeightType::Q5_1, [70, 96], &mut random);
    let matrix = stored.upload(&gpu);
    let bias = random.normals(70);
    let bias_on_device = Buf::from_slice(&gpu, &bias).unwrap();
    for tokens in [3, 8] {
        let (x, start) = (random.normals(tokens * 96), random.normals(tokens * 70));
        let on_device = Buf::from_slice(&gpu, &x).unwrap();
        let found = run(&gpu, tokens * 70, Some(&start), |out| {
            let place = Place { start: 0, stride: 70 };
            product(&gpu, out, place, &on_device, &matrix, Some(&bias_on_device), tokens, true)
        });
        let mut sums = expected(&stored, &x, Some(&bias));
        sums.iter_mut().zip(&start).for_each(|(sum, start)| *sum += f64::from(*start));
        assert_near(&found, &sums, TOLERANCE, "added");
    }
}

#[test]
fn one_wrong_weight_is_seen() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(6);
    let mut stored = Stored::random(WeightType::F32, [64, 512], &mut random);
    let matrix = stored.upload(&gpu);
    let x = random.normals(512);
    let found = multiply(&gpu, &matrix, &x, None);
    stored.values[100] += 0.01;
    assert!(distance(&found, &expected(&stored, &x, None)) > TOLERANCE);
}
