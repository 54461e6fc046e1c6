"""testdata/tokenizer: one small byte-level BPE in several dresses, and what `transformers` makes of hard strings with each.

All share the vocabulary: the 256 bytes, the merges learnt from corpus.txt, and <|endoftext|> last, as GPT-2 has it.
"""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast, PreTrainedTokenizerFast

import gpt2
import hard_strings
from common import TESTDATA, rng, save_json

HERE = TESTDATA / "tokenizer"
EOT = hard_strings.EOT
MERGES = 867  # 256 bytes + 867 merges + <|endoftext|> = 1124
# The pre-tokenizer of Llama 3: case-insensitive contractions, digits in groups of three, newlines kept with punctuation.
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

ADDED = [
    AddedToken("<|left|>", lstrip=True, special=True, normalized=False),
    AddedToken("<|right|>", rstrip=True, special=True, normalized=False),
    AddedToken("<|both|>", lstrip=True, rstrip=True, special=True, normalized=False),
    AddedToken("<tool>", special=False, normalized=False),
    AddedToken("word", single_word=True, special=False, normalized=True),
    AddedToken("ÀÉÎ", special=False, normalized=True),
    AddedToken("QQQ", special=False, normalized=False),
    AddedToken("\n\n\n", special=False, normalized=False),
]


def train() -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + MERGES, min_frequency=2, show_progress=False, special_tokens=[],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator((HERE / "corpus.txt").read_text(encoding="utf-8").splitlines(keepends=True), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    assert len(vocab) == 256 + MERGES, f"the corpus yields only {len(vocab)} tokens"
    vocab[EOT] = len(vocab)
    return vocab, [tuple(m) for m in model["merges"]]


def _fast(vocab, merges, prefix_space: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab, merges, fuse_unk=False, continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(EOT, normalized=True, special=True)])
    return tokenizer


def _directory(name: str, vocab) -> Path:
    directory = HERE / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    config = model_config(len(vocab) + (len(ADDED) if name in ("bpe-added", "bpe-nfc") else 0)).to_dict()
    config.pop("transformers_version", None)
    save_json(directory / "config.json", config, indent=2)
    return directory


def _save(tokenizer: Tokenizer, directory: Path, tokenizer_class: str = "GPT2TokenizerFast", **settings) -> None:
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    named = {"bos_token": EOT, "eos_token": EOT, "unk_token": EOT}
    save_json(directory / "tokenizer_config.json", {
        "add_prefix_space": False, **named, "clean_up_tokenization_spaces": False, "model_max_length": 64,
        "tokenizer_class": tokenizer_class, **settings,
    }, indent=2)


def model_config(vocab_size: int) -> GPT2Config:
    return GPT2Config(vocab_size=vocab_size, n_positions=64, n_embd=8, n_layer=1, n_head=2, n_inner=16,
                      architectures=["GPT2LMHeadModel"], bos_token_id=256 + MERGES, eos_token_id=256 + MERGES)


def model_weights(config: GPT2Config) -> dict[str, np.ndarray]:
    """A model just large enough to run; its logits mean nothing."""
    shapes = {k: v.shape for k, v in GPT2LMHeadModel(config).state_dict().items() if k != "lm_head.weight"}
    weights = {k: np.float32(rng("tokenizer", k).standard_normal(s) * 0.5 + (".ln_" in k and k.endswith("weight"))) for k, s in shapes.items()}
    return weights | {"lm_head.weight": weights["transformer.wte.weight"]}


