//! The files of a Hugging Face directory around its vocabulary.

use std::io::Read as _;
use std::path::Path;

use serde::de::{Deserialize, DeserializeOwned};
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::build::{Named, Parts, TokenRef};
use super::vocabulary::Added;
use super::{TokenizerError, from_json, from_vocab_merges};

/// The largest tokenizers known have a tenth of this.
const MAX_FILE_SIZE: u64 = 256 << 20;
/// `model_max_length` is some 10^30 where nobody set it.
const MAX_CONTEXT_LENGTH: u64 = 1 << 31;

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";
const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// The tokens with a role, in the order in which `transformers` adds them.
const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

pub(super) fn read(directory: &Path) -> Result<Option<Parts>, TokenizerError> {
    let tokenizer = directory.join("tokenizer.json");
    if tokenizer.is_file() {
        let settings = Settings::read(directory)?;
        return from_json::read(&tokenizer, settings).map(Some);
    }
    let vocabulary = directory.join("vocab.json");
    let merges = directory.join("merges.txt");
    match (vocabulary.is_file(), merges.is_file()) {
        (false, false) => Ok(None),
        (true, true) => {
            let settings = Settings::read(directory)?;
            from_vocab_merges::read(&vocabulary, &merges, settings).map(Some)
        }
        (true, false) => Err(TokenizerError::Missing {
            file: directory.display().to_string(),
            field: "merges.txt beside its vocab.json".to_owned(),
        }),
        (false, true) => Err(TokenizerError::Missing {
            file: directory.display().to_string(),
            field: "vocab.json beside its merges.txt".to_owned(),
        }),
    }
}

