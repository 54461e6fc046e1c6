"""Makes testdata/. See README.md beside this file.

    python tools/golden/make.py gpt2            every GPT-2 golden, their part of index.json and their report
    python tools/golden/make.py gpt2 --only base one variant, measured and rewritten; index and report stay
    python tools/golden/make.py families        every family
    python tools/golden/make.py quant           testdata/quant
    python tools/golden/make.py tokenizer       testdata/tokenizer
    python tools/golden/make.py all
"""

import argparse
import importlib
import json
import logging
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is downloaded
logging.disable(logging.WARNING)

# In the order of index.json.
FAMILIES = ["gpt2", "llama", "mistral", "phi3", "gemma3", "gpt_oss", "qwen2", "qwen3", "qwen3_moe"]


def families(names: list[str], only: set[str]) -> int:
    import goldens
    import report
    faults = []
    for name in FAMILIES:
        if name in names:
            family = importlib.import_module(name)
            unknown = only - {v.name for v in family.VARIANTS}
            if unknown:
                sys.exit(f"{name} has no variant {', '.join(sorted(unknown))}")
            cases, results = goldens.make(family, only)
            for result in results:
                weakest = min(result.mistakes, key=result.mistakes.get)
                print(f"{result.name:28} error {result.error:.1e}  margin {result.margin:.3f}  weakest {result.mistakes[weakest]:.4f} {weakest}")
                faults += goldens.weak(result)
            if not only:
                index(family.FAMILY, cases)
                report.write(family.FAMILY, results)
    print("\n".join(faults))
    return 1 if faults else 0


def index(family: str, cases: list[dict]) -> None:
    """Puts the cases of one family into index.json, in the place of those that were there."""
    from common import GOLDEN, save_json

    file = GOLDEN / "index.json"
    others = [case for case in json.loads(file.read_text()) if case["family"] != family] if file.exists() else []
    order = {importlib.import_module(name).FAMILY: place for place, name in enumerate(FAMILIES)}
    save_json(file, sorted(others + cases, key=lambda case: order[case["family"]]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["all", "quant", "tokenizer", "families", *FAMILIES])
    parser.add_argument("--gpt2-vocabulary", type=Path, metavar="DIR", help="with tokenizer: also gpt2-strings.json, from DIR/encoder.json and DIR/vocab.bpe")
    parser.add_argument("--only", nargs="+", default=[], metavar="VARIANT")
    args = parser.parse_args()
    started, status = time.monotonic(), 0
    if args.what in ("all", "families", *FAMILIES):
        status = families([args.what] if args.what in FAMILIES else FAMILIES, set(args.only))
    if args.what in ("all", "quant"):
        import quant_blocks

        quant_blocks.make()
    if args.what in ("all", "tokenizer"):
        import tokenizer_families
        import tokenizer_files

        tokenizer_files.make()
        tokenizer_families.make()
        if args.gpt2_vocabulary:
            tokenizer_files.real_gpt2(args.gpt2_vocabulary)
    print(f"{time.monotonic() - started:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
