"""The Mistral family: Llama with a window on every layer. In GGUF it is a llama."""

import numpy as np
from transformers import MistralConfig

import llama
from common import Gguf, Variant
from decoders import exact as exact_activations, gguf_type, summary  # noqa: F401
from llama import from_gguf_tensors, gguf_tensors  # noqa: F401

FAMILY = "mistral"
GGUF_ARCHITECTURE = "llama"
MODEL_CLASS = "MistralForCausalLM"

VARIANTS = [
    Variant(
        "window", dict(hidden_size=40, intermediate_size=60, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=131,
                       max_position_embeddings=96, sliding_window=9, rope_parameters=dict(rope_type="default", rope_theta=1e6)),
        "a window of 9, two heads to each KV head, separate head",
        gguf=(Gguf("window-F32", notes="a llama with attention.sliding_window"),),
    ),
    Variant(
        "whole", dict(hidden_size=36, intermediate_size=44, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3, head_dim=10, vocab_size=127,
                      max_position_embeddings=64, sliding_window=None, tie_word_embeddings=True, rms_norm_eps=1e-5,
                      rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
        "sliding_window null, multi-head attention, heads narrower than hidden / heads, tied, float16", dtype="float16",
    ),
]


def config(variant: Variant) -> MistralConfig:
    last = variant.config["vocab_size"] - 1
    settings = dict(rope_parameters=dict(variant.config["rope_parameters"]))
    return MistralConfig(architectures=[MODEL_CLASS], bos_token_id=None, eos_token_id=last, **(variant.config | settings))


def weights(variant: Variant) -> dict[str, np.ndarray]:
    return llama.drawn(FAMILY, variant, config(variant))


def gguf_metadata(c, add) -> None:
    llama.gguf_metadata(c, add)
    add.add_sliding_window(c.sliding_window)