/// Reads a whole file, if it is no larger than a tokenizer's can be.
pub(super) fn read_text(path: &Path) -> Result<String, TokenizerError> {
    let failed = |source| TokenizerError::Read { file: path.display().to_string(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let mut text = String::new();
    // The size can be wrong (a pipe, a file that grows), so the reading is limited too.
    let read = file.take(MAX_FILE_SIZE + 1).read_to_string(&mut text).map_err(failed)? as u64;
    if size.max(read) > MAX_FILE_SIZE {
        let size = size.max(read);
        return Err(TokenizerError::FileTooLarge {
            file: path.display().to_string(),
            size,
            limit: MAX_FILE_SIZE,
        });
    }
    Ok(text)
}

/// Reads a JSON file.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, TokenizerError> {
    parse_json(path, &read_text(path)?)
}

/// Reads the text of a JSON file.
pub(super) fn parse_json<'a, T: Deserialize<'a>>(
    path: &Path,
    text: &'a str,
) -> Result<T, TokenizerError> {
    serde_json::from_str(text).map_err(|error| TokenizerError::Json {
        file: path.display().to_string(),
        message: error.to_string(),
    })
}

fn read_optional(directory: &Path, name: &str) -> Result<Map<String, Value>, TokenizerError> {
    let path = directory.join(name);
    if path.is_file() { read_json(&path) } else { Ok(Map::new()) }
}

/// What the files beside the vocabulary say, in the words of `transformers`.
pub(super) struct Settings {
    tokenizer_config: Map<String, Value>,
    special_tokens_map: Map<String, Value>,
    added_tokens: Map<String, Value>,
    config: Map<String, Value>,
    generation_config: Map<String, Value>,
    chat_template: Option<String>,
}

impl Settings {
    fn read(directory: &Path) -> Result<Self, TokenizerError> {
        let template = directory.join(CHAT_TEMPLATE);
        Ok(Self {
            tokenizer_config: read_optional(directory, TOKENIZER_CONFIG)?,
            special_tokens_map: read_optional(directory, SPECIAL_TOKENS_MAP)?,
            added_tokens: read_optional(directory, ADDED_TOKENS)?,
            config: read_optional(directory, CONFIG)?,
            generation_config: read_optional(directory, GENERATION_CONFIG)?,
            chat_template: if template.is_file() { Some(read_text(&template)?) } else { None },
        })
    }

    /// The class of `transformers` that the files name, without the suffix `Fast`.
    pub(super) fn class(&self) -> Option<&str> {
        let named = |map: &'_ Map<String, Value>| {
            map.get("tokenizer_class").and_then(Value::as_str).is_some()
        };
        let map = if named(&self.tokenizer_config) { &self.tokenizer_config } else { &self.config };
        match map.get("tokenizer_class").and_then(Value::as_str) {
            Some(class) => Some(class.strip_suffix("Fast").unwrap_or(class)),
            None => (self.config.get("model_type")? == "gpt2").then_some("GPT2Tokenizer"),
        }
    }

    /// A switch of `tokenizer_config.json`.
    pub(super) fn switch(&self, name: &str) -> Result<Option<bool>, TokenizerError> {
        match self.tokenizer_config.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(field(TOKENIZER_CONFIG, name, "is not true or false")),
        }
    }

    /// Whether the older files are read for special and added tokens: `added_tokens_decoder` replaces them.
    fn is_legacy(&self) -> bool {
        !self.tokenizer_config.contains_key("added_tokens_decoder")
    }

    /// A value of `tokenizer_config.json`, or where it is older of `special_tokens_map.json`, which wins.
    fn setting(&self, name: &str) -> Option<(&Value, &'static str)> {
        if self.is_legacy()
            && let Some(value) = self.special_tokens_map.get(name)
        {
            return Some((value, SPECIAL_TOKENS_MAP));
        }
        self.tokenizer_config.get(name).map(|value| (value, TOKENIZER_CONFIG))
    }

    /// The token with a role, where the files name one. `default` stands for an absent setting, not for null.
    fn role(
        &self,
        name: &str,
        default: Option<&str>,
    ) -> Result<Option<AddedToken>, TokenizerError> {
        match self.setting(name) {
            None => Ok(default.map(|text| AddedToken::from(text, true))),
            Some((Value::Null, _)) => Ok(None),
            Some((value, file)) => token(file, name, value).map(Some),
        }
    }

    /// The tokens to be found in text that the vocabulary file does not list itself, in the order in which
    /// `transformers` adds them. `default` is the class's own beginning, end and unknown token.
    pub(super) fn added(
        &self,
        listed: &[Added],
        default: Option<&str>,
    ) -> Result<Vec<Added>, TokenizerError> {
        let mut roles = Vec::new();
        for name in ROLES {
            let default =
                default.filter(|_| matches!(name, "bos_token" | "eos_token" | "unk_token"));
            roles.extend(self.role(name, default)?);
        }
        let model_specific = self.tokenizer_config.iter().filter(|(name, value)| {
            name.ends_with("_token")
                && !ROLES.contains(&name.as_str())
                && (value.is_string() || value.is_object())
        });
        for (name, value) in model_specific {
            roles.push(token(TOKENIZER_CONFIG, name, value)?);
        }
        for name in ["additional_special_tokens", "extra_special_tokens"] {
            match self.setting(name) {
                None | Some((Value::Null, _)) => {}
                Some((Value::Array(values), file)) => {
                    for value in values {
                        roles.push(token(file, name, value)?);
                    }
                }
                Some((Value::Object(values), file)) => {
                    for value in values.values() {
                        roles.push(token(file, name, value)?);
                    }
                }
                Some((_, file)) => return Err(field(file, name, "is not a list of tokens")),
            }
        }

        let mut added =
            if self.is_legacy() { self.added_tokens_file(&roles)? } else { self.decoder()? };
        for mut token in roles {
            let is_there =
                listed.iter().chain(&added).any(|listed| listed.token.content == token.content);
            if !is_there {
                token.special = true;
                added.push(Added { token, id: None, file: TOKENIZER_CONFIG.to_owned() });
            }
        }
        Ok(added)
    }

    /// `added_tokens_decoder`, by id.
    fn decoder(&self) -> Result<Vec<Added>, TokenizerError> {
        const NAME: &str = "added_tokens_decoder";
        let Some(Value::Object(tokens)) = self.tokenizer_config.get(NAME) else {
            return Err(field(TOKENIZER_CONFIG, NAME, "is not an object"));
        };
        let mut added = Vec::new();
        for (id, value) in tokens {
            let id: u32 = id
                .parse()
                .map_err(|_| field(TOKENIZER_CONFIG, NAME, &format!("has the id {id:?}")))?;
            let token = token(TOKENIZER_CONFIG, NAME, value)?;
            added.push(Added { token, id: Some(id), file: TOKENIZER_CONFIG.to_owned() });
        }
        added.sort_by_key(|added| added.id);
        Ok(added)
    }

    /// `added_tokens.json`, by id.
    fn added_tokens_file(&self, roles: &[AddedToken]) -> Result<Vec<Added>, TokenizerError> {
        let mut added = Vec::new();
        for (content, id) in &self.added_tokens {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id
                .ok_or_else(|| field(ADDED_TOKENS, &format!("{content:?}"), "is not a token id"))?;
            let role = roles.iter().find(|role| role.content == *content);
            let token = role.cloned().unwrap_or_else(|| AddedToken::from(content.as_str(), false));
            added.push(Added { token, id: Some(id), file: ADDED_TOKENS.to_owned() });
        }
        added.sort_by_key(|added| added.id);
        Ok(added)
    }

    /// The tokens with the roles that matter when running a model.
    pub(super) fn named(&self, default: Option<&str>) -> Result<Named, TokenizerError> {
        let role =
            |name: &str, default: Option<&str>| -> Result<Option<TokenRef>, TokenizerError> {
                Ok(self.role(name, default)?.map(|token| TokenRef::Text(token.content)))
            };
        Ok(Named {
            bos: role("bos_token", default)?,
            eos: role("eos_token", default)?,
            pad: role("pad_token", None)?,
            unknown: role("unk_token", default)?,
        })
    }

    /// The ids that end a generation: those of `generation_config.json`, else of `config.json`.
    pub(super) fn end_tokens(&self) -> Result<Vec<u32>, TokenizerError> {
        const NAME: &str = "eos_token_id";
        let (file, value) = match (self.generation_config.get(NAME), self.config.get(NAME)) {
            (Some(value), _) if !value.is_null() => (GENERATION_CONFIG, value),
            (_, Some(value)) if !value.is_null() => (CONFIG, value),
            _ => return Ok(Vec::new()),
        };
        let values = match value {
            Value::Array(values) => values.as_slice(),
            value => std::slice::from_ref(value),
        };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        values
            .iter()
            .map(|value| id(value).ok_or_else(|| field(file, NAME, "is not a token id")))
            .collect()
    }

    pub(super) fn context_length(&self) -> Option<usize> {
        let length = self.tokenizer_config.get("model_max_length")?.as_u64()?;
        usize::try_from(length).ok().filter(|_| (1..=MAX_CONTEXT_LENGTH).contains(&length))
    }

    /// The chat template: a file of its own, else the one in `tokenizer_config.json`, where a list of several
    /// has one named `default`.
    pub(super) fn chat_template(&self) -> Result<Option<String>, TokenizerError> {
        const NAME: &str = "chat_template";
        if let Some(template) = &self.chat_template {
            return Ok(Some(template.clone()));
        }
        match self.tokenizer_config.get(NAME) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(template)) => Ok(Some(template.clone())),
            Some(Value::Array(templates)) => {
                let default = templates.iter().find(|template| template["name"] == "default");
                match default.and_then(|template| template["template"].as_str()) {
                    Some(template) => Ok(Some(template.to_owned())),
                    None => Err(field(TOKENIZER_CONFIG, NAME, "has no template named \"default\"")),
                }
            }
            Some(_) => Err(field(TOKENIZER_CONFIG, NAME, "is neither a string nor a list")),
        }
    }
}

