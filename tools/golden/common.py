"""What every golden needs: seeded numbers, files that come out the same twice, and one measure of distance."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

TESTDATA = Path(__file__).resolve().parents[2] / "testdata"
GOLDEN = TESTDATA / "golden"

# The contract of the f32 paths (relative L2 of the logits), and how far from it a mistake has to move them.
TOLERANCE = 1e-4
SHARP = 100 * TOLERANCE
# A float32 golden must itself be this close to float64, and no greedy choice may be a near tie.
MAX_ERROR = 1e-6
MIN_MARGIN = 1e-2


@dataclass(frozen=True)
class Gguf:
    """One GGUF file made from a variant. `share` says that its weights are the checkpoint's, bit for bit: those of F32 files, and
    of files that keep the types of the checkpoint (`exact`)."""

    stem: str
    dtype: str = "F32"
    version: int = 3
    alignment: int = 32
    max_tensors: int = 0
    tokenizer: str | None = None
    exact: bool = False
    notes: str = ""

    @property
    def share(self) -> bool:
        return self.exact or self.dtype == "F32"


@dataclass(frozen=True)
class Variant:
    """One tiny checkpoint: what its config sets, how it is stored, and which sequences go through it.

    `sequences` are pairs: how many tokens are given, and how many greedy tokens continue them (0 for none). `copies` are pairs
    of a layout and its notes: directories with the same weights. Without `store_checkpoint` only the GGUF files are kept.
    """

    name: str
    config: dict
    notes: str
    dtype: str = "float32"
    layout: str = "plain"
    sequences: tuple[tuple[int, int], ...] = ((40, 20), (1, 16))
    gguf: tuple[Gguf, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    store_checkpoint: bool = True


def rng(*key) -> np.random.Generator:
    """A generator that depends on its key alone, so that adding a tensor or a variant changes no other."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def relative_l2(got, want) -> float:
    """Over all rows of all sequences together."""
    difference = sum(float(((np.float64(g) - np.float64(w)) ** 2).sum()) for g, w in zip(got, want, strict=True))
    size = sum(float((np.float64(w) ** 2).sum()) for w in want)
    return (difference / size) ** 0.5


def save_tensors(path: Path, tensors: dict[str, np.ndarray], command: str) -> None:
    """One metadata key only: with several, safetensors writes them in an order that differs from run to run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, metadata={"command": command})
    path.chmod(0o644)  # safetensors makes its files readable by the owner alone


def save_json(path: Path, value, indent: int | None = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=True) + "\n", encoding="ascii")
