//! Products of many tokens on the tensor cores, of every weight type.

use crate::common::{Random, Stored, assert_near, bits, cols, distance, gpu, run};
use oxgpt_kernels::{
    Activation, Arena, Buf, Ending, Gated, Gpu, Matrix, Norm, Outputs, Packed, PackedRoom, Place,
    Routing, Sorted, Sums, WeightType, can_gate_sorted, gemm, gemm_sorted, sort_slots,
    sorted_places, sorted_words,
};

/// Operands have 11 significant bits.
const TOLERANCE: f64 = 6e-4;

/// `x * weight.transposed() + bias` for the rows of the weights in `range`.
fn expected(
    stored: &Stored,
    x: &[f32],
    range: std::ops::Range<usize>,
    bias: Option<&[f32]>,
) -> Vec<f64> {
    let row = |row: usize| {
        let products = x.iter().zip(stored.row(row)).map(|(x, w)| f64::from(*x) * f64::from(*w));
        products.sum::<f64>() + bias.map_or(0.0, |bias| f64::from(bias[row]))
    };
    range.map(row).collect()
}

/// Room for packed rows, full of NaN.
fn room(gpu: &Gpu, rows: usize, cols: usize) -> Packed {
    let room = PackedRoom::default().with(rows, cols);
    let mut arena = Arena::new(gpu, room.bytes()).unwrap();
    arena.fill_bytes(0xFF).unwrap();
    Packed::new(&mut arena, room).unwrap()
}

fn multiply(gpu: &Gpu, matrix: &Matrix, x: &[f32], bias: Option<&Buf<f32>>) -> Vec<f32> {
    let tokens = x.len() / matrix.cols();
    let x = Buf::from_slice(gpu, x).unwrap();
    let mut packed = room(gpu, tokens, matrix.cols());
    packed.rows(gpu, &x, matrix, (0, tokens), None).unwrap();
    let place = Place { start: 0, stride: matrix.rows() };
    run(gpu, tokens * matrix.rows(), None, |out| {
        let outputs = [Outputs { weight: matrix, bias }];
        gemm(gpu, out, place, &packed, &outputs, Ending::Store, Sums::OfShape)
    })
}

fn length(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn every_type_and_number_of_tokens() {
    let Some(gpu) = gpu() else { return };
    for kind in WeightType::ALL {
        let mut random = Random(kind as u64 + 3000);
        // Plain types have odd columns from `cols`; the others are aligned, and the last is cut along K.
        for (rows, cols) in [(1, cols(kind, 1)), (37, cols(kind, 70)), (300, 512), (140, 1792)] {
            let stored = Stored::random(kind, [rows, cols], &mut random);
            let matrix = stored.upload(&gpu);
            let bias = random.normals(rows);
            let bias_on_device = Buf::from_slice(&gpu, &bias).unwrap();
            let x = random.normals(300 * cols);
            let all: Vec<f64> =
                x.chunks(cols).flat_map(|x| expected(&stored, x, 0..rows, Some(&bias))).collect();
            let together = multiply(&gpu, &matrix, &x, Some(&bias_on_device));
            for tokens in [1, 31, 33, 64, 65, 129, 256, 300] {
                let what = format!("{kind:?} {rows} x {cols}, {tokens} tokens");
                let found = multiply(&gpu, &matrix, &x[..tokens * cols], Some(&bias_on_device));
                // The terms of a single output can cancel; its error is bounded by their lengths.
                if rows > 1 {
                    assert_near(&found, &all[..tokens * rows], TOLERANCE, &what);
                }
                for (i, (found, expected)) in found.iter().zip(&all).enumerate() {
                    let length =
                        length(&x[i / rows * cols..][..cols]) * length(stored.row(i % rows));
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error <= length / 1000.0, "{what}: {error:.2e} of {length:.2e}");
                }
                // The tiles differ, the bits do not.
                assert_eq!(bits(&found), bits(&together[..tokens * rows]), "{what}");
            }
        }
    }
}

