//! What the files in `testdata` do not show: refusals, GGUF metadata, streaming, start-up.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// The byte-level alphabet in byte order.
fn alphabet() -> Vec<String> {
    let mut characters: Vec<char> =
        tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    characters.sort_by_key(|character| byte_level::byte_of(*character));
    characters.into_iter().map(String::from).collect()
}

/// Bytes 0 to 255, then these merges' results, then `<s>` `</s>` `<|u|>` (user-defined).
fn small() -> (Vec<String>, Vec<String>, Vec<i32>) {
    let merges = ["l l", "h e", "he ll", "hell o", "Ġ w", "Ã ©", "< s"].map(str::to_owned).to_vec();
    let mut tokens = alphabet();
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let mut types = vec![1; tokens.len()];
    tokens.extend(["<s>", "</s>", "<|u|>"].map(str::to_owned));
    types.extend([3, 3, 4]);
    (tokens, merges, types)
}

fn with_gguf<T>(
    change: impl FnOnce(&mut GgufTokenizer<'_>),
    check: impl FnOnce(Result<Tokenizer, TokenizerError>) -> T,
) -> T {
    let (tokens, merges, types) = small();
    let mut fields = GgufTokenizer {
        model: "gpt2",
        pre: Some("gpt-2"),
        tokens: &tokens,
        token_types: Some(&types),
        merges: Some(&merges),
        bos: Some(263),
        eos: Some(264),
        ..GgufTokenizer::default()
    };
    change(&mut fields);
    check(Tokenizer::from_gguf(fields))
}

fn tokenizer() -> Tokenizer {
    with_gguf(|_| (), |result| result.expect("a tokenizer"))
}

fn refusal(change: impl FnOnce(&mut GgufTokenizer<'_>)) -> String {
    with_gguf(change, |result| result.expect_err("a refusal").to_string())
}

#[test]
fn gguf_text_and_special_tokens() {
    let tokenizer = tokenizer();
    // `hello` by merges, ` w` by a merge, then letters; é is two bytes that merge.
    assert_eq!(tokenizer.encode("hello wé").expect("it encodes"), [259, 260, 261]);
    assert_eq!(tokenizer.encode("<s>l<|u|>").expect("it encodes"), [263, 108, 265]);
    let unparsed = EncodeOptions { parse_special: false, ..EncodeOptions::default() };
    assert_eq!(
        tokenizer.encode_with("<s>l<|u|>", unparsed).expect("it encodes"),
        [60, 115, 62, 108, 265]
    );
    assert_eq!(tokenizer.decode(&[263, 259, 264]).expect("known ids"), "<s>hello</s>");
    assert_eq!(
        tokenizer.metadata().special_tokens,
        [(263, "<s>".to_owned()), (264, "</s>".to_owned())]
    );
    assert_eq!(tokenizer.metadata().end_tokens, [264]);
    assert_eq!((tokenizer.max_id(), tokenizer.metadata().vocabulary_size), (265, 266));
    assert_eq!(tokenizer.token_bytes(260), Some(&b" w"[..]));
    assert_eq!(tokenizer.token_id("Ġw"), Some(260));
}

#[test]
fn gguf_adds_bos_and_eos_when_told_to() {
    let both = with_gguf(
        |fields| (fields.add_bos, fields.add_eos) = (Some(true), Some(true)),
        |result| result.expect("a tokenizer"),
    );
    assert_eq!(both.encode("l").expect("it encodes"), [263, 108, 264]);
    assert!(both.metadata().adds_bos && both.metadata().adds_eos);
    let plain = EncodeOptions { add_special_tokens: false, ..EncodeOptions::default() };
    assert_eq!(both.encode_with("l", plain).expect("it encodes"), [108]);
    let segments = [Segment { text: "l".into(), parse_special: true }];
    assert_eq!(both.encode_segments(&segments).expect("it encodes"), [108]);
}

#[test]
fn gguf_tokens_with_a_role_are_special_whatever_their_type() {
    with_gguf(
        |fields| (fields.token_types, fields.eot) = (None, Some(265)),
        |result| {
            let tokenizer = result.expect("a tokenizer");
            assert_eq!(tokenizer.encode("<s></s><|u|>").expect("it encodes"), [263, 264, 265]);
            assert_eq!(tokenizer.metadata().end_tokens, [264, 265]);
        },
    );
}

#[test]
fn gguf_default_cuts_at_punctuation_and_three_digits() {
    // By hand from llama.cpp's four expressions: `$` and `,` alone, digits apart from their space and in threes.
    let words = |pre: Option<&str>, text: &str| {
        let rule = rules::by_name(pre).expect("a known name");
        let cutter = PreTokenizer::from_rule("f", rule, false).expect("a rule");
        let mut pieces = tokenizers::PreTokenizedString::from(text);
        cutter.cut(&mut pieces).expect("it cuts");
        let referential = tokenizers::OffsetReferential::Normalized;
        let splits = pieces.get_splits(referential, tokenizers::OffsetType::None);
        splits.into_iter().map(|(word, _, _)| word.to_owned()).collect::<Vec<_>>().join("|")
    };
    let text = "it's $12345, a  b";
    assert_eq!(words(Some("default"), text), "it|'|s|Ġ|$|123|45|,|Ġa|Ġ|Ġb");
    assert_eq!(words(Some("gpt-2"), text), "it|'s|Ġ$|12345|,|Ġa|Ġ|Ġb");
    assert_eq!(words(None, text), words(Some("phi-2"), text));
}

#[test]
fn gguf_refusals_name_the_thing() {
    let (tokens, merges, types) = small();
    assert_eq!(
        refusal(|fields| fields.model = "t5"),
        "GGUF metadata asks for tokenizer model \"t5\", which is not supported (supported: gpt2, llama, gemma4)"
    );
    assert!(refusal(|fields| fields.pre = Some("qwen9")).contains("pre-tokenizer \"qwen9\""));
    assert_eq!(
        refusal(|fields| fields.merges = None),
        "GGUF metadata has no tokenizer.ggml.merges"
    );
    assert!(refusal(|fields| fields.eos = Some(266)).contains("eos id 266"));
    assert!(
        refusal(|fields| fields.token_types = Some(&[1, 3])).contains("2 entries for 266 tokens")
    );

    let check = |tokens: &[String], merges: &[String], types: &[i32]| {
        let fields = GgufTokenizer {
            model: "gpt2",
            tokens,
            token_types: Some(types),
            merges: Some(merges),
            ..GgufTokenizer::default()
        };
        Tokenizer::from_gguf(fields).expect_err("a refusal").to_string()
    };
    let mut changed = tokens.clone();
    changed[7] = "l".to_owned();
    assert_eq!(
        check(&changed, &merges, &types),
        "token \"l\" in GGUF metadata has two ids, 7 and 108"
    );
    for (merge, expected) in [
        ("l", "merge 1 in GGUF metadata is not two tokens and a space: \"l\""),
        ("a b c", "merge 1 in GGUF metadata is not two tokens and a space: \"a b c\""),
        ("l w", "merge 1 in GGUF metadata needs the token \"lw\", which is not in the vocabulary"),
        ("zz l", "merge 1 in GGUF metadata needs the token \"zz\", which is not in the vocabulary"),
    ] {
        let mut changed = merges.clone();
        changed[1] = merge.to_owned();
        assert_eq!(check(&tokens, &changed, &types), expected);
    }
    let mut changed = types.clone();
    changed[3] = 6;
    assert!(
        check(&tokens, &merges, &changed).contains("the type of token 3 in GGUF metadata is 6")
    );
    assert!(check(&[], &[], &[]).contains("has no tokens"));
}

/// A `tokenizer.json` with the small vocabulary.
fn small_json() -> Value {
    let (tokens, merges, _) = small();
    let vocabulary: serde_json::Map<String, Value> =
        tokens[..263].iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let added = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false})
    };
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "<s>"},
        "added_tokens": [added(263, "<s>", true), added(264, "</s>", true), added(265, "<|u|>", false)],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    })
}

