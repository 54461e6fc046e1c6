//! What all types have in common, and how near quantized numbers stay.

use super::*;
use proptest::prelude::*;
use safetensors::SafeTensors;

#[test]
fn every_supported_type_is_dequantized_and_no_other() {
    for &dtype in DType::ALL {
        let mut out = vec![1.0; dtype.block_size()];
        let result = dequantize(dtype, &vec![0; dtype.block_bytes()], &mut out);
        if is_supported(dtype) {
            assert_eq!(result, Ok(()), "{dtype}");
            assert!(out.iter().all(|&value| value == 0.0), "{dtype}");
        } else {
            assert_eq!(result, Err(QuantError::Unsupported { dtype }));
            assert!(out.iter().all(|&value| value == 1.0), "{dtype}");
        }
    }
    let message = QuantError::Unsupported { dtype: DType::IQ2_XS }.to_string();
    let start = "weights of type IQ2_XS are not supported, expected one of F32, F16, BF16, Q8_0";
    assert!(message.starts_with(start), "{message}");
}

#[test]
fn lengths_must_match() {
    for &dtype in SUPPORTED {
        for (blocks, bytes) in [(1, 0), (1, dtype.block_bytes() - 1), (2, dtype.block_bytes())] {
            let mut out = vec![0.0; blocks * dtype.block_size()];
            let error = dequantize(dtype, &vec![0; bytes], &mut out).unwrap_err();
            assert!(matches!(error, QuantError::Length { .. }), "{error:?}");
        }
        assert_eq!(dequantize(dtype, &[], &mut []), Ok(()));
    }
    let error = dequantize(DType::Q8_0, &[0; 34], &mut [0.0; 31]).unwrap_err();
    assert!(error.to_string().contains("divides by 32"), "{error}");
}

/// Numbers of a normal distribution (Box and Muller's way), from a seed.
fn normal(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let mut number = || {
        let radius = libm::sqrt(-2.0 * libm::log(uniform()));
        (radius * libm::cos(std::f64::consts::TAU * uniform())) as f32
    };
    (0..count).map(|_| number()).collect()
}

/// Quantizes and dequantizes.
fn there_and_back(dtype: DType, values: &[f32]) -> Vec<f32> {
    let mut stored = vec![0xA5; dtype.bytes_for(values.len()).unwrap()];
    quantize(dtype, values, &mut stored).unwrap();
    let mut back = vec![f32::NAN; values.len()];
    dequantize(dtype, &stored, &mut back).unwrap();
    back
}

fn rms_error(found: &[f32], expected: &[f32]) -> f64 {
    let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
    let sum: f64 = found.iter().zip(expected).map(square).sum();
    (sum / found.len() as f64).sqrt()
}

/// The root of the mean squared error that ggml's own quantizers (without an importance matrix) have on normal numbers of
/// deviation 1; for IQ4_NL a little above ours.
const ERRORS: [(DType, f64); 14] = [
    (DType::F16, 2.1e-4),
    (DType::BF16, 1.68e-3),
    (DType::Q8_0, 5.35e-3),
    (DType::Q4_0, 0.0859),
    (DType::Q4_1, 0.0782),
    (DType::Q5_0, 0.0426),
    (DType::Q5_1, 0.0378),
    (DType::Q2_K, 0.3027),
    (DType::Q3_K, 0.1516),
    (DType::Q4_K, 0.0721),
    (DType::Q5_K, 0.0385),
    (DType::Q6_K, 0.01781),
    (DType::IQ4_NL, 0.0755),
    (DType::MXFP4, 0.1151),
];

#[test]
fn errors_on_normal_numbers_are_below_those_of_ggml() {
    let values = normal(1, 1 << 16);
    for (dtype, bound) in ERRORS {
        for factor in [1.0, 0.01, -300.0] {
            let scaled: Vec<f32> = values.iter().map(|value| value * factor).collect();
            let error = rms_error(&there_and_back(dtype, &scaled), &scaled);
            let relative = error / f64::from(factor.abs());
            assert!(relative < bound, "{dtype}: {relative}, expected below {bound}");
        }
    }
}

