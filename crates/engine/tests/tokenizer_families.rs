//! Ids and text equal to those of the `tokenizers` library, for small tokenizers configured as those of the model
//! families are, from `tokenizer.json` and from GGUF metadata.
//!
//! `testdata/tokenizer/README.md` says how the expected values were made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oxgpt_engine::format::{Checkpoint, Source};
use oxgpt_engine::model::gguf_tokenizer;
use oxgpt_engine::tokenizer::{EncodeOptions, GgufTokenizer, Segment, Tokenizer, TokenizerKind};
use serde::Deserialize;
use serde::de::DeserializeOwned;

const BYTE_LEVEL: [&str; 9] = [
    "llama3",
    "qwen2",
    "qwen35",
    "o200k",
    "smollm",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
    "tekken",
];
const SENTENCEPIECE: [&str; 3] = ["llama2", "phi3", "gemma"];
/// Those that GGUF has no words for.
const JSON_ALONE: [&str; 4] = ["llama2-normalized", "llama2-first", "unigram", "unigram-bytes"];

/// The library does not skip special tokens that its normalizer changes; here a special token is skipped.
const NOT_SKIPPED: &str = "llama2-normalized";

#[derive(Deserialize)]
struct Strings {
    strings: Vec<String>,
}

#[derive(Deserialize)]
struct Expected {
    /// Of every string, with what goes around it.
    ids: Vec<Vec<u32>>,
    /// Without special tokens, where it is not the string itself.
    decoded: BTreeMap<usize, String>,
    /// Of strings with special tokens, when these are not parsed.
    plain: BTreeMap<usize, Vec<u32>>,
    decode: Vec<Decoded>,
}

#[derive(Deserialize)]
struct Decoded {
    ids: Vec<u32>,
    text: String,
    text_without_special: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tokenizer/families")
}

