//! The conventions of llama.cpp on which tensor has which type, and on how a file says so.

use super::super::dtype::DType;

/// Tensors with more than one dimension that stay F32, whatever the type of the file: small ones, and ones that are
/// added rather than multiplied.
const F32_MATRICES: &[&str] = &["position_embd.weight", "token_types.weight"];

/// Whether a tensor stays F32, whatever the type of the file: vectors, the biases of experts, norms, routers.
pub fn keeps_f32(name: &str, shape: &[usize]) -> bool {
    shape.len() < 2
        || !name.ends_with(".weight")
        || name.ends_with("_norm.weight")
        || name.ends_with(".ffn_gate_inp.weight")
        || F32_MATRICES.contains(&name)
}

/// The type of a matrix in a file of mostly `dtype`, of a model with experts or without. MXFP4 is for experts, where there
/// are any, and the rest is Q8_0 then (`LLAMA_FTYPE_MOSTLY_MXFP4_MOE`).
pub fn matrix_type(dtype: DType, shape: &[usize], has_experts: bool) -> DType {
    match dtype {
        DType::MXFP4 if has_experts && !is_of_experts(shape) => DType::Q8_0,
        _ => dtype,
    }
}

/// Whether a matrix of this shape holds those of all experts.
pub fn is_of_experts(shape: &[usize]) -> bool {
    shape.len() == 3
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

/// The type in place of `dtype` for rows of `cols` elements: itself, or where they are no whole blocks of it the one
/// that llama.cpp falls back to, of about as many bits.
pub fn fitting(dtype: DType, cols: usize) -> DType {
    if cols.is_multiple_of(dtype.block_size()) {
        return dtype;
    }
    let smaller = match dtype {
        DType::IQ4_XS => DType::IQ4_NL,
        DType::Q2_K | DType::Q3_K => DType::Q4_0,
        DType::Q4_K => DType::Q5_0,
        DType::Q5_K => DType::Q5_1,
        DType::Q6_K => DType::Q8_0,
        _ => return DType::F16,
    };
    fitting(smaller, cols)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_no_whole_blocks_get_another_type() {
        for (dtype, cols, expected) in [
            (DType::Q4_K, 1024, DType::Q4_K),
            (DType::Q4_K, 1600, DType::Q5_0),
            (DType::Q6_K, 1600, DType::Q8_0),
            (DType::Q4_K, 40, DType::F16),
            (DType::Q8_0, 33, DType::F16),
            (DType::F32, 33, DType::F32),
        ] {
            assert_eq!(fitting(dtype, cols), expected, "{dtype} {cols}");
        }
    }

    #[test]
    fn mxfp4_is_for_experts_where_there_are_any() {
        for (dtype, shape, has_experts, expected) in [
            (DType::MXFP4, &[4, 64, 32][..], true, DType::MXFP4),
            (DType::MXFP4, &[64, 32], true, DType::Q8_0),
            (DType::MXFP4, &[64, 32], false, DType::MXFP4),
            (DType::Q4_K, &[64, 32], true, DType::Q4_K),
        ] {
            assert_eq!(matrix_type(dtype, shape, has_experts), expected, "{dtype} {shape:?}");
        }
    }

    #[test]
    fn vectors_norms_routers_and_positions_keep_f32() {
        for (name, shape, keeps) in [
            ("blk.0.attn_qkv.weight", &[96, 32][..], false),
            ("blk.0.attn_qkv.bias", &[96], true),
            ("position_embd.weight", &[64, 32], true),
            ("blk.0.attn_q_norm.weight", &[2, 32], true),
            ("token_embd.weight", &[64, 32], false),
            ("blk.0.ffn_gate_inp.weight", &[4, 32], true),
            ("blk.0.ffn_gate_exps.weight", &[4, 64, 32], false),
            ("blk.0.ffn_gate_exps.bias", &[4, 64], true),
        ] {
            assert_eq!(keeps_f32(name, shape), keeps, "{name}");
        }
    }
}
