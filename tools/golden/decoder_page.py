"""The decoders after GPT-2 in float64 on one page, and the mistakes that their goldens must catch.

RMSNorm, rotary positions, grouped-query attention, a gated feed-forward part or experts. `<family>_wrong.py` says how the
family's weights become a `Decoder` of this page, with the mistakes that can be made in reading them; those that can be made
in computing are here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

import rotary

SILU = torch.nn.functional.silu
GELU_TANH = lambda x: torch.nn.functional.gelu(x, approximate="tanh")  # noqa: E731


@dataclass
class Layer:
    """`w` in float64; matrices are (outputs, inputs), those of experts (experts, outputs, inputs).

    attention_norm q k v o, each with an optional `_bias`; q_norm k_norm sinks; ffn_norm gate up down, with an optional
    `_bias`; router router_bias; attention_post_norm ffn_post_norm.
    """

    w: dict[str, torch.Tensor]
    rotary: rotary.Rotary
    window: int | None = None
    chosen: int = 0


@dataclass
class Decoder:
    heads: int
    kv_heads: int
    scale: float
    eps: float
    embedding: torch.Tensor
    layers: list[Layer]
    final_norm: torch.Tensor
    head: torch.Tensor
    # (gate, up) to what `down` gets, and the nearest wrong reading of it.
    nonlinearity: Callable
    wrong_nonlinearity: Callable = lambda gate, up: torch.nn.functional.gelu(gate) * up
    embedding_scale: float = 1.0
    soft_cap: float | None = None
    # Whether the weights of the chosen experts are the softmax over them alone.
    softmax_of_chosen: bool = True


def _any(key: str) -> Callable[[Decoder], bool]:
    return lambda d: any(key in layer.w for layer in d.layers)


def _windows(d: Decoder) -> bool:
    return any(layer.window for layer in d.layers)


def _mixed_windows(d: Decoder) -> bool:
    return len({layer.window for layer in d.layers}) > 1


ALWAYS: Callable[[Decoder], bool] = lambda d: True  # noqa: E731
HEADS: Callable[[Decoder], bool] = lambda d: d.heads > 1  # noqa: E731
# Fewer key-value heads than heads, and more than one.
GROUPED: Callable[[Decoder], bool] = lambda d: 1 < d.kv_heads < d.heads  # noqa: E731

# Name -> where it applies. The names are the rows of the table in testdata/golden.
MISTAKES: dict[str, Callable[[Decoder], bool]] = {
    "embeddings scaled by sqrt(hidden), or not where they must": ALWAYS,
    "no rotation": ALWAYS,
    "rotation the other way": ALWAYS,
    "keys rotated by one position too many": ALWAYS,
    "neighbours rotated in the place of halves": ALWAYS,
    "only queries rotated": ALWAYS,
    "values rotated too": ALWAYS,
    "base of the rotation 10,000 in place of the configured one, or 500,000": ALWAYS,
    "no causal mask": ALWAYS,
    "a token does not see itself": ALWAYS,
    "the oldest key is dropped": lambda d: not all(layer.window for layer in d.layers),
    "the newest key but one is dropped": ALWAYS,
    "no window": _windows,
    "windows one position wider": _windows,
    "windows one position narrower": _windows,
    "windows on the other layers": _mixed_windows,
    "windows on every layer": _mixed_windows,
    "scores not divided": ALWAYS,
    "scores divided by sqrt(hidden)": lambda d: abs(d.scale - d.embedding.shape[1] ** -0.5) > 1e-3,
    "k and v swapped": ALWAYS,
    "first key-value head used for all heads": lambda d: d.kv_heads > 1,
    "query heads dealt to key-value heads in turn": GROUPED,
    "heads interleaved": HEADS,
    "no qkv bias": _any("q_bias"),
    "no query bias": _any("q_bias"),
    "no value bias": _any("v_bias"),
    "no attention output bias": _any("o_bias"),
    "no query norm": _any("q_norm"),
    "no key norm": _any("k_norm"),
    "queries and keys normed after the rotation": _any("q_norm"),
    "queries and keys normed over all heads together": lambda d: _any("q_norm")(d) and d.heads > 1,
    "query and key norm exchanged": _any("q_norm"),
    "no sinks": _any("sinks"),
    "sinks scaled like scores": _any("sinks"),
    "sinks of the next head": lambda d: _any("sinks")(d) and d.heads > 1,
    "sinks in windows alone": lambda d: _any("sinks")(d) and _mixed_windows(d),
    "sinks with the value of the oldest key": _any("sinks"),
    "norms without weight": ALWAYS,
    "norms subtract the mean": ALWAYS,
    "mean square divided by n - 1": ALWAYS,
    "epsilon 1e-6 in place of the configured one": lambda d: d.eps >= 1e-3,
    "epsilon added outside the square root": lambda d: d.eps >= 1e-3,
    "the two norms of a layer exchanged": ALWAYS,
    "no attention norm": ALWAYS,
    "no ffn norm": ALWAYS,
    "no final norm": ALWAYS,
    "no norm after attention": _any("attention_post_norm"),
    "no norm after the ffn": _any("ffn_post_norm"),
    "the sums normed, not what is added": _any("attention_post_norm"),
    "the norms after the parts exchanged": _any("attention_post_norm"),
    "no soft cap": lambda d: d.soft_cap is not None,
    "logits cut at the cap": lambda d: d.soft_cap is not None,
    "gate and up swapped": ALWAYS,
    "another activation": ALWAYS,
    "no gate": ALWAYS,
    "no biases of gate and up": _any("gate_bias"),
    "no bias of down": _any("down_bias"),
    "bias of down outside the weighted sum": lambda d: any("down_bias" in layer.w and layer.chosen > 1 for layer in d.layers),
    "the weights of the chosen experts from the softmax over all, or over the chosen where it must be over all": _any("router"),
    "chosen experts all weighted alike": lambda d: any(layer.chosen > 1 for layer in d.layers),
    "one expert fewer": lambda d: any(layer.chosen > 1 for layer in d.layers),
    "one expert more": lambda d: any("router" in layer.w and layer.chosen < len(layer.w["router"]) for layer in d.layers),
    "every row to the neighbour of its expert": _any("router"),
    "no router bias": _any("router_bias"),
    "ffn beside attention, not after it": ALWAYS,
    "no residual around attention": ALWAYS,
    "no residual around the ffn": ALWAYS,
    "layers in reverse order": lambda d: len(d.layers) > 1,
    "last layer missing": ALWAYS,
    "tied head where it is separate": lambda d: not torch.equal(d.head, d.embedding),
}


def norm(x, weight, eps, wrong):
    if wrong == "norms subtract the mean":
        x = x - x.mean(-1, keepdim=True)
    square = (x**2).sum(-1, keepdim=True) / (x.shape[-1] - (wrong == "mean square divided by n - 1"))
    if wrong == "epsilon 1e-6 in place of the configured one":
        eps = 1e-6
    y = x / (square.sqrt() + eps) if wrong == "epsilon added outside the square root" else x / (square + eps).sqrt()
    return y if wrong == "norms without weight" else y * weight


def linear(x, w, name, biased=True):
    y = x @ w[name].T
    return y + w[name + "_bias"] if biased and name + "_bias" in w else y


def visible(rows: int, window: int | None, wrong: str | None) -> torch.Tensor:
    row, column = torch.arange(rows)[:, None], torch.arange(rows)[None, :]
    seen = column <= row
    if wrong == "no causal mask":
        seen = torch.ones_like(seen)
    if wrong == "a token does not see itself":
        seen = seen & ((column != row) | (row == 0))
    if wrong == "the oldest key is dropped":
        seen = seen & ((column > 0) | (row == 0))
    if wrong == "the newest key but one is dropped":
        seen = seen & (column != row - 1)
    if window and wrong != "no window":
        window += (wrong == "windows one position wider") - (wrong == "windows one position narrower")
        seen = seen & (column > row - window)
    return seen


def attention(d: Decoder, layer: Layer, x, wrong):
    w, rows = layer.w, x.shape[0]
    none = wrong == "no qkv bias"
    q = linear(x, w, "q", not none and wrong != "no query bias")
    k = linear(x, w, "k", not none)
    v = linear(x, w, "v", not none and wrong != "no value bias")
    head_dim = q.shape[-1] // d.heads
    if wrong == "k and v swapped":
        k, v = v, k
    if "q_norm" in w and wrong != "queries and keys normed after the rotation":
        q, k = head_norms(d, w, q, k, head_dim, wrong)
    if wrong == "heads interleaved":
        q, k, v = (t.view(rows, head_dim, -1).transpose(1, 2) for t in (q, k, v))
    else:
        q, k, v = (t.view(rows, -1, head_dim) for t in (q, k, v))

    turn = layer.rotary
    if wrong == "base of the rotation 10,000 in place of the configured one, or 500,000":
        turn = turn.with_other_base()
    positions = torch.arange(rows)
    if wrong != "no rotation":
        back = wrong == "rotation the other way"
        neighbours = wrong == "neighbours rotated in the place of halves"
        q = turn.apply(q, positions, back, neighbours)
        if wrong != "only queries rotated":
            k = turn.apply(k, positions + (wrong == "keys rotated by one position too many"), back, neighbours)
        if wrong == "values rotated too":
            v = turn.apply(v, positions, back, neighbours)
    if "q_norm" in w and wrong == "queries and keys normed after the rotation":
        q, k = head_norms(d, w, q.reshape(rows, -1), k.reshape(rows, -1), head_dim, wrong)
        q, k = q.view(rows, -1, head_dim), k.view(rows, -1, head_dim)

    group = d.heads // d.kv_heads
    if wrong == "first key-value head used for all heads":
        k, v = (t[:, :1].expand(-1, d.heads, -1) for t in (k, v))
    elif wrong == "query heads dealt to key-value heads in turn":
        k, v = (t.repeat(1, group, 1) for t in (k, v))
    else:
        k, v = (t.repeat_interleave(group, 1) for t in (k, v))
    scale = {"scores not divided": 1.0, "scores divided by sqrt(hidden)": x.shape[-1] ** -0.5}.get(wrong, d.scale)
    window = layer.window
    if wrong in ("windows on the other layers", "windows on every layer"):
        size = max(other.window or 0 for other in d.layers)
        window = size if window is None or wrong == "windows on every layer" else None
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    scores = scores.masked_fill(~visible(rows, window, wrong), -math.inf)
    has_sinks = "sinks" in w and wrong != "no sinks" and not (wrong == "sinks in windows alone" and layer.window is None)
    if has_sinks:
        sinks = w["sinks"].roll(1) if wrong == "sinks of the next head" else w["sinks"]
        sinks = sinks * d.scale if wrong == "sinks scaled like scores" else sinks
        scores = torch.cat([scores, sinks[:, None, None].expand(-1, rows, 1)], -1)
    p = torch.softmax(scores, -1)
    if has_sinks:
        p, sink = p[..., :-1], p[..., -1]
        if wrong == "sinks with the value of the oldest key":
            p = p.clone()
            p[..., 0] += sink
    y = torch.einsum("hqk,khd->qhd", p, v)
    if wrong == "heads interleaved":
        y = y.transpose(1, 2)
    return linear(y.reshape(rows, -1), w, "o", wrong != "no attention output bias")


def head_norms(d: Decoder, w, q, k, head_dim: int, wrong):
    names = ("k_norm", "q_norm") if wrong == "query and key norm exchanged" else ("q_norm", "k_norm")
    both = []
    for x, name in zip((q, k), names, strict=True):
        together = wrong == "queries and keys normed over all heads together"
        heads = x.view(len(x), 1 if together else -1, x.shape[-1] if together else head_dim)
        weight = w[name].repeat(x.shape[-1] // head_dim) if together else w[name]
        left_out = wrong == ("no query norm" if name == "q_norm" else "no key norm")
        both.append(x if left_out else norm(heads, weight, d.eps, wrong).reshape(x.shape))
    return both


def feed_forward(d: Decoder, layer: Layer, x, wrong):
    w = layer.w
    nonlinearity = d.wrong_nonlinearity if wrong == "another activation" else d.nonlinearity
    if "router" not in w:
        biased = wrong != "no biases of gate and up"
        between_them = between(nonlinearity, linear(x, w, "gate", biased), linear(x, w, "up", biased), wrong)
        return linear(between_them, w, "down", wrong != "no bias of down")

    outputs = linear(x, w, "router", wrong != "no router bias")
    count = layer.chosen + (wrong == "one expert more" and layer.chosen < len(w["router"])) - (wrong == "one expert fewer" and layer.chosen > 1)
    experts = outputs.argsort(dim=-1, descending=True, stable=True)[:, :count]
    of_chosen = d.softmax_of_chosen != (wrong is not None and wrong.startswith("the weights of the chosen experts"))
    weights = torch.softmax(outputs.gather(-1, experts), -1) if of_chosen else torch.softmax(outputs, -1).gather(-1, experts)
    if wrong == "chosen experts all weighted alike":
        weights = torch.full_like(weights, 1 / count)
    if wrong == "every row to the neighbour of its expert":
        experts = (experts + 1) % len(w["router"])

    def product(x, name):
        y = torch.einsum("rei,eoi->reo", x, w[name]) if x.dim() == 3 else torch.einsum("ri,eoi->reo", x, w[name])
        left_out = wrong == "no biases of gate and up" and name != "down" or wrong == "no bias of down" and name == "down"
        outside = wrong == "bias of down outside the weighted sum" and name == "down"
        return y + w[name + "_bias"] if name + "_bias" in w and not left_out and not outside else y

    y = product(between(nonlinearity, product(x, "gate"), product(x, "up"), wrong), "down")
    rows = torch.arange(len(x))[:, None]
    total = (y[rows, experts] * weights[..., None]).sum(1)
    if wrong == "bias of down outside the weighted sum":
        total = total + w["down_bias"][experts].sum(1)
    return total


def between(nonlinearity, gate, up, wrong):
    if wrong == "gate and up swapped":
        gate, up = up, gate
    if wrong == "no gate":
        return nonlinearity(up, torch.ones_like(up))
    return nonlinearity(gate, up)


@torch.no_grad()
def forward(d: Decoder, tokens: np.ndarray, wrong: str | None = None) -> np.ndarray:
    """Logits (tokens, vocab) in float64."""
    x = d.embedding[torch.from_numpy(np.int64(tokens))]
    scale = d.embedding_scale
    if wrong == "embeddings scaled by sqrt(hidden), or not where they must":
        scale = x.shape[-1] ** 0.5 if scale == 1 else 1.0
    x = x * scale
    layers = list(d.layers)
    if wrong == "layers in reverse order":
        layers.reverse()
    if wrong == "last layer missing":
        layers.pop()
    for layer in layers:
        w = layer.w
        before_attention, before_ffn = ("ffn_norm", "attention_norm") if wrong == "the two norms of a layer exchanged" else ("attention_norm", "ffn_norm")
        before = x
        attended = attention(d, layer, x if wrong == "no attention norm" else norm(x, w[before_attention], d.eps, wrong), wrong)
        first, second = ("ffn_post_norm", "attention_post_norm") if wrong == "the norms after the parts exchanged" else ("attention_post_norm", "ffn_post_norm")
        late = wrong == "the sums normed, not what is added"
        if first in w and not late and wrong != "no norm after attention":
            attended = norm(attended, w[first], d.eps, wrong)
        x = attended if wrong == "no residual around attention" else x + attended
        x = norm(x, w[first], d.eps, wrong) if late else x
        source = before if wrong == "ffn beside attention, not after it" else x
        fed = feed_forward(d, layer, source if wrong == "no ffn norm" else norm(source, w[before_ffn], d.eps, wrong), wrong)
        if second in w and not late and wrong != "no norm after the ffn":
            fed = norm(fed, w[second], d.eps, wrong)
        x = fed if wrong == "no residual around the ffn" else x + fed
        x = norm(x, w[second], d.eps, wrong) if late else x
    if wrong != "no final norm":
        x = norm(x, d.final_norm, d.eps, wrong)
    head = d.embedding if wrong == "tied head where it is separate" else d.head
    logits = x @ head.T
    if d.soft_cap and wrong == "logits cut at the cap":
        logits = logits.clamp(-d.soft_cap, d.soft_cap)
    elif d.soft_cap and wrong != "no soft cap":
        logits = d.soft_cap * torch.tanh(logits / d.soft_cap)
    return logits.numpy()


# `transformers` names, which most families share.

_LINEARS = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
            "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
_NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
          "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}


def layer_weights(weights: dict[str, np.ndarray], index: int) -> dict[str, torch.Tensor]:
    """What layer `index` has under the names that most families share; experts are the family's own affair."""
    names = {ours: theirs + ".weight" for ours, theirs in (_LINEARS | _NORMS).items()}
    names |= {ours + "_bias": theirs + ".bias" for ours, theirs in _LINEARS.items()}
    prefix = f"model.layers.{index}."
    return {ours: double(weights[prefix + theirs]) for ours, theirs in names.items() if prefix + theirs in weights}


def double(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.float64(array))


def from_hugging_face(c, weights: dict[str, np.ndarray], turn: rotary.Rotary, **more) -> Decoder:
    """A decoder of these weights with `turn` in every layer and SwiGLU, unless `more` says otherwise."""
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    decoder = Decoder(
        heads=c.num_attention_heads, kv_heads=c.num_key_value_heads, scale=head_dim**-0.5, eps=c.rms_norm_eps,
        embedding=double(weights["model.embed_tokens.weight"]), final_norm=double(weights["model.norm.weight"]),
        head=double(weights["lm_head.weight"]), nonlinearity=lambda gate, up: SILU(gate) * up,
        layers=[Layer(layer_weights(weights, index), turn) for index in range(c.num_hidden_layers)],
    )
    return replace(decoder, **more)
