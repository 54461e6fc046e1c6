"""Trains the tokenizer and turns the corpus into token ids.

A byte-level BPE like GPT-2's: its pre-tokenizer regex, no space put in front of
the text, no normalizer, and <|endoftext|> as the one special token. It is
trained on the training text alone. The ids go to build/train.npy and
build/valid.npy as uint16, one <|endoftext|> after every document.
"""

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from corpus import END
from sources import BUILD

# 125 * 64: the softmax over the vocabulary fills whole tensor-core tiles.
VOCABULARY = 8_000


def documents(name: str) -> list[str]:
    text = (BUILD / "corpus" / f"{name}.txt").read_text("utf-8")
    return [d.rstrip("\n") for d in text.split(f"\n{END}\n")]


def train(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        # All 256 bytes are in the vocabulary, so that any text can be encoded.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main() -> None:
    texts = documents("train")
    tokenizer = train(texts)
    tokenizer.save(str(BUILD / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    for name in ("train", "valid"):
        parts = texts if name == "train" else documents(name)
        ids: list[int] = []
        for encoding in tokenizer.encode_batch(parts):
            ids += encoding.ids
            ids.append(end)
        array = np.array(ids, dtype=np.uint16)
        np.save(BUILD / f"{name}.npy", array)
        size = sum(len(p.encode()) for p in parts)
        print(f"{name}: {len(parts)} documents, {len(array)} tokens, "
              f"{size / len(array):.3f} bytes a token")


if __name__ == "__main__":
    main()
