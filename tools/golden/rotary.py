"""Rotary positions: the frequencies by their formulas in float64, and the rotation.

`transformers` computes frequencies in float32, whatever the model's type. They are part of what a golden is, so the page
takes its bits, once they were seen to agree with the formula here; mistakes are made with the formula.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch


@dataclass
class Rotary:
    """`frequencies` (pairs) in float32; sine and cosine are multiplied with `magnitude`."""

    frequencies: torch.Tensor
    magnitude: float
    base: float
    head_dim: int

    def apply(self, x, positions, back=False, neighbours=False):
        """`x` (rows, heads, head_dim); elements beyond the pairs stay."""
        angles = (positions.float()[:, None] * self.frequencies).double()
        cos, sin = angles.cos()[:, None] * self.magnitude, angles.sin()[:, None] * self.magnitude
        if back:
            sin = -sin
        pairs = len(self.frequencies)
        x, rest = x[..., : 2 * pairs], x[..., 2 * pairs:]
        a, b = (x[..., ::2], x[..., 1::2]) if neighbours else (x[..., :pairs], x[..., pairs:])
        a, b = a * cos - b * sin, b * cos + a * sin
        turned = torch.stack([a, b], -1).flatten(-2) if neighbours else torch.cat([a, b], -1)
        return torch.cat([turned, rest], -1)

    def with_other_base(self):
        base = 500_000.0 if self.base == 10_000 else 10_000.0
        pair = torch.arange(len(self.frequencies), dtype=torch.float64)
        return replace(self, frequencies=(self.frequencies * (self.base / base) ** (2 * pair / (2 * len(pair)))).float())


def plain(base: float, width: int) -> np.ndarray:
    return base ** (-np.arange(0, width, 2, dtype=np.float64) / width)


def yarn(base: float, width: int, factor: float, original: int, beta_fast=32.0, beta_slow=1.0, rounded=True) -> np.ndarray:
    """Peng et al., "YaRN" (2023): pairs that turn more than beta_fast times within the original context keep their frequency, those
    that turn less than beta_slow times have it divided, and between the two it goes over linearly in the number of the pair."""
    bound = lambda turns: width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))  # noqa: E731
    low, high = bound(beta_fast), bound(beta_slow)
    if rounded:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    kept = 1 - np.clip((np.arange(width // 2) - low) / max(high - low, 0.001), 0, 1)
    frequencies = plain(base, width)
    return frequencies / factor * (1 - kept) + frequencies * kept


def yarn_magnitude(factor: float) -> float:
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def checked(frequencies: np.ndarray, theirs: torch.Tensor) -> torch.Tensor:
    """Their bits, if they are ours to float32."""
    assert np.allclose(frequencies, theirs.double().numpy(), rtol=3e-6, atol=0), (frequencies, theirs)
    return theirs.float()


def mistakes(parameters) -> dict:
    """Name -> where it applies, of what can be got wrong about YaRN; `parameters` gives them for a config."""
    scaled = lambda c, w: parameters(c)["rope_type"] == "yarn"  # noqa: E731
    # At a hundred positions the rounding of bounds shows only where the original context is short.
    short = lambda c, w: scaled(c, w) and parameters(c)["original_max_position_embeddings"] < 100  # noqa: E731
    return {
        "bounds between the pairs rounded, or not where they must be": short,
        "no concentration": scaled,
        "concentration on queries alone": scaled,
        "every frequency divided by the factor": scaled,
        "frequencies not scaled": scaled,
    }


def of(c, wrong: str | None) -> Rotary:
    """The rotation of a `transformers` config that has one for all layers, plain or YaRN."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    r = c.rope_parameters
    base, width = r["rope_theta"], getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    unscaled = plain(base, width)
    if r["rope_type"] == "default":
        theirs = 1.0 / (base ** (torch.arange(0, width, 2, dtype=torch.float) / width))
        return Rotary(checked(unscaled, theirs), 1.0, base, width)
    assert r["rope_type"] == "yarn"
    theirs, magnitude = ROPE_INIT_FUNCTIONS["yarn"](c)
    assert abs(magnitude - (r.get("attention_factor") or yarn_magnitude(r["factor"]))) < 1e-12
    rounded = r.get("truncate", True)
    bounded = lambda rounded: yarn(base, width, r["factor"], r["original_max_position_embeddings"], r.get("beta_fast") or 32, r.get("beta_slow") or 1, rounded)  # noqa: E731
    right = Rotary(checked(bounded(rounded), theirs), magnitude, base, width)
    with_frequencies = lambda f: replace(right, frequencies=torch.from_numpy(np.float32(f)))  # noqa: E731
    match wrong:
        case "bounds between the pairs rounded, or not where they must be":
            return with_frequencies(bounded(not rounded))
        case "no concentration":
            return replace(right, magnitude=1.0)
        case "concentration on queries alone":
            return replace(right, magnitude=right.magnitude**0.5)  # as much in every score
        case "every frequency divided by the factor":
            return with_frequencies(unscaled / r["factor"])
        case "frequencies not scaled":
            return with_frequencies(unscaled)
    return right
