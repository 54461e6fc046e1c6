"""The Gemma 3 family: norms on both sides with an offset, GeGLU, local and global layers with rotations of their own."""

import gguf
import numpy as np
import torch
from safetensors.torch import save_file as save_torch
from transformers import Gemma3TextConfig

import decoders
from common import Gguf, Variant, save_json
from decoders import Draw, exact as exact_activations, gguf_type, summary  # noqa: F401

FAMILY = "gemma3"
MODEL_CLASS = "Gemma3ForCausalLM"

_LOCAL = dict(rope_type="default", rope_theta=10000.0)
_GLOBAL = dict(rope_type="default", rope_theta=1e6)

VARIANTS = [
    Variant(
        "base", dict(hidden_size=28, intermediate_size=30, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=1, head_dim=8, vocab_size=101,
                     max_position_embeddings=96, sliding_window=9, query_pre_attn_scalar=8,
                     rope_parameters=dict(sliding_attention=_LOCAL, full_attention=_GLOBAL)),
        "five local layers with a window of 9 and a global one, one KV head, heads wider than hidden / heads, tied",
        gguf=(Gguf("base-F32", notes="norms with their offset; tied (no output.weight)"),),
        copies=(("old", "config.json in the manner of the first Gemma 3: rope_local_base_freq, sliding_window_pattern"),
                ("images", "the text part of a model that sees images: names with `language_model.model.`, text_config inside of config.json"),
                ("images-new", "the same with `model.language_model.`")),
    ),
    Variant(
        "capped", dict(hidden_size=36, intermediate_size=44, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2, head_dim=16, vocab_size=127,
                       max_position_embeddings=128, sliding_window=14, query_pre_attn_scalar=16, final_logit_softcapping=3.0, rms_norm_eps=0.02,
                       layer_types=["full_attention", "sliding_attention", "sliding_attention"],
                       rope_parameters=dict(sliding_attention=_LOCAL | dict(rope_theta=3000.0), full_attention=_GLOBAL | dict(rope_type="linear", factor=8.0))),
        "soft cap, multi-head attention, the global layer first and with linear scaling, another local base, tied",
        gguf=(Gguf("capped-F32", notes="windows and local base by their keys, soft cap"),),
    ),
    Variant(
        "own-scale", dict(hidden_size=40, intermediate_size=60, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=10, vocab_size=113,
                          max_position_embeddings=96, sliding_window=12, query_pre_attn_scalar=23, tie_word_embeddings=False, attention_bias=True,
                          layer_types=["sliding_attention", "full_attention"], rope_parameters=dict(sliding_attention=_LOCAL, full_attention=_GLOBAL)),
        "query_pre_attn_scalar 23, attention biases, separate head, bfloat16", dtype="bfloat16",
    ),
    Variant(
        "blocks", dict(hidden_size=64, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=131,
                       max_position_embeddings=96, sliding_window=9, query_pre_attn_scalar=16,
                       layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                       rope_parameters=dict(sliding_attention=_LOCAL, full_attention=_GLOBAL)),
        "the GGUF file of quantized type", store_checkpoint=False,
        gguf=(Gguf("blocks-Q8_0", "Q8_0", notes="matrices Q8_0, vectors F32"),),
    ),
]


def config(variant: Variant) -> Gemma3TextConfig:
    last = variant.config["vocab_size"] - 1
    rope = {name: dict(parameters) for name, parameters in variant.config["rope_parameters"].items()}
    return Gemma3TextConfig(architectures=[MODEL_CLASS], bos_token_id=None, eos_token_id=last, pad_token_id=0, **(variant.config | dict(rope_parameters=rope)))