fn open(files: &[(&str, &Value)]) -> Result<Tokenizer, TokenizerError> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, value) in files {
        std::fs::write(directory.path().join(name), value.to_string()).expect("a file to write");
    }
    Tokenizer::from_directory(directory.path()).map(|tokenizer| tokenizer.expect("a tokenizer"))
}

fn open_json(change: impl FnOnce(&mut Value)) -> Result<Tokenizer, TokenizerError> {
    let mut value = small_json();
    change(&mut value);
    open(&[("tokenizer.json", &value)])
}

#[test]
fn truncation_and_padding_of_the_file_are_not_followed() {
    let tokenizer = open_json(|_| ()).expect("a tokenizer");
    assert_eq!(tokenizer.encode("l").expect("it encodes"), [108]);
    assert_eq!(tokenizer.encode("lhlhlh").expect("it encodes").len(), 6);
}

#[test]
fn json_refusals_name_the_thing() {
    type Change = fn(&mut Value);
    let refused: [(Change, &str); 16] = [
        (|v| v["model"]["type"] = json!("WordPiece"), "model \"WordPiece\""),
        (|v| v["model"]["vocab"] = json!([["a", 0.5]]), "model \"BPE\""),
        (|v| v["model"]["dropout"] = json!(0.1), "dropout"),
        (|v| v["model"]["continuing_subword_prefix"] = json!("##"), "continuing_subword_prefix"),
        (|v| v["model"]["vocab"]["x2"] = json!(3), "id 3 in tokenizer.json has two tokens"),
        (
            |v| v["model"]["vocab"]["x2"] = json!(u32::MAX),
            "has id 4294967295, above the limit of 4194303",
        ),
        (
            |v| v["model"]["merges"][0] = json!(["l", "w"]),
            "merge 0 in tokenizer.json needs the token \"lw\"",
        ),
        (|v| v["decoder"] = json!({"type": "WordPiece"}), "decoder \"WordPiece\""),
        (|v| v["normalizer"] = json!({"type": "Precompiled"}), "normalizer \"Precompiled\""),
        (|v| v["pre_tokenizer"] = json!(null), "pre-tokenizer \"none\""),
        (
            |v| v["pre_tokenizer"] = json!({"type": "Digits", "individual_digits": true}),
            "without ByteLevel",
        ),
        (
            |v| v["added_tokens"][2]["id"] = json!(300),
            "declared with id 300, but its place in the vocabulary is 265",
        ),
        (|v| v["added_tokens"][2]["content"] = json!(" "), "is whitespace that strips"),
        (
            |v| {
                v["post_processor"] =
                    json!({"type": "RobertaProcessing", "sep": ["x", 264], "cls": ["y", 999]})
            },
            "post-processor id 999",
        ),
        (
            |v| {
                v["post_processor"] = json!({"type": "TemplateProcessing", "pair": [], "special_tokens": {},
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}]})
            },
            "uses the special token \"<s>\", which it does not define",
        ),
        (
            |v| {
                v["post_processor"] = json!({"type": "TemplateProcessing", "pair": [], "special_tokens": {},
            "single": [{"Sequence": {"id": "B", "type_id": 0}}]})
            },
            "sequence \"B\"",
        ),
    ];
    for (change, expected) in refused {
        let error = open_json(|value| {
            change(value);
            value["added_tokens"][2]["lstrip"] = json!(true);
        });
        let error = error.expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_vocabulary_may_have_holes() {
    let tokenizer = open_json(|value| {
        value["model"]["vocab"]["hole"] = json!(1000);
        value["added_tokens"] = json!([]);
    })
    .expect("a tokenizer");
    assert_eq!(tokenizer.metadata().vocabulary_size, 1001);
    assert_eq!(tokenizer.token_bytes(999), None);
    assert_eq!(
        tokenizer.decode(&[999]).expect_err("a hole").to_string(),
        "token id 999 is not in the vocabulary of 1001 tokens"
    );
}

#[test]
fn repeated_keys_of_a_vocabulary_are_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(directory.path().join("vocab.json"), r#"{"a": 0, "b": 1, "a": 2}"#)
        .expect("a file");
    let error = Tokenizer::from_directory(directory.path()).expect_err("no merges");
    assert!(error.to_string().ends_with("has no merges.txt beside its vocab.json"), "{error}");
    std::fs::write(directory.path().join("merges.txt"), "").expect("a file");
    let error = Tokenizer::from_directory(directory.path()).expect_err("a duplicate");
    assert_eq!(error.to_string(), "token \"a\" in vocab.json has two ids, 0 and 2");
}

#[test]
fn a_directory_without_a_tokenizer_has_none() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    assert!(matches!(Tokenizer::from_directory(directory.path()), Ok(None)));
    assert!(matches!(Tokenizer::from_directory(Path::new("/no/such")), Ok(None)));
}

