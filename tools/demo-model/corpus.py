"""Cleans the texts, holds a part out and writes the corpus.

Writes build/corpus/train.txt and valid.txt (documents separated by lines that
hold only <|endoftext|>), build/sources.json with the byte counts of the model
card, and testdata/demo/heldout.txt (plain text, no special tokens).

The split, fixed by counting alone: the text of a source is cut at paragraph
ends into blocks of about 12,000 characters, counted through the whole source;
block 20 of every 40 (0-based) is held out. Of the held-out blocks of a source
the first and every fifth after it go to heldout.txt, which nothing but the
final evaluation reads; the others are the validation text by which training
keeps its best weights. A training document ends where a block was cut out.
"""

import json
import re
import unicodedata
from pathlib import Path

from readers import read
from sources import BUILD, SOURCES

END = "<|endoftext|>"
BLOCK_CHARS = 12_000
HOLD_EVERY, HOLD_AT, TEST_EVERY = 40, 20, 5
LONG_PARAGRAPH = 1_500
HELDOUT = Path(__file__).resolve().parents[2] / "testdata/demo/heldout.txt"

PLAIN = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "--",
    "\u2026": "...", "\u00a0": " ", "\t": " ", "\ufeff": "", "\u00ad": "", "\ufffd": "",
    # R data in Latin-1 and old etexts carry Windows code points now and then.
    "\x91": "'", "\x92": "'", "\x93": '"', "\x94": '"', "\x96": "-", "\x97": "--",
})


def is_prose(lines: list[str]) -> bool:
    """Tells a paragraph wrapped at a margin from verse: its lines are long and even."""
    body = [len(line) for line in lines[:-1]]
    return min(body) >= 40 and sum(body) / len(body) >= 54


def split_long(paragraph: str) -> list[str]:
    """Breaks a very long paragraph at sentence ends; speeches come as one line."""
    if len(paragraph) <= LONG_PARAGRAPH or "\n" in paragraph:
        return [paragraph]
    parts, current = [], ""
    for sentence in re.split(r"(?<=[.!?][\"' ]) *(?=[A-Z\"'])", paragraph):
        sentence = sentence.strip()
        if current and len(current) + len(sentence) > LONG_PARAGRAPH // 2:
            parts.append(current)
            current = ""
        current = f"{current} {sentence}".strip()
    return parts + [current]


def paragraphs(raw: str) -> list[str]:
    """Cleans one document and returns its paragraphs."""
    text = unicodedata.normalize("NFC", raw.replace("\r\n", "\n").replace("\r", "\n"))
    text = text.translate(PLAIN)
    text = "".join(c for c in text if c == "\n" or unicodedata.category(c)[0] != "C")
    text = re.sub(r"\[Illustration[^\]]*\]", "", text)
    # Underscores mark italics in etexts and stage directions in Markdown.
    text = re.sub(r"_([^_\n][^_]*)_", r"\1", text).replace("_", "")
    result = []
    for piece in re.split(r"\n\s*\n", text):
        # Indents go, since they would only tell verse from prose by layout.
        lines = [re.sub(r" {2,}", " ", line).strip() for line in piece.split("\n")]
        lines = [line for line in lines if line and not re.fullmatch(r"[\s*=.#~-]+", line)]
        if not lines or "Project Gutenberg" in piece or "Produced by" in piece:
            continue
        joined = " ".join(lines) if len(lines) > 1 and is_prose(lines) else "\n".join(lines)
        result.extend(split_long(joined))
    return result


def blocks(document: list[str]) -> list[list[str]]:
    """Groups paragraphs into blocks of about BLOCK_CHARS characters."""
    result, size = [[]], 0
    for paragraph in document:
        if size >= BLOCK_CHARS:
            result.append([])
            size = 0
        result[-1].append(paragraph)
        size += len(paragraph)
    return result


def main() -> None:
    train, valid, test, table = [], [], [], []
    for package in SOURCES:
        count = held = 0
        sizes = {"train": 0, "valid": 0, "test": 0}
        documents = 0
        for _, raw in read(package.key):
            documents += 1
            segment = []
            for block in blocks(paragraphs(raw)):
                if count % HOLD_EVERY == HOLD_AT:
                    target, kind = (test, "test") if held % TEST_EVERY == 0 else (valid, "valid")
                    target.append(block)
                    sizes[kind] += sum(len(p.encode()) + 2 for p in block)
                    held += 1
                    train.append((package.key, segment))
                    segment = []
                else:
                    segment += block
                count += 1
            train.append((package.key, segment))
        table.append({"key": package.key, "package": package.name, "version": package.version,
                      "client": package.client, "licence": package.licence,
                      "texts": package.texts, "documents": documents, "bytes": sizes})

    # A sentence quoted elsewhere must not leak: long held-out paragraphs that
    # also stand in the training text are taken out there.
    secret = {p for block in valid + test for p in block if len(p) >= 80}
    dropped = 0
    rows = {row["key"]: row for row in table}
    cleaned = []
    for key, segment in train:
        kept = [p for p in segment if p not in secret]
        dropped += len(segment) - len(kept)
        rows[key]["bytes"]["train"] += sum(len(p.encode()) + 2 for p in kept)
        if kept:
            cleaned.append(kept)

    folder = BUILD / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    separator = f"\n{END}\n"
    for name, parts in (("train", cleaned), ("valid", valid)):
        text = separator.join("\n\n".join(part) + "\n" for part in parts)
        (folder / f"{name}.txt").write_text(text, "utf-8")
    HELDOUT.parent.mkdir(parents=True, exist_ok=True)
    HELDOUT.write_text("\n\n".join("\n\n".join(part) for part in test) + "\n", "utf-8")
    (BUILD / "sources.json").write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    for row in table:
        print(row["key"], row["documents"], row["bytes"])
    total = {k: sum(r["bytes"][k] for r in table) for k in ("train", "valid", "test")}
    print("total", total, "dropped duplicates of held-out paragraphs:", dropped)


if __name__ == "__main__":
    main()
