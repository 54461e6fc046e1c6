//! A tokenizer from a `tokenizer.json`.

use std::borrow::Cow;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::AddedToken;

use super::bpe::ByteTokens;
use super::build::{Parts, Wrap};
use super::decoder::Decoder;
use super::directory::{self, Settings};
use super::json::{MergeText, Tokens};
use super::model::ModelParts;
use super::vocabulary::{Added, Vocabulary, split_merge};
use super::{TokenizerError, normalizer, post_processor, pre_tokenizer};

pub(super) const FILE: &str = "tokenizer.json";

/// The largest unigram vocabularies have a tenth of this; each byte can be a node of a tree.
const MAX_UNIGRAM_BYTES: usize = 1 << 24;

/// The parts that are read. Truncation and padding are left out on purpose.
#[derive(Deserialize)]
struct File<'a> {
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
    #[serde(borrow)]
    model: Model<'a>,
}

#[derive(Deserialize)]
struct Listed {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

#[derive(Deserialize)]
struct Model<'a> {
    /// Files from before the field are told by their merges.
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(borrow, default)]
    vocab: Tokens<'a>,
    #[serde(borrow)]
    merges: Option<Vec<MergeText<'a>>>,
    dropout: Option<f64>,
    unk_token: Option<String>,
    /// The place of the unknown token among a unigram model's.
    unk_id: Option<u32>,
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
    let text = directory::read_text(path)?;
    let File { added_tokens, normalizer, pre_tokenizer, post_processor, decoder, model } =
        directory::parse_json(path, &text)?;
    let is_gpt2 = settings.class() == Some("GPT2Tokenizer");
    let (vocabulary, model) = read_model(model)?;
    let decoder = Decoder::from_json(FILE, &decoder)?;

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
        vocabulary,
        model,
        added,
        normalizer: normalizer::from_json(FILE, normalizer)?,
        pre_tokenizer: pre_tokenizer::from_json(FILE, &pre_tokenizer, add_prefix_space, decoder)?,
        decoder,
        wrap: Wrap::Ids { prefix: around.prefix, suffix: around.suffix },
        named: settings.named(default)?,
        end_tokens: settings.end_tokens()?,
        context_length: settings.context_length(),
        chat_template: settings.chat_template()?,
    })
}

/// The vocabulary and the model.
fn read_model(model: Model<'_>) -> Result<(Vocabulary, ModelParts), TokenizerError> {
    let kind = model.kind.as_deref().unwrap_or(if model.merges.is_some() { "BPE" } else { "none" });
    match (kind, model.vocab, model.merges) {
        ("BPE", Tokens::Ids(tokens), Some(merges)) => {
            if model.dropout.is_some_and(|dropout| dropout != 0.0) {
                return Err(unsupported("model option", "dropout", "none, as it makes ids random"));
            }
            for (name, value) in [
                ("continuing_subword_prefix", &model.continuing_subword_prefix),
                ("end_of_word_suffix", &model.end_of_word_suffix),
            ] {
                if value.as_ref().is_some_and(|value| !value.is_empty()) {
                    return Err(unsupported("model option", name, "tokens without it"));
                }
            }
            let tokens = tokens.iter().map(|(token, id)| (&token.0, *id));
            let vocabulary = Vocabulary::new(FILE, tokens)?;
            let merges = merges.iter().enumerate().map(|(index, merge)| match merge {
                MergeText(left, Some(right)) => Ok((Cow::from(&**left), Cow::from(&**right))),
                MergeText(text, None) => split_merge(FILE, index, text),
            });
            let merges = vocabulary.merges(FILE, merges)?;
            let model = ModelParts::Merges {
                merges,
                unknown_token: model.unk_token,
                fuse_unknown: model.fuse_unk,
                byte_fallback: model.byte_fallback,
                whole_words: model.ignore_merges,
            };
            Ok((vocabulary, model))
        }
        ("Unigram", Tokens::Scores(tokens), _) => {
            let ids = tokens.iter().zip(0..u32::MAX).map(|((token, _), id)| (&token.0, id));
            let vocabulary = Vocabulary::new(FILE, ids)?;
            if let Some(id) = model.unk_id.filter(|id| *id as usize >= tokens.len()) {
                let (file, role) = (FILE.to_owned(), "unknown");
                return Err(TokenizerError::SpecialId { file, role, id, size: tokens.len() });
            }
            let bytes = tokens.iter().map(|(token, _)| token.0.len()).sum();
            if bytes > MAX_UNIGRAM_BYTES {
                return Err(TokenizerError::TooMany {
                    file: FILE.to_owned(),
                    what: "bytes of unigram tokens",
                    count: bytes,
                    limit: MAX_UNIGRAM_BYTES,
                });
            }
            let mut lowest = f64::INFINITY;
            for (token, score) in &tokens {
                super::check_score(FILE, &token.0, *score)?;
                lowest = lowest.min(*score);
            }
            let bytes = match model.byte_fallback {
                true => ByteTokens::of(&vocabulary),
                false => ByteTokens::default(),
            };
            let mut scores: Vec<_> = tokens.iter().map(|(_, score)| Some(*score)).collect();
            if let Some(unknown) = model.unk_id {
                scores[unknown as usize] = None;
            }
            Ok((vocabulary, ModelParts::Unigram { scores, lowest, bytes, unknown: model.unk_id }))
        }
        (kind, _, _) => Err(unsupported(
            "model",
            kind,
            "BPE with a vocabulary and merges, Unigram with a list of scores",
        )),
    }
}

fn unsupported(part: &'static str, found: &str, supported: &str) -> TokenizerError {
    TokenizerError::Unsupported {
        file: FILE.to_owned(),
        part,
        found: found.to_owned(),
        supported: supported.to_owned(),
    }
}
