//! LayerNorm and RMSNorm.

use crate::common::{Random, assert_near, bits, gpu, run};
use oxgpt_kernels::{Buf, Norm, norm};

fn expected(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, centered: bool) -> Vec<f64> {
    let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let mean = if centered { x.iter().sum::<f64>() / x.len() as f64 } else { 0.0 };
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (variance + f64::from(eps)).sqrt();
    let values = x.iter().zip(weight).enumerate();
    values
        .map(|(i, (x, w))| {
            (x - mean) * scale * f64::from(*w) + bias.map_or(0.0, |bias| f64::from(bias[i]))
        })
        .collect()
}

#[test]
fn rows_are_normed() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(11);
    for width in [1, 5, 64, 255, 256, 257, 2880] {
        for (centered, with_bias) in [(true, true), (true, false), (false, false), (false, true)] {
            let rows = 7;
            // Far from zero, where a variance computed from the squares would be lost.
            let x: Vec<f32> = random.normals(rows * width).iter().map(|x| x + 30.0).collect();
            let (weight, bias) = (random.normals(width), random.normals(width));
            let device = |values: &[f32]| Buf::from_slice(&gpu, values).unwrap();
            let (x_device, weight_device, bias_device) =
                (device(&x), device(&weight), device(&bias));
            let arguments = Norm {
                weight: &weight_device,
                bias: with_bias.then_some(&bias_device),
                eps: 1e-5,
                centered,
            };
            let found = run(&gpu, rows * width, None, |out| {
                norm(&gpu, out, (0, width), Some(&x_device), (0, width), rows, 1, arguments)
            });
            let bias = with_bias.then_some(&bias[..]);
            let rows_expected = x.chunks(width).map(|x| expected(x, &weight, bias, 1e-5, centered));
            let expected: Vec<f64> = rows_expected.flatten().collect();
            let what = format!("width {width}, centered {centered}, bias {with_bias}");
            // A row of one number has no variance: what is left of it is rounding.
            if width > 1 || !centered {
                assert_near(&found, &expected, 5e-6, &what);
            } else {
                assert!(found.iter().zip(&expected).all(|(f, e)| (f64::from(*f) - e).abs() < 1e-5));
            }
            let in_place = run(&gpu, rows * width, Some(&x), |out| {
                norm(&gpu, out, (0, width), None, (0, width), rows, 1, arguments)
            });
            assert_eq!(bits(&in_place), bits(&found), "{what} in place");
        }
    }
}

#[test]
fn heads_are_normed_inside_wider_rows() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(12);
    let (rows, start, heads, width, stride) = (3, 10, 4, 20, 97);
    let x = random.normals(rows * stride);
    let weight = random.normals(width);
    let weight_device = Buf::from_slice(&gpu, &weight).unwrap();
    let arguments = Norm { weight: &weight_device, bias: None, eps: 1e-6, centered: false };
    let found = run(&gpu, rows * stride, Some(&x), |out| {
        norm(&gpu, out, (start, stride), None, (start, stride), rows, heads, arguments)
    });
    let mut all: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    for row in 0..rows {
        for head in 0..heads {
            let at = row * stride + start + head * width;
            let normed = expected(&x[at..at + width], &weight, None, 1e-6, false);
            all[at..at + width].copy_from_slice(&normed);
        }
    }
    assert_near(&found, &all, 1e-6, "heads");
    for (i, (found, before)) in found.iter().zip(&x).enumerate() {
        let column = i % stride;
        let normed = (start..start + heads * width).contains(&column);
        assert!(normed || found.to_bits() == before.to_bits(), "element {i} is beside the heads");
    }
}