def write_all(vocab: dict[str, int], merges: list[tuple[str, str]]) -> list[dict]:
    """One entry of tokenizers.json for each: where it is, and whose ids it must give."""
    entries = []

    def entry(name, path, notes, ids=None):
        entries.append({"name": name, "path": path, "ids": ids or name, "notes": notes})

    directory = _directory("bpe", vocab)
    _save(_fast(vocab, merges), directory)
    config = model_config(len(vocab))
    weights = {k: v for k, v in model_weights(config).items() if k != "lm_head.weight"}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)
    entry("bpe", "bpe", "tokenizer.json and tokenizer_config.json, as GPT2TokenizerFast; with a tiny model that runs")

    for name, settings, notes, ids in [
        ("bpe-vocab-merges", {}, "vocab.json and merges.txt alone, no tokenizer.json", "bpe"),
        ("bpe-vocab-merges-bos", {"add_bos_token": True}, "the same with add_bos_token, which only counts without a tokenizer.json", "bpe-bos"),
    ]:
        directory = _directory(name, vocab)
        save_json(directory / "vocab.json", vocab, indent=None)
        (directory / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
        save_json(directory / "tokenizer_config.json", {"model_max_length": 64, "tokenizer_class": "GPT2Tokenizer", **settings}, indent=2)
        save_json(directory / "special_tokens_map.json", {"bos_token": EOT, "eos_token": EOT, "unk_token": EOT}, indent=2)
        entry(name, name, notes, ids)

    tokenizer = _fast(vocab, merges)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{EOT} $A", pair=f"{EOT} $A {EOT} $B", special_tokens=[(EOT, vocab[EOT])])
    _save(tokenizer, _directory("bpe-bos", vocab), add_bos_token=True)
    entry("bpe-bos", "bpe-bos", "add_bos_token true, with the TemplateProcessing that says the same")

    _save(_fast(vocab, merges, prefix_space=True), _directory("bpe-prefix-space", vocab), add_prefix_space=True)
    entry("bpe-prefix-space", "bpe-prefix-space", "add_prefix_space true in both files")

    _save(_fast(vocab, merges), _directory("bpe-prefix-config", vocab), add_prefix_space=True)
    entry("bpe-prefix-config", "bpe-prefix-config",
          "add_prefix_space true in tokenizer_config.json, false in tokenizer.json: GPT2Tokenizer takes the former", ids="bpe-prefix-space")

    tokenizer = _fast(vocab, merges)
    tokenizer.add_tokens(ADDED)
    _save(tokenizer, _directory("bpe-added", vocab))
    entry("bpe-added", "bpe-added", "added tokens with lstrip, rstrip, single_word, normalized; special and not")

    tokenizer = _fast(vocab, merges)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.add_tokens(ADDED)
    _save(tokenizer, _directory("bpe-nfc", vocab), tokenizer_class="PreTrainedTokenizerFast")
    entry("bpe-nfc", "bpe-nfc", "NFC normalizer, the Split pattern of Llama 3, the added tokens of bpe-added")

    write_gguf(HERE / "bpe.gguf", vocab, merges, add_bos=False)
    entry("bpe.gguf", "bpe.gguf", "tokenizer.ggml.model gpt2, pre gpt-2; with the tiny model of bpe/", ids="bpe")
    write_gguf(HERE / "bpe-bos.gguf", vocab, merges, add_bos=True)
    entry("bpe-bos.gguf", "bpe-bos.gguf", "the same with tokenizer.ggml.add_bos_token true", ids="bpe-bos")
    return entries


def write_gguf(path: Path, vocab: dict[str, int], merges: list[tuple[str, str]], add_bos: bool) -> None:
    config = model_config(len(vocab))
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name(path.stem)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    gpt2.gguf_metadata(config, writer)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(vocab))
    writer.add_token_types([gguf.TokenType.CONTROL if token == EOT else gguf.TokenType.NORMAL for token in vocab])
    writer.add_token_merges([" ".join(m) for m in merges])
    writer.add_bos_token_id(vocab[EOT])
    writer.add_eos_token_id(vocab[EOT])
    writer.add_unk_token_id(vocab[EOT])
    if add_bos:
        writer.add_add_bos_token(True)
    weights = model_weights(config)
    for ours, (theirs, transposed) in gpt2.gguf_names(config, separate_head=False).items():
        writer.add_tensor(theirs, np.ascontiguousarray(weights[ours].T if transposed else weights[ours]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(entry: dict):
    if entry["path"].endswith(".gguf"):
        return AutoTokenizer.from_pretrained(HERE, gguf_file=entry["path"])
    tokenizer = AutoTokenizer.from_pretrained(HERE / entry["path"])
    wanted = PreTrainedTokenizerFast if entry["name"] == "bpe-nfc" else GPT2TokenizerFast
    assert isinstance(tokenizer, wanted), type(tokenizer)
    return tokenizer


def decode(tokenizer, ids: list[int], skip: bool) -> str:
    return tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)


def real_gpt2(directory: Path) -> None:
    """gpt2-strings.json: ids by the true GPT-2 vocabulary, too large to keep here. `directory` holds its two files."""
    encoder, bpe = directory / "encoder.json", directory / "vocab.bpe"
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copy(encoder, Path(temporary) / "vocab.json")
        shutil.copy(bpe, Path(temporary) / "merges.txt")
        tokenizer = GPT2TokenizerFast.from_pretrained(temporary)
    assert tokenizer("Hello world")["input_ids"] == [15496, 995]
    head = {"encoder.json": hashlib.sha256(encoder.read_bytes()).hexdigest(), "vocab.bpe": hashlib.sha256(bpe.read_bytes()).hexdigest()}
    rows = [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in hard_strings.ALL]
    body = ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows)
    (HERE / "gpt2-strings.json").write_text('{"sha256":' + json.dumps(head) + ',\n"strings":[\n' + body + "\n]}\n", encoding="ascii")