#[test]
fn some_rows_beside_others_and_added() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(5);
    let stored = Stored::random(WeightType::Q5_1, [70, 96], &mut random);
    let matrix = stored.upload(&gpu);
    for (first, end) in [(3, 8), (0, 70), (9, 109)] {
        let x = random.normals(end * 96);
        let on_device = Buf::from_slice(&gpu, &x).unwrap();
        let mut packed = room(&gpu, end - first, 96);
        packed.rows(&gpu, &on_device, &matrix, (first, end), None).unwrap();
        let start = random.normals(end * 80);
        let found = run(&gpu, end * 80, Some(&start), |out| {
            let place = Place { start: 5, stride: 80 };
            let outputs = [Outputs { weight: &matrix, bias: None }];
            gemm(&gpu, out, place, &packed, &outputs, Ending::Add, Sums::OfShape)
        });
        let mut all: Vec<f64> = start.iter().map(|x| f64::from(*x)).collect();
        for (row, x) in x.chunks(96).enumerate().skip(first) {
            let products = expected(&stored, x, 0..70, None);
            let sums = all[row * 80 + 5..][..70].iter_mut();
            sums.zip(products).for_each(|(sum, product)| *sum += product);
        }
        assert_near(&found, &all, TOLERANCE, "added");
        let touched = |i: usize| i / 80 >= first && (5..75).contains(&(i % 80));
        let same = found.iter().zip(&start).enumerate();
        assert!(same.into_iter().all(|(i, (f, s))| touched(i) || f.to_bits() == s.to_bits()));
    }
}

#[test]
fn experts_get_their_slots() {
    let Some(gpu) = gpu() else { return };
    for (kind, experts, top_k, outputs, rows, first) in [
        (WeightType::MXFP4, 5, 3, 64, 7, 0),
        (WeightType::F16, 9, 2, 130, 300, 11),
        (WeightType::Q8_0, 4, 4, 33, 120, 1),
        (WeightType::Q4_K, 64, 1, 17, 40, 0),
        (WeightType::MXFP4, 3, 2, 40, 600, 0),
        (WeightType::F32, 700, 2, 3, 90, 5),
    ] {
        let what = format!("{kind:?}, {experts} experts, {top_k} chosen, {rows} rows");
        let mut random = Random(kind as u64 + 4000);
        let cols = cols(kind, 96);
        let stored = Stored::random(kind, [experts * outputs, cols], &mut random);
        let matrix = stored.upload(&gpu);
        let bias = random.normals(experts * outputs);
        let bias_on_device = Buf::from_slice(&gpu, &bias).unwrap();
        // No row chooses an expert twice, and most choose among few.
        let mut chosen: Vec<i32> = Vec::new();
        for _ in 0..rows {
            let start = random.below(experts) * random.below(2);
            chosen.extend((0..top_k).map(|k| ((start + k) % experts) as i32));
        }
        let on_device = Buf::from_slice(&gpu, &chosen).unwrap();
        let routing = Routing { experts, top_k, softmax_before: false, renormalize: false };
        let mut words = Buf::new(&gpu, sorted_words(&routing, rows)).unwrap();
        sort_slots(&gpu, &mut words, &on_device, (first, rows), routing).unwrap();
        let sorted = Sorted { words: &words, rows: (first, rows), top_k, experts };
        for by_slot in [false, true] {
            let x_rows = if by_slot { rows * top_k } else { rows };
            let x = random.normals(x_rows * cols);
            let x_on_device = Buf::from_slice(&gpu, &x).unwrap();
            let mut packed = room(&gpu, sorted_places(&routing, rows), cols);
            packed.slots(&gpu, &x_on_device, &matrix, sorted, by_slot, None).unwrap();
            let slots = rows * top_k;
            let start = vec![0.0; slots * outputs];
            let found = run(&gpu, slots * outputs, Some(&start), |out| {
                let place = Place { start: 0, stride: outputs };
                let outputs = [Outputs { weight: &matrix, bias: Some(&bias_on_device) }];
                gemm_sorted(&gpu, out, place, &packed, &outputs, Ending::Store, sorted)
            });
            let mut all = Vec::new();
            for (slot, expert) in chosen.iter().enumerate() {
                let row = if by_slot { slot } else { slot / top_k };
                let range = *expert as usize * outputs..(*expert as usize + 1) * outputs;
                if slot / top_k < first {
                    all.extend(vec![0.0; outputs]);
                } else {
                    all.extend(expected(&stored, &x[row * cols..][..cols], range, Some(&bias)));
                }
            }
            assert_near(&found, &all, TOLERANCE, &format!("{what}, by slot: {by_slot}"));
        }
    }
}

