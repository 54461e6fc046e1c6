"""Qwen 3 with experts as a `decoder_page.Decoder`, and the mistakes that can be made with the layout of its experts."""

import numpy as np

import decoder_page
import qwen3_moe
import rotary
from decoder_page import double

MISTAKES = {name: lambda c, w, applies=applies: applies(_decoder(c, w, None)) for name, applies in decoder_page.MISTAKES.items()}
MISTAKES["gate and up interleaved where they are one after the other"] = lambda c, w: True


def _decoder(c, weights, wrong) -> decoder_page.Decoder:
    d = decoder_page.from_hugging_face(c, weights, rotary.of(c, wrong), softmax_of_chosen=c.norm_topk_prob)
    for index, layer in enumerate(d.layers):
        layer.window = c.sliding_window
        if not qwen3_moe.is_sparse(c, index):
            continue
        w = lambda name: double(weights[f"model.layers.{index}.mlp.{name}"])  # noqa: B023, E731
        both, inner = w("experts.gate_up_proj"), c.moe_intermediate_size
        interleaved = wrong == "gate and up interleaved where they are one after the other"
        gate, up = (both[:, ::2], both[:, 1::2]) if interleaved else (both[:, :inner], both[:, inner:])
        layer.w |= {"router": w("gate.weight"), "gate": gate, "up": up, "down": w("experts.down_proj")}
        layer.chosen = c.num_experts_per_tok
    return d


def forward(c, weights: dict[str, np.ndarray], tokens: np.ndarray, wrong: str | None = None) -> np.ndarray:
    """Logits (tokens, vocab) in float64."""
    return decoder_page.forward(_decoder(c, weights, wrong), tokens, wrong)
