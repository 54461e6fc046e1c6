//! The tokenizer of a Hugging Face directory as the metadata of a GGUF file.
//!
//! The keys are those of llama.cpp's converter. They have words for less than a `tokenizer.json` has: what they cannot
//! say is refused by name, since a tokenizer that is almost right gives plausible and wrong ids.

use std::collections::HashMap;
use std::path::Path;

use serde_json::json;
use tokenizers::{NormalizedString, Normalizer as _, NormalizerWrapper};

use super::build::{Parts, Wrap};
use super::byte_level::byte_of;
use super::decoder::{self, Decoder, SPACE, Start};
use super::from_gguf::{self, token_type};
use super::model::ModelParts;
use super::pre_tokenizer::Step;
use super::rules::RULES;
use super::scores::Merges;
use super::vocabulary::Added;
use super::{TokenizerError, directory, normalizer};
use crate::format::gguf::Metadata;

/// Ids besides `eos` that can end a generation: the end of a turn and the end of a message.
const END_KEYS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// What the two models of GGUF files say in ways of their own.
struct Said {
    model: &'static str,
    pre: &'static str,
    /// None where the file need not say.
    add_space_prefix: Option<bool>,
}

/// Writes the tokenizer of a Hugging Face directory to `metadata`, and says whether there is one.
///
/// `rows` are those of the token embedding: llama.cpp wants a token for each, so those that have none get an unused
/// one. Without `rows` there are as many tokens as the vocabulary needs. `general.architecture` must be there already.
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
    let said = match parts.decoder {
        Decoder::ByteLevel => byte_level(&file, &parts)?,
        Decoder::Metaspace { .. } => sentencepiece(&file, &parts)?,
    };
    let placed = parts.vocabulary.place(&parts.added)?;
    let architecture = metadata.architecture().ok();
    check_flags(&file, &parts, &said, architecture)?;
    let (tokens, types) = tokens(&file, &parts, &said, &placed, rows)?;

    let role = |what: &str, id: Option<u32>| match id {
        // What reads the file takes a token with a role for a special one.
        Some(id)
            if !types
                .get(id as usize)
                .is_some_and(|kind| [token_type::CONTROL, token_type::UNKNOWN].contains(kind)) =>
        {
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
    let ends = ends(&file, &parts, &placed, eos, &types)?;
    for id in &ends {
        role("end", Some(*id))?;
    }

    metadata.set("tokenizer.ggml.model", said.model);
    metadata.set("tokenizer.ggml.pre", said.pre);
    if let ModelParts::Merges { merges, .. } = &parts.model {
        match said.model {
            "llama" => {
                let scores = scores(&file, &parts, merges, &types)?;
                metadata.set("tokenizer.ggml.scores", scores);
            }
            _ => {
                let text = |id| parts.vocabulary.text(id).unwrap_or_default();
                let merges = merges.iter().map(|&[l, r, _]| format!("{} {}", text(l), text(r)));
                metadata.set("tokenizer.ggml.merges", merges.collect::<Vec<_>>());
            }
        }
    }
    metadata.set("tokenizer.ggml.tokens", tokens);
    metadata.set("tokenizer.ggml.token_type", types);
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
    if let Some(add) = said.add_space_prefix {
        metadata.set("tokenizer.ggml.add_space_prefix", add);
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

/// The rule of a byte-level tokenizer by its name; refuses options that no rule has.
fn byte_level(file: &str, parts: &Parts) -> Result<Said, TokenizerError> {
    let ModelParts::Merges { unknown_token, byte_fallback, whole_words, .. } = &parts.model else {
        let found = parts.model.kind(true).name().to_owned();
        return Err(not_in_gguf(file, "the model", "byte-pair encoding", found));
    };
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
    if missing > 0 && (*byte_fallback || unknown_token.is_some()) {
        let found = format!("{missing} missing, and a rule for unknown ones");
        return Err(not_in_gguf(file, "the vocabulary", "a token for every byte", found));
    }

    let (names, prefix) = parts.pre_tokenizer.describe();
    let same_cuts = |rule: &&super::rules::Rule| {
        let mut cuts: Vec<String> = rule.cuts.iter().map(|cut| cut.describe()).collect();
        if cuts.last().is_none_or(|last| last != "GPT-2") {
            cuts.push("ByteLevel".to_owned());
        }
        cuts == names
    };
    if !RULES.iter().any(|rule| same_cuts(&rule)) {
        let found = names.join(", ");
        return Err(not_in_gguf(file, "the pre-tokenizer", "that of a named rule", found));
    }
    let composes = match &parts.normalizer {
        None => false,
        Some(NormalizerWrapper::NFC(_)) => true,
        Some(other) => {
            let found = json!(other).to_string();
            return Err(not_in_gguf(file, "the normalizer", "none or NFC", found));
        }
    };
    let rules = RULES.iter().filter(same_cuts).filter(|rule| rule.nfc == composes);
    let mut rules = rules.peekable();
    if rules.peek().is_none() {
        let (expected, found) = if composes { ("none", "NFC") } else { ("NFC", "none") };
        return Err(not_in_gguf(file, "the normalizer", expected, found.to_owned()));
    }
    match rules.find(|rule| rule.whole_words == *whole_words) {
        Some(rule) => {
            Ok(Said { model: "gpt2", pre: rule.names[0], add_space_prefix: prefix.then_some(true) })
        }
        None => {
            let expected = if *whole_words { "false" } else { "true" };
            Err(not_in_gguf(file, "ignore_merges", expected, whole_words.to_string()))
        }
    }
}

/// Refuses what a SentencePiece tokenizer in GGUF cannot be.
fn sentencepiece(file: &str, parts: &Parts) -> Result<Said, TokenizerError> {
    let ModelParts::Merges {
        byte_fallback: true, unknown_token: Some(_), whole_words: false, ..
    } = &parts.model
    else {
        let expected = "byte-pair encoding with byte_fallback and unk_token, without ignore_merges";
        let found = parts.model.kind(false).name().to_owned();
        return Err(not_in_gguf(file, "the model", expected, found));
    };
    if let Some(byte) =
        (0..=255u8).find(|byte| parts.vocabulary.id(&format!("<0x{byte:02X}>")).is_none())
    {
        let found = format!("none for {byte}");
        return Err(not_in_gguf(file, "the vocabulary", "a token for every byte", found));
    }
    let found = parts.normalizer.as_ref().map_or(json!(null), |found| json!(found));
    let is = |prefix| -> Result<bool, TokenizerError> {
        Ok(found == json!(normalizer::sentencepiece(file, prefix)?))
    };
    // The normalizer leaves no spaces at which Gemma's pre-tokenizer could split.
    let splits = parts.pre_tokenizer.steps.iter().any(|step| match step {
        Step::Crate(step) => json!(step)["pattern"]["String"] != " ",
        Step::Metaspace(_) => true,
    });
    let prefix = match (is(true)?, is(false)?) {
        (true, _) if !splits => true,
        (_, true) if !splits => false,
        _ => {
            let (names, _) = parts.pre_tokenizer.describe();
            let expected = "a normalizer that puts \u{2581} before every piece of text, or before none, and for spaces";
            let found = format!("normalizer {found}, pre-tokenizer {}", names.join(", "));
            return Err(not_in_gguf(file, "the space before a text", expected, found));
        }
    };
    let start = if prefix { Start::Space } else { Start::Keep };
    let decoder = Decoder::Metaspace { bytes: true, start };
    if parts.decoder != decoder {
        let found = format!("{:?}", parts.decoder);
        return Err(not_in_gguf(file, "the decoder", &format!("{decoder:?}"), found));
    }
    Ok(Said { model: "llama", pre: "default", add_space_prefix: Some(prefix) })
}

/// Refuses flags of added tokens for which there are no keys.
fn check_flags(
    file: &str,
    parts: &Parts,
    said: &Said,
    architecture: Option<&str>,
) -> Result<(), TokenizerError> {
    for Added { token, file: source, .. } in &parts.added {
        let rstrip =
            from_gguf::strips_right(said.model, architecture, &token.content, token.special);
        let found = |flag: &str, value: bool| {
            let part = format!("{flag} of the added token {:?}", token.content);
            not_in_gguf(source, &part, if value { "false" } else { "true" }, value.to_string())
        };
        for (flag, value, expected) in [
            ("single_word", token.single_word, false),
            ("lstrip", token.lstrip, false),
            ("rstrip", token.rstrip, rstrip),
        ] {
            if value != expected {
                return Err(found(flag, value));
            }
        }
        if let Some(normalizer) = parts.normalizer.as_ref().filter(|_| token.normalized) {
            let mut text = NormalizedString::from(token.content.as_str());
            normalizer.normalize(&mut text).map_err(|error| TokenizerError::Build {
                file: file.to_owned(),
                message: error.to_string(),
            })?;
            if text.get() != token.content {
                return Err(found("normalized", true));
            }
        }
    }
    Ok(())
}

/// Every token by its id, and its type.
fn tokens(
    file: &str,
    parts: &Parts,
    said: &Said,
    placed: &HashMap<String, u32>,
    rows: Option<usize>,
) -> Result<(Vec<String>, Vec<i32>), TokenizerError> {
    let needed = placed.values().map(|id| *id as usize + 1).max().unwrap_or(0);
    let needed = needed.max(parts.vocabulary.size());
    let rows = rows.unwrap_or(needed);
    if needed > rows {
        let found = format!("{rows} rows");
        let expected = format!("an embedding of at least {needed} rows");
        return Err(not_in_gguf(file, "the vocabulary", &expected, found));
    }
    let mut tokens = vec![None; rows];
    let mut types = vec![token_type::UNUSED; rows];
    let mut put = |id: u32, token: String, kind| {
        tokens[id as usize] = Some(token);
        types[id as usize] = kind;
    };
    let is_sentencepiece = said.model == "llama";
    for (token, id) in parts.vocabulary.tokens() {
        let is_byte = is_sentencepiece && decoder::byte_of(token).is_some();
        let kind = if is_byte { token_type::BYTE } else { token_type::NORMAL };
        put(id, token.to_owned(), kind);
    }
    let unknown = match &parts.model {
        ModelParts::Merges { unknown_token, .. } if is_sentencepiece => unknown_token.as_deref(),
        _ => None,
    };
    for Added { token, .. } in &parts.added {
        let Some(&id) = placed.get(&token.content) else { continue };
        let text = token.content.as_str();
        if unknown == Some(text) {
            put(id, text.to_owned(), token_type::UNKNOWN);
        } else if token.special {
            put(id, text.to_owned(), token_type::CONTROL);
        } else if said.add_space_prefix == Some(false) {
            // As llama.cpp's converter writes spaces in such tokens.
            put(id, text.replace(SPACE, " "), token_type::USER_DEFINED);
        } else {
            put(id, text.to_owned(), token_type::USER_DEFINED);
        }
    }
    let named = |(id, token): (usize, Option<String>)| token.unwrap_or(format!("[PAD{id}]"));
    Ok((tokens.into_iter().enumerate().map(named).collect(), types))
}

/// SentencePiece's scores, from merges.
fn scores(
    file: &str,
    parts: &Parts,
    merges: &[super::vocabulary::Merge],
    types: &[i32],
) -> Result<Vec<f32>, TokenizerError> {
    let kind = |id: u32| types.get(id as usize).copied();
    let has_space = |id: u32| parts.vocabulary.text(id).is_some_and(|text| text.contains(SPACE));
    let runs: Vec<u32> = parts
        .added
        .iter()
        .filter(|added| !added.token.normalized && !normalizer::prepends_to(&parts.normalizer))
        .filter_map(|added| parts.vocabulary.id(&added.token.content))
        .filter(|id| kind(*id) == Some(token_type::USER_DEFINED) && has_space(*id))
        .collect();
    let merges = Merges {
        file,
        vocabulary: &parts.vocabulary,
        merges,
        is_text: &|id| kind(id) == Some(token_type::NORMAL),
        runs: &runs,
    };
    merges.scores(types.len())
}

/// The ids that end a generation besides eos, for which there are keys.
fn ends(
    file: &str,
    parts: &Parts,
    placed: &HashMap<String, u32>,
    eos: Option<u32>,
    types: &[i32],
) -> Result<Vec<u32>, TokenizerError> {
    let special = parts.added.iter().filter(|added| added.token.special);
    let special = special.filter_map(|added| {
        placed.get(&added.token.content).map(|id| (*id, added.token.content.as_str()))
    });
    let known = from_gguf::end_tokens(&special.collect::<Vec<_>>());
    let mut ends: Vec<u32> = Vec::new();
    for &id in &parts.end_tokens {
        let exists = types.get(id as usize).is_some_and(|&kind| kind != token_type::UNUSED);
        if exists && Some(id) != eos && !ends.contains(&id) {
            ends.push(id);
        }
    }
    // Readers know some by their string; the others need the keys.
    ends.sort_by_key(|id| known.contains(id));
    if let Some(id) = ends.get(END_KEYS.len()).filter(|id| !known.contains(id)) {
        let expected = format!("at most {} besides eos", END_KEYS.len());
        let found = format!("another, {id}");
        return Err(not_in_gguf(file, "the list of end tokens", &expected, found));
    }
    ends.truncate(END_KEYS.len());
    Ok(ends)
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
        let name = directory.file_name().unwrap().to_string_lossy();
        metadata.set("general.architecture", if name == "phi3" { "phi3" } else { "llama" });
        match to_gguf(directory, rows, &mut metadata) {
            Ok(there) => assert!(there),
            Err(error) => return Err(error.to_string()),
        }
        Ok(metadata)
    }

    fn read(name: &str) -> Json {
        serde_json::from_slice(&std::fs::read(folder().join(name)).unwrap()).unwrap()
    }

    /// That the directory's tokenizer is the same after it was written; its metadata with that from GGUF.
    fn same(name: &str, strings: &[&str]) -> (Tokenizer, Tokenizer) {
        let directory = folder().join(name);
        let metadata = convert(&directory, None).unwrap_or_else(|error| panic!("{name}: {error}"));
        let before = Tokenizer::from_directory(&directory).unwrap().unwrap();
        let after = gguf_tokenizer(&metadata).unwrap().unwrap();
        for text in strings {
            let ids = before.encode(text).unwrap();
            assert_eq!(after.encode(text).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(after.decode(&ids).unwrap(), before.decode(&ids).unwrap(), "{name}");
        }
        (before, after)
    }

    #[test]
    fn ids_stay_those_of_the_directory() {
        let strings = read("hard-strings.json");
        let strings: Vec<&str> =
            strings.as_array().unwrap().iter().filter_map(|row| row["text"].as_str()).collect();
        for name in [
            "bpe",
            "bpe-bos",
            "bpe-prefix-space",
            "bpe-prefix-config",
            "bpe-vocab-merges",
            "bpe-vocab-merges-bos",
        ] {
            let (before, after) = same(name, &strings);
            let (mut before, after) = (before.metadata().clone(), after.metadata());
            // GGUF has the model's own.
            before.context_length = None;
            assert_eq!(&before, after, "{name}");
        }
    }

    #[test]
    fn ids_of_every_family_stay_those_of_the_directory() {
        let strings = read("families/strings.json");
        let strings: Vec<&str> =
            strings["strings"].as_array().unwrap().iter().filter_map(Json::as_str).collect();
        for (name, pre) in [
            ("llama3", "llama-bpe"),
            ("qwen2", "qwen2"),
            ("qwen35", "qwen35"),
            ("o200k", "gpt-4o"),
            ("smollm", "smollm"),
            ("deepseek-llm", "deepseek-llm"),
            ("deepseek-coder", "deepseek-coder"),
            ("deepseek-v3", "deepseek-v3"),
            ("tekken", "tekken"),
            ("llama2", "default"),
            ("phi3", "default"),
            ("gemma", "default"),
        ] {
            let name = format!("families/{name}");
            let metadata = convert(&folder().join(&name), None).unwrap();
            assert_eq!(metadata.require_string("tokenizer.ggml.pre").unwrap(), pre);
            let (before, after) = same(&name, &strings);
            let (mut before, after) = (before.metadata().clone(), after.metadata());
            // GGUF files have no list of these, so more are known by their string.
            assert!(before.end_tokens.iter().all(|id| after.end_tokens.contains(id)), "{name}");
            before.end_tokens.clone_from(&after.end_tokens);
            assert_eq!(&before, after, "{name}");
        }
    }

    /// The refusal of a directory with one value of its tokenizer.json replaced.
    fn refusal(name: &str, field: &str, change: impl FnOnce(&mut Json)) -> String {
        let directory = tempfile::tempdir().unwrap();
        let mut file = read(&format!("{name}/tokenizer.json"));
        change(file.pointer_mut(field).unwrap());
        std::fs::write(directory.path().join("tokenizer.json"), file.to_string()).unwrap();
        let config = read(&format!("{name}/tokenizer_config.json"));
        std::fs::write(directory.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        convert(directory.path(), None).map(|_| ()).unwrap_err()
    }

    #[test]
    fn what_gguf_cannot_say_is_named() {
        for (name, part) in [
            ("bpe-nfc", "the normalizer"),
            ("bpe-added", "of the added token"),
            ("families/llama2-first", "the space before a text"),
            ("families/llama2-normalized", "normalized of the added token \"<unk>\""),
            ("families/unigram-bytes", "the model"),
        ] {
            let error = convert(&folder().join(name), None).map(|_| ()).unwrap_err();
            assert!(error.contains(part) && error.contains("cannot be written to GGUF"), "{error}");
        }
        // Whitespace that goes with a token has no key but the name of the architecture.
        let error = refusal("families/phi3", "", |_| ());
        assert!(error.contains("rstrip of the added token"), "{error}");
        // Other rules, put into a file that is otherwise fine.
        let split = json!({"type": "Split", "pattern": {"Regex": "a"},
            "behavior": "Isolated", "invert": false});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false,
            "trim_offsets": true, "use_regex": false});
        let sequence = json!({"type": "Sequence", "pretokenizers": [split, bytes]});
        let template = json!({"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]});
        let nfc = json!({"type": "NFC"});
        for (name, field, value, part) in [
            ("bpe", "/pre_tokenizer", sequence, "found Split a, ByteLevel"),
            ("bpe", "/pre_tokenizer", bytes, "found ByteLevel"),
            ("bpe", "/normalizer", nfc, "the normalizer cannot be written"),
            ("bpe", "/model/ignore_merges", true.into(), "ignore_merges"),
            ("bpe", "/post_processor", template, "the ids [2]"),
            ("families/qwen35", "/normalizer", Json::Null, "the normalizer cannot be written"),
            ("families/llama2", "/model/byte_fallback", false.into(), "the model"),
            ("families/llama2", "/model/merges", json!([]), "every way to make a token of two"),
        ] {
            let error = refusal(name, field, |found| *found = value);
            assert!(error.contains(part), "{field}: {error}");
        }
        let swap = |merges: &mut Json| {
            let merges = merges.as_array_mut().unwrap();
            let last = merges.len() - 1;
            let shared = (1..last).find(|at| merges[*at][0] != merges[0][0]).unwrap();
            merges.swap(shared, last);
        };
        let error = refusal("families/gemma", "/model/merges", swap);
        assert!(error.contains("the list of merges"), "{error}");
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
        assert_eq!((types.len(), types[needed]), (needed + 3, token_type::UNUSED));
        let text = format!("[PAD{needed}]");
        let tokenizer = gguf_tokenizer(&padded).unwrap().unwrap();
        assert!(!tokenizer.encode(&text).unwrap().contains(&(needed as u32)));
        let error = convert(&directory, Some(needed - 1)).unwrap_err();
        assert!(error.contains(&format!("at least {needed} rows")), "{error}");
    }
}
