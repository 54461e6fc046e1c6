//! Which files of a repository make a model.

use super::id::HubId;
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The files of a directory besides the weights: what it takes to run the model, and what tells that it cannot be run.
const SMALL: [&str; 13] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "quantize_config.json",
    "hf_quant_config.json",
    INDEX,
];

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The index of the largest sharded models is 10 MB.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Candidates that an error lists.
const SHOWN: usize = 40;

/// What of a repository is the model.
#[derive(Debug, PartialEq, Eq)]
pub enum Choice {
    /// A GGUF file; if it is split all its parts, in order.
    Gguf(Vec<String>),
    /// The repository itself.
    Directory(Directory),
}

/// A model in Hugging Face layout.
#[derive(Debug, PartialEq, Eq)]
pub struct Directory {
    /// The files besides the weights that the repository has.
    pub small: Vec<String>,
    /// The one file of weights; with several, an index names them.
    single: Option<String>,
}

/// Chooses by the names of a repository's files.
///
/// # Errors
/// When there is no model, or more than one that the id can mean.
pub fn choose<'a>(id: &HubId, names: impl Iterator<Item = &'a str>) -> Result<Choice> {
    let names: Vec<&str> = names.collect();
    let sets = gguf_sets(&names);
    if let Some(file) = &id.file {
        return choose_gguf(id, file, sets);
    }
    if let Some(directory) = directory(&names) {
        return Ok(Choice::Directory(directory));
    }
    let mut models: Vec<_> = sets.into_iter().filter(|(name, _)| !is_companion(name)).collect();
    match models.len() {
        0 => bail!(
            "{id}: the repository has no model that oxgpt can open: expected .gguf files, or \
             config.json and .safetensors files"
        ),
        1 => Ok(Choice::Gguf(models.remove(0).1)),
        _ => bail!("{id} has several models, expected {id}:FILE with one of {}", listed(&models)),
    }
}

/// The model whose file or type is `file`.
fn choose_gguf(id: &HubId, file: &str, sets: Vec<(String, Vec<String>)>) -> Result<Choice> {
    ensure!(!sets.is_empty(), "{id}: the repository has no .gguf files");
    let is_named = |(_, parts): &(String, Vec<String>)| parts.iter().any(|part| part == file);
    if let Some((_, parts)) = sets.iter().find(|set| is_named(set)) {
        return Ok(Choice::Gguf(parts.clone()));
    }
    let of_type = |(name, _): &&(String, Vec<String>)| has_type(name, file) && !is_companion(name);
    let matching: Vec<_> = sets.iter().filter(of_type).cloned().collect();
    match matching.as_slice() {
        [] => bail!("{id}: there is no such file or type, expected one of {}", listed(&sets)),
        [(_, parts)] => Ok(Choice::Gguf(parts.clone())),
        _ => bail!("{id} can mean several files, expected one of {}", listed(&matching)),
    }
}

fn listed(sets: &[(String, Vec<String>)]) -> String {
    let names: Vec<&str> = sets.iter().take(SHOWN).map(|(_, parts)| parts[0].as_str()).collect();
    let more = if sets.len() > SHOWN { ", ..." } else { "" };
    format!("{}{more}", names.join(", "))
}

/// The GGUF files, the parts of split ones together under the name that they share.
fn gguf_sets(names: &[&str]) -> Vec<(String, Vec<String>)> {
    let mut sets: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in names {
        if let Some(stem) = strip_suffix_ignoring_case(name, ".gguf") {
            let stem = split_part(stem).map_or(stem, |(stem, ..)| stem);
            sets.entry(stem.to_string()).or_default().push(name.to_string());
        }
    }
    sets.values_mut().for_each(|parts| parts.sort());
    sets.into_iter().collect()
}

/// `NAME-00002-of-00003` is part 2 of 3 of NAME.
fn split_part(stem: &str) -> Option<(&str, usize, usize)> {
    let number = |text: &str| {
        let digits = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten()
    };
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (name, part) = rest.rsplit_once('-')?;
    Some((name, number(part)?, number(count)?))
}

