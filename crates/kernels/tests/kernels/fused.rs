//! Products with what comes before and after them: the bits of the operations one by one, which have tests of their own.

use crate::common::{Random, Stored, assert_near, bits, cols, gpu, run};
use oxgpt_kernels::{
    Activation, Buf, Choices, Ending, Gated, Gpu, Grouped, Inputs, Matrix, Norm, Outputs, Place,
    RoutesOut, Routing, WeightType, activate, activate_gated, can_route, combine, group_slots,
    group_words, norm, product, product_combined, product_grouped, product_grouped_of, product_of,
    route, router,
};

const KINDS: [WeightType; 6] = [
    WeightType::F32,
    WeightType::F16,
    WeightType::Q8_0,
    WeightType::Q4_K,
    WeightType::Q6_K,
    WeightType::MXFP4,
];

fn device(gpu: &Gpu, values: &[f32]) -> Buf<f32> {
    Buf::from_slice(gpu, values).unwrap()
}

fn plain(gpu: &Gpu, x: &Buf<f32>, matrix: &Matrix, bias: &Buf<f32>, rows: usize) -> Vec<f32> {
    let place = Place { start: 0, stride: matrix.rows() };
    run(gpu, rows * matrix.rows(), None, |out| {
        product(gpu, out, place, x, matrix, Some(bias), rows, false)
    })
}

#[test]
fn rows_are_normed_on_the_way() {
    let Some(gpu) = gpu() else { return };
    for kind in KINDS {
        // Rows that threads have in registers, and longer ones.
        for (about, first_rows, other_rows) in
            [(70, 37, 9), (1500, 37, 9), (1536, 48, 16), (4500, 37, 9), (4608, 48, 16)]
        {
            let stride = first_rows + other_rows + 4;
            let cols = cols(kind, about);
            let mut random = Random(kind as u64 + 50);
            let stored = Stored::random(kind, [first_rows, cols], &mut random);
            let other = Stored::random(kind, [other_rows, cols], &mut random);
            let (matrix, other_matrix) = (stored.upload(&gpu), other.upload(&gpu));
            let (bias, other_bias) = (random.normals(first_rows), random.normals(other_rows));
            let (bias, other_bias) = (device(&gpu, &bias), device(&gpu, &other_bias));
            let (weight, shift) = (random.normals(cols), random.normals(cols));
            let (weight, shift) = (device(&gpu, &weight), device(&gpu, &shift));
            for rows in [1, 2, 3, 8, 9] {
                let values: Vec<f32> =
                    random.normals((rows + 1) * cols).iter().map(|x| 3.0 * x + 1.0).collect();
                let x = device(&gpu, &values);
                for centered in [false, true] {
                    let bias_of_norm = centered.then_some(&shift);
                    let n = Norm { weight: &weight, bias: bias_of_norm, eps: 1e-5, centered };
                    let normed = run(&gpu, rows * cols, None, |out| {
                        norm(&gpu, out, (0, cols), Some(&x), (0, cols), rows, 1, n)
                    });
                    let normed = device(&gpu, &normed);
                    let first = plain(&gpu, &normed, &matrix, &bias, rows);
                    let second = plain(&gpu, &normed, &other_matrix, &other_bias, rows);
                    let place = Place { start: 3, stride };
                    let start = random.normals(rows * stride);
                    let found = run(&gpu, rows * stride, Some(&start), |out| {
                        let inputs = Inputs { x: &x, x_rows: None, norm: Some(n) };
                        let outputs = [
                            Outputs { weight: &matrix, bias: Some(&bias) },
                            Outputs { weight: &other_matrix, bias: Some(&other_bias) },
                        ];
                        product_of(&gpu, out, place, inputs, &outputs, Ending::Store, rows)
                    });
                    let mut expected = start.clone();
                    for row in 0..rows {
                        expected[row * stride + 3..][..first_rows]
                            .copy_from_slice(&first[row * first_rows..][..first_rows]);
                        expected[row * stride + 3 + first_rows..][..other_rows]
                            .copy_from_slice(&second[row * other_rows..][..other_rows]);
                    }
                    let what = format!("{kind:?} {cols}, {rows} rows, centered {centered}");
                    assert_eq!(bits(&found), bits(&expected), "{what}");

                    // Rows by their numbers.
                    let order: Vec<u32> =
                        (0..rows as u32).map(|row| rows as u32 - 1 - row).collect();
                    let order_device = Buf::from_slice(&gpu, &order).unwrap();
                    let found = run(&gpu, rows * first_rows, None, |out| {
                        let inputs = Inputs { x: &x, x_rows: Some(&order_device), norm: Some(n) };
                        let outputs = [Outputs { weight: &matrix, bias: Some(&bias) }];
                        let place = Place { start: 0, stride: first_rows };
                        product_of(&gpu, out, place, inputs, &outputs, Ending::Store, rows)
                    });
                    let picked = order
                        .iter()
                        .flat_map(|row| &first[*row as usize * first_rows..][..first_rows]);
                    let picked: Vec<f32> = picked.copied().collect();
                    assert_eq!(bits(&found), bits(&picked), "{what}, by number");
                }
            }
        }
    }
}

