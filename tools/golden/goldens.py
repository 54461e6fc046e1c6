"""From a family's variants to checkpoints, GGUF files, golden logits and a proof of their sharpness."""

import importlib
import json
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch, save_file as save_torch

import gguf_files
from common import GOLDEN, MAX_ERROR, MIN_MARGIN, SHARP, Variant, relative_l2, rng, save_json, save_tensors

_GGUF_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
COMMAND = "python tools/golden/make.py {module} --only {name}"


@dataclass
class Result:
    """A golden and what was measured about it: one row and one column of the report."""

    name: str
    notes: str
    summary: str
    dtype: str
    error: float
    margin: float
    mistakes: dict[str, float] = field(default_factory=dict)


def load(family, directory: Path, dtype: torch.dtype):
    """What a user of `transformers` gets from this directory."""
    model_class = getattr(transformers, family.MODEL_CLASS)
    # Eager attention where it can be: only there does reorder_and_upcast_attn choose its own code (float32 by definition).
    attention = getattr(family, "ATTENTION", "eager" if dtype == torch.float32 else "sdpa")
    options = family.load_options(directory) if hasattr(family, "load_options") else {}
    model, info = model_class.from_pretrained(directory, dtype=dtype, attn_implementation=attention, output_loading_info=True, **options)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    family.exact_activations(model)
    return model.eval()


@torch.no_grad()
def logits(model, tokens: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(np.int64(tokens))[None]).logits[0].numpy()


@torch.no_grad()
def greedy(model, tokens: np.ndarray, count: int) -> np.ndarray:
    """Goes on to `count` tokens even past the end token (none of the goldens contains one)."""
    ids = list(map(int, tokens))
    for _ in range(count):
        ids.append(int(logits(model, np.array(ids))[-1].argmax()))
    return np.array(ids[len(tokens):], np.uint32)


def margin(exact, tokens: np.ndarray, new: np.ndarray) -> float:
    """The smallest lead of a greedy choice over the runner-up, in standard deviations of its logits; 0 where float64 disagrees."""
    if len(new) == 0:
        return np.inf
    rows = logits(exact, np.concatenate([tokens, new]))[len(tokens) - 1: -1]
    two = np.sort(rows, axis=-1)[:, -2:]
    agree = rows.argmax(-1) == new
    return float(np.where(agree, (two[:, 1] - two[:, 0]) / rows.std(-1), 0.0).min())


def sequences(family, variant: Variant, name: str, model, exact, vocab: int, end: int) -> tuple[dict[str, np.ndarray], float]:
    """Draws prompts until no greedy choice is a near tie, none is the end token, and the text is not one token over and over."""
    tensors, smallest = {}, np.inf
    for index, (given, count) in enumerate(variant.sequences):
        for attempt in range(300):
            tokens = rng(family.FAMILY, name, "tokens", index, attempt).integers(0, vocab, given).astype(np.uint32)
            new = greedy(model, tokens, count)
            lead = margin(exact, tokens, new)
            if lead >= MIN_MARGIN and end not in new and (count == 0 or len(set(new.tolist())) >= 4):
                break
        else:
            raise SystemExit(f"{name}: found no prompt {index} whose greedy continuation is clear of ties")
        tensors |= {f"tokens.{index}": tokens, f"greedy.{index}": new, f"logits.{index}": logits(model, tokens)}
        smallest = min(smallest, lead)
    return tensors, smallest


def measure(family, variant: Variant, name: str, directory: Path, weights, notes: str, dtype: str, golden: Path) -> Result:
    """Makes the golden of one set of weights, stored as `directory` and at hand as `weights`, and checks it."""
    config = family.config(variant)
    model, exact = load(family, directory, torch.float32), load(family, directory, torch.float64)
    tensors, lead = sequences(family, variant, name, model, exact, config.vocab_size, config.eos_token_id)
    save_tensors(golden, tensors, COMMAND.format(module=family.__name__, name=variant.name))

    prompts = [tensors[f"tokens.{i}"] for i in range(len(variant.sequences))]
    wrong = importlib.import_module(family.__name__ + "_wrong")
    right = [wrong.forward(config, weights, p) for p in prompts]
    exact_logits = [logits(exact, p) for p in prompts]
    # sdpa in float64 against our page in float64: only rounding may differ.
    page = relative_l2(right, exact_logits)
    if page > 1e-11:
        raise SystemExit(f"{name}: {wrong.__name__}.py is {page:.1e} away from transformers in float64")
    result = Result(name, notes, family.summary(config), dtype, relative_l2([tensors[f"logits.{i}"] for i in range(len(prompts))], exact_logits), lead)
    for mistake, applies in wrong.MISTAKES.items():
        if applies(config, weights):
            result.mistakes[mistake] = relative_l2([wrong.forward(config, weights, p, mistake) for p in prompts], right)
    return result