def make() -> None:
    vocab, merges = train()
    entries = write_all(vocab, merges)
    tokenizers = {e["name"]: load(e) for e in entries if not e["path"].endswith(".gguf")}

    lines = []
    for text in hard_strings.ALL:
        row = {"text": text, "ids": {}, "decoded": {}}
        for entry in sorted(entries, key=lambda e: e["ids"] != e["name"]):  # those with ids of their own come first
            if entry["name"] not in tokenizers:
                continue
            ids = tokenizers[entry["name"]](text)["input_ids"]
            if entry["ids"] != entry["name"]:
                assert ids == row["ids"][entry["ids"]], f"{entry['name']} differs from {entry['ids']} on {text!r}"
                continue
            row["ids"][entry["name"]] = ids
            row["decoded"][entry["name"]] = decode(tokenizers[entry["name"]], ids, skip=False)
        lines.append(row)
    _save_rows(HERE / "hard-strings.json", lines)

    # Ids that no text gives: characters cut in two, bytes that are never UTF-8, special tokens in strange places.
    names = [e["name"] for e in entries if e["ids"] == e["name"]]
    rows = []
    for index in range(60):
        generator = rng("tokenizer", "decode", index)
        name = names[index % len(names)]
        pool = len(vocab) if index % 3 else 256
        ids = generator.integers(0, pool, int(generator.integers(1, 12))).tolist()
        if index % 5 == 0:
            ids.insert(len(ids) // 2, vocab[EOT])
        rows.append({"tokenizer": name, "ids": ids, "text": decode(tokenizers[name], ids, False), "text_without_special": decode(tokenizers[name], ids, True)})
    for text in ("🙂", "人人", "é", "नमस्ते", "👨‍👩‍👧‍👦"):
        ids = tokenizers["bpe"](text)["input_ids"]
        rows += [{"tokenizer": "bpe", "ids": ids[:n], "text": decode(tokenizers["bpe"], ids[:n], False),
                  "text_without_special": decode(tokenizers["bpe"], ids[:n], True)} for n in range(1, len(ids) + 1)]
    _save_rows(HERE / "decode.json", rows)
    save_json(HERE / "tokenizers.json", entries)
    print(f"{len(entries)} tokenizers of {len(vocab)} tokens, {len(lines)} strings, {len(rows)} decodings")


def _save_rows(path: Path, rows: list[dict]) -> None:
    """One row a line: small, and a difference can be read."""
    path.write_text("[\n" + ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows) + "\n]\n", encoding="ascii")
