//! The conventions of llama.cpp on which tensor has which type, and on how a file says so.

use super::super::dtype::DType;

/// Tensors with more than one dimension that stay F32, whatever the type of the file: small ones, and ones that are
/// added rather than multiplied.
const F32_MATRICES: &[&str] = &["position_embd.weight", "token_types.weight"];

/// Whether a tensor stays F32, whatever the type of the file.
pub fn keeps_f32(name: &str, shape: &[usize]) -> bool {
    shape.len() < 2 || name.ends_with("_norm.weight") || F32_MATRICES.contains(&name)
}

/// `general.file_type` of a file whose matrices mostly have this type: `enum llama_ftype` in `llama.h`. `None` for a
/// type that it has no number for.
pub fn file_type(dtype: DType) -> Option<u32> {
    Some(match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q8_0 => 7,
        DType::Q5_0 => 8,
        DType::Q5_1 => 9,
        DType::Q2_K => 10,
        DType::Q3_K => 11,
        DType::Q4_K => 14,
        DType::Q5_K => 16,
        DType::Q6_K => 18,
        DType::IQ4_NL => 25,
        DType::IQ4_XS => 30,
        DType::BF16 => 32,
        DType::MXFP4 => 38,
        _ => return None,
    })
}
