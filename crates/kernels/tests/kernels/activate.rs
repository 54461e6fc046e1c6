//! Activation functions.

use crate::common::{Random, assert_near, gpu, run};
use oxgpt_kernels::{Activation, Buf, Gated, activate, activate_gated, add, soft_cap};

const ALL: [Activation; 6] = [
    Activation::GeluErf,
    Activation::GeluTanh,
    Activation::GeluSigmoid,
    Activation::Relu,
    Activation::Silu,
    Activation::Tanh,
];

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn expected(x: f64, activation: Activation) -> f64 {
    match activation {
        Activation::GeluErf => 0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt())),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::GeluSigmoid => x * sigmoid(1.702 * x),
        Activation::Relu => x.max(0.0),
        Activation::Silu => x * sigmoid(x),
        Activation::Tanh => x.tanh(),
    }
}

#[test]
fn every_activation() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(21);
    for activation in ALL {
        for count in [1, 255, 256, 1001] {
            // Both tails and the middle.
            let mut x: Vec<f32> = random.normals(count).iter().map(|x| 3.0 * x).collect();
            x[0] = -40.0;
            if let Some(second) = x.get_mut(1) {
                *second = 40.0;
            }
            let x_device = Buf::from_slice(&gpu, &x).unwrap();
            let found =
                run(&gpu, count, None, |out| activate(&gpu, out, &x_device, count, activation));
            let exact: Vec<f64> = x.iter().map(|x| expected(f64::from(*x), activation)).collect();
            for (found, (exact, x)) in found.iter().zip(exact.iter().zip(&x)) {
                let near = (f64::from(*found) - exact).abs() <= 2e-6 * exact.abs().max(0.5);
                assert!(near, "{activation:?}({x}): {found}, not {exact}");
            }
        }
    }
}

#[test]
fn every_gated_activation() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(22);
    let kinds = ALL
        .map(Gated::Plain)
        .into_iter()
        .chain([Gated::ClampedSwiglu { limit: 7.0, alpha: 1.702 }]);
    for gated in kinds {
        for (rows, width) in [(1, 1), (3, 300), (5, 257)] {
            let wide = |random: &mut Random| -> Vec<f32> {
                random.normals(rows * width).iter().map(|x| 5.0 * x).collect()
            };
            let (gate, up) = (wide(&mut random), wide(&mut random));
            let exact: Vec<f64> = gate
                .iter()
                .zip(&up)
                .map(|(gate, up)| {
                    let (gate, up) = (f64::from(*gate), f64::from(*up));
                    match gated {
                        Gated::Plain(activation) => expected(gate, activation) * up,
                        Gated::ClampedSwiglu { limit, alpha } => {
                            let (limit, alpha) = (f64::from(limit), f64::from(alpha));
                            let (gate, up) = (gate.min(limit), up.clamp(-limit, limit));
                            gate * sigmoid(alpha * gate) * (up + 1.0)
                        }
                    }
                })
                .collect();
            let both: Vec<f32> = gate
                .chunks(width)
                .zip(up.chunks(width))
                .flat_map(|(gate, up)| gate.iter().chain(up))
                .copied()
                .collect();
            let both = Buf::from_slice(&gpu, &both).unwrap();
            let found = run(&gpu, rows * width, None, |out| {
                activate_gated(&gpu, out, &both, (rows, width), gated)
            });
            // One number may come out as zero.
            if rows * width > 1 {
                assert_near(&found, &exact, 1e-6, &format!("{gated:?} {rows} x {width}"));
            }
        }
    }
}

#[test]
fn sums_and_soft_caps() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(23);
    for count in [1, 256, 777] {
        let (x, y) = (random.normals(count), random.normals(count));
        let y_device = Buf::from_slice(&gpu, &y).unwrap();
        let found = run(&gpu, count, Some(&x), |out| add(&gpu, out, &y_device, count));
        assert_eq!(found, x.iter().zip(&y).map(|(x, y)| x + y).collect::<Vec<_>>());
        let found = run(&gpu, count, Some(&x), |out| soft_cap(&gpu, out, count, 1.5));
        let exact: Vec<f64> = x.iter().map(|x| 1.5 * (f64::from(*x) / 1.5).tanh()).collect();
        assert_near(&found, &exact, 1e-6, "soft cap");
    }
}
