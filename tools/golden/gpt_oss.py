"""The gpt-oss family: its variants, their weights, and MXFP4 packed by hand.

The clamps must be reached, the sinks must take their share, and the router must weigh: gates and ups spread beyond 7, sinks
are about as large as the largest scores, router outputs have a standard deviation near 1.5.
"""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import GptOssConfig, Mxfp4Config

import decoders
from common import Gguf, Variant, save_json
from decoders import Draw, exact as exact_activations, gguf_type, summary  # noqa: F401

FAMILY = "gpt-oss"
MODEL_CLASS = "GptOssForCausalLM"
ATTENTION = "eager"  # the only one that knows sinks

# The context before the scaling is shorter than the prompts, and the bounds between the pairs fall far from whole numbers.
_SHORT = dict(rope_type="yarn", rope_theta=1000.0, factor=32.0, beta_fast=3.2, beta_slow=1.0, truncate=False, original_max_position_embeddings=32)
_REAL = dict(rope_type="yarn", rope_theta=150000.0, factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False, original_max_position_embeddings=4096)

VARIANTS = [
    Variant(
        "mxfp4", dict(hidden_size=64, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                      num_local_experts=4, num_experts_per_tok=2, sliding_window=8, vocab_size=131, max_position_embeddings=1024, rope_parameters=_SHORT),
        "experts in MXFP4, the rest bfloat16; window of 8 in layers 0 and 2, prompts of up to 90 positions with 32 original ones",
        dtype="bfloat16", layout="mxfp4", sequences=((50, 20), (90, 8), (1, 16)),
        copies=(("openai", "the same weights in OpenAI's own layout, config.json without model_type"),),
        gguf=(Gguf("mxfp4-MXFP4", "MXFP4", exact=True, notes="as converted: experts MXFP4, other matrices BF16, router F32"),),
    ),
    Variant(
        "many", dict(hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, head_dim=64,
                     num_local_experts=16, num_experts_per_tok=4, sliding_window=16, vocab_size=149, max_position_embeddings=8192, rope_parameters=_REAL),
        "4 of 16 experts in MXFP4, three heads of 64 on one KV head, the published rope, in shards",
        dtype="bfloat16", layout="mxfp4-sharded", sequences=((50, 16), (1, 16)),
        gguf=(Gguf("many-Q8_0", "Q8_0", notes="as published: experts MXFP4, other matrices Q8_0, router F32"),),
    ),
    Variant(
        "bfloat16", dict(hidden_size=40, intermediate_size=24, num_hidden_layers=2, num_attention_heads=5, num_key_value_heads=5, head_dim=12,
                         num_local_experts=4, num_experts_per_tok=1, sliding_window=5, vocab_size=127, max_position_embeddings=128, rope_parameters=_SHORT),
        "no MXFP4: experts transposed, gate and up interleaved, in bfloat16; one expert of 4 a row, as many KV heads as heads, odd sizes",
        dtype="bfloat16", copies=(("openai", "the same weights in OpenAI's own layout"),),
    ),
    Variant(
        "float32", dict(hidden_size=36, intermediate_size=20, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1, head_dim=10,
                        num_local_experts=5, num_experts_per_tok=3, sliding_window=11, vocab_size=113, max_position_embeddings=96, rms_norm_eps=0.02,
                        layer_types=["full_attention", "sliding_attention", "full_attention"], swiglu_limit=2.0, swiglu_alpha=1.2,
                        rope_parameters=_SHORT | dict(truncate=True, factor=4.0)),
        "float32; layer types, limit, alpha, epsilon and rounded bounds that no published model has",
    ),
]


def config(variant: Variant) -> GptOssConfig:
    last = variant.config["vocab_size"] - 1
    settings = dict(rope_parameters=dict(variant.config["rope_parameters"]))
    return GptOssConfig(architectures=[MODEL_CLASS], bos_token_id=None, eos_token_id=last, pad_token_id=None, **(variant.config | settings))


def load_options(directory: Path) -> dict:
    """MXFP4 becomes the model's type when it is loaded; what it stands for is exact in all of them."""
    is_mxfp4 = "quantization_config" in json.loads((directory / "config.json").read_text())
    return {"experts_implementation": "eager"} | ({"quantization_config": Mxfp4Config(dequantize=True)} if is_mxfp4 else {})


