//! Weight types: layout and exact dequantization, one file each.
//!
//! These loops are the definition that every faster path is tested against. The values are those
//! that the `gguf` Python package computes in float32, bit for bit.

mod bf16;
mod f16;
mod f32;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod pack;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;

pub(crate) use iq4_nl::STEPS as IQ4_STEPS;
pub use mxfp4::mxfp4_from_pair;
pub(crate) use mxfp4::{DOUBLED as MXFP4_DOUBLED, half_scale as mxfp4_half_scale};
pub(crate) use pack::scales_and_mins;

use thiserror::Error;

use crate::format::DType;

/// The types that weights may have to be run.
pub const SUPPORTED: &[DType] = &[
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q8_0,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q2_K,
    DType::Q3_K,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
    DType::IQ4_NL,
    DType::IQ4_XS,
    DType::MXFP4,
];

/// Why stored weights cannot be turned into numbers.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)] // the fields are the parts of the message above them
pub enum QuantError {
    #[error("weights of type {dtype} are not supported, expected one of {}", names(SUPPORTED))]
    Unsupported { dtype: DType },
    #[error("{found} bytes of type {dtype} for {elements} values, expected {}", needed(*dtype, *elements))]
    Length { dtype: DType, elements: usize, found: usize },
}

/// Whether weights of that type can be run.
pub fn is_supported(dtype: DType) -> bool {
    SUPPORTED.contains(&dtype)
}

/// Turns stored weights into `out.len()` numbers, exactly. `bytes` must be as long as these take,
/// which must be whole blocks.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    let dequantize = match dtype {
        DType::F32 => f32::dequantize,
        DType::F16 => f16::dequantize,
        DType::BF16 => bf16::dequantize,
        DType::Q8_0 => q8_0::dequantize,
        DType::Q4_0 => q4_0::dequantize,
        DType::Q4_1 => q4_1::dequantize,
        DType::Q5_0 => q5_0::dequantize,
        DType::Q5_1 => q5_1::dequantize,
        DType::Q2_K => q2_k::dequantize,
        DType::Q3_K => q3_k::dequantize,
        DType::Q4_K => q4_k::dequantize,
        DType::Q5_K => q5_k::dequantize,
        DType::Q6_K => q6_k::dequantize,
        DType::IQ4_NL => iq4_nl::dequantize,
        DType::IQ4_XS => iq4_xs::dequantize,
        DType::MXFP4 => mxfp4::dequantize,
        _ => return Err(QuantError::Unsupported { dtype }),
    };
    if dtype.bytes_for(out.len()) != Some(bytes.len()) {
        return Err(QuantError::Length { dtype, elements: out.len(), found: bytes.len() });
    }
    dequantize(bytes, out);
    Ok(())
}

fn names(dtypes: &[DType]) -> String {
    dtypes.iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(", ")
}

fn needed(dtype: DType, elements: usize) -> String {
    match dtype.bytes_for(elements) {
        Some(bytes) => bytes.to_string(),
        None => format!("a number of values that divides by {}", dtype.block_size()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let start =
            "weights of type IQ2_XS are not supported, expected one of F32, F16, BF16, Q8_0";
        assert!(message.starts_with(start), "{message}");
    }

    #[test]
    fn lengths_must_match() {
        for &dtype in SUPPORTED {
            for (blocks, bytes) in [(1, 0), (1, dtype.block_bytes() - 1), (2, dtype.block_bytes())]
            {
                let mut out = vec![0.0; blocks * dtype.block_size()];
                let error = dequantize(dtype, &vec![0; bytes], &mut out).unwrap_err();
                assert!(matches!(error, QuantError::Length { .. }), "{error:?}");
            }
            assert_eq!(dequantize(dtype, &[], &mut []), Ok(()));
        }
        let error = dequantize(DType::Q8_0, &[0; 34], &mut [0.0; 31]).unwrap_err();
        assert!(error.to_string().contains("divides by 32"), "{error}");
    }
}
