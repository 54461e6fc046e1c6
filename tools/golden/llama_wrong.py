"""Llama as a `decoder_page.Decoder`, and the mistakes that can be made with its rotation."""

import numpy as np

import decoder_page
import rotary
import scalings

MISTAKES = {name: lambda c, w, applies=applies: applies(_decoder(c, w, None, 1)) for name, applies in decoder_page.MISTAKES.items()}
MISTAKES |= rotary.mistakes(lambda c: c.rope_parameters) | scalings.mistakes(lambda c: c.rope_parameters)


def _decoder(c, weights, wrong, length) -> decoder_page.Decoder:
    return decoder_page.from_hugging_face(c, weights, scalings.of(c, wrong, length))


def forward(c, weights: dict[str, np.ndarray], tokens: np.ndarray, wrong: str | None = None) -> np.ndarray:
    """Logits (tokens, vocab) in float64."""
    return decoder_page.forward(_decoder(c, weights, wrong, len(tokens)), tokens, wrong)