/// Several matrices, a norm before them, every ending, and sums in order and in parts.
#[test]
fn norms_parts_and_endings() {
    let Some(gpu) = gpu() else { return };
    for (kind, wide, outputs) in [
        (WeightType::Q8_0, 2880, [130, 64, 5]),
        (WeightType::MXFP4, 704, [64, 3, 200]),
        (WeightType::F16, 1601, [40, 129, 128]),
        (WeightType::Q6_K, 1024, [16, 16, 16]),
    ] {
        let mut random = Random(kind as u64 + 6000);
        let cols = cols(kind, wide);
        let stored = outputs.map(|rows| Stored::random(kind, [rows, cols], &mut random));
        let matrices = stored.each_ref().map(|stored| stored.upload(&gpu));
        let biases = outputs.map(|rows| random.normals(rows));
        let on_device = biases.each_ref().map(|bias| Buf::from_slice(&gpu, bias).unwrap());
        let norm_weight = random.normals(cols);
        let norm_weight_on_device = Buf::from_slice(&gpu, &norm_weight).unwrap();
        let (stride, activation) = (outputs.iter().sum::<usize>(), Activation::Silu);
        for tokens in [1, 9, 20, 64, 100, 200] {
            let x = random.normals(tokens * cols);
            let x_on_device = Buf::from_slice(&gpu, &x).unwrap();
            let normed: Vec<f64> = x
                .chunks(cols)
                .flat_map(|x| {
                    let squares = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
                    let scale = 1.0 / (squares / cols as f64 + 1e-5).sqrt();
                    let norm = x.iter().zip(&norm_weight);
                    norm.map(move |(x, w)| f64::from(*x) * scale * f64::from(*w))
                })
                .collect();
            let norm =
                Norm { weight: &norm_weight_on_device, bias: None, eps: 1e-5, centered: false };
            let mut packed = room(&gpu, tokens, cols);
            packed.rows(&gpu, &x_on_device, &matrices[0], (0, tokens), Some(norm)).unwrap();
            let mut sums = Vec::new();
            for x in normed.chunks(cols) {
                for (stored, bias) in stored.iter().zip(&biases) {
                    for (row, bias) in bias.iter().enumerate() {
                        let terms = x.iter().zip(stored.row(row)).map(|(x, w)| x * f64::from(*w));
                        sums.push(terms.sum::<f64>() + f64::from(*bias));
                    }
                }
            }
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let old = random.normals(tokens * stride);
            for order in [Sums::OfShape, Sums::Parts] {
                let parts: Vec<Outputs<'_>> = matrices
                    .iter()
                    .zip(&on_device)
                    .map(|(weight, bias)| Outputs { weight, bias: Some(bias) })
                    .collect();
                let multiply = |ending, start: Option<&[f32]>| {
                    run(&gpu, tokens * stride, start, |out| {
                        let place = Place { start: 0, stride };
                        gemm(&gpu, out, place, &packed, &parts, ending, order)
                    })
                };
                let what = format!("{kind:?}, {tokens} tokens, {order:?}");
                assert_near(&multiply(Ending::Store, None), &sums, TOLERANCE, &what);
                let added: Vec<f64> =
                    sums.iter().zip(&old).map(|(sum, old)| sum + f64::from(*old)).collect();
                assert_near(&multiply(Ending::Add, Some(&old)), &added, TOLERANCE, &what);
                let activated: Vec<f64> = sums.iter().map(|sum| silu(*sum)).collect();
                let found = multiply(Ending::Activate(activation), None);
                assert_near(&found, &activated, 2e-3, &what);
            }
        }
    }
}

