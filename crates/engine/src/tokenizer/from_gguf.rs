//! A tokenizer from the metadata of a GGUF file.

use tokenizers::AddedToken;

use super::build::{Named, Parts, TokenRef, Wrap};
use super::vocabulary::{Added, Vocabulary, split_merge};
use super::{Tokenizer, TokenizerError, pre_tokenizer};

/// What errors call the source.
pub(super) const FILE: &str = "GGUF metadata";

/// The tokenizer models that can be read.
const MODELS: &str = "gpt2";

/// `tokenizer.ggml.*` and `tokenizer.chat_template`, as plain data.
#[derive(Clone, Copy, Debug, Default)]
pub struct GgufTokenizer<'a> {
    /// `tokenizer.ggml.model`
    pub model: &'a str,
    /// `tokenizer.ggml.pre`; a file without it gets the rule of `gpt-2`.
    pub pre: Option<&'a str>,
    /// `tokenizer.ggml.tokens`
    pub tokens: &'a [String],
    /// `tokenizer.ggml.token_type`
    pub token_types: Option<&'a [i32]>,
    /// `tokenizer.ggml.merges`
    pub merges: Option<&'a [String]>,
    /// `tokenizer.ggml.scores`; byte-pair encoding has none and does not read them.
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
    /// `tokenizer.ggml.add_bos_token`; off where it is absent.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`; off where it is absent.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`; off where it is absent.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`
    pub chat_template: Option<&'a str>,
}

pub(super) fn read(fields: GgufTokenizer<'_>) -> Result<Tokenizer, TokenizerError> {
    if fields.model != "gpt2" {
        return Err(TokenizerError::Unsupported {
            file: FILE.to_owned(),
            part: "tokenizer model",
            found: fields.model.to_owned(),
            supported: MODELS.to_owned(),
        });
    }
    let pre_tokenizer =
        pre_tokenizer::from_gguf_name(fields.pre, fields.add_space_prefix.unwrap_or(false))?;

    let mut tokens = Vec::with_capacity(fields.tokens.len());
    for (id, token) in fields.tokens.iter().enumerate() {
        tokens.push((token.clone(), u32::try_from(id).unwrap_or(u32::MAX)));
    }
    let vocabulary = Vocabulary::new(FILE, tokens)?;
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

    let mut merges = Vec::new();
    let texts = fields.merges.ok_or_else(|| missing("tokenizer.ggml.merges"))?;
    for (index, text) in texts.iter().enumerate() {
        merges.push(split_merge(FILE, index, text)?);
    }

    Parts {
        merges,
        merges_file: FILE.to_owned(),
        unknown_token: None,
        fuse_unknown: false,
        byte_fallback: false,
        ignore_merges: false,
        added: added_tokens(&fields, &roles)?,
        normalizer: None,
        pre_tokenizer,
        wrap: Wrap::Named { bos: fields.add_bos == Some(true), eos: fields.add_eos == Some(true) },
        named: Named {
            bos: fields.bos.map(TokenRef::Id),
            eos: fields.eos.map(TokenRef::Id),
            pad: fields.pad.map(TokenRef::Id),
            unknown: fields.unknown.map(TokenRef::Id),
        },
        end_tokens: fields.eot.into_iter().chain(fields.eom).collect(),
        context_length: None,
        chat_template: fields.chat_template.map(str::to_owned),
        vocabulary,
    }
    .build()
}

fn missing(field: &str) -> TokenizerError {
    TokenizerError::Missing { file: FILE.to_owned(), field: field.to_owned() }
}

/// The tokens that are found in text as they are: control, unknown and user-defined ones, and those with a
/// role, which older files mark as normal.
fn added_tokens(
    fields: &GgufTokenizer<'_>,
    roles: &[(&str, Option<u32>)],
) -> Result<Vec<Added>, TokenizerError> {
    if let Some(types) = fields.token_types
        && types.len() != fields.tokens.len()
    {
        return Err(TokenizerError::Field {
            file: FILE.to_owned(),
            field: "tokenizer.ggml.token_type".to_owned(),
            problem: format!("has {} entries for {} tokens", types.len(), fields.tokens.len()),
        });
    }
    let mut special = std::collections::BTreeSet::new();
    special.extend(roles.iter().filter_map(|(_, id)| *id));
    let mut added = Vec::new();
    for (id, token) in (0u32..).zip(fields.tokens) {
        let kind = fields.token_types.map_or(1, |types| types[id as usize]);
        let is_special = match kind {
            _ if special.contains(&id) => true,
            0 | 1 | 5 => continue,
            2 | 3 => true,
            4 => false,
            kind => {
                return Err(TokenizerError::Field {
                    file: FILE.to_owned(),
                    field: format!("the type of token {id}"),
                    problem: format!("is {kind}, which byte-level tokenizers do not have"),
                });
            }
        };
        if token.is_empty() {
            return Err(TokenizerError::Field {
                file: FILE.to_owned(),
                field: format!("token {id}"),
                problem: "is empty, but to be found in text".to_owned(),
            });
        }
        added.push(Added {
            token: AddedToken::from(token.as_str(), is_special).normalized(false),
            id: Some(id),
            file: FILE.to_owned(),
        });
    }
    Ok(added)
}
