"""Qwen 2 as a `decoder_page.Decoder`, and the mistakes that can be made with its rotation and its windows."""

import numpy as np

import decoder_page
import rotary

MISTAKES = {name: lambda c, w, applies=applies: applies(_decoder(c, w, None)) for name, applies in decoder_page.MISTAKES.items()}
MISTAKES |= rotary.mistakes(lambda c: c.rope_parameters)


def _decoder(c, weights, wrong) -> decoder_page.Decoder:
    d = decoder_page.from_hugging_face(c, weights, rotary.of(c, wrong))
    for layer, kind in zip(d.layers, c.layer_types, strict=True):
        layer.window = c.sliding_window if kind == "sliding_attention" else None
    return d


def forward(c, weights: dict[str, np.ndarray], tokens: np.ndarray, wrong: str | None = None) -> np.ndarray:
    """Logits (tokens, vocab) in float64."""
    return decoder_page.forward(_decoder(c, weights, wrong), tokens, wrong)