/// Where the scale of the scales is a denormal F16, or would be zero.
#[test]
fn super_blocks_keep_small_numbers() {
    let small: Vec<f32> = normal(2, 4096).iter().map(|value| value * 1e-5).collect();
    for (dtype, bound) in ERRORS.into_iter().filter(|(dtype, _)| dtype.block_size() == 256) {
        let relative = rms_error(&there_and_back(dtype, &small), &small) / 1e-5;
        assert!(relative < bound + 0.05, "{dtype}: {relative}");
    }
}

#[test]
fn stored_blocks_come_back_exactly() {
    for dtype in QUANTIZABLE.iter().copied().filter(|dtype| dtype.block_size() <= 32) {
        let path =
            format!("{}/../../testdata/quant/{dtype}.safetensors", env!("CARGO_MANIFEST_DIR"));
        let file = std::fs::read(path).unwrap();
        let values =
            SafeTensors::deserialize(&file).unwrap().tensor("values").unwrap().data().to_vec();
        // The second half has scales that are not finite.
        let values: Vec<f32> =
            values.as_chunks().0[..1024].iter().map(|v| f32::from_le_bytes(*v)).collect();
        assert!(there_and_back(dtype, &values) == values, "{dtype}");
    }
}

/// Blocks of 256 in which every group uses its whole range, as those that a quantizer has made mostly do.
#[test]
fn full_super_blocks_come_back_exactly() {
    let group = |size: usize, i: usize| (i / size, i % size);
    for (dtype, size, top, most) in
        [(DType::Q2_K, 16, 3, 15), (DType::Q4_K, 32, 15, 63), (DType::Q5_K, 32, 31, 63)]
    {
        let [d, dmin] = [0.0123, 0.0345].map(|scale| half::f16::from_f32(scale).to_f32());
        let values: Vec<f32> = (0..256)
            .map(|i| {
                let (group, at) = group(size, i);
                let (scale, q) = (most - group * 3 % most, at * 7 % (top + 1));
                let min = if group == 2 { most } else { group * 5 % most };
                (d * scale as f32) * q as f32 - dmin * min as f32
            })
            .collect();
        assert_eq!(there_and_back(dtype, &values), values, "{dtype}");
    }
    for (dtype, low, lowest) in [(DType::Q3_K, -4, -32), (DType::Q6_K, -32, -128)] {
        let d = half::f16::from_f32(0.0123).to_f32();
        let values: Vec<f32> = (0..256)
            .map(|i| {
                let (group, at) = group(16, i);
                let scale = lowest + group as i32 * 3;
                let level = low + (at * 5) as i32 % (-2 * low);
                (d * scale as f32) * level as f32
            })
            .collect();
        assert_eq!(there_and_back(dtype, &values), values, "{dtype}");
    }
}

#[test]
fn zeros_stay_zeros() {
    for &dtype in QUANTIZABLE {
        let back = there_and_back(dtype, &[0.0; 512]);
        assert!(back.iter().all(|value| value.to_bits() == 0), "{dtype}");
    }
}

