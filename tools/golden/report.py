"""testdata/golden/README.md and beside it a page for each family: what each golden is, how exact it is, and how sharp."""

from common import GOLDEN, MIN_MARGIN, SHARP, TOLERANCE
from goldens import Result

_HEAD = f"""# Golden logits

Written by `tools/golden`; do not edit. Tiny random checkpoints, with logits and greedy tokens from `transformers` in float32 on
the CPU. `index.json` lists the cases: a `model` (directory, or the first part of a GGUF file) and its `golden`.

A golden file is safetensors; for each sequence i from 0 to `sequences` - 1 it holds

| tensor | type | shape | |
| --- | --- | --- | --- |
| `tokens.i` | U32 | (tokens) | the ids given, nothing prepended |
| `logits.i` | F32 | (tokens, vocab) | row j predicts the token after token j |
| `greedy.i` | U32 | (new) | the ids that follow `tokens.i` at temperature 0; may be empty; never contains the end token |

The weights are those of the stored file: for float16, bfloat16 and quantized files the golden comes from the stored values,
converted to float32 (by the `gguf` package for GGUF), so nothing is owed to rounding of weights. `tolerance` in the index is
`f32` (relative L2 {TOLERANCE:g} on f32 paths) or `quantized`: the golden is still that of the exact stored weights in float32, but
a backend that also rounds activations to 8 bits answers to its own, wider tolerance.

## How exact, and how sharp

Each family has a page: {{families}}. Its first table has

*error*: relative L2 of the stored float32 logits from `transformers` in float64. *margin*: the smallest lead of any greedy choice
over its runner-up, in standard deviations of that row of logits (at least {MIN_MARGIN:g}).

Its second table is about sharpness: the relative L2 change of the logits by one deliberate mistake, over all sequences of the golden
together, in float64. The tool fails where one is below {SHARP:g}, a hundred times the tolerance. The weakest row of each column is bold;
an empty cell means that the mistake is none for that checkpoint. GGUF files with the same weights as a directory share its golden and its column.
"""


def _table(header: list[str], rows: list[list[str]], right: bool) -> str:
    rule = ["---"] + ["---:" if right else "---"] * (len(header) - 1)
    return "".join("| " + " | ".join(row) + " |\n" for row in [header, rule, *rows])


def write(family: str, results: list[Result], weakest_count: int = 12) -> None:
    facts = [[r.name, r.dtype, r.summary, r.notes, f"{r.error:.1e}", f"{r.margin:.3f}"] for r in results]
    mistakes = list(dict.fromkeys(m for r in results for m in r.mistakes))
    rows = []
    for mistake in mistakes:
        cells = []
        for r in results:
            value = r.mistakes.get(mistake)
            text = "" if value is None else f"{value:.2g}"
            cells.append(f"**{text}**" if value is not None and value == min(r.mistakes.values()) else text)
        rows.append([mistake, *cells])
    ranked = sorted((v, m, r.name) for r in results for m, v in r.mistakes.items())[:weakest_count]
    text = f"# Goldens of {family}\n\nWritten by `tools/golden`; do not edit. [README.md](README.md) says what the columns are.\n\n"
    text += _table(["golden", "stored as", "shape", "what it is for", "error", "margin"], facts, right=False) + "\n## Sharpness\n\n"
    text += _table(["mistake", *(r.name.removeprefix(family + "-") for r in results)], rows, right=True)
    text += "\nThe weakest of all:\n\n" + _table(["mistake", "change", "golden"], [[m, f"{v:.4f}", n] for v, m, n in ranked], right=False)
    (GOLDEN / f"{family}.md").write_text(text, encoding="utf-8")
    pages = sorted(page.stem for page in GOLDEN.glob("*.md") if page.stem != "README")
    links = ", ".join(f"[{page}]({page}.md)" for page in pages)
    (GOLDEN / "README.md").write_text(_HEAD.replace("{families}", links), encoding="utf-8")