#[test]
fn products_end_in_activations() {
    let Some(gpu) = gpu() else { return };
    for (kind, outputs_of_half) in KINDS.into_iter().flat_map(|kind| [(kind, 21), (kind, 32)]) {
        let all = 2 * outputs_of_half;
        let cols = cols(kind, 320);
        let mut random = Random(kind as u64 + 60);
        let both = Stored::random(kind, [all, cols], &mut random);
        let row_bytes = both.bytes.len() / all;
        let half = |first: usize| Stored {
            kind,
            shape: [outputs_of_half, cols],
            bytes: both.bytes[first * row_bytes..][..outputs_of_half * row_bytes].to_vec(),
            values: both.values[first * cols..][..outputs_of_half * cols].to_vec(),
        };
        let (one, gate, up) =
            (both.upload(&gpu), half(0).upload(&gpu), half(outputs_of_half).upload(&gpu));
        let bias = random.normals(all);
        let (bias_device, bias_gate, bias_up) = (
            device(&gpu, &bias),
            device(&gpu, &bias[..outputs_of_half]),
            device(&gpu, &bias[outputs_of_half..]),
        );
        for rows in [1, 2, 5, 8] {
            let x = device(&gpu, &random.normals(rows * cols));
            let products = device(&gpu, &plain(&gpu, &x, &one, &bias_device, rows));
            let ended = |width: usize, outputs: &[Outputs<'_>], ending: Ending| {
                let place = Place { start: 0, stride: width };
                run(&gpu, rows * width, None, |out| {
                    product_of(&gpu, out, place, Inputs::plain(&x), outputs, ending, rows)
                })
            };
            let whole = [Outputs { weight: &one, bias: Some(&bias_device) }];
            for activation in [Activation::GeluTanh, Activation::GeluErf, Activation::Silu] {
                let expected = run(&gpu, rows * all, None, |out| {
                    activate(&gpu, out, &products, rows * all, activation)
                });
                let found = ended(all, &whole, Ending::Activate(activation));
                assert_eq!(bits(&found), bits(&expected), "{kind:?} {activation:?}");
            }
            let parts = [
                Outputs { weight: &gate, bias: Some(&bias_gate) },
                Outputs { weight: &up, bias: Some(&bias_up) },
            ];
            for gated in [
                Gated::Plain(Activation::Silu),
                Gated::Plain(Activation::GeluTanh),
                Gated::ClampedSwiglu { limit: 7.0, alpha: 1.702 },
            ] {
                for outputs in [&whole[..], &parts[..]] {
                    // Halves of other shapes may be computed in another way than the whole.
                    let products = device(&gpu, &ended(all, outputs, Ending::Store));
                    let expected = run(&gpu, rows * outputs_of_half, None, |out| {
                        activate_gated(&gpu, out, &products, (rows, outputs_of_half), gated)
                    });
                    let found = ended(outputs_of_half, outputs, Ending::Gated(gated));
                    assert_eq!(bits(&found), bits(&expected), "{kind:?} {gated:?}, {rows} rows");
                }
            }
        }
    }
}

