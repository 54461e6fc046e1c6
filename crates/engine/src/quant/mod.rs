//! Weight types: layout, exact dequantization and quantization, one file each.
//!
//! The loops that dequantize are the definition that every faster path is tested against. The values are those
//! that the `gguf` Python package computes in float32, bit for bit.

mod bf16;
mod f16;
mod f32;
mod fit;
mod fit_super;
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

use rayon::prelude::*;
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

/// The types that [`quantize`] can make.
pub const QUANTIZABLE: &[DType] = &[
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
    DType::MXFP4,
];

/// Why stored weights cannot be turned into numbers, or numbers into weights.
#[derive(Clone, Debug, PartialEq, Error)]
#[allow(missing_docs)] // the fields are the parts of the message above them
pub enum QuantError {
    #[error("weights of type {dtype} are not supported, expected one of {}", names(SUPPORTED))]
    Unsupported { dtype: DType },
    #[error("{found} bytes of type {dtype} for {elements} values, expected {}", needed(*dtype, *elements))]
    Length { dtype: DType, elements: usize, found: usize },
    #[error("cannot quantize to {dtype}, only to {}", names(QUANTIZABLE))]
    NotQuantizable { dtype: DType },
    #[error("rows of {cols} values cannot be {dtype}, whose blocks hold {}", dtype.block_size())]
    RowLength { dtype: DType, cols: usize },
    #[error(
        "element {index} is {value}, expected a number of at most {largest} in magnitude for {dtype}"
    )]
    Value { dtype: DType, index: usize, value: f32, largest: f32 },
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

/// Bytes of a row of `cols` weights.
///
/// # Errors
/// When the blocks of the type do not divide a row: they never cross from one to the next.
pub fn row_bytes(dtype: DType, cols: usize) -> Result<usize, QuantError> {
    dtype.bytes_for(cols).ok_or(QuantError::RowLength { dtype, cols })
}

/// Stores numbers as a type, in blocks that are near the least squared error; the same numbers give the same bytes on
/// every machine. `values` are whole rows and `out` is as long as they take (see [`row_bytes`]). Blocks are shared
/// among the threads of the current rayon pool.
///
/// # Errors
/// When the type cannot be made, when the lengths do not fit together, and when a number is not finite or too large for
/// the type; `out` is then not touched.
pub fn quantize(dtype: DType, values: &[f32], out: &mut [u8]) -> Result<(), QuantError> {
    /// Values that a thread takes at once: whole blocks of every type.
    const PIECE: usize = 8192;
    let quantize = match dtype {
        DType::F32 => f32::quantize,
        DType::F16 => f16::quantize,
        DType::BF16 => bf16::quantize,
        DType::Q8_0 => q8_0::quantize,
        DType::Q4_0 => q4_0::quantize,
        DType::Q4_1 => q4_1::quantize,
        DType::Q5_0 => q5_0::quantize,
        DType::Q5_1 => q5_1::quantize,
        DType::Q2_K => q2_k::quantize,
        DType::Q3_K => q3_k::quantize,
        DType::Q4_K => q4_k::quantize,
        DType::Q5_K => q5_k::quantize,
        DType::Q6_K => q6_k::quantize,
        DType::IQ4_NL => iq4_nl::quantize,
        DType::MXFP4 => mxfp4::quantize,
        _ => return Err(QuantError::NotQuantizable { dtype }),
    };
    if dtype.bytes_for(values.len()) != Some(out.len()) {
        return Err(QuantError::Length { dtype, elements: values.len(), found: out.len() });
    }
    let largest = largest(dtype);
    // NaN is in no range.
    if let Some(index) = values.iter().position(|value| !(-largest..=largest).contains(value)) {
        return Err(QuantError::Value { dtype, index, value: values[index], largest });
    }
    let piece_bytes = PIECE / dtype.block_size() * dtype.block_bytes();
    let pieces = values.par_chunks(PIECE).zip(out.par_chunks_mut(piece_bytes));
    pieces.for_each(|(values, out)| quantize(values, out));
    Ok(())
}

/// The largest magnitude that [`quantize`] takes.
fn largest(dtype: DType) -> f32 {
    match dtype {
        DType::F32 | DType::MXFP4 => f32::MAX,
        // What is not larger is rounded to a finite number.
        DType::BF16 => f32::from_bits(0x7F7F_7FFF),
        // Their scales and offsets are F16.
        _ => half::f16::MAX.to_f32(),
    }
}

/// The names of types, for messages.
pub(crate) fn names(dtypes: &[DType]) -> String {
    dtypes.iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(", ")
}

fn needed(dtype: DType, elements: usize) -> String {
    match dtype.bytes_for(elements) {
        Some(bytes) => bytes.to_string(),
        None => format!("a number of values that divides by {}", dtype.block_size()),
    }
}

#[cfg(test)]
mod tests;
