//! A tokenizer from a `tokenizer.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{AddedToken, NormalizerWrapper};

use super::build::{Parts, Wrap};
use super::directory::{self, Settings};
use super::vocabulary::{Added, Merge, TokenMap, Vocabulary, split_merge};
use super::{TokenizerError, post_processor, pre_tokenizer};

const FILE: &str = "tokenizer.json";

/// The parts that are read. Truncation and padding are left out on purpose.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Listed>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Listed {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

#[derive(Deserialize)]
struct Model {
    /// Files from before the field are told by their merges.
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    vocab: TokenMap,
    merges: Option<Vec<Merge>>,
    dropout: Option<f64>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

pub(super) fn read(path: &Path, settings: Settings) -> Result<Parts, TokenizerError> {
    let File { added_tokens, normalizer, pre_tokenizer, post_processor, decoder, model } =
        directory::read_json(path)?;
    let is_gpt2 = settings.class() == Some("GPT2Tokenizer");

    let kind = model.kind.as_deref().unwrap_or(if model.merges.is_some() { "BPE" } else { "none" });
    let (Some(tokens), Some(merges), "BPE") = (model.vocab.0, model.merges, kind) else {
        return Err(unsupported("model", kind, "BPE with a vocabulary and merges"));
    };
    if model.dropout.is_some_and(|dropout| dropout != 0.0) {
        return Err(unsupported("model option", "dropout", "none, as it makes ids random"));
    }
    for (name, value) in [
        ("continuing_subword_prefix", &model.continuing_subword_prefix),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if value.as_ref().is_some_and(|value| !value.is_empty()) {
            return Err(unsupported("model option", name, "byte-level tokens without it"));
        }
    }
    match decoder.get("type").and_then(Value::as_str) {
        Some("ByteLevel") => {}
        found => return Err(unsupported("decoder", found.unwrap_or("none"), "ByteLevel")),
    }

    let mut pairs = Vec::with_capacity(merges.len());
    for (index, merge) in merges.into_iter().enumerate() {
        pairs.push(match merge {
            Merge(left, Some(right)) => (left, right),
            Merge(text, None) => split_merge(FILE, index, &text)?,
        });
    }

    let mut added: Vec<Added> = added_tokens
        .into_iter()
        .map(|listed| Added { token: listed.token, id: Some(listed.id), file: FILE.to_owned() })
        .collect();
    added.sort_by_key(|added| added.id);
    let default = is_gpt2.then_some("<|endoftext|>");
    let more = settings.added(&added, default)?;
    added.extend(more);

    // The class sets this option from its own configuration, whatever the file says.
    let add_prefix_space =
        if is_gpt2 { Some(settings.switch("add_prefix_space")?.unwrap_or(false)) } else { None };
    let around = post_processor::read(FILE, &post_processor)?;
    Ok(Parts {
        vocabulary: Vocabulary::new(FILE, tokens)?,
        merges: pairs,
        merges_file: FILE.to_owned(),
        unknown_token: model.unk_token,
        fuse_unknown: model.fuse_unk,
        byte_fallback: model.byte_fallback,
        ignore_merges: model.ignore_merges,
        added,
        normalizer: read_normalizer(normalizer)?,
        pre_tokenizer: pre_tokenizer::from_json(FILE, &pre_tokenizer, add_prefix_space)?,
        wrap: Wrap::Ids { prefix: around.prefix, suffix: around.suffix },
        named: settings.named(default)?,
        end_tokens: settings.end_tokens()?,
        context_length: settings.context_length(),
        chat_template: settings.chat_template()?,
    })
}

fn unsupported(part: &'static str, found: &str, supported: &str) -> TokenizerError {
    TokenizerError::Unsupported {
        file: FILE.to_owned(),
        part,
        found: found.to_owned(),
        supported: supported.to_owned(),
    }
}

/// Those of the crate's normalizers that byte-level tokenizers use.
const NORMALIZERS: &[&str] = &["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Sequence"];

fn read_normalizer(value: Value) -> Result<Option<NormalizerWrapper>, TokenizerError> {
    fn check(value: &Value) -> Result<(), TokenizerError> {
        let found = value.get("type").and_then(Value::as_str).unwrap_or("without a type");
        if !NORMALIZERS.contains(&found) {
            return Err(unsupported("normalizer", found, &NORMALIZERS.join(", ")));
        }
        value.get("normalizers").and_then(Value::as_array).into_iter().flatten().try_for_each(check)
    }
    if value.is_null() {
        return Ok(None);
    }
    check(&value)?;
    serde_json::from_value(value).map(Some).map_err(|error| TokenizerError::Field {
        file: FILE.to_owned(),
        field: "normalizer".to_owned(),
        problem: format!("is not valid: {error}"),
    })
}
