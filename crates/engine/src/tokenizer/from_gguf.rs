//! A tokenizer from the metadata of a GGUF file.

use std::collections::{BTreeMap, BTreeSet};

use tokenizers::{AddedToken, NormalizerWrapper};

use super::bpe::ByteTokens;
use super::build::{Named, Parts, TokenRef, Wrap};
use super::decoder::{self, Decoder, Start};
use super::model::ModelParts;
use super::pre_tokenizer::PreTokenizer;
use super::vocabulary::{Added, Vocabulary, split_merge};
use super::{Tokenizer, TokenizerError, check_score, normalizer, rules};

/// What errors call the source.
pub(super) const FILE: &str = "GGUF metadata";

/// The tokenizer models that can be read.
const MODELS: &str = "gpt2, llama, gemma4";

/// The types of a token in `tokenizer.ggml.token_type`.
pub(super) mod token_type {
    pub const UNDEFINED: i32 = 0;
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

/// Tokens that end an answer wherever they are control tokens: GGUF files have keys for three, and llama.cpp, for
/// which they were made, goes by these strings too.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
];
/// With both of these, `<|end|>` ends a message within an answer.
const HARMONY: [&str; 2] = ["<|return|>", "<|call|>"];

/// The control tokens of Phi-3 that do not take the whitespace after them along, as all others and `</s>` do.
const PHI3_PLAIN: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

