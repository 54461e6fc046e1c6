"""Gemma 3 as a `decoder_page.Decoder`, and the mistakes that can be made with its norms, scales and two rotations."""

import numpy as np

import decoder_page
import scalings
from decoder_page import GELU_TANH, double

_LINEAR = scalings.mistakes(lambda c: c.rope_parameters["full_attention"])
_PAGE = {name: lambda c, w, applies=applies: applies(_decoder(c, w, None, 1)) for name, applies in decoder_page.MISTAKES.items()}
MISTAKES = _PAGE | {name: applies for name, applies in _LINEAR.items() if name.startswith("linear")} | {
    "norms without their offset": lambda c, w: True,
    "query and key norms without their offset": lambda c, w: True,
    "final norm without its offset": lambda c, w: True,
    "global rotation in every layer": lambda c, w: True,
    "local rotation in every layer": lambda c, w: True,
    "linear scaling in local layers too": lambda c, w: c.rope_parameters["full_attention"]["rope_type"] == "linear",
    "scores divided by sqrt(head_dim) in place of query_pre_attn_scalar": lambda c, w: c.query_pre_attn_scalar != c.head_dim,
    "SiLU in place of GELU": lambda c, w: True,
}


def _decoder(c, weights, wrong, length) -> decoder_page.Decoder:
    def offset(name: str) -> float:
        head = name.endswith(("q_norm.weight", "k_norm.weight"))
        final = name == "model.norm.weight"
        without = wrong == "norms without their offset" or head and wrong == "query and key norms without their offset"
        return 0.0 if without or final and wrong == "final norm without its offset" else 1.0

    w = {name: np.float64(value) + offset(name) if name.endswith("norm.weight") else value for name, value in weights.items()}
    turns = {kind: scalings.of(c, wrong if kind == "full_attention" else None, length, c.rope_parameters[kind], kind) for kind in set(c.layer_types)}
    if wrong == "linear scaling in local layers too":
        turns["sliding_attention"].frequencies = turns["sliding_attention"].frequencies / c.rope_parameters["full_attention"]["factor"]
    activation = (lambda gate, up: decoder_page.SILU(gate) * up) if wrong == "SiLU in place of GELU" else (lambda gate, up: GELU_TANH(gate) * up)
    scalar = c.head_dim if wrong is not None and wrong.startswith("scores divided by sqrt(head_dim)") else c.query_pre_attn_scalar
    d = decoder_page.from_hugging_face(
        c, w, None, nonlinearity=activation, wrong_nonlinearity=lambda gate, up: decoder_page.SILU(gate) * up, scale=scalar**-0.5,
        embedding_scale=c.hidden_size**0.5, soft_cap=c.final_logit_softcapping,
    )
    for index, (layer, kind) in enumerate(zip(d.layers, c.layer_types, strict=True)):
        prefix = f"model.layers.{index}."
        layer.w |= {ours: double(w[f"{prefix}{theirs}_layernorm.weight"]) for ours, theirs in (
            ("attention_post_norm", "post_attention"), ("ffn_norm", "pre_feedforward"), ("ffn_post_norm", "post_feedforward"))}
        layer.window = c.sliding_window if kind == "sliding_attention" else None
        other = {"global rotation in every layer": "full_attention", "local rotation in every layer": "sliding_attention"}.get(wrong, kind)
        layer.rotary = turns[other]
    return d


def forward(c, weights: dict[str, np.ndarray], tokens: np.ndarray, wrong: str | None = None) -> np.ndarray:
    """Logits (tokens, vocab) in float64."""
    return decoder_page.forward(_decoder(c, weights, wrong, len(tokens)), tokens, wrong)