#[test]
fn settings_beside_the_vocabulary() {
    let tokenizer = open(&[
        ("tokenizer.json", &small_json()),
        (
            "tokenizer_config.json",
            &json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "model_max_length": 1e30,
                "additional_special_tokens": ["<|new|>"], "chat_template": [
                    {"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}),
        ),
        ("config.json", &json!({"eos_token_id": 7})),
        ("generation_config.json", &json!({"eos_token_id": [265, 264, 50256]})),
    ])
    .expect("a tokenizer");
    let metadata = tokenizer.metadata();
    assert_eq!((metadata.bos, metadata.eos, metadata.pad), (Some(263), Some(264), None));
    assert_eq!(metadata.end_tokens, [264, 265]);
    assert_eq!(metadata.context_length, None);
    assert_eq!(metadata.chat_template.as_deref(), Some("d"));
    assert_eq!(metadata.special_tokens.last(), Some(&(266, "<|new|>".to_owned())));
    assert_eq!(tokenizer.encode("<|new|>").expect("it encodes"), [266]);
}

#[test]
fn unparsed_segments_keep_their_place_in_words() {
    let tokenizer = tokenizer();
    let segment = |text: &'static str, parse_special| Segment { text: text.into(), parse_special };
    // `<s>` as text is three words, which no merge crosses; `hello` is one, across the border.
    let ids = tokenizer.encode_segments(&[
        segment("<s>he", true),
        segment("llo", false),
        segment("<s>", false),
        segment("</s>", true),
    ]);
    assert_eq!(ids.expect("it encodes"), [263, 259, 60, 115, 62, 264]);
    // Neither a special nor another added token is made of two sides of a border.
    let ids = tokenizer.encode_segments(&[segment("<|", true), segment("u|>", false)]);
    assert_eq!(ids.expect("it encodes"), [60, 124, 117, 124, 62]);
    let ids = tokenizer.encode_segments(&[segment("</", false), segment("s>", true)]);
    assert_eq!(ids.expect("it encodes"), [60, 47, 115, 62]);
    // A user-defined token inside is found.
    let ids = tokenizer.encode_segments(&[segment("l<|u|>\u{F0000}", false)]);
    assert_eq!(ids.expect("it encodes"), [108, 265, 0xF3, 0xB0, 0x80, 0x80]);
}

#[test]
fn long_runs_are_cut_like_short_ones() {
    let tokenizer = tokenizer();
    for count in [1_000, 3_000_000] {
        for unit in ["l", "\u{3000}", " ", "!", "1"] {
            let text = format!("{}w", unit.repeat(count));
            let ids = tokenizer.encode(&text).expect("it encodes");
            assert_eq!(tokenizer.decode(&ids).expect("known ids"), text);
            let last = if unit == " " { 260 } else { u32::from(b'w') };
            assert_eq!(ids.last(), Some(&last), "{unit:?} {count}");
        }
    }
}

proptest! {
    #[test]
    fn streams_are_the_lossy_text_of_all_bytes(ids in proptest::collection::vec(0u32..266, 0..60)) {
        let tokenizer = tokenizer();
        let mut bytes = Vec::new();
        let mut decoder = tokenizer.decoder(false);
        let mut text = String::new();
        for id in &ids {
            bytes.extend_from_slice(decoder.bytes(*id).expect("a known id"));
            text += &decoder.push(*id).expect("a known id");
        }
        text += &decoder.finish();
        prop_assert_eq!(&text, &String::from_utf8_lossy(&bytes));
        prop_assert_eq!(text, tokenizer.decode(&ids).expect("known ids"));
    }

    #[test]
    fn text_comes_back(text in "\\PC{0,40}") {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode(&text).expect("it encodes");
        prop_assert_eq!(tokenizer.decode(&ids).expect("known ids"), text);
    }
}

#[test]
fn streams_emit_as_soon_as_they_can() {
    let tokenizer = tokenizer();
    let mut decoder = tokenizer.decoder(true);
    let mut push = |id: u32| decoder.push(id).expect("a known id");
    assert_eq!(push(0xF0), "");
    assert_eq!(push(0x9F), "");
    assert_eq!(push(264), "", "a skipped token is no byte");
    assert_eq!(push(0x98), "");
    assert_eq!(push(0x80), "😀");
    assert_eq!(push(0xE2), "");
    assert_eq!(push(0x82), "");
    assert_eq!(push(u32::from(b'a')), "\u{FFFD}a");
    assert_eq!(push(0xFF), "\u{FFFD}");
    assert_eq!(push(0xC3), "");
    assert!(decoder.push(266).is_err());
    assert_eq!(decoder.finish(), "\u{FFFD}");
}