def weights(variant: Variant) -> dict[str, np.ndarray]:
    c, draw = config(variant), Draw(FAMILY, variant.name)
    decoders.draw_frame(draw, c, norm_mean=0.0)
    draw.out["model.embed_tokens.weight"] *= np.float32(c.hidden_size**-0.5)  # what the scale gives back
    for layer in range(c.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        decoders.draw_attention(draw, c, prefix, bias=c.attention_bias, output_bias=c.attention_bias, head_norms=True, norm_mean=0.0)
        for name in ("q", "k"):
            draw.put(f"{prefix}self_attn.{name}_norm.weight", c.head_dim, 0.4, 0.2)
        for name in ("post_attention", "pre_feedforward", "post_feedforward"):
            draw.put(f"{prefix}{name}_layernorm.weight", c.hidden_size, 0.4, 0.0)
        decoders.draw_gated(draw, c, prefix, c.intermediate_size)
    for name, value in draw.out.items():
        if name.endswith("norm.weight"):
            draw.out[name] = np.round(value * 512) / np.float32(512)  # so that adding 1 and taking it away loses nothing
    return draw.out


def save(variant, c, weights, directory, layout) -> bool:
    if layout == "plain":
        return False
    old = {
        "architectures": [MODEL_CLASS], "attention_bias": c.attention_bias, "attention_dropout": 0.0, "attn_logit_softcapping": None, "bos_token_id": 2,
        "cache_implementation": "hybrid", "eos_token_id": c.eos_token_id, "final_logit_softcapping": None, "head_dim": c.head_dim,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": c.hidden_size, "initializer_range": 0.02, "intermediate_size": c.intermediate_size,
        "max_position_embeddings": c.max_position_embeddings, "model_type": "gemma3_text", "num_attention_heads": c.num_attention_heads,
        "num_hidden_layers": c.num_hidden_layers, "num_key_value_heads": c.num_key_value_heads, "pad_token_id": 0,
        "query_pre_attn_scalar": c.query_pre_attn_scalar, "rms_norm_eps": c.rms_norm_eps, "rope_local_base_freq": 10000, "rope_scaling": None,
        "rope_theta": 1000000, "sliding_window": c.sliding_window, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0", "use_cache": True, "vocab_size": c.vocab_size,
    }
    tensors = {name: torch.from_numpy(value) for name, value in weights.items() if name != "lm_head.weight"}
    if layout != "old":
        prefix = {"images": "language_model.model.", "images-new": "model.language_model."}[layout]
        tensors = {prefix + name.removeprefix("model."): value for name, value in tensors.items()}
        tensors["vision_tower.vision_model.post_layernorm.bias"] = torch.zeros(8)
        old = {"architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": [c.eos_token_id], "image_token_index": 5, "mm_tokens_per_image": 256,
               "model_type": "gemma3", "text_config": old, "vision_config": {"hidden_size": 8, "model_type": "siglip_vision_model"}}
    save_json(directory / "config.json", old, indent=2)
    save_torch(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return True


# GGUF: the offset of the norms is added, and it has norms of its own.

_MORE_NAMES = {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}


def _gguf_names(c, weights) -> dict[str, str]:
    names = decoders.gguf_names(c, weights)
    for layer in range(c.num_hidden_layers):
        names |= {f"model.layers.{layer}.{ours}.weight": f"blk.{layer}.{theirs}.weight" for ours, theirs in _MORE_NAMES.items()}
    return names


def gguf_tensors(c, weights) -> dict[str, np.ndarray]:
    offset = lambda name: np.float32(name.endswith("norm.weight"))  # noqa: E731
    return {theirs: weights[ours] + offset(ours) for ours, theirs in _gguf_names(c, weights).items()}


def from_gguf_tensors(c, stored) -> dict[str, np.ndarray]:
    parts = [f"model.layers.{layer}.{name}.weight" for layer in range(c.num_hidden_layers) for name in decoders._GGUF_NAMES]
    names = _gguf_names(c, parts)
    weights = {ours: stored[theirs] - np.float32(ours.endswith("norm.weight")) for ours, theirs in names.items()}
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    return weights


def gguf_metadata(c, add) -> None:
    """As llama.cpp's converter, with the keys of layers that do not come in sixes."""
    decoders.gguf_metadata(c, add)
    whole, local = c.rope_parameters["full_attention"], c.rope_parameters["sliding_attention"]
    add.add_rope_freq_base(whole["rope_theta"])
    if whole["rope_type"] == "linear":
        add.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        add.add_rope_scaling_factor(whole["factor"])
    add.add_sliding_window(c.sliding_window)
    windows = [kind == "sliding_attention" for kind in c.layer_types]
    if windows != [(layer + 1) % 6 != 0 for layer in range(len(windows))]:
        add.add_sliding_window_pattern(windows)
    if local["rope_theta"] != 10000:
        add.add_rope_freq_base_swa(local["rope_theta"])
    if c.final_logit_softcapping:
        add.add_final_logit_softcapping(c.final_logit_softcapping)
