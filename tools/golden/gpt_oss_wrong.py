"""gpt-oss as a `decoder_page.Decoder`, and the mistakes that can be made with its layouts, its rotation and its SwiGLU."""

from dataclasses import replace

import numpy as np
import torch

import decoder_page
import rotary
from decoder_page import double

_LAYOUT = {
    "gate and up one after the other where they are interleaved",
    "gate and up weights interleaved, but not their biases",
    "gate and up projection not transposed (the same elements in the other order)",
}
_BLOCKS = {
    "halves of a byte of MXFP4 exchanged",
    "low halves before high halves, as in GGUF",
    "MXFP4 exponents of the next block",
}
_SWIGLU = {
    "no clamps",
    "gate not clamped",
    "gate clamped below too",
    "up not clamped",
    "up clamped above alone",
    "up without the 1",
    "sigmoid without alpha",
    "1 added to the gate",
}
_CONFIGURED = {"limit 7 and alpha 1.702 in place of the configured ones"}

# By config and weights, as for the other families.
MISTAKES = {name: lambda c, w, applies=applies: applies(_decoder(c, w, None)) for name, applies in decoder_page.MISTAKES.items()}
MISTAKES |= dict.fromkeys([*sorted(_LAYOUT), *sorted(_SWIGLU)], lambda c, w: True)
MISTAKES |= rotary.mistakes(lambda c: c.rope_parameters)
MISTAKES |= dict.fromkeys(sorted(_BLOCKS), lambda c, w: c.hidden_size % 32 == 0)
MISTAKES |= dict.fromkeys(sorted(_CONFIGURED), lambda c, w: c.swiglu_limit != 7)
# x sigmoid(1.702 x) is all but zero below -7, so that only a lower limit shows.
MISTAKES["gate clamped below too"] = lambda c, w: c.swiglu_limit < 4


def swiglu(alpha: float, limit: float, wrong):
    def between(gate, up):
        if wrong not in ("no clamps", "gate not clamped"):
            gate = gate.clamp(min=-limit if wrong == "gate clamped below too" else None, max=limit)
        if wrong not in ("no clamps", "up not clamped"):
            up = up.clamp(min=None if wrong == "up clamped above alone" else -limit, max=limit)
        if wrong == "1 added to the gate":
            return (gate + 1) * torch.sigmoid(alpha * gate) * up
        gate = gate * torch.sigmoid((1.0 if wrong == "sigmoid without alpha" else alpha) * gate)
        return gate * (up if wrong == "up without the 1" else up + 1)

    return between


def blocks(rows: torch.Tensor, wrong) -> torch.Tensor:
    """(experts, outputs, inputs) as a wrong reader of its blocks would see them."""
    if wrong is None or rows.shape[-1] % 32:
        return rows
    b = rows.unflatten(-1, (-1, 32))
    match wrong:
        case "halves of a byte of MXFP4 exchanged":
            b = b.unflatten(-1, (16, 2)).flip(-1).flatten(-2)
        case "low halves before high halves, as in GGUF":
            b = torch.cat([b[..., ::2], b[..., 1::2]], -1)
        case "MXFP4 exponents of the next block":
            exponent = b.abs().amax(-1, keepdim=True).clamp(min=1e-30).log2().floor()
            # Over all outputs of an expert, since a row can be a single block.
            b = b * (exponent.flatten(1, 2).roll(1, 1).view_as(exponent) - exponent).exp2()
    return b.flatten(-2)


def _decoder(c, weights, wrong) -> decoder_page.Decoder:
    d = decoder_page.from_hugging_face(c, weights, rotary.of(c, wrong))
    for index, layer in enumerate(d.layers):
        w = lambda name: double(weights[f"model.layers.{index}.{name}"])  # noqa: B023, E731
        both, bias = w("mlp.experts.gate_up_proj"), w("mlp.experts.gate_up_proj_bias")
        if wrong == "gate and up projection not transposed (the same elements in the other order)":
            both = both.reshape(len(both), both.shape[2], both.shape[1])
        else:
            both = both.transpose(1, 2)
        both, down = blocks(both, wrong), blocks(w("mlp.experts.down_proj").transpose(1, 2), wrong)
        inner = both.shape[1] // 2
        interleaved, halves = (slice(0, None, 2), slice(1, None, 2)), (slice(None, inner), slice(inner, None))
        gate, up = halves if wrong == "gate and up one after the other where they are interleaved" else interleaved
        gate_bias, up_bias = halves if wrong == "gate and up weights interleaved, but not their biases" else (gate, up)
        layer.w |= {
            "sinks": w("self_attn.sinks"), "router": w("mlp.router.weight"), "router_bias": w("mlp.router.bias"),
            "gate": both[:, gate], "up": both[:, up], "gate_bias": bias[:, gate_bias], "up_bias": bias[:, up_bias],
            "down": down, "down_bias": w("mlp.experts.down_proj_bias"),
        }
        layer.window = c.sliding_window if c.layer_types[index] == "sliding_attention" else None
        layer.chosen = c.num_experts_per_tok
    alpha, limit = (1.702, 7.0) if wrong in _CONFIGURED else (c.swiglu_alpha, c.swiglu_limit)
    return replace(d, nonlinearity=swiglu(alpha, limit, wrong))


def forward(c, weights: dict[str, np.ndarray], tokens: np.ndarray, wrong: str | None = None) -> np.ndarray:
    """Logits (tokens, vocab) in float64."""
    return decoder_page.forward(_decoder(c, weights, wrong), tokens, wrong)