#[test]
fn numbers_that_a_type_does_not_have_are_named() {
    for &dtype in QUANTIZABLE {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            let fits = bad == f32::MAX && [DType::F32, DType::MXFP4].contains(&dtype);
            let mut values = [1.0; 256];
            values[77] = bad;
            let mut out = vec![0xA5; dtype.bytes_for(256).unwrap()];
            let result = quantize(dtype, &values, &mut out);
            if fits {
                assert_eq!(result, Ok(()));
                continue;
            }
            let error = result.unwrap_err();
            assert!(matches!(error, QuantError::Value { index: 77, .. }), "{error}");
            assert!(error.to_string().starts_with(&format!("element 77 is {bad}, ")), "{error}");
            assert!(out.iter().all(|byte| *byte == 0xA5), "{dtype}");
        }
        // The largest that it has come back as finite numbers, in any company.
        for values in [
            [largest(dtype); 256],
            std::array::from_fn(|i| largest(dtype) * [1.0, -1.0, 0.0, 1e-9][i % 4]),
        ] {
            assert!(
                there_and_back(dtype, &values).iter().all(|value| value.is_finite()),
                "{dtype}"
            );
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for &dtype in DType::ALL {
        let size = dtype.block_size();
        let result = quantize(dtype, &vec![0.0; size], &mut vec![0; dtype.block_bytes()]);
        let expected = Err(QuantError::NotQuantizable { dtype });
        assert_eq!(result, if QUANTIZABLE.contains(&dtype) { Ok(()) } else { expected });
    }
    let error = quantize(DType::Q4_0, &[0.0; 40], &mut [0; 18]).unwrap_err();
    assert!(matches!(error, QuantError::Length { elements: 40, .. }), "{error}");
    let error = quantize(DType::Q4_0, &[0.0; 32], &mut [0; 17]).unwrap_err();
    assert!(matches!(error, QuantError::Length { found: 17, .. }), "{error}");
    assert_eq!(row_bytes(DType::Q4_K, 768), Ok(432));
    let error = row_bytes(DType::Q4_K, 384).unwrap_err();
    assert_eq!(error.to_string(), "rows of 384 values cannot be Q4_K, whose blocks hold 256");
}

#[test]
fn plain_types_round_to_the_nearest_even() {
    let unit = |bits: i32| 1.0 + 2f32.powi(-bits);
    let half_way = [1.0 + 2f32.powi(-11), 1.0 + 3.0 * 2f32.powi(-11)];
    assert_eq!(there_and_back(DType::F16, &half_way), [1.0, 1.0 + 2f32.powi(-9)]);
    assert_eq!(there_and_back(DType::F16, &[unit(10), -65504.0]), [unit(10), -65504.0]);
    let half_way = [1.0 + 2f32.powi(-8), 1.0 + 3.0 * 2f32.powi(-8)];
    assert_eq!(there_and_back(DType::BF16, &half_way), [1.0, 1.0 + 2f32.powi(-6)]);
}

proptest! {
    /// In blocks of any size of numbers, with outliers and runs of equal ones, the error stays within a step.
    #[test]
    fn errors_are_bounded(
        seed in any::<u64>(),
        magnitude in -4..3i32,
        offset in prop_oneof![Just(0.0f32), -8.0..8.0f32],
        outlier in prop_oneof![Just(1.0f32), -50.0..50.0f32],
        flat in 0..256usize,
    ) {
        let mut values = normal(seed, 512);
        values[5] *= outlier;
        values[256..256 + flat].fill(1.0);
        let factor = 10f32.powi(magnitude);
        values.iter_mut().for_each(|value| *value = (*value + offset) * factor);
        for &dtype in QUANTIZABLE {
            // As a share of the largest number of a block; of the step, whose half is the error of what is not clipped.
            let share = match dtype {
                DType::F32 => 0.0,
                DType::F16 => 2f64.powi(-11),
                DType::BF16 => 2f64.powi(-8),
                DType::Q8_0 => 0.5 / 127.0,
                DType::Q4_0 => 1.0 / 8.0,
                DType::Q5_0 => 1.0 / 16.0,
                // The range is up to twice the largest number.
                DType::Q4_1 => 1.0 / 15.0,
                DType::Q5_1 => 1.0 / 31.0,
                DType::Q4_K => 1.0 / 15.0 + 1.0 / 63.0,
                DType::Q5_K => 1.0 / 31.0 + 1.0 / 63.0,
                DType::Q2_K => 1.0 / 3.0 + 1.0 / 15.0,
                DType::Q3_K => 1.0 / 4.0 + 1.0 / 32.0,
                DType::Q6_K => 1.0 / 32.0 + 1.0 / 128.0,
                DType::IQ4_NL => 0.5 * 24.0 / 113.0,
                _ => 1.0 / 4.0,
            };
            let back = there_and_back(dtype, &values);
            let size = dtype.block_size();
            for (back, values) in back.chunks(size).zip(values.chunks(size)) {
                let largest = values.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
                // A scale below the normal numbers of F16 is off by up to 2^-25, 128 times that in a value of Q8_0.
                let bound = share * 1.01 * f64::from(largest) + 4e-6;
                let error = rms_error(back, values);
                prop_assert!(error <= bound, "{}: {} above {}", dtype, error, bound);
            }
        }
    }
}