def save_model(family, variant: Variant, weights: dict[str, np.ndarray], directory: Path, layout: str | None = None) -> None:
    """A directory in Hugging Face layout, by `save_pretrained` wherever that can still write the layout."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    config, layout = family.config(variant), layout or variant.layout
    if hasattr(family, "save") and family.save(variant, config, weights, directory, layout):
        _open_to_all(directory)
        return
    if layout == "old-names":
        old, tensors = family.old_checkpoint(config, weights)
        save_json(directory / "config.json", old, indent=2)
        save_torch({k: torch.from_numpy(v) for k, v in tensors.items()}, directory / "model.safetensors", metadata={"format": "pt"})
        _open_to_all(directory)
        return
    model = getattr(transformers, family.MODEL_CLASS)(config)
    tied = config.tie_word_embeddings
    model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items() if not (tied and k == "lm_head.weight")}, strict=not tied)
    model = model.to(getattr(torch, variant.dtype))
    model.save_pretrained(directory, max_shard_size="80KB" if layout == "sharded" else "1GB")
    (directory / "generation_config.json").unlink(missing_ok=True)
    if layout in ("head-copy", "other-head"):
        file = directory / "model.safetensors"
        tensors = load_torch(file)
        tensors["lm_head.weight"] = torch.from_numpy(weights["lm_head.weight"]).to(model.dtype).clone()
        save_torch(tensors, file, metadata={"format": "pt"})
    if layout == "sharded" and hasattr(family, "causal_masks"):
        _add_masks(directory, family.causal_masks(config, "transformer.", np.uint8))
    _open_to_all(directory)


def _open_to_all(directory: Path) -> None:
    for file in directory.iterdir():
        file.chmod(0o644)


def _add_masks(directory: Path, masks: dict[str, np.ndarray]) -> None:
    """Puts the masks into the first shard, and into the index as older versions of `transformers` did."""
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    first = sorted(set(index["weight_map"].values()))[0]
    save_torch(load_torch(directory / first) | {k: torch.from_numpy(v) for k, v in masks.items()}, directory / first, metadata={"format": "pt"})
    index["weight_map"] = dict(sorted((index["weight_map"] | {k: first for k in masks}).items()))
    index["metadata"]["total_size"] += sum(v.nbytes for v in masks.values())
    save_json(directory / "model.safetensors.index.json", index, indent=2)


def stored_weights(family, variant: Variant, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights after rounding to the type they are stored in."""
    if hasattr(family, "stored"):
        return family.stored(variant, weights)
    dtype = getattr(torch, variant.dtype)
    return {k: torch.from_numpy(v).to(dtype).float().numpy() for k, v in weights.items()}


def make(family, only: set[str]) -> tuple[list[dict], list[Result]]:
    """The cases for index.json and the results for the report, of the variants in `only`, or of all if that is empty."""
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # the order of float32 sums must not depend on the machine's core count
    cases, results = [], []
    for variant in family.VARIANTS:
        if only and variant.name not in only:
            continue
        stem = f"{family.FAMILY}-{variant.name}"
        weights = stored_weights(family, variant, family.weights(variant))
        directory = GOLDEN / stem
        golden = directory / "golden.safetensors"
        if variant.store_checkpoint:
            save_model(family, variant, weights, directory)
            results.append(measure(family, variant, stem, directory, weights, variant.notes, variant.dtype, golden))
            cases.append(_case(family, stem, directory, golden, _GGUF_TYPES[variant.dtype], variant.notes))
        for layout, notes in variant.copies:
            save_model(family, variant, weights, directory.with_name(f"{stem}-{layout}"), layout)
            cases.append(_case(family, f"{stem}-{layout}", directory.with_name(f"{stem}-{layout}"), golden, _GGUF_TYPES[variant.dtype], notes))
        for file in variant.gguf:
            parts = gguf_files.write(family, variant, file, weights)
            stored = gguf_files.read(family, variant, parts)
            name, golden_of_file = f"{family.FAMILY}-{file.stem}", golden
            if file.share:
                different = [k for k in weights if not np.array_equal(weights[k], stored[k])]
                assert not different, f"{name}: {different} did not survive"
            else:
                golden_of_file = GOLDEN / f"{name}.golden.safetensors"
                with tempfile.TemporaryDirectory() as temporary:
                    # As float32, whatever the types of the variant: the file's values must survive.
                    save_model(family, replace(variant, dtype="float32", layout="plain"), stored, Path(temporary))
                    results.append(measure(family, variant, name, Path(temporary), stored, file.notes, file.dtype, golden_of_file))
            cases.append(_case(family, name, parts[0], golden_of_file, file.dtype, f"{file.notes} ({variant.notes})" if file.share else file.notes))
    return cases, results


def _case(family, name: str, model: Path, golden: Path, dtype: str, notes: str) -> dict:
    tensors = load_file(golden)
    return {
        "name": name if model.suffix != ".gguf" else name + ".gguf",
        "family": family.FAMILY,
        "model": model.relative_to(GOLDEN).as_posix(),
        "golden": golden.relative_to(GOLDEN).as_posix(),
        "dtype": dtype,
        "tolerance": "quantized" if dtype.startswith("Q") else "f32",
        "sequences": sum(k.startswith("tokens.") for k in tensors),
        "notes": notes,
    }


def weak(result: Result) -> list[str]:
    """Why this golden would not do; empty if it does."""
    faults = []
    if result.error > MAX_ERROR:
        faults.append(f"{result.name}: float32 is {result.error:.1e} away from float64, more than {MAX_ERROR:.0e}")
    if result.margin < MIN_MARGIN:
        faults.append(f"{result.name}: a greedy choice leads by only {result.margin:.1e} standard deviations")
    return faults + [f"{result.name}: '{m}' moves the logits by only {change:.1e}" for m, change in result.mistakes.items() if change < SHARP]
