"""Qwen 3 in float64: the page of Qwen 2, whose layers say by their weights that heads are normed."""

from qwen2_wrong import MISTAKES, forward  # noqa: F401