fn read<T: DeserializeOwned>(name: &str) -> T {
    let path = folder().join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn from_directory(name: &str) -> Tokenizer {
    Tokenizer::from_directory(&folder().join(name))
        .unwrap_or_else(|error| panic!("{name}: {error}"))
        .expect("a tokenizer")
}

fn from_gguf(name: &str) -> Tokenizer {
    let checkpoint = Checkpoint::open(&folder().join(format!("{name}.gguf")))
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let Source::Gguf(metadata) = checkpoint.source() else { panic!("{name}: not GGUF") };
    gguf_tokenizer(metadata).unwrap_or_else(|error| panic!("{name}: {error}")).expect("a tokenizer")
}

/// Every tokenizer by what it is called here, with the name of what it must give.
fn tokenizers() -> Vec<(String, &'static str, Tokenizer)> {
    let both = BYTE_LEVEL.iter().chain(&SENTENCEPIECE);
    let json = both.clone().chain(&JSON_ALONE);
    let json = json.map(|name| (name.to_string(), *name, from_directory(name)));
    json.chain(both.map(|name| (format!("{name}.gguf"), *name, from_gguf(name)))).collect()
}

#[test]
fn ids_and_text_are_those_of_the_library() {
    let Strings { strings } = read("strings");
    assert!(strings.len() >= 300);
    for (case, name, tokenizer) in tokenizers() {
        let expected: Expected = read(name);
        assert_eq!(expected.ids.len(), strings.len());
        for (index, (text, ids)) in strings.iter().zip(&expected.ids).enumerate() {
            let found = tokenizer.encode(text).expect("the text encodes");
            assert_eq!(&found, ids, "{case}: {text:?}");
            if name == NOT_SKIPPED {
                continue;
            }
            let mut decoder = tokenizer.decoder(true);
            let mut decoded = String::new();
            for id in ids {
                decoded += &decoder.push(*id).expect("a known id");
            }
            decoded += &decoder.finish();
            assert_eq!(&decoded, expected.decoded.get(&index).unwrap_or(text), "{case}: {text:?}");
        }
    }
}

#[test]
fn text_that_is_not_parsed_is_that_of_the_library_and_never_special() {
    let Strings { strings } = read("strings");
    let options = EncodeOptions { add_special_tokens: false, parse_special: false };
    for (case, name, tokenizer) in tokenizers() {
        let expected: Expected = read(name);
        // A unigram model of the library finds its special tokens in any text.
        assert!(expected.plain.len() >= 2 || name.starts_with("unigram"), "{case}");
        for (index, ids) in &expected.plain {
            let found = tokenizer.encode_with(&strings[*index], options).expect("it encodes");
            assert_eq!(&found, ids, "{case}: {:?}", strings[*index]);
        }
        for text in &strings {
            let segments = [Segment { text: text.as_str().into(), parse_special: false }];
            let segmented = tokenizer.encode_segments(&segments).expect("it encodes");
            let found = tokenizer.encode_with(text, options).expect("it encodes");
            // Without a token for what is unknown, its own is the one that text may become.
            let unknown = tokenizer.metadata().unknown.filter(|_| name == "unigram");
            for id in segmented.iter().chain(&found) {
                assert!(!tokenizer.is_special(*id) || Some(*id) == unknown, "{case}: {text:?}");
            }
            assert_eq!(segmented, found, "{case}: {text:?}");
        }
    }
}

#[test]
fn ids_that_no_text_gives_decode_as_in_the_library_whole_and_streamed() {
    for (case, name, tokenizer) in tokenizers() {
        let expected: Expected = read(name);
        assert!(expected.decode.len() >= 50);
        for Decoded { ids, text, text_without_special } in &expected.decode {
            assert_eq!(&tokenizer.decode(ids).expect("known ids"), text, "{case}: {ids:?}");
            if name == NOT_SKIPPED {
                continue;
            }
            let mut decoder = tokenizer.decoder(true);
            let mut streamed = String::new();
            for id in ids {
                streamed += &decoder.push(*id).expect("a known id");
            }
            streamed += &decoder.finish();
            assert_eq!(&streamed, text_without_special, "{case}: {ids:?}");
        }
    }
}

#[test]
fn roles_and_kinds() {
    for name in BYTE_LEVEL {
        assert_eq!(from_gguf(name).metadata().kind, TokenizerKind::ByteLevelBpe);
    }
    for name in SENTENCEPIECE {
        let (json, gguf) = (from_directory(name), from_gguf(name));
        assert_eq!(json.metadata().kind, TokenizerKind::SentencePieceBpe);
        assert_eq!(gguf.metadata().kind, TokenizerKind::SentencePieceBpe);
        assert_eq!(json.metadata().bos, gguf.metadata().bos);
        assert!(gguf.metadata().adds_bos && !gguf.metadata().adds_eos);
    }
    assert_eq!(from_directory("unigram").metadata().kind, TokenizerKind::Unigram);
    // Harmony's `<|end|>` ends a message, not the answer.
    let harmony = from_gguf("o200k");
    let id = |text: &str| harmony.token_id(text).expect("a token");
    let ends = &harmony.metadata().end_tokens;
    for text in ["<|return|>", "<|call|>", "<|endoftext|>"] {
        assert!(ends.contains(&id(text)) && harmony.is_special(id(text)), "{text}");
    }
    assert!(!ends.contains(&id("<|end|>")) && harmony.is_special(id("<|channel|>")));
    let phi3 = from_gguf("phi3");
    assert!(phi3.metadata().end_tokens.contains(&phi3.token_id("<|end|>").expect("a token")));
}

#[test]
fn long_texts_without_a_place_to_cut() {
    let (size, part) = (1 << 20, 1 << 17);
    let texts = [
        "a".repeat(size),
        " ".repeat(size),
        "\n".repeat(part),
        "\u{4eba}\u{81ea}".repeat(part / 6),
        "\u{1f600}".repeat(part / 4),
        "abcdefghij".repeat(part / 10),
        "A".repeat(part),
        "1".repeat(part),
    ];
    for (case, name, tokenizer) in tokenizers() {
        // One of each kind: the others share its code.
        let kinds = ["llama3", "o200k", "deepseek-llm", "llama2", "gemma", "unigram-bytes"];
        if !kinds.contains(&name) {
            continue;
        }
        for text in &texts {
            let ids = tokenizer.encode(text).expect("it encodes");
            let mut decoder = tokenizer.decoder(true);
            let mut decoded = String::new();
            for id in &ids {
                decoded += &decoder.push(*id).expect("a known id");
            }
            decoded += &decoder.finish();
            // Where a space goes before the text unless it has one, decoding takes the text's own.
            let shown = if name == "unigram-bytes" { text.strip_prefix(' ') } else { None };
            assert!(decoded == shown.unwrap_or(text), "{case}: {:?}", text.get(..12));
        }
    }
}

#[test]
fn refusals_of_sentencepiece_metadata_name_the_thing() {
    let tokens: Vec<String> =
        ["<unk>", "<s>", "</s>", "<0x0A>", "\u{2581}", "a"].map(str::to_owned).to_vec();
    let types = [2, 3, 3, 6, 1, 1];
    let scores = [0.0, 0.0, 0.0, 0.0, -1.0, -2.0];
    let good = GgufTokenizer {
        model: "llama",
        tokens: &tokens,
        token_types: Some(&types),
        scores: Some(&scores),
        ..GgufTokenizer::default()
    };
    let tokenizer = Tokenizer::from_gguf(good).expect("a tokenizer");
    // Roles and bos where the file does not say: Llama's.
    assert_eq!(tokenizer.encode("a\nb").expect("it encodes"), [1, 4, 5, 3, 0]);
    assert_eq!(tokenizer.metadata().eos, Some(2));
    let refusal = |change: &dyn Fn(&mut GgufTokenizer<'_>)| {
        let mut fields = good;
        change(&mut fields);
        Tokenizer::from_gguf(fields).expect_err("a refusal").to_string()
    };
    assert_eq!(
        refusal(&|fields| fields.scores = None),
        "GGUF metadata has no tokenizer.ggml.scores"
    );
    assert!(refusal(&|fields| fields.scores = Some(&[0.0])).contains("1 entries for 6 tokens"));
    let error = refusal(&|fields| fields.scores = Some(&[0.0, 0.0, 0.0, 0.0, f32::NAN, 0.0]));
    assert!(error.contains("the score of token \"\u{2581}\"") && error.contains("NaN"), "{error}");
    assert!(refusal(&|fields| fields.pre = Some("qwen2")).contains("pre-tokenizer \"qwen2\""));
    let error = refusal(&|fields| fields.token_types = Some(&[2, 3, 3, 6, 1, 6]));
    assert!(error.contains("the type of token 5") && error.contains("called \"a\""), "{error}");
    assert!(refusal(&|fields| fields.bos = Some(6)).contains("bos id 6"));
    // A character that is nothing is an error only without an unknown token.
    let mut fields = good;
    let normal = [1, 3, 3, 6, 1, 1];
    let renamed: Vec<String> =
        ["b", "<s>", "</s>", "<0x0A>", "\u{2581}", "a"].map(str::to_owned).to_vec();
    (fields.tokens, fields.token_types) = (&renamed, Some(&normal[..]));
    let tokenizer = Tokenizer::from_gguf(fields).expect("a tokenizer");
    let error = tokenizer.encode("ac").expect_err("nothing for c").to_string();
    assert!(error.contains("\"c\" is no token"), "{error}");
}
