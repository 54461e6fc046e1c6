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
