//! Mixtures of experts.

use crate::common::{Random, Stored, assert_near, bits, gpu, run};
use oxgpt_kernels::{
    Buf, Gpu, Grouped, Place, Routing, WeightType, combine, group_slots, group_words,
    product_grouped, route,
};

/// The experts of each slot and their weights, by sorting.
fn expected(logits: &[f32], routing: Routing) -> (Vec<i32>, Vec<f64>) {
    let (mut experts, mut weights) = (Vec::new(), Vec::new());
    for logits in logits.chunks(routing.experts) {
        let mut order: Vec<usize> = (0..routing.experts).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        let chosen = &order[..routing.top_k];
        let power = |expert: &usize| f64::from(logits[*expert]).exp();
        let among = if routing.softmax_before && !routing.renormalize { &order } else { chosen };
        let sum: f64 = among.iter().map(power).sum();
        experts.extend(chosen.iter().map(|expert| *expert as i32));
        weights.extend(chosen.iter().map(|expert| power(expert) / sum));
    }
    (experts, weights)
}

fn routed(gpu: &Gpu, logits: &[f32], rows: usize, routing: Routing) -> (Buf<i32>, Vec<f32>) {
    let slots = rows * routing.top_k;
    let logits = Buf::from_slice(gpu, logits).unwrap();
    let mut experts = Buf::<i32>::new(gpu, slots).unwrap();
    experts.fill_bytes(0xFF).unwrap();
    let weights =
        run(gpu, slots, None, |weights| route(gpu, &mut experts, weights, &logits, rows, routing));
    (experts, weights)
}

#[test]
fn rows_go_to_the_experts_with_the_largest_logits() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(31);
    for (experts, top_k) in [(1, 1), (4, 2), (32, 4), (33, 33), (128, 8)] {
        for (softmax_before, renormalize) in [(false, false), (true, false), (true, true)] {
            let routing = Routing { experts, top_k, softmax_before, renormalize };
            let rows = 9;
            let mut logits = random.normals(rows * experts);
            // Equal logits: the lowest expert comes first.
            logits[..experts].fill(0.25);
            let (found_experts, found_weights) = routed(&gpu, &logits, rows, routing);
            let (experts, weights) = expected(&logits, routing);
            let mut found = vec![0; rows * top_k];
            found_experts.read(&mut found).unwrap();
            assert_eq!(found, experts, "{routing:?}");
            assert_near(&found_weights, &weights, 1e-6, &format!("{routing:?}"));
        }
    }
}

#[test]
fn every_slot_meets_its_expert() {
    let Some(gpu) = gpu() else { return };
    for kind in [WeightType::MXFP4, WeightType::Q8_0, WeightType::F32, WeightType::Q4_K] {
        let mut random = Random(kind as u64 + 32);
        let routing = Routing { experts: 6, top_k: 3, softmax_before: false, renormalize: false };
        let (hidden, inner) = (256, 48);
        let up = Stored::random(kind, [6 * inner, hidden], &mut random);
        let matrix = up.upload(&gpu);
        let bias = random.normals(6 * inner);
        let bias_device = Buf::from_slice(&gpu, &bias).unwrap();
        let mut words = 0;
        let mut alone: Vec<Vec<u32>> = Vec::new();
        let x_all = random.normals(40 * hidden);
        let mut logits_all = random.normals(40 * 6);
        // Many rows for one expert.
        logits_all.chunks_mut(6).skip(10).for_each(|row| row[2] += 4.0);
        for rows in (1..=6).chain([17, 40]) {
            let (x, logits) = (&x_all[..rows * hidden], &logits_all[..rows * 6]);
            words = words.max(group_words(&routing, rows));
            let (experts, _) = routed(&gpu, logits, rows, routing);
            let mut groups = Buf::<i32>::new(&gpu, group_words(&routing, rows)).unwrap();
            groups.fill_bytes(0xFF).unwrap();
            group_slots(&gpu, &mut groups, &experts, rows, routing).unwrap();
            let x_device = Buf::from_slice(&gpu, x).unwrap();
            let grouped = Grouped { groups: &groups, rows, top_k: 3, experts: 6 };
            let found = run(&gpu, rows * 3 * inner, None, |out| {
                let place = Place { start: 0, stride: inner };
                let bias = Some(&bias_device);
                product_grouped(&gpu, out, place, &x_device, &matrix, bias, grouped, false)
            });
            let (chosen, _) = expected(logits, routing);
            let mut exact = Vec::new();
            for (slot, expert) in chosen.iter().enumerate() {
                let x = &x[slot / 3 * hidden..][..hidden];
                for output in 0..inner {
                    let row = *expert as usize * inner + output;
                    let dot: f64 =
                        x.iter().zip(up.row(row)).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    exact.push(dot + f64::from(bias[row]));
                }
            }
            assert_near(&found, &exact, 2e-6, &format!("{kind:?}, {rows} rows"));
            // A row's bits are the same with all others.
            for (row, found) in found.chunks(3 * inner).enumerate() {
                match alone.get(row) {
                    Some(known) => assert_eq!(&bits(found), known, "{kind:?}, row {row} of {rows}"),
                    None => alone.push(bits(found)),
                }
            }

            // The way back: a row of x for each slot.
            let back = Stored::random(kind, [6 * 33, hidden], &mut random);
            let matrix = back.upload(&gpu);
            let x = random.normals(rows * 3 * hidden);
            let x_device = Buf::from_slice(&gpu, &x).unwrap();
            let found = run(&gpu, rows * 3 * 33, None, |out| {
                let place = Place { start: 0, stride: 33 };
                product_grouped(&gpu, out, place, &x_device, &matrix, None, grouped, true)
            });
            let mut exact = Vec::new();
            for (x, expert) in x.chunks(hidden).zip(&chosen) {
                for output in 0..33 {
                    let w = back.row(*expert as usize * 33 + output);
                    exact.push(x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum());
                }
            }
            assert_near(&found, &exact, 2e-6, &format!("{kind:?}, {rows} rows, back"));
        }
        assert!(words <= group_words(&routing, 40), "room for many rows is room for few");
    }
}

#[test]
fn slots_are_summed_by_weight() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(33);
    for (rows, width, top_k) in [(1, 1, 1), (5, 300, 4), (2, 257, 2)] {
        let (x, weights) = (random.normals(rows * top_k * width), random.normals(rows * top_k));
        let start = random.normals(rows * width);
        let x_device = Buf::from_slice(&gpu, &x).unwrap();
        let weights_device = Buf::from_slice(&gpu, &weights).unwrap();
        let found = run(&gpu, rows * width, Some(&start), |out| {
            combine(&gpu, out, &x_device, &weights_device, (rows, width), top_k)
        });
        let mut exact: Vec<f64> = start.iter().map(|x| f64::from(*x)).collect();
        for (slot, x) in x.chunks(width).enumerate() {
            for (i, x) in x.iter().enumerate() {
                exact[slot / top_k * width + i] += f64::from(weights[slot]) * f64::from(*x);
            }
        }
        assert_near(&found, &exact, 1e-6, "combined");
    }
}