/// Whether all parts of a model are among `parts`, which are sorted.
pub fn is_whole(parts: &[String]) -> bool {
    let number = |name: &String| {
        strip_suffix_ignoring_case(name, ".gguf")
            .and_then(split_part)
            .map(|(_, n, count)| (n, count))
    };
    match number(&parts[0]) {
        None => parts.len() == 1,
        Some((_, count)) => parts.iter().map(number).eq((1..=count).map(|n| Some((n, count)))),
    }
}

/// Files beside a model that are none by themselves: what reads images, and what quantizers measured.
fn is_companion(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name).to_lowercase();
    file.starts_with("mmproj") || file.starts_with("imatrix") || file.ends_with("imatrix")
}

/// Whether a type such as `Q4_K_M` is a word of the name, in any case: no letter or digit before it, and no `_` either
/// after it, where the name of another type would go on.
fn has_type(name: &str, dtype: &str) -> bool {
    let (name, dtype) = (name.to_lowercase(), dtype.to_lowercase());
    name.match_indices(&dtype).any(|(start, _)| {
        let before = name[..start].chars().next_back();
        let after = name[start + dtype.len()..].chars().next();
        !before.is_some_and(char::is_alphanumeric)
            && !after.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

fn strip_suffix_ignoring_case<'a>(text: &'a str, suffix: &str) -> Option<&'a str> {
    let at = text.len().checked_sub(suffix.len())?;
    let end = text.get(at..)?;
    end.eq_ignore_ascii_case(suffix).then(|| &text[..at])
}

/// The model of the top folder, found as `format::hugging_face` of the engine finds it.
fn directory(names: &[&str]) -> Option<Directory> {
    let has = |name: &str| names.contains(&name);
    let mut safetensors = names
        .iter()
        .filter(|name| !name.contains('/') && name.ends_with(".safetensors"))
        .map(|name| name.to_string());
    let single = if has(WEIGHTS) {
        Some(WEIGHTS.to_string())
    } else if has(INDEX) {
        None
    } else {
        let only = safetensors.next()?;
        if safetensors.next().is_some() {
            return None;
        }
        Some(only)
    };
    if !has("config.json") {
        return None;
    }
    let needs_index = single.is_none();
    let small = SMALL.iter().filter(|name| has(name) && (needs_index || **name != INDEX));
    Some(Directory { small: small.map(|name| name.to_string()).collect(), single })
}

/// The part of an index file that is used.
#[derive(Deserialize)]
struct WeightIndex {
    weight_map: BTreeMap<String, String>,
}

impl Directory {
    /// The files of the weights, by the index in `snapshot` where it takes one.
    pub fn weights(&self, snapshot: &Path) -> Result<Vec<String>> {
        if let Some(single) = &self.single {
            return Ok(vec![single.clone()]);
        }
        let file = snapshot.join(INDEX);
        let failed = || format!("cannot read {}", file.display());
        let mut text = Vec::new();
        let opened = File::open(&file).with_context(failed)?;
        opened.take(MAX_INDEX_BYTES).read_to_end(&mut text).with_context(failed)?;
        let index: WeightIndex = serde_json::from_slice(&text).with_context(failed)?;
        let names: BTreeSet<String> = index.weight_map.into_values().collect();
        Ok(names.into_iter().collect())
    }

    /// Whether all weights are in `snapshot`.
    pub fn is_whole(&self, snapshot: &Path) -> bool {
        self.weights(snapshot)
            .is_ok_and(|names| names.iter().all(|name| snapshot.join(name).is_file()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(id: &str, names: &[&str]) -> Result<Choice> {
        choose(&id.parse().unwrap(), names.iter().copied())
    }

    fn gguf(parts: &[&str]) -> Choice {
        Choice::Gguf(parts.iter().map(|part| part.to_string()).collect())
    }

    const QUANTIZED: [&str; 8] = [
        "README.md",
        "x-BF16/x-BF16-00001-of-00002.gguf",
        "x-BF16/x-BF16-00002-of-00002.gguf",
        "x-F16.gguf",
        "x-Q4_K.gguf",
        "x-Q4_K_M.gguf",
        "x-UD-Q4_K_XL.gguf",
        "mmproj-F16.gguf",
    ];

    #[test]
    fn files_are_chosen_by_name_or_type() {
        let both = ["x-BF16/x-BF16-00001-of-00002.gguf", "x-BF16/x-BF16-00002-of-00002.gguf"];
        for (file, parts) in [
            ("x-Q4_K.gguf", &["x-Q4_K.gguf"][..]),
            ("mmproj-F16.gguf", &["mmproj-F16.gguf"]),
            ("Q4_K_M", &["x-Q4_K_M.gguf"]),
            ("q4_k", &["x-Q4_K.gguf"]),
            ("F16", &["x-F16.gguf"]),
            ("Q4_K_XL", &["x-UD-Q4_K_XL.gguf"]),
            ("UD-Q4_K_XL", &["x-UD-Q4_K_XL.gguf"]),
            ("bf16", &both),
            (both[1], &both),
        ] {
            let found = chosen(&format!("o/r:{file}"), &QUANTIZED).unwrap();
            assert_eq!(found, gguf(parts), "{file}");
        }
        let both = both.map(String::from);
        assert!(is_whole(&both) && !is_whole(&both[1..]));
    }

    #[test]
    fn what_is_ambiguous_or_absent_lists_the_candidates() {
        let message = |id: &str, names: &[&str]| chosen(id, names).unwrap_err().to_string();
        let several = message("o/r", &QUANTIZED);
        assert!(several.contains("x-F16.gguf") && several.contains("x-Q4_K.gguf"), "{several}");
        assert!(!several.contains("mmproj"), "{several}");
        let absent = message("o/r:Q8_0", &QUANTIZED);
        assert!(absent.contains("no such file or type") && absent.contains("x-F16.gguf"));
        let two = message("o/r:Q8_0", &["a-Q8_0.gguf", "b-Q8_0.gguf", "c-F16.gguf"]);
        assert!(two.contains("a-Q8_0.gguf, b-Q8_0.gguf") && !two.contains("c-F16"), "{two}");
        assert!(message("o/r:Q8_0", &["model.safetensors"]).contains("no .gguf files"));
        assert!(message("o/r", &["README.md", "pytorch_model.bin"]).contains("no model"));
    }

    #[test]
    fn the_only_gguf_file_needs_no_name() {
        assert_eq!(chosen("o/r", &["m.gguf", "mmproj-m.gguf"]).unwrap(), gguf(&["m.gguf"]));
    }

    #[test]
    fn a_directory_is_what_it_takes_to_run_it_and_no_more() {
        let names = [
            "config.json",
            "tokenizer.json",
            "model.safetensors",
            INDEX,
            "pytorch_model.bin",
            "original/consolidated.safetensors",
            "onnx/model.onnx",
            "README.md",
            "x.gguf",
        ];
        let Choice::Directory(found) = chosen("o/r", &names).unwrap() else { panic!() };
        assert_eq!(found.small, ["config.json", "tokenizer.json"]);
        assert_eq!(found.weights(Path::new("absent")).unwrap(), ["model.safetensors"]);
    }

    #[test]
    fn an_index_names_the_shards() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["config.json", INDEX, "a.safetensors", "b.safetensors", "c.safetensors"];
        let Choice::Directory(found) = chosen("o/r", &names).unwrap() else { panic!() };
        assert_eq!(found.small, ["config.json", INDEX]);
        assert!(found.weights(folder.path()).is_err());
        let index =
            r#"{"weight_map":{"x":"b.safetensors","y":"a.safetensors","z":"b.safetensors"}}"#;
        std::fs::write(folder.path().join(INDEX), index).unwrap();
        assert_eq!(found.weights(folder.path()).unwrap(), ["a.safetensors", "b.safetensors"]);
        assert!(!found.is_whole(folder.path()));
    }
}
