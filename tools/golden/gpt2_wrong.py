"""GPT-2 in float64 on one page, and the mistakes that a golden must catch.

The right model here is checked against `transformers` in float64; a mistake is the same page with one thing wrong.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

GELU_TANH = lambda x: torch.nn.functional.gelu(x, approximate="tanh")  # noqa: E731
# gelu_fast has sqrt(2 / pi) to ten digits only: 3e-11 in the logits.
GELU_FAST = lambda x: 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))  # noqa: E731
QUICK_GELU = lambda x: x * torch.sigmoid(1.702 * x)  # noqa: E731
# What each name means, and the nearest wrong reading of it.
ACTIVATIONS = {
    "gelu": (torch.nn.functional.gelu, GELU_TANH),
    "gelu_new": (GELU_TANH, torch.nn.functional.gelu),
    "gelu_pytorch_tanh": (GELU_TANH, torch.nn.functional.gelu),
    "gelu_fast": (GELU_FAST, torch.nn.functional.gelu),
    "quick_gelu": (QUICK_GELU, GELU_TANH),
    "relu": (torch.relu, GELU_TANH),
    "silu": (torch.nn.functional.silu, QUICK_GELU),
}

ALWAYS: Callable = lambda c, w: True  # noqa: E731
MANY_HEADS: Callable = lambda c, w: c.n_head > 1  # noqa: E731

# Name -> where it applies, by config and weights. The names are the rows of the table in testdata/golden/README.md.
MISTAKES: dict[str, Callable] = {
    "no position embedding": ALWAYS,
    "positions shifted by one": ALWAYS,
    "embeddings scaled by sqrt(hidden)": ALWAYS,
    "erf GELU for tanh, or the reverse": lambda c, w: c.activation_function.startswith("gelu"),
    "another activation (quick_gelu for silu, tanh GELU for quick_gelu and relu)": lambda c, w: not c.activation_function.startswith("gelu"),
    "scores divided by sqrt(head_dim) where they must not be, or not where they must": ALWAYS,
    "scores divided by sqrt(hidden)": lambda c, w: c.n_head > 1 and c.scale_attn_weights,
    "layer-index scaling ignored": lambda c, w: c.scale_attn_by_inverse_layer_idx,
    "layer-index scaling by max(layer, 1)": lambda c, w: c.scale_attn_by_inverse_layer_idx,
    "no causal mask": ALWAYS,
    "a token does not see itself": ALWAYS,
    "the oldest key is dropped": ALWAYS,
    "the newest key but one is dropped": ALWAYS,
    "q and k swapped": ALWAYS,
    "k and v swapped": ALWAYS,
    "q, k, v interleaved per head": MANY_HEADS,
    "heads interleaved within the hidden size": MANY_HEADS,
    "first key-value head used for all heads": MANY_HEADS,
    "attention output weight transposed": ALWAYS,
    "no qkv bias": ALWAYS,
    "no query bias": ALWAYS,
    "no attention output bias": ALWAYS,
    "no ffn up bias": ALWAYS,
    "no ffn down bias": ALWAYS,
    "no ffn biases at all": ALWAYS,
    "norms do not subtract the mean": ALWAYS,
    "norms without weight": ALWAYS,
    "norms without bias": ALWAYS,
    "variance divided by n - 1": ALWAYS,
    "epsilon 1e-5 in place of the configured one": lambda c, w: c.layer_norm_epsilon != 1e-5,
    "epsilon added outside the square root": lambda c, w: c.layer_norm_epsilon >= 1e-3,
    "the two norms of a layer exchanged": ALWAYS,
    "no attention norm": ALWAYS,
    "no ffn norm": ALWAYS,
    "no final norm": ALWAYS,
    "ffn beside attention, not after it": ALWAYS,
    "no residual around attention": ALWAYS,
    "no residual around the ffn": ALWAYS,
    "layers in reverse order": ALWAYS,
    "last layer missing": ALWAYS,
    "tied head where it is separate": lambda c, w: not np.array_equal(w["lm_head.weight"], w["transformer.wte.weight"]),
}


def norm(x, weight, bias, eps, wrong):
    mean = 0.0 if wrong == "norms do not subtract the mean" else x.mean(-1, keepdim=True)
    centred = x - mean
    divisor = x.shape[-1] - (wrong == "variance divided by n - 1")
    variance = (centred**2).sum(-1, keepdim=True) / divisor
    if wrong == "epsilon 1e-5 in place of the configured one":
        eps = 1e-5
    y = centred / (variance.sqrt() + eps) if wrong == "epsilon added outside the square root" else centred / (variance + eps).sqrt()
    if wrong != "norms without weight":
        y = y * weight
    return y if wrong == "norms without bias" else y + bias


def attention(c, x, w, layer, wrong):
    rows, n, heads = x.shape[0], c.n_embd, c.n_head
    head_dim = n // heads
    bias = w("attn.c_attn.bias").clone()
    if wrong == "no qkv bias":
        bias[:] = 0
    if wrong == "no query bias":
        bias[:n] = 0
    qkv = x @ w("attn.c_attn.weight") + bias
    if wrong == "q, k, v interleaved per head":
        q, k, v = qkv.view(rows, heads, 3, head_dim).unbind(2)
    elif wrong == "heads interleaved within the hidden size":
        q, k, v = qkv.view(rows, 3, head_dim, heads).transpose(2, 3).unbind(1)
    else:
        q, k, v = qkv.view(rows, 3, heads, head_dim).unbind(1)
    if wrong == "q and k swapped":
        q, k = k, q
    if wrong == "k and v swapped":
        k, v = v, k
    if wrong == "first key-value head used for all heads":
        k, v = k[:, :1].expand_as(k), v[:, :1].expand_as(v)

    scaled = c.scale_attn_weights != (wrong == "scores divided by sqrt(head_dim) where they must not be, or not where they must")
    scale = head_dim**-0.5 if scaled else 1.0
    if wrong == "scores divided by sqrt(hidden)":
        scale = n**-0.5
    if c.scale_attn_by_inverse_layer_idx and wrong != "layer-index scaling ignored":
        scale /= max(layer, 1) if wrong == "layer-index scaling by max(layer, 1)" else layer + 1
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale

    row, column = torch.arange(rows)[:, None], torch.arange(rows)[None, :]
    hidden = column > row
    if wrong == "no causal mask":
        hidden = torch.zeros_like(hidden)
    if wrong == "a token does not see itself":
        hidden = hidden | ((column == row) & (row > 0))
    if wrong == "the oldest key is dropped":
        hidden = hidden | ((column == 0) & (row > 0))
    if wrong == "the newest key but one is dropped":
        hidden = hidden | (column == row - 1)
    p = torch.softmax(scores.masked_fill(hidden, -math.inf), -1)
    y = torch.einsum("hqk,khd->qhd", p, v)
    if wrong == "heads interleaved within the hidden size":
        y = y.transpose(1, 2)
    o = w("attn.c_proj.weight")
    y = y.reshape(rows, n) @ (o.T if wrong == "attention output weight transposed" else o)
    return y if wrong == "no attention output bias" else y + w("attn.c_proj.bias")


def feed_forward(c, x, w, wrong):
    right, other = ACTIVATIONS[c.activation_function]
    swapped = wrong is not None and (wrong.startswith("erf GELU") or wrong.startswith("another activation"))
    none = wrong == "no ffn biases at all"
    x = x @ w("mlp.c_fc.weight")
    if not none and wrong != "no ffn up bias":
        x = x + w("mlp.c_fc.bias")
    x = (other if swapped else right)(x) @ w("mlp.c_proj.weight")
    return x if none or wrong == "no ffn down bias" else x + w("mlp.c_proj.bias")


@torch.no_grad()
def forward(c, weights: dict[str, np.ndarray], tokens: np.ndarray, wrong: str | None = None) -> np.ndarray:
    """Logits (tokens, vocab) in float64."""
    t = {name: torch.from_numpy(np.float64(value)) for name, value in weights.items()}
    ids = torch.from_numpy(np.int64(tokens))
    eps = c.layer_norm_epsilon
    x = t["transformer.wte.weight"][ids]
    if wrong == "embeddings scaled by sqrt(hidden)":
        x = x * c.n_embd**0.5
    if wrong != "no position embedding":
        positions = torch.arange(len(ids)) + (wrong == "positions shifted by one")
        x = x + t["transformer.wpe.weight"][positions.clamp(max=c.n_positions - 1)]

    layers = list(range(c.n_layer))
    if wrong == "layers in reverse order":
        layers.reverse()
    if wrong == "last layer missing":
        layers.pop()
    for layer in layers:
        w = lambda name: t[f"transformer.h.{layer}.{name}"]  # noqa: B023, E731
        first, second = ("ln_2", "ln_1") if wrong == "the two norms of a layer exchanged" else ("ln_1", "ln_2")
        normed = x if wrong == "no attention norm" else norm(x, w(first + ".weight"), w(first + ".bias"), eps, wrong)
        before = x
        attended = attention(c, normed, w, layer, wrong)
        x = attended if wrong == "no residual around attention" else x + attended
        source = before if wrong == "ffn beside attention, not after it" else x
        normed = source if wrong == "no ffn norm" else norm(source, w(second + ".weight"), w(second + ".bias"), eps, wrong)
        fed = feed_forward(c, normed, w, wrong)
        x = fed if wrong == "no residual around the ffn" else x + fed

    if wrong != "no final norm":
        x = norm(x, t["transformer.ln_f.weight"], t["transformer.ln_f.bias"], eps, wrong)
    tied = wrong == "tied head where it is separate"
    return (x @ t["transformer.wte.weight" if tied else "lm_head.weight"].T).numpy()
