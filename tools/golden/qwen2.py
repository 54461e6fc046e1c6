"""The Qwen 2 family: biases on queries, keys and values alone, windows in the upper layers."""

import numpy as np
from transformers import Qwen2Config

import decoders
from common import Gguf, Variant
from decoders import Draw, exact as exact_activations, from_gguf_tensors, gguf_metadata, gguf_tensors, gguf_type, summary  # noqa: F401

FAMILY = "qwen2"
MODEL_CLASS = "Qwen2ForCausalLM"

VARIANTS = [
    Variant(
        "tied", dict(hidden_size=60, intermediate_size=56, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, vocab_size=137,
                     max_position_embeddings=96, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1000.0)),
        "tied head, three heads of 10 to each of two KV heads, plain rope", sequences=((40, 20), (1, 16)),
        gguf=(Gguf("tied-F32", notes="tied (no output.weight)"),),
    ),
    Variant(
        "windows", dict(hidden_size=40, intermediate_size=60, num_hidden_layers=3, num_attention_heads=5, num_key_value_heads=1, vocab_size=113,
                        max_position_embeddings=128, rms_norm_eps=0.05, tie_word_embeddings=False, use_sliding_window=True, sliding_window=9, max_window_layers=2,
                        rope_parameters=dict(rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=32)),
        "a window of 9 from layer 2 on, YaRN with rounded bounds past 32 original positions, separate head, bfloat16", dtype="bfloat16",
        sequences=((70, 16), (1, 16)),
    ),
    Variant(
        "yarn", dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=141,
                     max_position_embeddings=128, tie_word_embeddings=False,
                     rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32)),
        "the GGUF file of quantized type", store_checkpoint=False, sequences=((70, 16), (1, 16)),
        gguf=(Gguf("yarn-Q8_0", "Q8_0", notes="matrices Q8_0, vectors F32; YaRN past 32 original positions"),),
    ),
]


def config(variant: Variant) -> Qwen2Config:
    last = variant.config["vocab_size"] - 1
    settings = dict(rope_parameters=dict(variant.config["rope_parameters"]))
    return Qwen2Config(architectures=[MODEL_CLASS], bos_token_id=None, eos_token_id=last, **(variant.config | settings))


def weights(variant: Variant) -> dict[str, np.ndarray]:
    c, draw = config(variant), Draw(FAMILY, variant.name)
    decoders.draw_frame(draw, c)
    for layer in range(c.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        decoders.draw_attention(draw, c, prefix, bias=True)
        draw.put(prefix + "post_attention_layernorm.weight", c.hidden_size, 0.4, 1.0)
        decoders.draw_gated(draw, c, prefix, c.intermediate_size)
    return draw.out
