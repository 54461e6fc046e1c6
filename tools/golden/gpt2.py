"""The GPT-2 family: its variants, and weights in which every part matters.

A freshly initialised GPT-2 proves little: attention is flat, norms are the identity, biases are zero. Here attention is
peaked (scores have a standard deviation near 4), norms have gains spread around 1 and random biases, and every linear
layer has a bias. For the GELU variants half of the hidden units sit where the erf and tanh forms differ most (`_shoulder`).
"""

import numpy as np
from transformers import GPT2Config
from transformers.activations import GELUActivation

from common import Gguf, Variant, rng

FAMILY = "gpt2"
MODEL_CLASS = "GPT2LMHeadModel"
GELUS = {"gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu"}
# GGUF files are made only from variants that llama.cpp's gpt2 computes: tanh GELU, scores divided by sqrt(head_dim).

_FULL = ((40, 20), (64, 0), (1, 16))

VARIANTS = [
    Variant(
        "base", dict(n_embd=40, n_head=2, n_layer=2, n_positions=96, vocab_size=257, n_inner=None),
        "two heads of 20, n_inner null (4 x hidden), tied head, gelu_new; the second sequence leaves room for just the greedy tokens",
        sequences=((40, 20), (72, 24), (1, 16)),
        gguf=(Gguf("base-F32", notes="tied (no output.weight), no tokenizer"),),
    ),
    Variant(
        "one-head", dict(n_embd=21, n_head=1, n_layer=3, n_positions=64, vocab_size=311, n_inner=45,
                         activation_function="gelu_pytorch_tanh"),
        "one head of 21, odd sizes everywhere; the second sequence fills the context exactly (no greedy tokens)",
        sequences=_FULL,
        gguf=(
            Gguf("one-head-F32-v2", version=2, notes="GGUF version 2"),
            Gguf("one-head-F32-align64", alignment=64, notes="general.alignment = 64"),
            Gguf("one-head-F32-no-vocab", tokenizer="no_vocab", notes="tokenizer.ggml.model = no_vocab"),
            Gguf("one-head-F32-split", max_tensors=15, notes="three parts; `model` is the first"),
        ),
    ),
    Variant(
        "untied", dict(n_embd=36, n_head=3, n_layer=2, n_positions=80, vocab_size=283, n_inner=None, tie_word_embeddings=False),
        "separate head, three heads of 12",
        gguf=(Gguf("untied-F32", notes="with output.weight, no tokenizer"),),
    ),
    Variant(
        "erf", dict(n_embd=45, n_head=3, n_layer=2, n_positions=80, vocab_size=257, n_inner=90, activation_function="gelu"),
        "GELU by erf, three heads of 15, n_inner 2 x hidden",
    ),
    Variant(
        "quick-gelu", dict(n_embd=35, n_head=5, n_layer=2, n_positions=64, vocab_size=259, n_inner=150,
                           activation_function="quick_gelu", tie_word_embeddings=False),
        "x sigmoid(1.702 x), five heads of 7, separate head",
    ),
    Variant(
        "unscaled", dict(n_embd=42, n_head=3, n_layer=2, n_positions=80, vocab_size=271, n_inner=64,
                         activation_function="gelu_fast", scale_attn_weights=False),
        "scale_attn_weights false: scores are not divided by sqrt(14); gelu_fast; n_inner below 2 x hidden",
    ),
    Variant(
        "layer-scale", dict(n_embd=30, n_head=5, n_layer=4, n_positions=80, vocab_size=257, n_inner=77,
                            scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True),
        "scores also divided by layer + 1, reorder_and_upcast_attn true, four layers, odd n_inner",
    ),
    Variant(
        "relu-eps", dict(n_embd=33, n_head=3, n_layer=2, n_positions=160, vocab_size=257, n_inner=132,
                         activation_function="relu", layer_norm_epsilon=0.06),
        "ReLU, layer_norm_epsilon 0.06, 160 positions",
        sequences=((40, 20), (100, 24), (1, 16)),
    ),
    Variant(
        "silu", dict(n_embd=44, n_head=2, n_layer=2, n_positions=64, vocab_size=263, n_inner=80,
                     activation_function="silu", layer_norm_epsilon=0.5),
        "SiLU, layer_norm_epsilon 0.5, two heads of 22",
    ),
    Variant(
        "float16", dict(n_embd=48, n_head=3, n_layer=2, n_positions=80, vocab_size=257, n_inner=96, tie_word_embeddings=False),
        "every tensor stored in float16, separate head", dtype="float16",
    ),
    Variant(
        "bfloat16", dict(n_embd=48, n_head=2, n_layer=2, n_positions=80, vocab_size=257, n_inner=96, activation_function="gelu"),
        "every tensor stored in bfloat16; tied, and yet the file holds a copy of the embedding as lm_head.weight",
        dtype="bfloat16", layout="head-copy",
    ),
    Variant(
        "sharded", dict(n_embd=40, n_head=4, n_layer=2, n_positions=64, vocab_size=257, n_inner=100),
        "shards with model.safetensors.index.json; U8 causal masks h.N.attn.bias among the tensors, to be ignored",
        layout="sharded",
    ),
    Variant(
        "old-names", dict(n_embd=40, n_head=2, n_layer=2, n_positions=64, vocab_size=257, n_inner=None),
        "names without `transformer.`, h.N.attn.bias and h.N.attn.masked_bias in the file, config.json in the manner of 2019",
        layout="old-names",
    ),
    Variant(
        "other-head", dict(n_embd=32, n_head=4, n_layer=2, n_positions=64, vocab_size=257, n_inner=64),
        "config says tied (by default) but the file holds a different lm_head.weight: transformers then uses the file's",
        layout="other-head",
    ),
    Variant(
        "blocks", dict(n_embd=64, n_head=4, n_layer=2, n_positions=80, vocab_size=257, n_inner=96),
        "the GGUF files of other types: hidden and n_inner are multiples of 32, tied", store_checkpoint=False,
        gguf=(
            Gguf("blocks-F16", "F16", notes="matrices F16; vectors and position_embd F32; tied"),
            Gguf("blocks-BF16", "BF16", notes="matrices BF16; vectors and position_embd F32; tied"),
            Gguf("blocks-Q8_0", "Q8_0", notes="matrices Q8_0; vectors and position_embd F32; tied"),
        ),
    ),
    Variant(
        "blocks-untied", dict(n_embd=32, n_head=2, n_layer=3, n_positions=80, vocab_size=257, n_inner=96, tie_word_embeddings=False),
        "Q8_0 with a separate head", store_checkpoint=False,
        gguf=(Gguf("blocks-untied-Q8_0", "Q8_0", notes="matrices Q8_0; vectors and position_embd F32; with output.weight"),),
    ),
]


