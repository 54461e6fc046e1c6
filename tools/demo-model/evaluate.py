"""Measures the model and writes the reference data of the tests.

Writes testdata/demo/perplexity.json (held-out perplexity of the trained float
weights and of the weights as models/demo.gguf stores them) and
testdata/demo/greedy.json (greedy continuations of the latter). Everything is
computed by transformers' GPT2LMHeadModel in float32 on the CPU. The stored
weights and the tokenizer are read back from the GGUF file itself.

Perplexity: the whole file is tokenised at once and cut into consecutive windows
of 512 tokens that don't overlap (the last may be shorter and counts if it has at
least 2 tokens); in each window every token but the first is scored.
"""

import argparse
import json
import math
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel

from corpus import HELDOUT
from export import MODEL, gguf_name, is_conv1d, load_weights
from model import Shape
from sources import BUILD

OUT = HELDOUT.parent
GREEDY_TOKENS = 40
PROMPTS = [
    "Once upon a time",
    "It was a dark and stormy night",
    "My dear Watson, said he,",
    "The whale",
    "In the beginning God created",
    "She had always been of the opinion that",
    "ROMEO\n",
    "Fellow citizens of the Senate and House of Representatives:",
]
SAMPLE_PROMPTS = PROMPTS[:2] + [
    "The old king had three daughters, and the youngest", '"Where have you been?" said the boy',
]


def build(weights: dict[str, np.ndarray], shape: dict) -> GPT2LMHeadModel:
    config = GPT2Config(**Shape(**shape).gpt2_config(), attn_implementation="eager")
    model = GPT2LMHeadModel(config)
    state = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    missing, unexpected = model.load_state_dict(state, strict=False)
    # Older versions keep the causal mask as a buffer; nothing else may be missing.
    missing = [name for name in missing if not name.endswith((".attn.bias", ".masked_bias"))]
    if missing or unexpected:
        raise RuntimeError(f"missing {missing}, unexpected {unexpected}")
    return model.eval()


def read_gguf(path: Path, names: list[str]) -> tuple[dict[str, np.ndarray], Tokenizer]:
    """The dequantised weights under GPT-2's names, and the tokenizer."""
    reader = gguf.GGUFReader(path)
    tensors = {}
    for tensor in reader.tensors:
        tensors[tensor.name] = gguf.dequantize(tensor.data, tensor.tensor_type)
    weights = {}
    for name in names:
        array = tensors.pop(gguf_name(name)).astype(np.float32)
        weights[name] = np.ascontiguousarray(array.T if is_conv1d(name) else array)
    if tensors:
        raise RuntimeError(f"tensors without a place: {sorted(tensors)}")

    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in reader.fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([tokens[reader.fields["tokenizer.ggml.eos_token_id"].contents()]])
    return weights, tokenizer


@torch.no_grad()
def total_loss(model: GPT2LMHeadModel, ids: list[int], context: int) -> tuple[float, int]:
    """Sum of the losses in nats, and the number of scored tokens."""
    total, count = 0.0, 0
    for start in range(0, len(ids), context):
        window = torch.tensor(ids[start:start + context])
        if len(window) < 2:
            continue
        logits = model(window[None]).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")
        total += float(losses.double().sum())
        count += len(window) - 1
    return total, count


@torch.no_grad()
def greedy(model: GPT2LMHeadModel, ids: list[int], count: int) -> tuple[list[int], list[float]]:
    """Greedy tokens, and by how much each step's best logit beats the second."""
    ids, margins = list(ids), []
    for _ in range(count):
        top = model(torch.tensor([ids])).logits[0, -1].topk(2)
        margins.append(round(float(top.values[0] - top.values[1]), 5))
        ids.append(int(top.indices[0]))
    return ids[-count:], margins


@torch.no_grad()
def sample(model: GPT2LMHeadModel, ids: list[int], count: int,
           generator: torch.Generator) -> list[int]:
    """Samples with temperature 0.8 from the 40 best tokens of each step."""
    ids = list(ids)
    for _ in range(count):
        top = model(torch.tensor([ids])).logits[0, -1].topk(40)
        choice = torch.multinomial((top.values / 0.8).softmax(0), 1, generator=generator)
        ids.append(int(top.indices[choice]))
    return ids


def write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, default=BUILD / "run")
    parser.add_argument("--model", type=Path, default=MODEL)
    args = parser.parse_args()
    floats, shape = load_weights(args.run)
    stored, tokenizer = read_gguf(args.model, list(floats))
    trained = Tokenizer.from_file(str(BUILD / "tokenizer.json"))
    text = HELDOUT.read_text("utf-8")
    ids = tokenizer.encode(text).ids
    # What was written must be what was trained, for the tokenizer too.
    assert ids == trained.encode(text).ids
    assert tokenizer.decode(ids) == text

    result = {
        "file": HELDOUT.name, "bytes": len(text.encode()), "tokens": len(ids),
        "window": shape["context"], "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    for key, weights in (("float", floats), ("q8_0", stored)):
        model = build(weights, shape)
        total, count = total_loss(model, ids, shape["context"])
        result["scored_tokens"] = count
        # Bits over the bytes of the scored tokens, estimated by their share.
        scored_bytes = result["bytes"] * count / len(ids)
        result[key] = {"perplexity": round(math.exp(total / count), 6),
                       "mean_nll": round(total / count, 8),
                       "bits_per_byte": round(total / math.log(2) / scored_bytes, 5)}
    write(OUT / "perplexity.json", result)
    print(json.dumps(result, indent=1))

    cases = []
    for prompt in PROMPTS:
        prompt_ids = tokenizer.encode(prompt).ids
        tokens, margins = greedy(model, prompt_ids, GREEDY_TOKENS)
        cases.append({"prompt": prompt, "prompt_ids": prompt_ids, "greedy_ids": tokens,
                      "margins": margins, "text": tokenizer.decode(tokens)})
        print(repr(prompt + cases[-1]["text"]), "smallest margin", min(margins))
    write(OUT / "greedy.json", {"weights": "q8_0", "cases": cases})

    generator = torch.Generator().manual_seed(7)
    for prompt in SAMPLE_PROMPTS:
        tokens = sample(model, tokenizer.encode(prompt).ids, 120, generator)
        print("---\n" + tokenizer.decode(tokens))


if __name__ == "__main__":
    main()