fn field(file: &str, field: &str, problem: &str) -> TokenizerError {
    TokenizerError::Field {
        file: file.to_owned(),
        field: field.to_owned(),
        problem: problem.to_owned(),
    }
}

/// A token as these files write it: a string, or an object with its flags.
fn token(file: &str, name: &str, value: &Value) -> Result<AddedToken, TokenizerError> {
    match value {
        Value::String(content) => Ok(AddedToken::from(content.as_str(), true)),
        Value::Object(object) => {
            let content = object.get("content").and_then(Value::as_str);
            let content =
                content.ok_or_else(|| field(file, name, "has a token without content"))?;
            let flag = |flag: &str, default: bool| match object.get(flag) {
                None => Ok(default),
                Some(Value::Bool(value)) => Ok(*value),
                Some(_) => {
                    Err(field(file, name, &format!("has a {flag} that is not true or false")))
                }
            };
            // A token with a role is special whatever its object says; one of the decoder says so itself.
            let special = flag("special", name != "added_tokens_decoder")?;
            Ok(AddedToken::from(content, special)
                .single_word(flag("single_word", false)?)
                .lstrip(flag("lstrip", false)?)
                .rstrip(flag("rstrip", false)?)
                .normalized(flag("normalized", !special)?))
        }
        _ => Err(field(file, name, "is neither a token nor its text")),
    }
}
