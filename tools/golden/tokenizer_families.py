"""testdata/tokenizer/families: small tokenizers configured as those of the model families are, and what the `tokenizers` library makes of
hard strings with each.

A family's vocabulary is learnt from corpus.txt; everything else is as its tokenizer.json has it: normalizer, pre-tokenizer, decoder,
post-processor, added tokens and their flags. Beside each directory is a GGUF file with the metadata that llama.cpp's converter writes.

The reference is `tokenizers`, which follows tokenizer.json. `transformers` 5 rebuilds some classes from the vocabulary alone: where that
changes ids, `make` prints how many.
"""

import json
import shutil
from pathlib import Path

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import hard_strings
from common import TESTDATA, rng, save_json

HERE = TESTDATA / "tokenizer" / "families"
CORPUS = TESTDATA / "tokenizer" / "corpus.txt"
STRINGS = hard_strings.ALL + hard_strings.FAMILIES
MERGES = 300
SPACE = "\u2581"
Type = gguf.TokenType

CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
MARK = r"[^\r\n\p{L}\p{N}]?"
O200K = rf"{MARK}{UPPER}*{LOWER}+{SUFFIX}|{MARK}{UPPER}+{LOWER}*{SUFFIX}|\p{{N}}{{1,3}}{REST}"
TEKKEN = rf"{MARK}{UPPER}*{LOWER}+|{MARK}{UPPER}+{LOWER}*|\p{{N}}{REST}"
# DeepSeek's files write line ends as they are.
DEEPSEEK_LETTERS = (
    "\\s?["
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d"
    "\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-"
    "\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-"
    "\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-"
    "\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-"
    "\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-"
    "\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
    "]+"
)
DEEPSEEK_MARKS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DEEPSEEK_V3 = [
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]


def special(text: str, **flags) -> AddedToken:
    return AddedToken(text, special=True, normalized=False, **flags)


def user(text: str, **flags) -> AddedToken:
    return AddedToken(text, special=False, normalized=False, **flags)


def template(before: list[str], after: list[str], tokenizer: Tokenizer):
    single = " ".join([*before, "$A", *after])
    pair = " ".join([*before, "$A", *after, *[f"{t}:1" for t in before], "$B:1", *[f"{t}:1" for t in after]])
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=[(t, tokenizer.token_to_id(t)) for t in before + after])


def lines() -> list[str]:
    return CORPUS.read_text(encoding="utf-8").splitlines(keepends=True)


# Byte-level families


def split(*patterns: str):
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    return [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)]


def byte_level(steps, before: list[AddedToken], after: list[AddedToken], words: tuple = (), normalizer=None, ignore_merges=False) -> Tokenizer:
    """`before` are the first tokens of the vocabulary itself, `after` are added after it; `words` are tokens that no merge makes.

    The merges are learnt from pieces of several words, so that there are merges for every border that the pre-tokenizer has to keep: a
    wrong one changes ids.
    """
    learner = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(r"(?:\s*\S+){1,2}"), "isolated")
    learner.pre_tokenizer = pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    borders = hard_strings.NUMBERS + hard_strings.CODE + hard_strings.WORDS[:40] + hard_strings.SCRIPTS + hard_strings.FAMILIES[-15:]
    learner.train_from_iterator(lines() + 2 * borders, trainers.BpeTrainer(
        vocab_size=256 + 2 * MERGES, show_progress=False, special_tokens=[], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    learnt = json.loads(learner.to_str())["model"]
    tokens = [t.content for t in before] + sorted(learnt["vocab"], key=learnt["vocab"].get) + list(words)
    tokenizer = Tokenizer(models.BPE(
        vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m) for m in learnt["merges"]], ignore_merges=ignore_merges))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    add(tokenizer, before + after)
    return tokenizer


def add(tokenizer: Tokenizer, tokens: list[AddedToken]) -> None:
    for token in tokens:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])


def llama3() -> Tokenizer:
    names = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag"]
    tokenizer = byte_level(split(CL100K), [], [special(f"<|{n}|>") for n in names], words=("antidisestablishmentarianism", "\u0120tokenization"), ignore_merges=True)
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False), template(["<|begin_of_text|>"], [], tokenizer)])
    return tokenizer


def qwen(pattern: str) -> Tokenizer:
    after = [special("<|endoftext|>"), special("<|im_start|>"), special("<|im_end|>"), user("<tool_call>"), user("</tool_call>")]
    return byte_level(split(pattern), [], after, normalizer=normalizers.NFC())


def o200k() -> Tokenizer:
    names = ["startoftext", "endoftext", "return", "constrain", "channel", "start", "end", "message", "call"]
    return byte_level(split(O200K), [], [special(f"<|{n}|>") for n in names])


