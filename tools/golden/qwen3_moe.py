"""The Qwen 3 family with experts: in every layer, or with layers of one network between."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Qwen3MoeConfig

import decoders
from common import Gguf, Variant
from decoders import Draw, exact as exact_activations, gguf_type, summary  # noqa: F401

FAMILY = "qwen3moe"
MODEL_CLASS = "Qwen3MoeForCausalLM"
_PLAIN = dict(rope_type="default", rope_theta=1000.0)

VARIANTS = [
    Variant(
        "sparse", dict(hidden_size=36, intermediate_size=64, moe_intermediate_size=20, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                       head_dim=12, num_experts=7, num_experts_per_tok=3, norm_topk_prob=True, vocab_size=137, max_position_embeddings=96,
                       tie_word_embeddings=False, rope_parameters=_PLAIN),
        "3 of 7 experts in every layer, their weights normed; a tensor for each expert", sequences=((40, 20), (1, 16)),
        gguf=(Gguf("sparse-F32", notes="experts stacked"),),
        copies=(("fused", "the same weights with the experts of a layer in two tensors"),),
    ),
    Variant(
        "mixed", dict(hidden_size=32, intermediate_size=72, moe_intermediate_size=16, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=1,
                      head_dim=10, num_experts=6, num_experts_per_tok=2, norm_topk_prob=False, decoder_sparse_step=2, mlp_only_layers=[3],
                      attention_bias=True, use_sliding_window=True, sliding_window=11, vocab_size=113, max_position_embeddings=96,
                      tie_word_embeddings=True, rope_parameters=_PLAIN),
        "experts in layer 1 alone, by decoder_sparse_step and mlp_only_layers; their weights not normed; attention biases, a window in all layers, bfloat16",
        dtype="bfloat16", sequences=((40, 20), (1, 16)),
    ),
    Variant(
        "blocks", dict(hidden_size=64, intermediate_size=128, moe_intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                       head_dim=32, num_experts=8, num_experts_per_tok=2, norm_topk_prob=True, vocab_size=131, max_position_embeddings=96,
                       tie_word_embeddings=False, rope_parameters=_PLAIN),
        "the GGUF file of quantized type", store_checkpoint=False, sequences=((40, 16), (1, 16)),
        gguf=(Gguf("blocks-Q8_0", "Q8_0", notes="matrices Q8_0, routers and vectors F32"),),
    ),
]


def config(variant: Variant) -> Qwen3MoeConfig:
    last = variant.config["vocab_size"] - 1
    settings = dict(rope_parameters=dict(variant.config["rope_parameters"]))
    return Qwen3MoeConfig(architectures=[MODEL_CLASS], bos_token_id=None, eos_token_id=last, **(variant.config | settings))


def load_options(_: Path) -> dict:
    return {"experts_implementation": "eager"}


def is_sparse(c, layer: int) -> bool:
    return layer not in c.mlp_only_layers and (layer + 1) % c.decoder_sparse_step == 0


def weights(variant: Variant) -> dict[str, np.ndarray]:
    c, draw = config(variant), Draw(FAMILY, variant.name)
    n, inner, experts = c.hidden_size, c.moe_intermediate_size, c.num_experts
    size = 1.16 * n
    decoders.draw_frame(draw, c)
    for layer in range(c.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        decoders.draw_attention(draw, c, prefix, bias=c.attention_bias, output_bias=c.attention_bias, head_norms=True)
        draw.put(prefix + "post_attention_layernorm.weight", n, 0.4, 1.0)
        if is_sparse(c, layer):
            draw.put(prefix + "mlp.gate.weight", (experts, n), 1.5 * size**-0.5)
            draw.put(prefix + "mlp.experts.gate_up_proj", (experts, 2 * inner, n), 1.5 * size**-0.5)
            draw.put(prefix + "mlp.experts.down_proj", (experts, n, inner), 2.5 * inner**-0.5)
        else:
            decoders.draw_gated(draw, c, prefix, c.intermediate_size)
    return draw.out


def save(variant: Variant, c: Qwen3MoeConfig, weights: dict[str, np.ndarray], directory: Path, layout: str) -> bool:
    """Two tensors for all experts of a layer, as the model of `transformers` 5 has them in memory."""
    if layout != "fused":
        return False
    c.save_pretrained(directory)
    dtype = getattr(torch, variant.dtype)
    tensors = {name: torch.from_numpy(value).to(dtype) for name, value in weights.items() if not (c.tie_word_embeddings and name == "lm_head.weight")}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return True


# GGUF, with the names and layouts of llama.cpp.


def gguf_tensors(c: Qwen3MoeConfig, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    out = decoders.gguf_tensors(c, weights)
    for layer in range(c.num_hidden_layers):
        prefix, b, inner = f"model.layers.{layer}.mlp.", f"blk.{layer}.", c.moe_intermediate_size
        both = weights[prefix + "experts.gate_up_proj"]
        out |= {b + "ffn_gate_inp.weight": weights[prefix + "gate.weight"], b + "ffn_gate_exps.weight": both[:, :inner],
                b + "ffn_up_exps.weight": both[:, inner:], b + "ffn_down_exps.weight": weights[prefix + "experts.down_proj"]}
    return out


def from_gguf_tensors(c: Qwen3MoeConfig, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    out = {}
    for layer in range(c.num_hidden_layers):
        prefix, take = f"model.layers.{layer}.mlp.", lambda name: stored.pop(f"blk.{layer}.{name}.weight")  # noqa: B023
        both = np.concatenate([take("ffn_gate_exps"), take("ffn_up_exps")], 1)
        out |= {prefix + "gate.weight": take("ffn_gate_inp"), prefix + "experts.gate_up_proj": both, prefix + "experts.down_proj": take("ffn_down_exps")}
    return out | decoders.from_gguf_tensors(c, stored)


def gguf_metadata(c: Qwen3MoeConfig, add) -> None:
    decoders.gguf_metadata(c, add)
    add.add_expert_count(c.num_experts)
    add.add_expert_used_count(c.num_experts_per_tok)
    add.add_expert_feed_forward_length(c.moe_intermediate_size)
