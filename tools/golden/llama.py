"""The Llama family: grouped-query and multi-head attention, every scaling of the rotation, biases, older files."""

import math

import gguf
import numpy as np
import torch
from safetensors.torch import save_file as save_torch
from transformers import LlamaConfig

import decoders
from common import Gguf, Variant, save_json
from decoders import Draw, exact as exact_activations, gguf_type, head_dim, summary  # noqa: F401

FAMILY = "llama"
MODEL_CLASS = "LlamaForCausalLM"

VARIANTS = [
    Variant(
        "base", dict(hidden_size=40, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=131,
                     max_position_embeddings=96, rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
        "two heads of 10 to each of two KV heads, plain rope, separate head",
        gguf=(Gguf("base-F32", notes="rows of q and k in the order of pairs"),),
        copies=(("old", "config.json in the manner of transformers 4, names without `model.`, rotary_emb.inv_freq among the tensors, to be ignored"),),
    ),
    Variant(
        "linear", dict(hidden_size=33, intermediate_size=45, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=3, head_dim=14, vocab_size=127,
                       max_position_embeddings=128, rms_norm_eps=0.02, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
                       rope_parameters=dict(rope_type="linear", rope_theta=2000.0, factor=4.0)),
        "multi-head attention, heads wider than hidden / heads, biases everywhere, linear scaling, tied, eps 0.02, odd sizes",
        gguf=(Gguf("linear-F32", notes="biases too are in the order of pairs; tied (no output.weight)"),),
    ),
    Variant(
        "llama3", dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=16, vocab_size=139,
                       max_position_embeddings=256, rms_norm_eps=1e-5, tie_word_embeddings=True,
                       rope_parameters=dict(rope_type="llama3", rope_theta=2000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                            original_max_position_embeddings=64)),
        "the scaling of Llama 3.1, three heads to each KV head, tied, bfloat16", dtype="bfloat16", sequences=((70, 16), (1, 16)),
        gguf=(Gguf("llama3-F32", notes="with rope_freqs.weight"),),
    ),
    Variant(
        "yarn", dict(hidden_size=32, intermediate_size=52, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=16, vocab_size=113,
                     max_position_embeddings=128, tie_word_embeddings=False,
                     rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32)),
        "YaRN with rounded bounds, one KV head for all", sequences=((70, 16), (1, 16)),
        gguf=(Gguf("yarn-F32", notes="YaRN by the keys that llama.cpp reads"),),
    ),
    Variant(
        "yarn-own", dict(hidden_size=32, intermediate_size=52, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, vocab_size=113,
                         max_position_embeddings=128, tie_word_embeddings=False,
                         rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32, beta_fast=3.0, beta_slow=0.5,
                                              truncate=False, attention_factor=1.4)),
        "YaRN with bounds between the pairs, turns and magnitude of its own", sequences=((70, 16), (1, 16)),
    ),
    Variant(
        "blocks", dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=131,
                       max_position_embeddings=96, rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
        "the GGUF file of quantized type", store_checkpoint=False,
        gguf=(Gguf("blocks-Q8_0", "Q8_0", notes="matrices Q8_0, vectors F32"),),
    ),
]


def config(variant: Variant) -> LlamaConfig:
    last = variant.config["vocab_size"] - 1
    settings = dict(rope_parameters=dict(variant.config["rope_parameters"]))
    return LlamaConfig(architectures=[MODEL_CLASS], bos_token_id=None, eos_token_id=last, **(variant.config | settings))


def weights(variant: Variant) -> dict[str, np.ndarray]:
    return drawn(FAMILY, variant, config(variant))


def drawn(family: str, variant: Variant, c) -> dict[str, np.ndarray]:
    draw = Draw(family, variant.name)
    biased, mlp_biased = getattr(c, "attention_bias", False), getattr(c, "mlp_bias", False)
    decoders.draw_frame(draw, c)
    for layer in range(c.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        decoders.draw_attention(draw, c, prefix, bias=biased, output_bias=biased)
        draw.put(prefix + "post_attention_layernorm.weight", c.hidden_size, 0.4, 1.0)
        decoders.draw_gated(draw, c, prefix, c.intermediate_size)
        if mlp_biased:
            for name, width in (("gate", c.intermediate_size), ("up", c.intermediate_size), ("down", c.hidden_size)):
                draw.put(f"{prefix}mlp.{name}_proj.bias", width, 0.5)
    return draw.out


def save(variant, c, weights, directory, layout) -> bool:
    """config.json of transformers 4 and tensors of the bare decoder, with the buffer that older versions saved."""
    if layout != "old":
        return False
    save_json(directory / "config.json", {
        "architectures": ["LlamaModel"], "bos_token_id": 1, "eos_token_id": c.eos_token_id, "hidden_act": "silu", "hidden_size": c.hidden_size,
        "initializer_range": 0.02, "intermediate_size": c.intermediate_size, "max_position_embeddings": c.max_position_embeddings, "model_type": "llama",
        "num_attention_heads": c.num_attention_heads, "num_hidden_layers": c.num_hidden_layers, "num_key_value_heads": c.num_key_value_heads,
        "pad_token_id": 0, "pretraining_tp": 1, "rms_norm_eps": c.rms_norm_eps, "rope_scaling": None, "tie_word_embeddings": False,
        "torch_dtype": "float16", "transformers_version": "4.31.0.dev0", "use_cache": True, "vocab_size": c.vocab_size,
    }, indent=2)
    tensors = {name.removeprefix("model."): torch.from_numpy(value) for name, value in weights.items()}
    for layer in range(c.num_hidden_layers):
        tensors[f"layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.arange(head_dim(c) // 2, dtype=torch.float32)
    save_torch(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return True


# GGUF: rows of queries and keys are in the order of pairs.


def pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def reordered(c, tensors: dict[str, np.ndarray], order) -> dict[str, np.ndarray]:
    heads = {"attn_q": c.num_attention_heads, "attn_k": c.num_key_value_heads}
    part = lambda name: name.split(".")[-2]  # noqa: E731
    return {name: order(value, heads[part(name)]) if part(name) in heads else value for name, value in tensors.items()}


def gguf_tensors(c, weights) -> dict[str, np.ndarray]:
    tensors = reordered(c, decoders.gguf_tensors(c, weights), pairs)
    r = c.rope_parameters
    if r["rope_type"] == "llama3":
        low, high, original = r["low_freq_factor"], r["high_freq_factor"], r["original_max_position_embeddings"]
        divisors = []
        for pair in range(head_dim(c) // 2):
            turns = original * r["rope_theta"] ** (-2 * pair / head_dim(c)) / (2 * math.pi)
            kept = min(max((turns - low) / (high - low), 0), 1)
            divisors.append(1 / ((1 - kept) / r["factor"] + kept))
        tensors["rope_freqs.weight"] = np.float32(divisors)
    return tensors


def from_gguf_tensors(c, stored) -> dict[str, np.ndarray]:
    stored.pop("rope_freqs.weight", None)
    return decoders.from_gguf_tensors(c, reordered(c, stored, halves))


def gguf_metadata(c, add) -> None:
    decoders.gguf_metadata(c, add)
    add.add_rope_dimension_count(head_dim(c))
    if c.rope_parameters["rope_type"] == "linear":
        add.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        add.add_rope_scaling_factor(c.rope_parameters["factor"])