/// `tokenizer.ggml.*` and `tokenizer.chat_template`, as plain data.
#[derive(Clone, Copy, Debug, Default)]
pub struct GgufTokenizer<'a> {
    /// `tokenizer.ggml.model`
    pub model: &'a str,
    /// `general.architecture`: the tokens of `phi3` take the whitespace after them along, for which there is no key.
    pub architecture: Option<&'a str>,
    /// `tokenizer.ggml.pre`; a file without it gets the rule of `gpt-2`.
    pub pre: Option<&'a str>,
    /// `tokenizer.ggml.tokens`
    pub tokens: &'a [String],
    /// `tokenizer.ggml.token_type`
    pub token_types: Option<&'a [i32]>,
    /// `tokenizer.ggml.merges`
    pub merges: Option<&'a [String]>,
    /// `tokenizer.ggml.scores`; only the model `llama` has them.
    pub scores: Option<&'a [f32]>,
    /// `tokenizer.ggml.bos_token_id`
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`: the end of a turn
    pub eot: Option<u32>,
    /// `tokenizer.ggml.eom_token_id`: the end of a message
    pub eom: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`
    pub pad: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`
    pub unknown: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`; where it is absent, on for `llama`, and for `gpt2` as the rule says.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`; off where it is absent.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`; where it is absent, on for `llama` and off for `gpt2`.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`
    pub chat_template: Option<&'a str>,
}

/// What depends on the tokenizer model.
struct Kind {
    model: ModelParts,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: PreTokenizer,
    decoder: Decoder,
    adds_bos: bool,
}

pub(super) fn read(fields: GgufTokenizer<'_>) -> Result<Tokenizer, TokenizerError> {
    if !matches!(fields.model, "gpt2" | "llama" | "gemma4") {
        return Err(TokenizerError::Unsupported {
            file: FILE.to_owned(),
            part: "tokenizer model",
            found: fields.model.to_owned(),
            supported: MODELS.to_owned(),
        });
    }
    let ids = (0..u32::MAX).take(fields.tokens.len());
    let mut vocabulary = Vocabulary::new(FILE, fields.tokens.iter().zip(ids))?;
    check_types(&fields)?;
    let renamed = spaces(&fields, &mut vocabulary);
    let fields = with_default_roles(fields, &vocabulary);
    let roles = [
        ("bos", fields.bos),
        ("eos", fields.eos),
        ("eot", fields.eot),
        ("eom", fields.eom),
        ("padding", fields.pad),
        ("unknown", fields.unknown),
    ];
    for (role, id) in roles {
        if let Some(id) = id.filter(|id| *id as usize >= fields.tokens.len()) {
            let size = fields.tokens.len();
            return Err(TokenizerError::SpecialId { file: FILE.to_owned(), role, id, size });
        }
    }
    let Kind { model, normalizer, pre_tokenizer, decoder, adds_bos } = match fields.model {
        "llama" => sentencepiece(&fields, &vocabulary)?,
        "gemma4" => gemma4(&fields, &vocabulary)?,
        _ => byte_level(&fields, &vocabulary)?,
    };
    let added = added_tokens(&fields, &roles, &renamed)?;
    let special = added.iter().filter(|added| added.token.special);
    let special = special.filter_map(|added| Some((added.id?, added.token.content.as_str())));
    let ends = end_tokens(&special.collect::<Vec<_>>());
    Parts {
        model,
        added,
        normalizer,
        pre_tokenizer,
        decoder,
        wrap: Wrap::Named {
            bos: fields.add_bos.unwrap_or(adds_bos),
            eos: fields.add_eos == Some(true),
        },
        named: Named {
            bos: fields.bos.map(TokenRef::Id),
            eos: fields.eos.map(TokenRef::Id),
            pad: fields.pad.map(TokenRef::Id),
            unknown: fields.unknown.map(TokenRef::Id),
        },
        end_tokens: fields.eot.into_iter().chain(fields.eom).chain(ends).collect(),
        context_length: None,
        chat_template: fields.chat_template.map(str::to_owned),
        vocabulary,
    }
    .build()
}

/// Files of the model `llama` from before the keys have the first three tokens of Llama.
fn with_default_roles<'a>(
    mut fields: GgufTokenizer<'a>,
    vocabulary: &Vocabulary,
) -> GgufTokenizer<'a> {
    if fields.model == "llama" {
        for (role, text, id) in [
            (&mut fields.unknown, "<unk>", 0),
            (&mut fields.bos, "<s>", 1),
            (&mut fields.eos, "</s>", 2),
        ] {
            *role = role.or_else(|| vocabulary.id(text).filter(|found| *found == id));
        }
    }
    fields
}

/// Files write the spaces in user-defined tokens as they are, where SentencePiece has `▁`. Gives such tokens their
/// string in SentencePiece, in which they are found after spaces have become `▁`; not where a text gets a space of
/// its own first, since that would be taken for a part of the token.
fn spaces(fields: &GgufTokenizer<'_>, vocabulary: &mut Vocabulary) -> BTreeMap<u32, String> {
    let mut renamed = BTreeMap::new();
    if fields.model == "gpt2" || fields.add_space_prefix.unwrap_or(fields.model == "llama") {
        return renamed;
    }
    for (id, token) in (0u32..).zip(fields.tokens) {
        if kind_of(fields, id as usize) == token_type::USER_DEFINED && token.contains(' ') {
            let text = token.replace(' ', &decoder::SPACE.to_string());
            if vocabulary.rename(id, &text) {
                renamed.insert(id, text);
            }
        }
    }
    renamed
}

fn field(field: &str, problem: String) -> TokenizerError {
    TokenizerError::Field { file: FILE.to_owned(), field: field.to_owned(), problem }
}

fn missing(field: &str) -> TokenizerError {
    TokenizerError::Missing { file: FILE.to_owned(), field: field.to_owned() }
}

fn wrong_pre(found: &str, supported: String) -> TokenizerError {
    TokenizerError::Unsupported {
        file: FILE.to_owned(),
        part: "pre-tokenizer",
        found: found.to_owned(),
        supported,
    }
}

/// Byte-pair encoding over GPT-2's alphabet.
fn byte_level(fields: &GgufTokenizer<'_>, vocabulary: &Vocabulary) -> Result<Kind, TokenizerError> {
    let rule = rules::by_name(fields.pre)
        .ok_or_else(|| wrong_pre(fields.pre.unwrap_or_default(), rules::all_names()))?;
    let prefix = fields.add_space_prefix.unwrap_or(false);
    let texts = fields.merges.ok_or_else(|| missing("tokenizer.ggml.merges"))?;
    let merges = texts.iter().enumerate().map(|(index, text)| split_merge(FILE, index, text));
    Ok(Kind {
        model: ModelParts::Merges {
            merges: vocabulary.merges(FILE, merges)?,
            unknown_token: None,
            fuse_unknown: false,
            byte_fallback: false,
            whole_words: rule.whole_words,
        },
        normalizer: if rule.nfc { Some(normalizer::nfc(FILE)?) } else { None },
        pre_tokenizer: PreTokenizer::from_rule(FILE, rule, prefix)?,
        decoder: Decoder::ByteLevel,
        adds_bos: rule.adds_bos,
    })
}

/// SentencePiece's byte-pair encoding by scores.
fn sentencepiece(
    fields: &GgufTokenizer<'_>,
    vocabulary: &Vocabulary,
) -> Result<Kind, TokenizerError> {
    // The model has no pre-tokenizer, and this is the name that says so.
    if let Some(pre) = fields.pre.filter(|pre| *pre != "default") {
        return Err(wrong_pre(pre, "default, for the tokenizer model llama".to_owned()));
    }
    let all = fields.scores.ok_or_else(|| missing("tokenizer.ggml.scores"))?;
    if all.len() != fields.tokens.len() {
        let problem = format!("has {} entries for {} tokens", all.len(), fields.tokens.len());
        return Err(field("tokenizer.ggml.scores", problem));
    }
    let mut scores = Vec::with_capacity(all.len());
    for (id, (token, score)) in fields.tokens.iter().zip(all).enumerate() {
        check_score(FILE, token, f64::from(*score))?;
        let is_text = matches!(
            kind_of(fields, id),
            token_type::UNDEFINED | token_type::NORMAL | token_type::USER_DEFINED
        );
        scores.push(is_text.then_some(*score));
    }
    let prefix = fields.add_space_prefix.unwrap_or(true);
    let start = if prefix { Start::Space } else { Start::Keep };
    Ok(Kind {
        model: ModelParts::Scores {
            scores,
            bytes: ByteTokens::of(vocabulary),
            unknown: fields.unknown,
        },
        normalizer: Some(normalizer::sentencepiece(FILE, prefix)?),
        pre_tokenizer: PreTokenizer::default(),
        decoder: Decoder::Metaspace { bytes: true, start },
        adds_bos: true,
    })
}

/// Gemma 4's: SentencePiece's spaces and bytes, but a list of merges.
fn gemma4(fields: &GgufTokenizer<'_>, vocabulary: &Vocabulary) -> Result<Kind, TokenizerError> {
    if let Some(pre) = fields.pre.filter(|pre| *pre != "gemma4") {
        return Err(wrong_pre(pre, "gemma4, for the tokenizer model of this name".to_owned()));
    }
    if fields.add_space_prefix == Some(true) {
        return Err(field("tokenizer.ggml.add_space_prefix", "is true for gemma4".to_owned()));
    }
    let texts = fields.merges.ok_or_else(|| missing("tokenizer.ggml.merges"))?;
    let merges = texts.iter().enumerate().map(|(index, text)| split_merge(FILE, index, text));
    let unknown = fields.unknown.and_then(|id| fields.tokens.get(id as usize));
    Ok(Kind {
        model: ModelParts::Merges {
            merges: vocabulary.merges(FILE, merges)?,
            unknown_token: unknown.cloned(),
            fuse_unknown: true,
            byte_fallback: true,
            whole_words: false,
        },
        normalizer: Some(normalizer::sentencepiece(FILE, false)?),
        pre_tokenizer: PreTokenizer::default(),
        decoder: Decoder::Metaspace { bytes: true, start: Start::Keep },
        adds_bos: true,
    })
}

/// The type of a token. Without types, those named like bytes are bytes in models that have such.
fn kind_of(fields: &GgufTokenizer<'_>, id: usize) -> i32 {
    match fields.token_types {
        Some(types) => types[id],
        None if fields.model != "gpt2" && decoder::byte_of(&fields.tokens[id]).is_some() => {
            token_type::BYTE
        }
        None => token_type::NORMAL,
    }
}

fn check_types(fields: &GgufTokenizer<'_>) -> Result<(), TokenizerError> {
    let Some(types) = fields.token_types else { return Ok(()) };
    if types.len() != fields.tokens.len() {
        let problem = format!("has {} entries for {} tokens", types.len(), fields.tokens.len());
        return Err(field("tokenizer.ggml.token_type", problem));
    }
    for (id, (kind, token)) in types.iter().zip(fields.tokens).enumerate() {
        let problem = match *kind {
            token_type::UNDEFINED..=token_type::UNUSED => continue,
            token_type::BYTE if fields.model == "gpt2" => {
                "is 6, which byte-level tokenizers do not have".to_owned()
            }
            token_type::BYTE if decoder::byte_of(token).is_some() => continue,
            token_type::BYTE => format!("is 6, a byte, but it is called {token:?}"),
            kind => format!("is {kind}, which there is not"),
        };
        return Err(field(&format!("the type of token {id}"), problem));
    }
    Ok(())
}

/// The tokens that are found in text as they are: control, unknown and user-defined ones, and those with a
/// role, which older files mark as normal.
fn added_tokens(
    fields: &GgufTokenizer<'_>,
    roles: &[(&str, Option<u32>)],
    renamed: &BTreeMap<u32, String>,
) -> Result<Vec<Added>, TokenizerError> {
    let special: BTreeSet<u32> = roles.iter().filter_map(|(_, id)| *id).collect();
    let mut added = Vec::new();
    for (id, token) in (0u32..).zip(fields.tokens) {
        let is_special = match kind_of(fields, id as usize) {
            _ if special.contains(&id) => true,
            token_type::UNKNOWN | token_type::CONTROL => true,
            token_type::USER_DEFINED => false,
            _ => continue,
        };
        if token.is_empty() {
            let problem = "is empty, but to be found in text".to_owned();
            return Err(field(&format!("token {id}"), problem));
        }
        let rstrip = strips_right(fields.model, fields.architecture, token, is_special);
        let (text, normalized) = match renamed.get(&id) {
            Some(text) => (text, true),
            None => (token, false),
        };
        let token = AddedToken::from(text.as_str(), is_special).normalized(normalized);
        added.push(Added { token: token.rstrip(rstrip), id: Some(id), file: FILE.to_owned() });
    }
    Ok(added)
}

/// Whether a token takes the whitespace after it along: so do the special tokens of Phi-3, less three, and `</s>`.
pub(super) fn strips_right(
    model: &str,
    architecture: Option<&str>,
    token: &str,
    is_special: bool,
) -> bool {
    model == "llama"
        && architecture == Some("phi3")
        && (is_special || token == "</s>")
        && !PHI3_PLAIN.contains(&token)
}

/// The special tokens that end an answer by their string.
pub(super) fn end_tokens(special: &[(u32, &str)]) -> Vec<u32> {
    let id = |text: &str| special.iter().find(|(_, token)| *token == text).map(|(id, _)| *id);
    let harmony = HARMONY.iter().all(|text| id(text).is_some());
    ENDS.iter()
        .filter(|text| !(harmony && **text == "<|end|>"))
        .filter_map(|text| id(text))
        .collect()
}
