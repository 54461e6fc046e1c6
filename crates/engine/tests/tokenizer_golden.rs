//! Ids and text equal to those of `transformers`, for every tokenizer in `testdata/tokenizer`.
//!
//! The expected values were made with `transformers`; `testdata/tokenizer/README.md` says how.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oxgpt_engine::model::Model;
use oxgpt_engine::tokenizer::{EncodeOptions, Segment, Tokenizer};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A tokenizer and the name under which its ids are stored.
#[derive(Deserialize)]
struct Case {
    name: String,
    path: String,
    ids: String,
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    ids: BTreeMap<String, Vec<u32>>,
    decoded: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Decoded {
    tokenizer: String,
    ids: Vec<u32>,
    text: String,
    text_without_special: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tokenizer")
}

fn read<T: DeserializeOwned>(name: &str) -> T {
    let path = folder().join(name);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All tokenizers: directories by themselves, GGUF files as part of their model.
fn tokenizers() -> Vec<(Case, Tokenizer)> {
    let open = |path: &Path| match path.is_dir() {
        true => Tokenizer::from_directory(path).map_err(|error| error.to_string()),
        false => Model::open(path).map(|model| model.tokenizer).map_err(|error| error.to_string()),
    };
    let cases: Vec<Case> = read("tokenizers.json");
    assert!(cases.len() >= 10, "only {} tokenizers", cases.len());
    cases
        .into_iter()
        .map(|case| {
            let tokenizer = open(&folder().join(&case.path))
                .unwrap_or_else(|error| panic!("{}: {error}", case.name))
                .unwrap_or_else(|| panic!("{}: no tokenizer", case.name));
            (case, tokenizer)
        })
        .collect()
}

#[test]
fn ids_and_text_are_those_of_transformers() {
    let strings: Vec<Encoded> = read("hard-strings.json");
    assert!(strings.len() >= 200);
    for (case, tokenizer) in tokenizers() {
        for string in &strings {
            let expected = &string.ids[&case.ids];
            let ids = tokenizer.encode(&string.text).expect("the text encodes");
            assert_eq!(&ids, expected, "{}: {:?}", case.name, string.text);
            let decoded = tokenizer.decode(&ids).expect("its own ids decode");
            assert_eq!(decoded, string.decoded[&case.ids], "{}: {:?}", case.name, string.text);
            assert!(ids.iter().all(|id| *id <= tokenizer.max_id()));
        }
    }
}

#[test]
fn random_ids_decode_as_in_transformers_whole_and_streamed() {
    let cases: Vec<Decoded> = read("decode.json");
    let tokenizers = tokenizers();
    for decoded in &cases {
        let (_, tokenizer) = tokenizers
            .iter()
            .find(|(case, _)| case.name == decoded.tokenizer)
            .expect("a known tokenizer");
        assert_eq!(tokenizer.decode(&decoded.ids).expect("known ids"), decoded.text);
        for (skip_special, expected) in
            [(false, &decoded.text), (true, &decoded.text_without_special)]
        {
            let mut decoder = tokenizer.decoder(skip_special);
            let mut text = String::new();
            for id in &decoded.ids {
                text += &decoder.push(*id).expect("a known id");
            }
            text += &decoder.finish();
            assert_eq!(&text, expected, "{:?}", decoded.ids);
        }
    }
}

#[test]
fn segments_without_special_strings_are_one_text() {
    let plain = EncodeOptions { add_special_tokens: false, ..EncodeOptions::default() };
    for (case, tokenizer) in tokenizers() {
        for string in &read::<Vec<Encoded>>("hard-strings.json") {
            let text = string.text.as_str();
            let expected = tokenizer.encode_with(text, plain).expect("the text encodes");
            let half =
                (0..=text.len() / 2).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            let (left, right) = text.split_at(half);
            let segments =
                [left, right].map(|text| Segment { text: text.into(), parse_special: true });
            let ids = tokenizer.encode_segments(&segments).expect("the segments encode");
            assert_eq!(ids, expected, "{}: {text:?}", case.name);
        }
    }
}

#[test]
fn text_that_is_not_parsed_has_no_special_token_and_loses_nothing() {
    for (case, tokenizer) in tokenizers() {
        // Composition and added tokens that strip whitespace change the text itself.
        if matches!(case.ids.as_str(), "bpe-nfc" | "bpe-added" | "bpe-prefix-space") {
            continue;
        }
        for string in &read::<Vec<Encoded>>("hard-strings.json") {
            let segments = [Segment { text: string.text.as_str().into(), parse_special: false }];
            let ids = tokenizer.encode_segments(&segments).expect("the segment encodes");
            assert!(!ids.iter().any(|id| tokenizer.is_special(*id)), "{:?}", string.text);
            assert_eq!(tokenizer.decode(&ids).expect("known ids"), string.text);
            let options = EncodeOptions { add_special_tokens: false, parse_special: false };
            assert_eq!(tokenizer.encode_with(&string.text, options).expect("it encodes"), ids);
        }
    }
}
