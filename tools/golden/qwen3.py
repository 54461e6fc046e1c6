"""The Qwen 3 family: every head of queries and keys is normed, and heads have a width of their own."""

import numpy as np
from transformers import Qwen3Config

import decoders
from common import Gguf, Variant
from decoders import Draw, exact as exact_activations, from_gguf_tensors, gguf_metadata, gguf_tensors, gguf_type, summary  # noqa: F401

FAMILY = "qwen3"
MODEL_CLASS = "Qwen3ForCausalLM"

VARIANTS = [
    Variant(
        "tied", dict(hidden_size=40, intermediate_size=52, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=139,
                     max_position_embeddings=96, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1000.0)),
        "tied head, four heads of 16 on a hidden size of 40", sequences=((40, 20), (1, 16)),
        gguf=(Gguf("tied-F32", notes="tied (no output.weight)"),),
    ),
    Variant(
        "biases", dict(hidden_size=36, intermediate_size=50, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=3, head_dim=12, vocab_size=109,
                       max_position_embeddings=128, rms_norm_eps=0.03, tie_word_embeddings=False, attention_bias=True,
                       use_sliding_window=True, sliding_window=13, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                       rope_parameters=dict(rope_type="yarn", rope_theta=300.0, factor=3.0, attention_factor=1.25, original_max_position_embeddings=32)),
        "attention biases, windows by layer_types, YaRN with its own attention factor, as many KV heads as heads", sequences=((60, 16), (1, 16)),
    ),
    Variant(
        "blocks", dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32, vocab_size=131,
                       max_position_embeddings=96, tie_word_embeddings=False, rope_parameters=dict(rope_type="default", rope_theta=1000000.0)),
        "the GGUF file of quantized type", store_checkpoint=False, sequences=((40, 16), (1, 16)),
        gguf=(Gguf("blocks-Q8_0", "Q8_0", notes="matrices Q8_0, vectors F32; with output.weight"),),
    ),
]


def config(variant: Variant) -> Qwen3Config:
    last = variant.config["vocab_size"] - 1
    settings = dict(rope_parameters=dict(variant.config["rope_parameters"]))
    return Qwen3Config(architectures=[MODEL_CLASS], bos_token_id=None, eos_token_id=last, **(variant.config | settings))


def weights(variant: Variant) -> dict[str, np.ndarray]:
    c, draw = config(variant), Draw(FAMILY, variant.name)
    decoders.draw_frame(draw, c)
    for layer in range(c.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        decoders.draw_attention(draw, c, prefix, bias=c.attention_bias, output_bias=c.attention_bias, head_norms=True)
        draw.put(prefix + "post_attention_layernorm.weight", c.hidden_size, 0.4, 1.0)
        decoders.draw_gated(draw, c, prefix, c.intermediate_size)
    return draw.out