def smollm() -> Tokenizer:
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)]
    return byte_level(steps, [special("<|endoftext|>"), special("<|im_start|>"), special("<|im_end|>")], [])


def deepseek(*patterns: str, digits: bool) -> Tokenizer:
    steps = split(*patterns)
    if digits:
        steps.insert(len(steps) - 1, pre_tokenizers.Digits(individual_digits=True))
    names = ["<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"]
    before, after = ([], [special(n) for n in names]) if digits else ([special(n) for n in names], [user("<\uff5cplace\u2581holder\u2581no\u25810\uff5c>")])
    tokenizer = byte_level(steps, before, after, normalizer=normalizers.Sequence([]))
    tokenizer.post_processor = template(names[:1], [], tokenizer)
    return tokenizer


def tekken() -> Tokenizer:
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "<pad>"]
    tokenizer = byte_level(split(TEKKEN), [special(n) for n in names], [], words=("antidisestablishmentarianism",), ignore_merges=True)
    tokenizer.post_processor = template(["<s>"], [], tokenizer)
    return tokenizer


# SentencePiece families


def pieces() -> list[str]:
    """Tokens in the order in which they were merged, then single characters: the order of SentencePiece's scores."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    learner.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    alphabet = [chr(c) for c in range(33, 127)] + [SPACE, "é", "ü", "Ж", "ж", "人", "自", "由", "の"]
    text = [line.rstrip("\n") for line in lines()]
    learner.train_from_iterator(text, trainers.BpeTrainer(
        vocab_size=len(alphabet) + MERGES, show_progress=False, special_tokens=[], initial_alphabet=alphabet, limit_alphabet=len(alphabet)))
    learnt = json.loads(learner.to_str())["model"]
    merged = list(dict.fromkeys("".join(m) for m in learnt["merges"]))
    # Runs of spaces are tokens in these vocabularies.
    runs = [SPACE * n for n in (2, 4, 8, 3)]
    return [t for t in merged if t not in runs] + runs + alphabet


def all_merges(vocab: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every way to make a token of two, the best score first and of equals the longest left: as `transformers` converts SentencePiece."""
    merges = []
    for token, score in scores.items():
        ways = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in vocab and token[i:] in vocab]
        merges += [(left, right, score) for left, right in sorted(ways, key=lambda w: (vocab[w[0]], vocab[w[1]]))]
    return [(left, right) for left, right, _ in sorted(merges, key=lambda m: (m[2], len(m[0]), len(m[1])), reverse=True)]


def sentencepiece(first: list[str], user_defined: list[str], added: list[AddedToken], prefix: str | None) -> tuple[Tokenizer, dict[str, float]]:
    """`prefix`: how a space goes before the text: legacy, first or None. Also the score of every token of the vocabulary."""
    learnt = [p for p in pieces() if p not in user_defined]
    tokens = first + user_defined + [f"<0x{b:02X}>" for b in range(256)] + learnt
    vocab = {t: i for i, t in enumerate(tokens)}
    scores = {t: 0.0 for t in user_defined} | {t: -1.0 - i for i, t in enumerate(learnt)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=all_merges(vocab, scores), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    elif prefix == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prefix else []))
    add(tokenizer, added)
    return tokenizer, scores


LLAMA = ["<unk>", "<s>", "</s>"]


def llama2(normalized: bool = False, prefix: str = "legacy", more: tuple = ()):
    added = [AddedToken(t, special=True, normalized=normalized) for t in LLAMA] + list(more)
    tokenizer, scores = sentencepiece(LLAMA, [], added, prefix)
    tokenizer.post_processor = template(["<s>"], [], tokenizer)
    return tokenizer, scores


def phi3():
    added = [special("<unk>"), special("<s>"), user("</s>", rstrip=True), special("<|endoftext|>")]
    added += [special(f"<|{n}|>", rstrip=True) for n in ("assistant", "step", "system", "end", "user")]
    tokenizer, scores = sentencepiece(LLAMA, [], added, "legacy")
    tokenizer.post_processor = template(["<s>"], [], tokenizer)
    return tokenizer, scores


def gemma():
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<unused0>", "<unused1>", "<start_of_turn>", "<end_of_turn>"]
    defined = ["[multimodal]"] + ["\n" * n for n in range(1, 9)] + [SPACE * n for n in range(2, 12)] + ["\t", "<table>"]
    tokenizer, scores = sentencepiece(first, defined, [special(t) for t in first] + [user(t) for t in defined], None)
    tokenizer.post_processor = template(["<bos>"], [], tokenizer)
    return tokenizer, scores


