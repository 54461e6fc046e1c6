"""The other scalings of rotary positions: linear, Llama 3.1, LongRoPE; plain and YaRN as in `rotary.py`."""

import math
from dataclasses import replace

import numpy as np
import torch

import rotary
from rotary import Rotary, checked, plain


def llama3(base: float, width: int, factor: float, low: float, high: float, original: int) -> np.ndarray:
    """Pairs that turn more than `high` times within the original context keep their frequency, those that turn less than `low` times
    have it divided, and between the two it goes over linearly in the number of turns."""
    frequencies = plain(base, width)
    turns = original * frequencies / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return frequencies / factor * (1 - kept) + frequencies * kept


def long_magnitude(c) -> float:
    r = c.rope_parameters
    if r.get("attention_factor"):
        return r["attention_factor"]
    original = r["original_max_position_embeddings"]
    factor = c.max_position_embeddings / original
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _is(kind: str, parameters):
    return lambda c, w: (parameters(c) or {}).get("rope_type") == kind


def mistakes(parameters) -> dict:
    """As `rotary.mistakes`, for the scalings of this file."""
    linear, low, long = (_is(kind, parameters) for kind in ("linear", "llama3", "longrope"))
    return {
        "linear scaling left out": linear,
        "linear scaling times the factor": linear,
        "Llama 3 scaling left out": low,
        "Llama 3 scaling on every frequency": low,
        "Llama 3 scaling with the middle divided": low,
        "Llama 3 scaling with the middle kept": low,
        "long factors for every length": long,
        "short factors for every length": long,
        "no factors": long,
        "frequencies multiplied by the factors": long,
        "no magnitude of LongRoPE": long,
        "LongRoPE's magnitude on queries alone": long,
        "whole head rotated": lambda c, w: (parameters(c) or {}).get("partial_rotary_factor", 1.0) != 1.0,
        "the pairs of a partly rotated head set apart by half a head": lambda c, w: (parameters(c) or {}).get("partial_rotary_factor", 1.0) != 1.0,
    }


def of(c, wrong: str | None, length: int, parameters: dict | None = None, layer_type: str | None = None) -> Rotary:
    """The rotation of a sequence of `length` by `parameters`, those of all layers unless said otherwise."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    r = parameters or c.rope_parameters
    kind, base = r["rope_type"], r["rope_theta"]
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    width = int(head_dim * r.get("partial_rotary_factor", 1.0))
    if kind == "yarn":
        return rotary.of(c, wrong)
    unscaled = plain(base, width)
    with_frequencies = lambda f: Rotary(torch.from_numpy(np.float32(f)), magnitude, base, head_dim)  # noqa: E731
    magnitude = 1.0
    if kind == "default":
        theirs = 1.0 / (base ** (torch.arange(0, width, 2, dtype=torch.float) / width))
        right = Rotary(checked(unscaled, theirs), magnitude, base, head_dim)
    else:
        theirs, magnitude = ROPE_INIT_FUNCTIONS[kind](c, None, seq_len=length, **({"layer_type": layer_type} if layer_type else {}))
        if kind == "linear":
            ours = unscaled / r["factor"]
        elif kind == "llama3":
            turns = (r["factor"], r["low_freq_factor"], r["high_freq_factor"], r["original_max_position_embeddings"])
            ours = llama3(base, width, *turns)
        else:
            assert abs(magnitude - long_magnitude(c)) < 1e-12
            is_long = length > r["original_max_position_embeddings"]
            short, long = (unscaled / np.array(r[name]) for name in ("short_factor", "long_factor"))
            ours = long if is_long else short
        right = Rotary(checked(ours, theirs), magnitude, base, head_dim)
    match wrong:
        case "linear scaling left out" | "Llama 3 scaling left out" | "no factors":
            return with_frequencies(unscaled)
        case "linear scaling times the factor":
            return with_frequencies(unscaled * r["factor"])
        case "Llama 3 scaling on every frequency":
            return with_frequencies(unscaled / r["factor"])
        case "Llama 3 scaling with the middle divided" | "Llama 3 scaling with the middle kept":
            bound = r["high_freq_factor" if wrong.endswith("divided") else "low_freq_factor"]
            divided = r["original_max_position_embeddings"] * unscaled / (2 * math.pi) < bound
            return with_frequencies(np.where(divided, unscaled / r["factor"], unscaled))
        case "long factors for every length" | "short factors for every length":
            return with_frequencies(long if wrong.startswith("long") else short)
        case "frequencies multiplied by the factors":
            return with_frequencies(unscaled * unscaled / ours)
        case "no magnitude of LongRoPE":
            return replace(right, magnitude=1.0)
        case "LongRoPE's magnitude on queries alone":
            return replace(right, magnitude=magnitude**0.5)  # as much in every score
        case "whole head rotated":
            more = plain(base, head_dim)
            more[: len(ours)] = ours
            return with_frequencies(more)
        case "the pairs of a partly rotated head set apart by half a head":
            return with_frequencies(np.concatenate([ours, np.zeros(head_dim // 2 - len(ours))]))
    return right