#[test]
fn experts_are_computed_and_summed_at_once() {
    let Some(gpu) = gpu() else { return };
    let (experts, top_k) = (6, 4);
    for kind in [WeightType::MXFP4, WeightType::Q8_0, WeightType::F32, WeightType::Q4_K] {
        let mut random = Random(kind as u64 + 70);
        let (hidden, inner) = (256, 512);
        let gate = Stored::random(kind, [experts * inner, hidden], &mut random);
        let up = Stored::random(kind, [experts * inner, hidden], &mut random);
        let down = Stored::random(kind, [experts * hidden, inner], &mut random);
        let (gate, up, down_matrix) = (gate.upload(&gpu), up.upload(&gpu), down.upload(&gpu));
        let bias = device(&gpu, &random.normals(experts * inner));
        let down_bias_values = random.normals(experts * hidden);
        let down_bias = device(&gpu, &down_bias_values);
        let weight = device(&gpu, &random.normals(hidden));
        let n = Norm { weight: &weight, bias: None, eps: 1e-5, centered: false };
        for rows in [1, 2, 6] {
            let routing = Routing { experts, top_k, softmax_before: false, renormalize: false };
            let slots = rows * top_k;
            let logits = device(&gpu, &random.normals(rows * experts));
            let mut chosen = Buf::<i32>::new(&gpu, slots).unwrap();
            let mut shares = Buf::<f32>::new(&gpu, slots).unwrap();
            route(&gpu, &mut chosen, &mut shares, &logits, rows, routing).unwrap();
            let mut groups = Buf::<i32>::new(&gpu, group_words(&routing, rows)).unwrap();
            group_slots(&gpu, &mut groups, &chosen, rows, routing).unwrap();
            let grouped = Grouped { groups: &groups, rows, top_k, experts };
            let x = device(&gpu, &random.normals(rows * hidden));

            let normed = run(&gpu, rows * hidden, None, |out| {
                norm(&gpu, out, (0, hidden), Some(&x), (0, hidden), rows, 1, n)
            });
            let normed = device(&gpu, &normed);
            let mut both = Buf::<f32>::new(&gpu, slots * 2 * inner).unwrap();
            for (matrix, start) in [(&gate, 0), (&up, inner)] {
                let place = Place { start, stride: 2 * inner };
                let bias = Some(&bias);
                product_grouped(&gpu, &mut both, place, &normed, matrix, bias, grouped, false)
                    .unwrap();
            }
            let gated = Gated::ClampedSwiglu { limit: 7.0, alpha: 1.702 };
            let expected = run(&gpu, slots * inner, None, |out| {
                activate_gated(&gpu, out, &both, (slots, inner), gated)
            });
            let found = run(&gpu, slots * inner, None, |out| {
                let inputs = Inputs { x: &x, x_rows: None, norm: Some(n) };
                let outputs = [
                    Outputs { weight: &gate, bias: Some(&bias) },
                    Outputs { weight: &up, bias: Some(&bias) },
                ];
                let (place, ending) = (Place { start: 0, stride: inner }, Ending::Gated(gated));
                product_grouped_of(&gpu, out, place, inputs, &outputs, ending, grouped, false)
            });
            assert_eq!(bits(&found), bits(&expected), "{kind:?}, {rows} rows, up");
            if rows > 1 {
                continue;
            }

            let inside = device(&gpu, &expected);
            let returned = run(&gpu, slots * hidden, None, |out| {
                let place = Place { start: 0, stride: hidden };
                let bias = Some(&down_bias);
                product_grouped(&gpu, out, place, &inside, &down_matrix, bias, grouped, true)
            });
            let returned = device(&gpu, &returned);
            let start = random.normals(hidden);
            let one_by_one = run(&gpu, hidden, Some(&start), |out| {
                combine(&gpu, out, &returned, &shares, (1, hidden), top_k)
            });
            let outputs = Outputs { weight: &down_matrix, bias: Some(&down_bias) };
            let choices =
                Choices { experts: &chosen, shares: &shares, top_k, experts_in_all: experts };
            let found = run(&gpu, hidden, Some(&start), |out| {
                product_combined(&gpu, out, &inside, outputs, choices)
            });
            assert_eq!(bits(&found), bits(&one_by_one), "{kind:?}, summed");

            // And against f64, with one expert of the choice exchanged to see that it matters.
            let (mut ids, mut weights) = (vec![0; top_k], vec![0.0; top_k]);
            chosen.read(&mut ids).unwrap();
            shares.read(&mut weights).unwrap();
            let sum = |ids: &[i32]| -> Vec<f64> {
                let output = |i: usize| {
                    let terms = ids.iter().zip(&weights).enumerate().map(|(slot, (e, share))| {
                        let row = *e as usize * hidden + i;
                        let x = &expected[slot * inner..][..inner];
                        let dot: f64 = x
                            .iter()
                            .zip(down.row(row))
                            .map(|(x, w)| f64::from(*x) * f64::from(*w))
                            .sum();
                        f64::from(*share) * (dot + f64::from(down_bias_values[row]))
                    });
                    f64::from(start[i]) + terms.sum::<f64>()
                };
                (0..hidden).map(output).collect()
            };
            assert_near(&found, &sum(&ids), 2e-6, &format!("{kind:?}, summed"));
            ids.swap(0, 1);
            assert!(crate::common::distance(&found, &sum(&ids)) > 1e-3);
        }
    }
}

