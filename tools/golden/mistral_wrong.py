"""Mistral as a `decoder_page.Decoder`."""

import numpy as np

import decoder_page
import scalings

MISTAKES = {name: lambda c, w, applies=applies: applies(_decoder(c, w, None, 1)) for name, applies in decoder_page.MISTAKES.items()}


def _decoder(c, weights, wrong, length) -> decoder_page.Decoder:
    d = decoder_page.from_hugging_face(c, weights, scalings.of(c, wrong, length))
    for layer in d.layers:
        layer.window = c.sliding_window
    return d


def forward(c, weights: dict[str, np.ndarray], tokens: np.ndarray, wrong: str | None = None) -> np.ndarray:
    """Logits (tokens, vocab) in float64."""
    return decoder_page.forward(_decoder(c, weights, wrong, len(tokens)), tokens, wrong)
