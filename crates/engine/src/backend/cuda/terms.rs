//! The terms of a model in those of the kernels.

use super::present;
use crate::format::DType;
use crate::kv::KvType;
use crate::model::spec::{Activation, AttentionShape, Norm, NormKind};
use oxgpt_kernels::{Buf, KvElement, WeightType};

pub(super) fn weight_type(dtype: DType) -> WeightType {
    match dtype {
        DType::F32 => WeightType::F32,
        DType::F16 => WeightType::F16,
        DType::BF16 => WeightType::BF16,
        DType::Q8_0 => WeightType::Q8_0,
        DType::Q4_0 => WeightType::Q4_0,
        DType::Q4_1 => WeightType::Q4_1,
        DType::Q5_0 => WeightType::Q5_0,
        DType::Q5_1 => WeightType::Q5_1,
        DType::Q2_K => WeightType::Q2_K,
        DType::Q3_K => WeightType::Q3_K,
        DType::Q4_K => WeightType::Q4_K,
        DType::Q5_K => WeightType::Q5_K,
        DType::Q6_K => WeightType::Q6_K,
        DType::IQ4_NL => WeightType::IQ4_NL,
        DType::IQ4_XS => WeightType::IQ4_XS,
        DType::MXFP4 => WeightType::MXFP4,
        other => unreachable!("{other} was refused when the model was opened"),
    }
}

pub(super) fn kv_element(kv: KvType) -> KvElement {
    match kv {
        KvType::Full => KvElement::F16,
        KvType::Q8 => KvElement::Q8,
    }
}

pub(super) fn kernel_shape(shape: &AttentionShape) -> oxgpt_kernels::AttentionShape {
    oxgpt_kernels::AttentionShape {
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        scale: shape.scale,
        window: shape.window,
        soft_cap: shape.soft_cap,
    }
}

pub(super) fn kernel_norm(norm: &Norm<Option<Buf<f32>>>) -> oxgpt_kernels::Norm<'_> {
    oxgpt_kernels::Norm {
        weight: present(&norm.weight),
        bias: norm.bias.as_ref().map(present),
        eps: norm.eps,
        centered: norm.kind == NormKind::LayerNorm,
    }
}

pub(super) fn kernel_activation(activation: Activation) -> oxgpt_kernels::Activation {
    match activation {
        Activation::GeluErf => oxgpt_kernels::Activation::GeluErf,
        Activation::GeluTanh => oxgpt_kernels::Activation::GeluTanh,
        Activation::GeluSigmoid => oxgpt_kernels::Activation::GeluSigmoid,
        Activation::Relu => oxgpt_kernels::Activation::Relu,
        Activation::Silu => oxgpt_kernels::Activation::Silu,
        Activation::Tanh => oxgpt_kernels::Activation::Tanh,
    }
}
