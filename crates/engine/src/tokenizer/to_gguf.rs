//! The tokenizer of a Hugging Face directory as the metadata of a GGUF file.
//!
//! The keys are those of llama.cpp's converter. They have words for less than a `tokenizer.json` has: what they cannot
//! say is refused by name, since a tokenizer that is almost right gives plausible and wrong ids.

use std::collections::HashMap;
use std::path::Path;

use tokenizers::PreTokenizerWrapper;

use super::build::{Parts, Wrap};
use super::byte_level::byte_of;
use super::vocabulary::Added;
use super::{TokenizerError, directory};
use crate::format::gguf::Metadata;

/// The types of a token in `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Ids besides `eos` that can end a generation: the end of a turn and the end of a message.
const END_KEYS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// Writes the tokenizer of a Hugging Face directory to `metadata`, and says whether there is one.
///
/// `rows` are those of the token embedding: llama.cpp wants a token for each, so those that have none get an unused
/// one. Without `rows` there are as many tokens as the vocabulary needs.
///
/// # Errors
/// When the tokenizer is wrong, does not fit the embedding, or has what GGUF cannot say.
pub fn to_gguf(
    directory: &Path,
    rows: Option<usize>,
    metadata: &mut Metadata,
) -> Result<bool, TokenizerError> {
    let Some(parts) = directory::read(directory)? else { return Ok(false) };
    let file = parts.vocabulary.file().to_owned();
    check_model(&file, &parts)?;
    let add_space_prefix = gpt2_rule(&file, &parts.pre_tokenizer)?;
    let placed = parts.vocabulary.place(&parts.added)?;

    let (tokens, types) = tokens(&file, &parts, &placed, rows)?;
    let role = |what: &str, id: Option<u32>| match id {
        // What reads the file takes a token with a role for a special one.
        Some(id) if types.get(id as usize) != Some(&CONTROL) => {
            let found = format!("id {id}, which is none");
            Err(not_in_gguf(&file, &format!("the {what} token"), "a special token", found))
        }
        id => Ok(id),
    };
    let bos = role("bos", parts.resolve(&placed, &parts.named.bos))?;
    let eos = role("eos", parts.resolve(&placed, &parts.named.eos))?;
    let pad = role("padding", parts.resolve(&placed, &parts.named.pad))?;
    let unknown = role("unknown", parts.resolve(&placed, &parts.named.unknown))?;
    let (add_bos, add_eos) = wrap(&file, &parts.wrap, bos, eos)?;
    let mut ends = Vec::new();
    for &id in &parts.end_tokens {
        let exists = types.get(id as usize).is_some_and(|&kind| kind != UNUSED);
        if exists && Some(id) != eos && !ends.contains(&id) {
            ends.extend(role("end", Some(id))?);
        }
    }
    if ends.len() > END_KEYS.len() {
        let expected = format!("at most {} besides eos", END_KEYS.len());
        return Err(not_in_gguf(&file, "the list of end tokens", &expected, format!("{ends:?}")));
    }

    let merges = parts.merges.iter().map(|(left, right)| format!("{left} {right}"));
    metadata.set("tokenizer.ggml.model", "gpt2");
    metadata.set("tokenizer.ggml.pre", "gpt-2");
    metadata.set("tokenizer.ggml.tokens", tokens);
    metadata.set("tokenizer.ggml.token_type", types);
    metadata.set("tokenizer.ggml.merges", merges.collect::<Vec<_>>());
    for (key, id) in [
        ("tokenizer.ggml.bos_token_id", bos),
        ("tokenizer.ggml.eos_token_id", eos),
        ("tokenizer.ggml.padding_token_id", pad),
        ("tokenizer.ggml.unknown_token_id", unknown),
    ]
    .into_iter()
    .chain(END_KEYS.into_iter().zip(ends.into_iter().map(Some)))
    {
        if let Some(id) = id {
            metadata.set(key, id);
        }
    }
    metadata.set("tokenizer.ggml.add_bos_token", add_bos);
    metadata.set("tokenizer.ggml.add_eos_token", add_eos);
    if add_space_prefix {
        metadata.set("tokenizer.ggml.add_space_prefix", true);
    }
    if let Some(template) = parts.chat_template {
        metadata.set("tokenizer.chat_template", template);
    }
    Ok(true)
}

fn not_in_gguf(file: &str, part: &str, expected: &str, found: String) -> TokenizerError {
    TokenizerError::NotInGguf {
        file: file.to_owned(),
        part: part.to_owned(),
        expected: expected.to_owned(),
        found,
    }
}