#[test]
fn experts_are_chosen_where_their_logits_are_computed() {
    let Some(gpu) = gpu() else { return };
    let hidden = 2880;
    for (kind, experts, top_k) in
        [(WeightType::F32, 32, 4), (WeightType::BF16, 128, 8), (WeightType::F16, 6, 2)]
    {
        let mut random = Random(kind as u64 + 80);
        let matrix = Stored::random(kind, [experts, hidden], &mut random).upload(&gpu);
        let bias = device(&gpu, &random.normals(experts));
        let weight = device(&gpu, &random.normals(hidden));
        let n = Norm { weight: &weight, bias: None, eps: 1e-5, centered: false };
        let mut arrived = Buf::<u32>::new(&gpu, 1).unwrap();
        arrived.fill_bytes(0).unwrap();
        for softmax_before in [false, true] {
            let routing = Routing { experts, top_k, softmax_before, renormalize: false };
            for rows in [1, 2, 3, 8] {
                assert!(can_route(&gpu, &matrix, rows, &routing));
                let x = device(&gpu, &random.normals(rows * hidden));
                let inputs = Inputs { x: &x, x_rows: None, norm: Some(n) };
                let outputs = Outputs { weight: &matrix, bias: Some(&bias) };
                let slots = rows * top_k;
                let buffers = || {
                    let mut groups = Buf::<i32>::new(&gpu, group_words(&routing, rows)).unwrap();
                    groups.fill_bytes(0).unwrap();
                    let experts = Buf::<i32>::new(&gpu, slots).unwrap();
                    (experts, Buf::<f32>::new(&gpu, slots).unwrap(), groups)
                };
                let (mut chosen, mut shares, mut groups) = buffers();
                let logits = run(&gpu, rows * experts, None, |out| {
                    let place = Place { start: 0, stride: experts };
                    product_of(&gpu, out, place, inputs, &[outputs], Ending::Store, rows)
                });
                let logits_device = device(&gpu, &logits);
                route(&gpu, &mut chosen, &mut shares, &logits_device, rows, routing).unwrap();
                group_slots(&gpu, &mut groups, &chosen, rows, routing).unwrap();

                let (mut chosen_at_once, mut shares_at_once, mut groups_at_once) = buffers();
                let found = run(&gpu, rows * experts, None, |out| {
                    let routes = RoutesOut {
                        experts: &mut chosen_at_once,
                        weights: &mut shares_at_once,
                        groups: &mut groups_at_once,
                        arrived: &mut arrived,
                    };
                    router(&gpu, out, inputs, outputs, routes, rows, routing)
                });
                let what = format!("{kind:?}, {rows} rows, {routing:?}");
                assert_eq!(bits(&found), bits(&logits), "{what}");
                assert_eq!(ints(&chosen_at_once), ints(&chosen), "{what}");
                assert_eq!(ints(&groups_at_once), ints(&groups), "{what}");
                let (mut one_by_one, mut at_once) = (vec![0.0; slots], vec![0.0; slots]);
                shares.read(&mut one_by_one).unwrap();
                shares_at_once.read(&mut at_once).unwrap();
                assert_eq!(bits(&at_once), bits(&one_by_one), "{what}");
                let mut counter = [1];
                arrived.read(&mut counter).unwrap();
                assert_eq!(counter, [0], "{what}");
            }
        }
    }
}

fn ints(buffer: &Buf<i32>) -> Vec<i32> {
    let mut values = vec![0; buffer.len()];
    buffer.read(&mut values).unwrap();
    values
}
