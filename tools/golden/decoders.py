"""What the families after GPT-2 share: weights in which every part matters, names in GGUF, and `transformers` in true float64.

As for GPT-2, attention is peaked (scores have a standard deviation near 3), norms have gains spread around 1, and every bias
that a family can have is far from zero.
"""

import types

import numpy as np
import torch

from common import rng


class Draw:
    """Collects named random weights; each depends on its name and the variant alone."""

    def __init__(self, family: str, variant: str):
        self.key = (family, variant)
        self.out: dict[str, np.ndarray] = {}

    def put(self, name: str, shape, std: float, mean: float = 0.0) -> None:
        self.out[name] = np.float32(mean + std * rng(*self.key, name).standard_normal(shape))


def head_dim(c) -> int:
    return getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads


def draw_frame(draw: Draw, c, norm_mean: float = 1.0) -> None:
    """Embedding, final norm and head."""
    n = c.hidden_size
    # A tied head likes the token that it has just seen, the less the more the layers add to its embedding.
    embedding_std = 0.4 if c.tie_word_embeddings else 1.0
    # The mean of the embeddings is far from 0: otherwise a norm that subtracts it would hardly be seen.
    draw.put("model.embed_tokens.weight", (c.vocab_size, n), embedding_std, 0.4 * embedding_std)
    draw.put("model.norm.weight", n, 0.4, norm_mean)
    if c.tie_word_embeddings:
        draw.out["lm_head.weight"] = draw.out["model.embed_tokens.weight"]
    else:
        draw.put("lm_head.weight", (c.vocab_size, n), n**-0.5)


def draw_attention(draw: Draw, c, prefix: str, *, bias=False, output_bias=False, head_norms=False, magnitude=1.0, norm_mean=1.0) -> None:
    """Norm and attention of a layer; `prefix` ends with a point."""
    n, width = c.hidden_size, head_dim(c)
    size = 1.16 * n  # the expected squared length of a norm's output
    draw.put(prefix + "input_layernorm.weight", n, 0.4, norm_mean)
    # A score is the sum over head_dim of q k, times head_dim ** -0.5: std(q) = std(k) for a score std of about 3.
    std = (3.0 if not head_norms else 1.0) ** 0.5 / magnitude
    for name, heads in (("q", c.num_attention_heads), ("k", c.num_key_value_heads), ("v", c.num_key_value_heads)):
        gain = std if name != "v" else 1.0
        draw.put(f"{prefix}self_attn.{name}_proj.weight", (heads * width, n), 0.85 * gain * size**-0.5)
        if bias:
            draw.put(f"{prefix}self_attn.{name}_proj.bias", heads * width, 0.6 * gain)
    if head_norms:
        for name in ("q", "k"):
            draw.put(f"{prefix}self_attn.{name}_norm.weight", width, 0.5, norm_mean * 1.5)
    draw.put(prefix + "self_attn.o_proj.weight", (n, c.num_attention_heads * width), 1.6 * (c.num_attention_heads * width) ** -0.5)
    if output_bias:
        draw.put(prefix + "self_attn.o_proj.bias", n, 0.4)


def draw_gated(draw: Draw, c, prefix: str, inner: int) -> None:
    """Gate, up and down of a layer without experts."""
    n = c.hidden_size
    size = 1.16 * n
    draw.put(prefix + "mlp.gate_proj.weight", (inner, n), 1.5 * size**-0.5)
    draw.put(prefix + "mlp.up_proj.weight", (inner, n), size**-0.5)
    draw.put(prefix + "mlp.down_proj.weight", (n, inner), 1.5 * inner**-0.5)


def exact(model) -> None:
    """`transformers` computes norms, rotations and the softmax of a router in float32 whatever the model's type. In a float64
    model they become float64 here, so that only rounding separates it from the float32 model. Angles stay float32: their
    rounding is part of the definition."""
    if model.dtype != torch.float64:
        return
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            offset = 1.0 if kind.startswith("Gemma") else 0.0
            eps = getattr(module, "variance_epsilon", None) or module.eps
            module.forward = lambda x, m=module, eps=eps, offset=offset: x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * (m.weight + offset)
        elif kind.endswith("RotaryEmbedding"):
            module.forward = types.MethodType(_rotations(kind, module.forward), module)
        elif kind.endswith("TopKRouter") and hasattr(module, "norm_topk_prob"):
            module.forward = types.MethodType(_route, module)