/// Refuses the options of byte-pair encoding that would change ids.
fn check_model(file: &str, parts: &Parts) -> Result<(), TokenizerError> {
    if parts.normalizer.is_some() {
        let found = "one that changes the text".to_owned();
        return Err(not_in_gguf(file, "the normalizer", "none", found));
    }
    if parts.ignore_merges {
        return Err(not_in_gguf(file, "ignore_merges", "false", "true".to_owned()));
    }
    // With a token for every byte nothing is ever unknown.
    let mut bytes = [false; 256];
    for (token, _) in parts.vocabulary.tokens() {
        let mut characters = token.chars();
        if let (Some(character), None) = (characters.next(), characters.next())
            && let Some(byte) = byte_of(character)
        {
            bytes[usize::from(byte)] = true;
        }
    }
    let missing = bytes.iter().filter(|there| !**there).count();
    if missing > 0 && (parts.byte_fallback || parts.unknown_token.is_some()) {
        let found = format!("{missing} missing, and a rule for unknown ones");
        return Err(not_in_gguf(file, "the vocabulary", "a token for every byte", found));
    }
    Ok(())
}

/// Whether a space goes before the text, for GPT-2's pre-tokenizer; any other is refused by its name.
fn gpt2_rule(file: &str, rule: &PreTokenizerWrapper) -> Result<bool, TokenizerError> {
    let found = match rule {
        PreTokenizerWrapper::ByteLevel(bytes) if bytes.use_regex => {
            return Ok(bytes.add_prefix_space);
        }
        PreTokenizerWrapper::ByteLevel(_) => "ByteLevel without its expression".to_owned(),
        PreTokenizerWrapper::Sequence(steps) => {
            let steps: Vec<&str> = steps.as_ref().iter().map(name).collect();
            format!("a Sequence of {}", steps.join(", "))
        }
        other => name(other).to_owned(),
    };
    Err(not_in_gguf(file, "the pre-tokenizer", "GPT-2's, ByteLevel alone", found))
}

fn name(rule: &PreTokenizerWrapper) -> &'static str {
    match rule {
        PreTokenizerWrapper::ByteLevel(_) => "ByteLevel",
        PreTokenizerWrapper::Split(_) => "Split",
        PreTokenizerWrapper::Digits(_) => "Digits",
        PreTokenizerWrapper::Punctuation(_) => "Punctuation",
        PreTokenizerWrapper::Sequence(_) => "Sequence",
        _ => "another rule",
    }
}

/// Every token by its id, and its type.
fn tokens(
    file: &str,
    parts: &Parts,
    placed: &HashMap<String, u32>,
    rows: Option<usize>,
) -> Result<(Vec<String>, Vec<i32>), TokenizerError> {
    let ids = parts.vocabulary.tokens().iter().map(|(_, id)| *id);
    let needed = ids.chain(placed.values().copied()).max().map_or(0, |id| id as usize + 1);
    let rows = rows.unwrap_or(needed);
    if needed > rows {
        let found = format!("{rows} rows");
        let expected = format!("an embedding of at least {needed} rows");
        return Err(not_in_gguf(file, "the vocabulary", &expected, found));
    }
    let mut tokens = vec![None; rows];
    let mut types = vec![UNUSED; rows];
    let mut put = |id: u32, token: &str, kind| {
        tokens[id as usize] = Some(token.to_owned());
        types[id as usize] = kind;
    };
    for (token, id) in parts.vocabulary.tokens() {
        put(*id, token, NORMAL);
    }
    for Added { token, file, .. } in &parts.added {
        let Some(&id) = placed.get(&token.content) else { continue };
        for (flag, set) in
            [("single_word", token.single_word), ("lstrip", token.lstrip), ("rstrip", token.rstrip)]
        {
            if set {
                let part = format!("{flag} of the added token {:?}", token.content);
                return Err(not_in_gguf(file, &part, "false", "true".to_owned()));
            }
        }
        put(id, &token.content, if token.special { CONTROL } else { USER_DEFINED });
    }
    let named = |(id, token): (usize, Option<String>)| token.unwrap_or(format!("[PAD{id}]"));
    Ok((tokens.into_iter().enumerate().map(named).collect(), types))
}