def weights(variant: Variant) -> dict[str, np.ndarray]:
    """float32, with the names and shapes of GptOssForCausalLM."""
    c, draw = config(variant), Draw(FAMILY, variant.name)
    n, inner, experts = c.hidden_size, c.intermediate_size, c.num_local_experts
    size = 1.16 * n
    decoders.draw_frame(draw, c)
    for layer in range(c.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        decoders.draw_attention(draw, c, prefix, bias=True, output_bias=True, magnitude=1.34)
        draw.put(prefix + "self_attn.sinks", c.num_attention_heads, 1.5, 3.0)
        draw.put(prefix + "post_attention_layernorm.weight", n, 0.4, 1.0)
        draw.put(prefix + "mlp.router.weight", (experts, n), 1.5 * size**-0.5)
        draw.put(prefix + "mlp.router.bias", experts, 0.7)
        limit = c.swiglu_limit / 7
        draw.put(prefix + "mlp.experts.gate_up_proj", (experts, n, 2 * inner), 4.5 * limit * size**-0.5)
        draw.put(prefix + "mlp.experts.gate_up_proj_bias", (experts, 2 * inner), 2.0 * limit)
        draw.put(prefix + "mlp.experts.down_proj", (experts, inner, n), 0.2 / limit * inner**-0.5)
        draw.put(prefix + "mlp.experts.down_proj_bias", (experts, n), 0.6)
    return draw.out


# MXFP4 as it is published: 32 elements along the inputs share an exponent, element 2 i is the low half of byte i.

_CODES = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def to_mxfp4(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(..., inputs) to numbers (..., inputs / 32, 16) and exponents (..., inputs / 32)."""
    blocks = rows.reshape(*rows.shape[:-1], -1, 32)
    largest = np.abs(blocks).max(-1)
    exponents = np.floor(np.log2(largest)).astype(np.int32) - 2
    scaled = blocks / np.exp2(exponents.astype(np.float32))[..., None]
    codes = np.abs(scaled[..., None] - _CODES).argmin(-1).astype(np.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4, (exponents + 127).astype(np.uint8)


def from_mxfp4(numbers: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    codes = np.stack([numbers & 15, numbers >> 4], -1).reshape(*numbers.shape[:-1], 32)
    values = _CODES[codes] * np.exp2(exponents.astype(np.float32) - 127)[..., None]
    return values.reshape(*values.shape[:-2], -1)


def as_gguf_blocks(numbers: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """One exponent, then element i in the low and element i + 16 in the high half of byte i."""
    codes = np.stack([numbers & 15, numbers >> 4], -1).reshape(*numbers.shape[:-1], 32)
    blocks = np.concatenate([exponents[..., None], codes[..., :16] | codes[..., 16:] << 4], -1)
    return blocks.reshape(*blocks.shape[:-2], -1)


_EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def stored(variant: Variant, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights after rounding to the types they are stored in."""
    rounded = {}
    for name, value in weights.items():
        if variant.layout.startswith("mxfp4") and name.endswith(_EXPERTS):
            numbers, exponents = to_mxfp4(value.swapaxes(-1, -2))
            value = from_mxfp4(numbers, exponents)
            # What we pack is what the `gguf` package reads, and what it would have packed itself.
            blocks = as_gguf_blocks(numbers, exponents)
            assert np.array_equal(gguf.dequantize(blocks, gguf.GGMLQuantizationType.MXFP4), value)
            assert np.array_equal(from_mxfp4(*to_mxfp4(value)), value)
            rounded[name] = np.ascontiguousarray(value.swapaxes(-1, -2))
        else:
            rounded[name] = torch.from_numpy(value).to(getattr(torch, variant.dtype)).float().numpy()
    return rounded


def save(variant: Variant, c: GptOssConfig, weights: dict[str, np.ndarray], directory: Path, layout: str) -> bool:
    """Writes the layouts that `save_pretrained` does not; False for one that it does."""
    is_mxfp4 = variant.layout.startswith("mxfp4")
    if layout == "plain":
        return False
    dtype = getattr(torch, variant.dtype)
    tensors = {}
    for name, value in weights.items():
        experts = name.endswith(_EXPERTS)
        if experts and is_mxfp4:
            numbers, exponents = to_mxfp4(value.swapaxes(-1, -2))
            for part, bytes_ in (("_blocks", numbers), ("_scales", exponents)):
                tensors[name + part] = torch.from_numpy(np.ascontiguousarray(bytes_))
        else:
            tensors[name] = torch.from_numpy(np.array(value, order="C")).to(dtype)
    if layout == "openai":
        save_json(directory / "config.json", _openai_config(c), indent=2)
        save_file(_openai_tensors(c, tensors), directory / "model.safetensors", metadata={"format": "pt"})
        return True
    settings = json.loads(c.to_json_string())
    settings["dtype"] = variant.dtype
    settings["quantization_config"] = {
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"], "quant_method": "mxfp4",
    }
    save_json(directory / "config.json", settings, indent=2)
    if layout != "mxfp4-sharded":
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return True
    # The numbers in one file and their exponents in another.
    files = {name: f"model-0000{1 + (name.endswith('_scales') or 'layers.1.' in name)}-of-00002.safetensors" for name in sorted(tensors)}
    for file in sorted(set(files.values())):
        save_file({name: tensors[name] for name in files if files[name] == file}, directory / file, metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in tensors.values())
    save_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": files}, indent=2)
    return True


def _openai_config(c: GptOssConfig) -> dict:
    rope = c.rope_parameters
    return {
        "num_hidden_layers": c.num_hidden_layers, "num_experts": c.num_local_experts, "experts_per_token": c.num_experts_per_tok,
        "vocab_size": c.vocab_size, "hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size, "swiglu_limit": c.swiglu_limit,
        "head_dim": c.head_dim, "num_attention_heads": c.num_attention_heads, "num_key_value_heads": c.num_key_value_heads,
        "sliding_window": c.sliding_window, "initial_context_length": rope["original_max_position_embeddings"],
        "rope_theta": rope["rope_theta"], "rope_scaling_factor": rope["factor"], "rope_ntk_alpha": rope["beta_slow"], "rope_ntk_beta": rope["beta_fast"],
    }


def _openai_tensors(c: GptOssConfig, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {"embedding.weight": tensors["model.embed_tokens.weight"], "norm.scale": tensors["model.norm.weight"], "unembedding.weight": tensors["lm_head.weight"]}
    for layer in range(c.num_hidden_layers):
        t = lambda name: tensors[f"model.layers.{layer}.{name}"]  # noqa: B023, E731
        b = f"block.{layer}."
        for part in ("weight", "bias"):
            out[f"{b}attn.qkv.{part}"] = torch.cat([t(f"self_attn.{name}_proj.{part}") for name in "qkv"])
            out[f"{b}attn.out.{part}"] = t(f"self_attn.o_proj.{part}")
            out[f"{b}mlp.gate.{part}"] = t(f"mlp.router.{part}")
        out |= {f"{b}attn.norm.scale": t("input_layernorm.weight"), f"{b}attn.sinks": t("self_attn.sinks"), f"{b}mlp.norm.scale": t("post_attention_layernorm.weight")}
        for ours, theirs in (("gate_up_proj", "mlp1"), ("down_proj", "mlp2")):
            name = f"model.layers.{layer}.mlp.experts.{ours}"
            out[f"{b}mlp.{theirs}_bias"] = tensors[name + "_bias"]
            if name in tensors:
                out[f"{b}mlp.{theirs}_weight"] = tensors[name].transpose(-1, -2).contiguous()
            else:
                out |= {f"{b}mlp.{theirs}_weight.{part}": tensors[f"{name}_{part}"] for part in ("blocks", "scales")}
    return out


# GGUF, with the names and layouts of llama.cpp.

GGUF_ARCHITECTURE = "gpt-oss"


def gguf_tensors(c: GptOssConfig, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    out = {theirs.replace("ffn_norm", "post_attention_norm"): weights[ours] for ours, theirs in decoders.gguf_names(c, weights).items()}
    for layer in range(c.num_hidden_layers):
        w = lambda name: weights[f"model.layers.{layer}.{name}"]  # noqa: B023, E731
        b = f"blk.{layer}."
        up, bias = w("mlp.experts.gate_up_proj").swapaxes(-1, -2), w("mlp.experts.gate_up_proj_bias")
        out |= {
            b + "attn_sinks.weight": w("self_attn.sinks"),
            b + "ffn_gate_inp.weight": w("mlp.router.weight"), b + "ffn_gate_inp.bias": w("mlp.router.bias"),
            b + "ffn_gate_exps.weight": up[:, ::2], b + "ffn_up_exps.weight": up[:, 1::2],
            b + "ffn_gate_exps.bias": bias[:, ::2], b + "ffn_up_exps.bias": bias[:, 1::2],
            b + "ffn_down_exps.weight": w("mlp.experts.down_proj").swapaxes(-1, -2), b + "ffn_down_exps.bias": w("mlp.experts.down_proj_bias"),
        }
    return out


def from_gguf_tensors(c: GptOssConfig, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights of the file under our names."""
    named = {name.replace("post_attention_norm", "ffn_norm"): value for name, value in stored.items()}
    out = {}
    for layer in range(c.num_hidden_layers):
        take = lambda name: named.pop(f"blk.{layer}.{name}")  # noqa: B023, E731
        m = f"model.layers.{layer}."
        both = np.stack([take("ffn_gate_exps.weight"), take("ffn_up_exps.weight")], 2)
        biases = np.stack([take("ffn_gate_exps.bias"), take("ffn_up_exps.bias")], 2)
        out |= {
            m + "self_attn.sinks": take("attn_sinks.weight"), m + "mlp.router.weight": take("ffn_gate_inp.weight"), m + "mlp.router.bias": take("ffn_gate_inp.bias"),
            m + "mlp.experts.gate_up_proj": both.reshape(len(both), -1, both.shape[-1]).swapaxes(-1, -2), m + "mlp.experts.gate_up_proj_bias": biases.reshape(len(biases), -1),
            m + "mlp.experts.down_proj": take("ffn_down_exps.weight").swapaxes(-1, -2), m + "mlp.experts.down_proj_bias": take("ffn_down_exps.bias"),
        }
    return {name: np.ascontiguousarray(value) for name, value in (out | decoders.from_gguf_tensors(c, named)).items()}


def gguf_metadata(c: GptOssConfig, add) -> None:
    decoders.gguf_metadata(c, add)
    add.add_sliding_window(c.sliding_window)
    add.add_expert_count(c.num_local_experts)
    add.add_expert_used_count(c.num_experts_per_tok)
    add.add_expert_feed_forward_length(c.intermediate_size)


def gguf_type(gguf_name: str, dtype: str) -> str:  # noqa: F811
    if gguf_name.endswith("_exps.weight"):
        return "MXFP4"
    return decoders.gguf_type(gguf_name, "BF16" if dtype == "MXFP4" else dtype)