def _rotations(kind: str, original):
    def forward(self, x, position_ids, *args, **kwargs):
        original(x, position_ids, *args, **kwargs)  # some kinds choose their frequencies by the length
        layer_type = kwargs.get("layer_type") or (args[0] if args else None)
        prefix = f"{layer_type}_" if layer_type else ""
        scaling = getattr(self, prefix + "attention_scaling")
        angles = (position_ids[..., None].float() * getattr(self, prefix + "inv_freq").float()).double()
        angles = angles if kind.startswith("GptOss") else torch.cat((angles, angles), -1)
        return angles.cos() * scaling, angles.sin() * scaling

    return forward


def _route(self, hidden_states):
    outputs = hidden_states.reshape(-1, self.hidden_dim) @ self.weight.T
    weights, experts = torch.topk(torch.softmax(outputs, -1), self.top_k, dim=-1)
    return outputs, weights / weights.sum(-1, keepdim=True) if self.norm_topk_prob else weights, experts


# GGUF, with the names of llama.cpp.

_GGUF_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def gguf_names(c, weights) -> dict[str, str]:
    """Our name -> the name in GGUF, of all weights that have one under the names that most families share."""
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if not c.tie_word_embeddings:
        names["lm_head.weight"] = "output.weight"
    for layer in range(c.num_hidden_layers):
        for ours, theirs in _GGUF_NAMES.items():
            for part in ("weight", "bias"):
                name = f"model.layers.{layer}.{ours}.{part}"
                if name in weights:
                    names[name] = f"blk.{layer}.{theirs}.{part}"
    return names


def gguf_tensors(c, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {theirs: weights[ours] for ours, theirs in gguf_names(c, weights).items()}


def from_gguf_tensors(c, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights of the file under our names."""
    parts = [f"model.layers.{layer}.{name}.{part}" for layer in range(c.num_hidden_layers) for name in _GGUF_NAMES for part in ("weight", "bias")]
    names = {ours: theirs for ours, theirs in gguf_names(c, parts).items() if theirs in stored}
    weights = {ours: stored.pop(theirs) for ours, theirs in names.items()}
    assert not stored, f"unexpected tensors: {sorted(stored)}"
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    return weights


def gguf_metadata(c, add) -> None:
    """`add` is a GGUFWriter."""
    add.add_context_length(c.max_position_embeddings)
    add.add_embedding_length(c.hidden_size)
    add.add_feed_forward_length(c.intermediate_size)
    add.add_block_count(c.num_hidden_layers)
    add.add_head_count(c.num_attention_heads)
    add.add_head_count_kv(c.num_key_value_heads)
    add.add_layer_norm_rms_eps(c.rms_norm_eps)
    if getattr(c, "head_dim", None):
        add.add_key_length(c.head_dim)
        add.add_value_length(c.head_dim)
    rope = c.rope_parameters
    if "rope_theta" in rope:
        add.add_rope_freq_base(rope["rope_theta"])
        if rope["rope_type"] == "yarn":
            import gguf

            add.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            add.add_rope_scaling_factor(rope["factor"])
            add.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
            for key, method in (("attention_factor", add.add_rope_scaling_yarn_attn_factor), ("beta_fast", add.add_rope_scaling_yarn_beta_fast),
                                ("beta_slow", add.add_rope_scaling_yarn_beta_slow)):
                if rope.get(key) is not None:
                    method(rope[key])


def gguf_type(gguf_name: str, dtype: str) -> str:
    """As llama.cpp's converter: vectors and routers stay F32."""
    return "F32" if gguf_name.endswith((".bias", "_norm.weight", "ffn_gate_inp.weight", "attn_sinks.weight")) else dtype


def summary(c) -> str:
    text = f"{c.num_hidden_layers} layers, hidden {c.hidden_size}, {c.num_attention_heads} / {c.num_key_value_heads} x {head_dim(c)}, "
    experts = getattr(c, "num_local_experts", None) or getattr(c, "num_experts", None)
    ffn = getattr(c, "moe_intermediate_size", c.intermediate_size)
    text += f"ffn {ffn}, " if not experts else f"{c.num_experts_per_tok} of {experts} experts of {ffn}, "
    rope = c.rope_parameters
    return text + f"vocab {c.vocab_size}, {c.max_position_embeddings} positions, RoPE {rope.get('rope_type', 'by layer')}, eps {c.rms_norm_eps:g}"