def unigram(byte_fallback: bool) -> Tokenizer:
    first = ["<pad>", "</s>", "<unk>"]
    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=True)
    learner.train_from_iterator(lines(), trainers.UnigramTrainer(vocab_size=400, show_progress=False, special_tokens=[], unk_token="<unk>"))
    learnt = [(t, s) for t, s in json.loads(learner.to_str())["model"]["vocab"] if t not in first]
    vocab = [(t, 0.0) for t in first] + ([(f"<0x{b:02X}>", 0.0) for b in range(256)] if byte_fallback else []) + learnt
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=2, byte_fallback=byte_fallback))
    scheme = "first" if byte_fallback else "always"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=not byte_fallback)
    if byte_fallback:
        tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    add(tokenizer, [special(t) for t in first])
    tokenizer.post_processor = template([], ["</s>"], tokenizer)
    return tokenizer


INST = (special("[INST]"), special("[/INST]"))
# name: (how to make it, class in tokenizer_config.json, bos, eos, tokenizer.ggml.pre, architecture in GGUF)
BYTE_LEVEL = {
    "llama3": (llama3, "PreTrainedTokenizerFast", "<|begin_of_text|>", "<|eot_id|>", "llama-bpe", "llama"),
    "qwen2": (lambda: qwen(QWEN2), "Qwen2Tokenizer", None, "<|im_end|>", "qwen2", "qwen2"),
    "qwen35": (lambda: qwen(QWEN35), "Qwen2Tokenizer", None, "<|im_end|>", "qwen35", "qwen3"),
    "o200k": (o200k, "PreTrainedTokenizerFast", "<|startoftext|>", "<|return|>", "gpt-4o", "gpt-oss"),
    "smollm": (smollm, "GPT2Tokenizer", "<|im_start|>", "<|im_end|>", "smollm", "llama"),
    "deepseek-llm": (lambda: deepseek("[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_MARKS, r"\s+$", DEEPSEEK_CJK, digits=True), "LlamaTokenizerFast",
                     "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "deepseek-llm", "llama"),
    "deepseek-coder": (lambda: deepseek("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, digits=True), "LlamaTokenizerFast",
                       "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "deepseek-coder", "llama"),
    "deepseek-v3": (lambda: deepseek(*DEEPSEEK_V3, digits=False), "PreTrainedTokenizerFast",
                    "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "deepseek-v3", "llama"),
    "tekken": (tekken, "PreTrainedTokenizerFast", "<s>", "</s>", "tekken", "llama"),
}
SENTENCEPIECE = {
    "llama2": (llama2, "LlamaTokenizer", "<s>", "</s>", "llama"),
    "phi3": (phi3, "LlamaTokenizer", "<s>", "<|endoftext|>", "phi3"),
    "gemma": (gemma, "GemmaTokenizer", "<bos>", "<eos>", "gemma3"),
    # No key says these.
    "llama2-normalized": (lambda: llama2(normalized=True), "LlamaTokenizer", "<s>", "</s>", None),
    "llama2-first": (lambda: llama2(prefix="first", more=INST), "LlamaTokenizer", "<s>", "</s>", None),
}
UNIGRAM = {"unigram": False, "unigram-bytes": True}


def directory(name: str, tokenizer: Tokenizer, cls: str, bos: str | None, eos: str, unk: str | None) -> Path:
    path = HERE / name
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"), pretty=False)
    named = {k: v for k, v in {"bos_token": bos, "eos_token": eos, "unk_token": unk}.items() if v}
    save_json(path / "tokenizer_config.json", {**named, "clean_up_tokenization_spaces": False, "tokenizer_class": cls}, indent=2)
    return path


def write_gguf(name: str, tokenizer: Tokenizer, architecture: str, model: str, pre: str, bos: str | None, eos: str, unk: str | None, scores=None) -> None:
    """Metadata alone, as llama.cpp's converter writes it."""
    file = json.loads(tokenizer.to_str())
    added = {t["id"]: t for t in file["added_tokens"]}
    tokens, types, values = [], [], []
    for i in range(tokenizer.get_vocab_size()):
        token = tokenizer.id_to_token(i)
        kind, value = Type.NORMAL, (scores or {}).get(token, 0.0)
        if token == unk and scores:
            kind = Type.UNKNOWN
        elif i in added:
            kind = Type.CONTROL if added[i]["special"] else Type.USER_DEFINED
            value = -1000.0
            if kind == Type.USER_DEFINED and scores:
                token = token.replace(SPACE, " ")
        elif scores and token.startswith("<0x"):
            kind = Type.BYTE
        tokens.append(token)
        types.append(kind)
        values.append(value)
    writer = gguf.GGUFWriter(HERE / f"{name}.gguf", architecture)
    writer.add_name(name)
    writer.add_vocab_size(len(tokens))
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    if scores:
        writer.add_token_scores(values)
    writer.add_token_types(types)
    if not scores:
        writer.add_token_merges([" ".join(m) for m in file["model"]["merges"]])
    ids = tokenizer.encode("").ids
    if bos:
        writer.add_bos_token_id(tokenizer.token_to_id(bos))
    writer.add_eos_token_id(tokenizer.token_to_id(eos))
    if unk:
        writer.add_unk_token_id(tokenizer.token_to_id(unk))
    writer.add_add_bos_token(bool(ids))
    writer.add_add_eos_token(False)
    if model == "llama" and file["normalizer"]["type"] != "Sequence":
        writer.add_add_space_prefix(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def expected(name: str, tokenizer: Tokenizer) -> dict:
    """Ids and text by `tokenizers`. Text is kept where it is not the string itself."""
    ids = [tokenizer.encode(text).ids for text in STRINGS]
    decoded = {i: tokenizer.decode(ids[i], skip_special_tokens=True) for i in range(len(ids))}
    decoded = {i: text for i, text in decoded.items() if text != STRINGS[i]}
    specials = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    tokenizer.encode_special_tokens = True
    plain, dropped = {}, 0
    for i, text in enumerate(STRINGS):
        if any(t.content in text for t in tokenizer.get_added_tokens_decoder().values() if t.special):
            found = tokenizer.encode(text, add_special_tokens=False).ids
            if specials.isdisjoint(found):
                plain[i] = found
            else:  # here text that is not parsed never becomes a special token
                dropped += 1
    tokenizer.encode_special_tokens = False
    rows = []
    size = tokenizer.get_vocab_size()
    singles = [i for i in range(size) if tokenizer.id_to_token(i).startswith("<0x")] or list(range(256))
    for index in range(40):
        generator = rng("tokenizer", "family", name, index)
        row = [int(generator.choice(singles)) if generator.random() < 0.4 else int(generator.integers(0, size)) for _ in range(int(generator.integers(1, 12)))]
        rows.append(row)
    for text in ("🙂", "人人", "é\n\n", "नमस्ते", "a👨‍👩‍👧‍👦b"):
        row = tokenizer.encode(text, add_special_tokens=False).ids
        rows += [row[:n] for n in range(1, len(row) + 1)]
    decode = [{"ids": r, "text": tokenizer.decode(r, skip_special_tokens=False), "text_without_special": tokenizer.decode(r, skip_special_tokens=True)} for r in rows]
    if dropped:
        print(f"{name}: {dropped} strings become special tokens although these are not parsed; not kept")
    return {"ids": ids, "decoded": decoded, "plain": plain, "decode": decode}


def save(path: Path, value: dict) -> None:
    """One row a line."""
    dump = lambda v: json.dumps(v, separators=(",", ":"))  # noqa: E731
    lists = lambda v: "[\n" + ",\n".join(map(dump, v)) + "\n]" if isinstance(v, list) else "{\n" + ",\n".join(f"{dump(str(k))}:{dump(x)}" for k, x in v.items()) + "\n}"  # noqa: E731
    path.write_text("{" + ",\n".join(f"{dump(k)}:{lists(v)}" for k, v in value.items()) + "}\n", encoding="ascii")


def differences(path: Path, tokenizer: Tokenizer) -> int:
    """How many strings `transformers` cuts in another way."""
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(path)
    return sum(other(text)["input_ids"] != tokenizer.encode(text).ids for text in STRINGS)


def make() -> None:
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir(parents=True)
    save(HERE / "strings.json", {"strings": STRINGS})
    made = []
    for name, (build, cls, bos, eos, pre, architecture) in BYTE_LEVEL.items():
        tokenizer = build()
        made.append((name, tokenizer, directory(name, tokenizer, cls, bos, eos, None)))
        write_gguf(name, tokenizer, architecture, "gpt2", pre, bos, eos, None)
    for name, (build, cls, bos, eos, architecture) in SENTENCEPIECE.items():
        tokenizer, scores = build()
        made.append((name, tokenizer, directory(name, tokenizer, cls, bos, eos, "<unk>")))
        if architecture:
            write_gguf(name, tokenizer, architecture, "llama", "default", bos, eos, "<unk>", scores)
    for name, byte_fallback in UNIGRAM.items():
        tokenizer = unigram(byte_fallback)
        made.append((name, tokenizer, directory(name, tokenizer, "PreTrainedTokenizerFast", None, "</s>", "<unk>")))
    for name, _, path in made:
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        save(HERE / f"{name}.json", expected(name, tokenizer))
        count = differences(path, tokenizer)
        if count:
            print(f"{name}: transformers cuts {count} of {len(STRINGS)} strings in another way")
    print(f"{len(made)} tokenizers of families, {len(STRINGS)} strings")