/// A gate and an up in two matrices, or in one, of experts and of all rows.
#[test]
fn gates_and_ups() {
    let Some(gpu) = gpu() else { return };
    let clamped = Gated::ClampedSwiglu { limit: 7.0, alpha: 1.702 };
    for (kind, in_one) in
        [(WeightType::MXFP4, false), (WeightType::MXFP4, true), (WeightType::Q8_0, false)]
    {
        let mut random = Random(kind as u64 + 7000);
        let (experts, top_k, width, cols) = (6, 2, 70, cols(kind, 320));
        let count = if in_one { 1 } else { 2 };
        let rows_of_expert = 2 * width / count;
        let stored: Vec<Stored> = (0..count)
            .map(|_| Stored::random(kind, [experts * rows_of_expert, cols], &mut random))
            .collect();
        let matrices: Vec<Matrix> = stored.iter().map(|stored| stored.upload(&gpu)).collect();
        let biases: Vec<Vec<f32>> =
            (0..count).map(|_| random.normals(experts * rows_of_expert)).collect();
        let on_device: Vec<Buf<f32>> =
            biases.iter().map(|bias| Buf::from_slice(&gpu, bias).unwrap()).collect();
        let outputs: Vec<Outputs<'_>> = matrices
            .iter()
            .zip(&on_device)
            .map(|(weight, bias)| Outputs { weight, bias: Some(bias) })
            .collect();
        // The gate and the up number `i` of an expert for a row.
        let gated = |x: &[f32], expert: usize, i: usize| {
            let value = |matrix: usize, row: usize| {
                let row = expert * rows_of_expert + row;
                expected(&stored[matrix], x, row..row + 1, Some(&biases[matrix]))[0]
            };
            let (gate, up) = match in_one {
                true => (value(0, i), value(0, width + i)),
                false => (value(0, i), value(1, i)),
            };
            let (gate, up) = (gate.min(7.0), up.clamp(-7.0, 7.0));
            gate / (1.0 + (-1.702 * gate).exp()) * (up + 1.0)
        };
        for rows in [5, 40, 64, 130] {
            let x = random.normals(rows * cols);
            let x_on_device = Buf::from_slice(&gpu, &x).unwrap();
            let chosen: Vec<i32> = (0..rows)
                .flat_map(|_| {
                    let start = random.below(experts);
                    (0..top_k).map(move |k| ((start + k) % experts) as i32)
                })
                .collect();
            let routing = Routing { experts, top_k, softmax_before: false, renormalize: false };
            let mut words = Buf::new(&gpu, sorted_words(&routing, rows)).unwrap();
            let chosen_on_device = Buf::from_slice(&gpu, &chosen).unwrap();
            sort_slots(&gpu, &mut words, &chosen_on_device, (0, rows), routing).unwrap();
            let sorted = Sorted { words: &words, rows: (0, rows), top_k, experts };
            assert!(can_gate_sorted(rows, routing), "{rows} rows");
            let mut packed = room(&gpu, sorted_places(&routing, rows), cols);
            packed.slots(&gpu, &x_on_device, &matrices[0], sorted, false, None).unwrap();
            let found = run(&gpu, rows * top_k * width, None, |out| {
                let (place, ending) = (Place { start: 0, stride: width }, Ending::Gated(clamped));
                gemm_sorted(&gpu, out, place, &packed, &outputs, ending, sorted)
            });
            let all: Vec<f64> = (0..rows * top_k * width)
                .map(|i| {
                    let slot = i / width;
                    let x = &x[slot / top_k * cols..][..cols];
                    gated(x, chosen[slot] as usize, i % width)
                })
                .collect();
            assert_near(&found, &all, 2e-3, &format!("{kind:?}, {rows} rows"));
        }
    }
}

/// What is near zero or near the largest f32 is as exact as anything else, each row by itself.
#[test]
fn any_range() {
    let Some(gpu) = gpu() else { return };
    for (kind, factor) in [
        (WeightType::F32, 1e-20),
        (WeightType::F32, 1e15),
        (WeightType::BF16, 1e-20),
        (WeightType::F16, 1e4),
        (WeightType::Q8_0, 1e-3),
        (WeightType::Q8_0, 1e4),
        (WeightType::Q4_K, 1e3),
        (WeightType::MXFP4, 1e-20),
        (WeightType::MXFP4, 1e20),
    ] {
        let mut random = Random(kind as u64 + 5000);
        let (rows, cols) = (64, 512);
        let stored = Stored::scaled(kind, [rows, cols], factor, &mut random);
        let matrix = stored.upload(&gpu);
        let scales = [1.0, 1e-12, 1e12, 0.0, 1e-4, 3e4];
        let mut x = random.normals(scales.len() * cols);
        for (row, scale) in x.chunks_mut(cols).zip(scales) {
            row.iter_mut().for_each(|x| *x *= scale);
        }
        let found = multiply(&gpu, &matrix, &x, None);
        for ((found, x), scale) in found.chunks(rows).zip(x.chunks(cols)).zip(scales) {
            let expected = expected(&stored, x, 0..rows, None);
            if scale == 0.0 {
                assert!(found.iter().all(|found| *found == 0.0));
            } else {
                assert_near(found, &expected, 1e-3, &format!("{kind:?} {factor:e}, x {scale:e}"));
            }
        }
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
    stored.values[100] += 1.0;
    assert!(distance(&found, &expected(&stored, &x, 0..64, None)) > TOLERANCE);
}
