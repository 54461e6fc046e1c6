"""The Phi-3 family: fused projections, partly rotated heads, LongRoPE."""

import numpy as np
from transformers import Phi3Config

import decoders
import scalings
from common import Gguf, Variant, save_json
from decoders import Draw, exact as exact_activations, gguf_type, head_dim, summary  # noqa: F401

FAMILY = "phi3"
MODEL_CLASS = "Phi3ForCausalLM"

_LONG = dict(rope_type="longrope", rope_theta=10000.0, original_max_position_embeddings=48,
             short_factor=[1.0, 1.1, 1.25, 1.5, 1.9, 2.2], long_factor=[1.2, 1.9, 3.1, 4.5, 5.5, 6.5])

VARIANTS = [
    Variant(
        "window", dict(hidden_size=48, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=131,
                       max_position_embeddings=96, original_max_position_embeddings=96, sliding_window=11, tie_word_embeddings=False,
                       rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
        "a window of 11, two heads to each KV head, plain rope, separate head",
        gguf=(Gguf("window-F32", notes="fused attn_qkv and ffn_up"),),
    ),
    Variant(
        "long", dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, vocab_size=127,
                     max_position_embeddings=192, original_max_position_embeddings=48, sliding_window=None, tie_word_embeddings=False,
                     rope_parameters=_LONG | dict(partial_rotary_factor=0.75)),
        "LongRoPE: prompts on both sides of the original 48 positions, one that crosses them while it goes on; three quarters of a head rotated",
        sequences=((30, 10), (70, 12), (44, 9), (1, 12)),
        gguf=(Gguf("long-F32", notes="with rope_factors_long.weight, rope_factors_short.weight and attn_factor"),),
        copies=(("old", "config.json in the manner of transformers 4, LongRoPE called `su`"),),
    ),
    Variant(
        "attention-factor", dict(hidden_size=36, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3, vocab_size=113,
                                 max_position_embeddings=192, original_max_position_embeddings=48, sliding_window=None, tie_word_embeddings=True,
                                 rms_norm_eps=0.01, rope_parameters=_LONG | dict(attention_factor=1.7)),
        "multi-head attention, a magnitude of its own, the whole head rotated, tied, bfloat16", dtype="bfloat16", sequences=((30, 10), (70, 12), (1, 12)),
    ),
    Variant(
        "blocks", dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=131,
                       max_position_embeddings=96, original_max_position_embeddings=96, sliding_window=None, tie_word_embeddings=False,
                       rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
        "the GGUF file of quantized type", store_checkpoint=False,
        gguf=(Gguf("blocks-Q8_0", "Q8_0", notes="matrices Q8_0, vectors F32"),),
    ),
]


def config(variant: Variant) -> Phi3Config:
    last = variant.config["vocab_size"] - 1
    settings = dict(rope_parameters=dict(variant.config["rope_parameters"]))
    return Phi3Config(architectures=[MODEL_CLASS], bos_token_id=None, eos_token_id=last, pad_token_id=0, **(variant.config | settings))


_FUSED = {"self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj")}


def weights(variant: Variant) -> dict[str, np.ndarray]:
    c, draw = config(variant), Draw(FAMILY, variant.name)
    is_long = c.rope_parameters["rope_type"] == "longrope"
    decoders.draw_frame(draw, c)
    for layer in range(c.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        decoders.draw_attention(draw, c, prefix, magnitude=scalings.long_magnitude(c) if is_long else 1.0)
        draw.put(prefix + "post_attention_layernorm.weight", c.hidden_size, 0.4, 1.0)
        decoders.draw_gated(draw, c, prefix, c.intermediate_size)
        for fused, parts in _FUSED.items():
            draw.out[f"{prefix}{fused}.weight"] = np.concatenate([draw.out.pop(f"{prefix}{part}.weight") for part in parts])
    return draw.out


def save(variant, c, weights, directory, layout) -> bool:
    """The checkpoint as usual, with config.json of transformers 4."""
    if layout != "old":
        return False
    import goldens

    goldens.save_model(type("Plain", (), {"FAMILY": FAMILY, "MODEL_CLASS": MODEL_CLASS, "config": staticmethod(config)}), variant, weights, directory, "plain")
    r = c.rope_parameters
    scaling = dict(type="su", short_factor=r["short_factor"], long_factor=r["long_factor"])
    save_json(directory / "config.json", {
        "architectures": [MODEL_CLASS], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1, "embd_pdrop": 0.0,
        "eos_token_id": c.eos_token_id, "hidden_act": "silu", "hidden_size": c.hidden_size, "initializer_range": 0.02,
        "intermediate_size": c.intermediate_size, "max_position_embeddings": c.max_position_embeddings, "model_type": "phi3",
        "num_attention_heads": c.num_attention_heads, "num_hidden_layers": c.num_hidden_layers, "num_key_value_heads": c.num_key_value_heads,
        "original_max_position_embeddings": c.original_max_position_embeddings, "pad_token_id": 0,
        "partial_rotary_factor": r.get("partial_rotary_factor", 1.0), "resid_pdrop": 0.0, "rms_norm_eps": c.rms_norm_eps, "rope_scaling": scaling,
        "rope_theta": r["rope_theta"], "sliding_window": c.sliding_window, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.2", "use_cache": True, "vocab_size": c.vocab_size,
    }, indent=2)
    return True


# GGUF.

_NAMES = {"input_layernorm": "attn_norm", "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output",
          "post_attention_layernorm": "ffn_norm", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def _gguf_names(c) -> dict[str, str]:
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    for layer in range(c.num_hidden_layers):
        names |= {f"model.layers.{layer}.{ours}.weight": f"blk.{layer}.{theirs}.weight" for ours, theirs in _NAMES.items()}
    return names


def gguf_tensors(c, weights) -> dict[str, np.ndarray]:
    tensors = {theirs: weights[ours] for ours, theirs in _gguf_names(c).items()}
    for name in ("long", "short"):
        if f"{name}_factor" in c.rope_parameters:
            tensors[f"rope_factors_{name}.weight"] = np.float32(c.rope_parameters[f"{name}_factor"])
    return tensors


def from_gguf_tensors(c, stored) -> dict[str, np.ndarray]:
    return {ours: stored[theirs] for ours, theirs in _gguf_names(c).items()}


def gguf_metadata(c, add) -> None:
    """As llama.cpp's converter: without a type of scaling, with a window of 0 where there is none."""
    decoders.gguf_metadata(c, add)
    add.add_rope_dimension_count(int(head_dim(c) * c.rope_parameters.get("partial_rotary_factor", 1.0)))
    add.add_rope_scaling_orig_ctx_len(c.original_max_position_embeddings)
    add.add_sliding_window(c.sliding_window or 0)
    if c.rope_parameters["rope_type"] == "longrope":
        add.add_rope_scaling_attn_factors(scalings.long_magnitude(c))
