"""Joins the output of `answers` and of `llama-perplexity` into one file of testdata/real-models. See README.md beside this file."""

import json
import re
import sys
from pathlib import Path

answers, perplexity, destination = map(Path, sys.argv[1:])
theirs = json.loads(answers.read_text())
log = perplexity.read_text()
found = re.search(r"Final estimate: PPL = ([0-9.]+) \+/- ([0-9.]+)", log)
context = int(re.search(r"n_ctx=(\d+)", log).group(1))
chunks = int(re.search(r"over (\d+) chunks", log).group(1))
# All texts begin with the same token where the model has one for that.
firsts = {tuple(answer["prompt"][:1]) for answer in theirs["answers"]} | {tuple(theirs["tokens"][:1])}
bos = firsts.pop()[0] if len(firsts) == 1 else None
tokens = theirs["tokens"][: context * chunks]
joined = {
    "made_by": "tools/golden/llama_cpp (llama.cpp b11434)", "context": context, "bos": bos,
    "perplexity": float(found.group(1)), "perplexity_error": float(found.group(2)), "tokens": tokens, "answers": theirs["answers"],
}
text = json.dumps(joined)
text = re.sub(r'("tokens"|"answers"|\{"prompt")', r"\n\1", text)
destination.write_text(text + "\n")