/// Whether bos goes before a text and eos after it.
fn wrap(
    file: &str,
    wrap: &Wrap,
    bos: Option<u32>,
    eos: Option<u32>,
) -> Result<(bool, bool), TokenizerError> {
    let end = |what: &str, ids: &[u32], token: Option<u32>| match ids {
        [] => Ok(false),
        [id] if Some(*id) == token => Ok(true),
        ids => {
            let (part, expected) =
                (format!("what goes {what} a text"), "bos before it and eos after it, or nothing");
            Err(not_in_gguf(file, &part, expected, format!("the ids {ids:?}")))
        }
    };
    match wrap {
        Wrap::Named { bos: add_bos, eos: add_eos } => {
            Ok((*add_bos && bos.is_some(), *add_eos && eos.is_some()))
        }
        Wrap::Ids { prefix, suffix } => {
            Ok((end("before", prefix, bos)?, end("after", suffix, eos)?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gguf_tokenizer;
    use crate::tokenizer::Tokenizer;
    use serde_json::Value as Json;
    use std::path::PathBuf;

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tokenizer")
    }

    fn convert(directory: &Path, rows: Option<usize>) -> Result<Metadata, String> {
        let mut metadata = Metadata::new("m.gguf".to_owned());
        match to_gguf(directory, rows, &mut metadata) {
            Ok(there) => assert!(there),
            Err(error) => return Err(error.to_string()),
        }
        Ok(metadata)
    }

    #[test]
    fn ids_stay_those_of_the_directory() {
        let strings = std::fs::read(folder().join("hard-strings.json")).unwrap();
        let strings: Vec<Json> = serde_json::from_slice(&strings).unwrap();
        for name in [
            "bpe",
            "bpe-bos",
            "bpe-prefix-space",
            "bpe-prefix-config",
            "bpe-vocab-merges",
            "bpe-vocab-merges-bos",
        ] {
            let directory = folder().join(name);
            let metadata = convert(&directory, None).unwrap();
            let before = Tokenizer::from_directory(&directory).unwrap().unwrap();
            let after = gguf_tokenizer(&metadata).unwrap().unwrap();
            for text in strings.iter().filter_map(|row| row["text"].as_str()) {
                let ids = before.encode(text).unwrap();
                assert_eq!(after.encode(text).unwrap(), ids, "{name}: {text:?}");
                assert_eq!(after.decode(&ids).unwrap(), before.decode(&ids).unwrap(), "{name}");
            }
            let (mut before, after) = (before.metadata().clone(), after.metadata());
            // GGUF has the model's own.
            before.context_length = None;
            assert_eq!(&before, after, "{name}");
        }
    }

    #[test]
    fn what_gguf_cannot_say_is_named() {
        for (name, part) in [("bpe-nfc", "the normalizer"), ("bpe-added", "of the added token")] {
            let error = convert(&folder().join(name), None).unwrap_err();
            assert!(error.contains(part) && error.contains("cannot be written to GGUF"), "{error}");
        }
        // Other rules, put into a file that is otherwise fine.
        let file = std::fs::read(folder().join("bpe/tokenizer.json")).unwrap();
        let file: Json = serde_json::from_slice(&file).unwrap();
        let split = serde_json::json!({"type": "Split", "pattern": {"Regex": "a"},
            "behavior": "Isolated", "invert": false});
        let bytes = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false,
            "trim_offsets": true, "use_regex": false});
        let sequence = serde_json::json!({"type": "Sequence", "pretokenizers": [split, bytes]});
        let template =
            serde_json::json!({"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]});
        for (field, value, part) in [
            ("/pre_tokenizer", sequence, "a Sequence of Split, ByteLevel"),
            ("/pre_tokenizer", bytes, "ByteLevel without its expression"),
            ("/model/ignore_merges", true.into(), "ignore_merges"),
            ("/post_processor", template, "the ids [2]"),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let mut file = file.clone();
            let (parent, key) = field.rsplit_once('/').unwrap();
            file.pointer_mut(parent).unwrap()[key] = value;
            std::fs::write(directory.path().join("tokenizer.json"), file.to_string()).unwrap();
            let error = convert(directory.path(), None).unwrap_err();
            assert!(error.contains(part), "{field}: {error}");
        }
    }

    #[test]
    fn there_are_as_many_tokens_as_rows() {
        let directory = folder().join("bpe");
        let needed = convert(&directory, None).unwrap();
        let needed = needed.require_strings("tokenizer.ggml.tokens").unwrap().len();
        let padded = convert(&directory, Some(needed + 3)).unwrap();
        let tokens = padded.require_strings("tokenizer.ggml.tokens").unwrap();
        assert_eq!(tokens.len(), needed + 3);
        assert_eq!(tokens[needed + 2], format!("[PAD{}]", needed + 2));
        let types = padded.require_i32s("tokenizer.ggml.token_type").unwrap();
        assert_eq!((types.len(), types[needed]), (needed + 3, UNUSED));
        let text = format!("[PAD{needed}]");
        let tokenizer = gguf_tokenizer(&padded).unwrap().unwrap();
        assert!(!tokenizer.encode(&text).unwrap().contains(&(needed as u32)));
        let error = convert(&directory, Some(needed - 1)).unwrap_err();
        assert!(error.contains(&format!("at least {needed} rows")), "{error}");
    }
}
