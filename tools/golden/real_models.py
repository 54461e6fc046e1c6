"""Perplexity of a published model by transformers, in float64.

    python tools/golden/real_models.py MODEL.gguf testdata/real-models/NAME.json

puts it beside llama.cpp's in that file, as `exact_perplexity`: over the same tokens, of the second half of each chunk.
"""

import json
import re
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


@torch.inference_mode()
def perplexity(model, theirs):
    context, tokens = theirs["context"], theirs["tokens"]
    losses = []
    for start in range(0, len(tokens) - context + 1, context):
        chunk = torch.tensor(tokens[start : start + context])
        inputs = chunk.clone()
        if theirs["bos"] is not None:
            inputs[0] = theirs["bos"]
        logits = model(inputs[None]).logits[0]
        scored = slice(context // 2, context - 1)
        losses.append(torch.nn.functional.cross_entropy(logits[scored], chunk[1:][scored], reduction="none"))
    return torch.cat(losses).mean().exp().item()


def main():
    path, destination = Path(sys.argv[1]), Path(sys.argv[2])
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).double()
    text = destination.read_text()
    theirs = json.loads(text)
    exact = round(perplexity(model, theirs), 6)
    text = re.sub(r'"exact_perplexity": [0-9.]+, ', "", text)
    text = re.sub(r'("perplexity_error": [0-9.]+, )', rf'\g<1>"exact_perplexity": {exact}, ', text)
    destination.write_text(text)
    print(exact, "llama.cpp:", theirs["perplexity"])


main()
