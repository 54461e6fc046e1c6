"""Phi-3 as a `decoder_page.Decoder`, and the mistakes that can be made with its rotation and its fused projections."""

import numpy as np

import decoder_page
import scalings

_PAGE = {name: lambda c, w, applies=applies: applies(_decoder(c, w, None, 1)) for name, applies in decoder_page.MISTAKES.items()}
MISTAKES = _PAGE | scalings.mistakes(lambda c: c.rope_parameters) | {
    "q, k and v fused by KV head": lambda c, w: c.num_key_value_heads > 1,
    "rows of gate and up in turn": lambda c, w: True,
}


def _decoder(c, weights, wrong, length) -> decoder_page.Decoder:
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
    width = c.hidden_size // heads
    apart = {}
    for name, value in weights.items():
        if name.endswith("qkv_proj.weight"):
            if wrong == "q, k and v fused by KV head":
                groups = value.reshape(kv_heads, heads // kv_heads + 2, width, -1)
                parts = [groups[:, :-2], groups[:, -2], groups[:, -1]]
                parts = [part.reshape(-1, value.shape[1]) for part in parts]
            else:
                parts = np.split(value, [heads * width, (heads + kv_heads) * width])
            apart |= {name.replace("qkv", letter): part for letter, part in zip("qkv", parts, strict=True)}
        elif name.endswith("gate_up_proj.weight"):
            gate, up = (value[::2], value[1::2]) if wrong == "rows of gate and up in turn" else np.split(value, 2)
            apart |= {name.replace("gate_up", "gate"): gate, name.replace("gate_up", "up"): up}
        else:
            apart[name] = value
    d = decoder_page.from_hugging_face(c, apart, scalings.of(c, wrong, length))
    for layer in d.layers:
        layer.window = c.sliding_window
    return d


def forward(c, weights: dict[str, np.ndarray], tokens: np.ndarray, wrong: str | None = None) -> np.ndarray:
    """Logits (tokens, vocab) in float64."""
    return decoder_page.forward(_decoder(c, weights, wrong, len(tokens)), tokens, wrong)