def config(variant: Variant) -> GPT2Config:
    last = variant.config["vocab_size"] - 1
    return GPT2Config(
        architectures=[MODEL_CLASS], bos_token_id=last, eos_token_id=last,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **variant.config,
    )


def weights(variant: Variant) -> dict[str, np.ndarray]:
    """float32, named as `transformers` names them in GPT2LMHeadModel; linear weights are (in, out), as Conv1D keeps them."""
    c = config(variant)
    n, inner, heads = c.n_embd, c.n_inner or 4 * c.n_embd, c.n_head
    out: dict[str, np.ndarray] = {}

    def put(name, shape, std, mean=0.0):
        out[name] = np.float32(mean + std * rng(FAMILY, variant.name, name).standard_normal(shape))

    # The mean of the embeddings is far from 0: otherwise a norm that forgets to subtract it would hardly be seen.
    put("transformer.wte.weight", (c.vocab_size, n), 0.8, mean=0.5)
    put("transformer.wpe.weight", (c.n_positions, n), 1.2, mean=0.3)
    size = 1.25 * n  # the expected squared length of a norm's output, before its bias
    for layer in range(c.n_layer):
        h = f"transformer.h.{layer}."
        for norm in ("ln_1", "ln_2"):
            put(h + norm + ".weight", n, 0.5, mean=1.0)
            put(h + norm + ".bias", n, 0.4)
        # score = sum over head_dim of q k, times the scale: choose std(q) = std(k) for a score std of about 4.
        scale = ((n // heads) ** -0.5 if c.scale_attn_weights else 1.0) / (layer + 1 if c.scale_attn_by_inverse_layer_idx else 1)
        qk = (4.0 / (scale * (n // heads) ** 0.5)) ** 0.5
        put(h + "attn.c_attn.weight", (n, 3 * n), size ** -0.5)
        put(h + "attn.c_attn.bias", 3 * n, 0.5)
        out[h + "attn.c_attn.weight"][:, : 2 * n] *= np.float32(qk)
        out[h + "attn.c_attn.bias"][: 2 * n] *= np.float32(qk)
        put(h + "attn.c_proj.weight", (n, n), 1.6 * n ** -0.5)
        put(h + "attn.c_proj.bias", n, 0.5)
        put(h + "mlp.c_fc.weight", (n, inner), size ** -0.5)
        put(h + "mlp.c_fc.bias", inner, 0.7)
        put(h + "mlp.c_proj.weight", (inner, n), (1.5 if c.activation_function in GELUS else 3.0) * inner ** -0.5)
        put(h + "mlp.c_proj.bias", n, 0.5)
        if c.activation_function in GELUS:
            _shoulder(variant, c, h + "mlp.", out)
    put("transformer.ln_f.weight", n, 0.5, mean=1.0)
    put("transformer.ln_f.bias", n, 0.4)
    if c.tie_word_embeddings and variant.layout != "other-head":
        out["lm_head.weight"] = out["transformer.wte.weight"]
    else:
        put("lm_head.weight", (c.vocab_size, n), n ** -0.5)
    return out


def _shoulder(variant: Variant, c: GPT2Config, mlp: str, out: dict[str, np.ndarray]) -> None:
    """Moves every other hidden unit to inputs near -2.4, where the GELUs are small and differ most from each other.

    The weights that read these units are large and share a part per output, so that the (always negative) difference adds up
    over the units while rounding errors do not; the output bias takes away what the shared part adds on average.
    """
    units = np.arange(0, c.n_inner or 4 * c.n_embd, 2)
    out[mlp + "c_fc.weight"][:, units] *= np.float32(0.3)
    out[mlp + "c_fc.bias"][units] = np.float32(-2.45 + 0.25 * out[mlp + "c_fc.bias"][units])
    shared = 120 / len(units) * rng(FAMILY, variant.name, mlp, "shared").standard_normal(c.n_embd)
    out[mlp + "c_proj.weight"][units] = np.float32(10 * out[mlp + "c_proj.weight"][units] + shared)
    mean = -0.04 if c.activation_function == "quick_gelu" else -0.02
    out[mlp + "c_proj.bias"] -= np.float32(mean * len(units) * shared)


def exact_activations(model) -> None:
    """torch's vectorised float32 erf GELU is off by 1.5e-7 where `torch.erf` is off by 2e-8; the golden takes the exact one."""
    for block in model.transformer.h:
        if model.config.activation_function == "gelu":
            block.mlp.act = GELUActivation(use_gelu_python=True)


# Checkpoint files that `save_pretrained` would not write today, though the hub is full of them.


def causal_masks(c: GPT2Config, prefix: str, dtype) -> dict[str, np.ndarray]:
    mask = np.tril(np.ones((1, 1, c.n_positions, c.n_positions), dtype))
    return {f"{prefix}h.{layer}.attn.bias": mask.copy() for layer in range(c.n_layer)}


def old_checkpoint(c: GPT2Config, w: dict[str, np.ndarray]) -> tuple[dict, dict[str, np.ndarray]]:
    """config.json and tensors in the manner of the hub's original `gpt2`: no prefix, no head, masks among the tensors."""
    tensors = {k.removeprefix("transformer."): v for k, v in w.items() if k != "lm_head.weight"}
    tensors |= causal_masks(c, "", np.float32)
    tensors |= {f"h.{layer}.attn.masked_bias": np.array(-1e4, np.float32) for layer in range(c.n_layer)}
    old = {
        "activation_function": c.activation_function, "architectures": [MODEL_CLASS], "attn_pdrop": 0.1,
        "bos_token_id": c.bos_token_id, "embd_pdrop": 0.1, "eos_token_id": c.eos_token_id, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": c.n_positions, "n_embd": c.n_embd, "n_head": c.n_head,
        "n_layer": c.n_layer, "n_positions": c.n_positions, "resid_pdrop": 0.1, "summary_activation": None,
        "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "vocab_size": c.vocab_size,
    }
    return old, tensors


# GGUF, with the names and layouts of llama.cpp's gpt2.

_GGUF_NAMES = {
    "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}


def gguf_tensors(c: GPT2Config, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    separate_head = not np.array_equal(weights["lm_head.weight"], weights["transformer.wte.weight"])
    names = _gguf_names(c, separate_head)
    return {theirs: weights[ours].T if transposed else weights[ours] for ours, (theirs, transposed) in names.items()}


def from_gguf_tensors(c: GPT2Config, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights of the file under our names."""
    names = _gguf_names(c, "output.weight" in stored)
    weights = {ours: np.ascontiguousarray(stored.pop(theirs).T if transposed else stored.pop(theirs))
               for ours, (theirs, transposed) in names.items()}
    assert not stored, f"unexpected tensors: {sorted(stored)}"
    weights.setdefault("lm_head.weight", weights["transformer.wte.weight"])
    return weights


def _gguf_names(c: GPT2Config, separate_head: bool) -> dict[str, tuple[str, bool]]:
    """Our name -> (GGUF name, whether the file holds the transpose)."""
    names = {"transformer.wte.weight": ("token_embd.weight", False), "transformer.wpe.weight": ("position_embd.weight", False)}
    for layer in range(c.n_layer):
        for ours, theirs in _GGUF_NAMES.items():
            for part in ("weight", "bias"):
                linear = part == "weight" and "." in ours
                names[f"transformer.h.{layer}.{ours}.{part}"] = (f"blk.{layer}.{theirs}.{part}", linear)
    names |= {f"transformer.ln_f.{part}": (f"output_norm.{part}", False) for part in ("weight", "bias")}
    if separate_head:
        names["lm_head.weight"] = ("output.weight", False)
    return names


def gguf_metadata(c: GPT2Config, add) -> None:
    """`add` is a GGUFWriter."""
    add.add_context_length(c.n_positions)
    add.add_embedding_length(c.n_embd)
    add.add_feed_forward_length(c.n_inner or 4 * c.n_embd)
    add.add_block_count(c.n_layer)
    add.add_head_count(c.n_head)
    add.add_layer_norm_eps(c.layer_norm_epsilon)


def gguf_type(gguf_name: str, dtype: str) -> str:
    """As llama.cpp's converter: vectors and the position embedding stay F32."""
    return "F32" if gguf_name.endswith(".bias") or "_norm." in gguf_name or gguf_name == "position_embd.weight" else dtype


def summary(c: GPT2Config) -> str:
    return (f"{c.n_layer} layers, hidden {c.n_embd}, {c.n_head} x {c.n_embd // c.n_head}, ffn {c.n_inner or 4 * c.n_embd}, "
            f"vocab {c.vocab_size}, {c.n_positions} positions, {c.activation_function}, eps {c.layer_norm_epsilon:g}")
