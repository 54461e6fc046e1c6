//! How text is cut into words before merges apply.

use serde_json::{Value, json};
use tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use super::TokenizerError;

/// How a GGUF file's `tokenizer.ggml.pre` cuts words.
enum Rule {
    /// The crate's own GPT-2 rule.
    Gpt2,
    /// These expressions one after the other; each match, and what is between two, is a piece.
    Split(&'static [&'static str]),
}

/// GPT-2's words: contractions, letters, digits and other marks, each with one space before, and whitespace.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

/// The pre-tokenizers that GGUF files name. The name says how a model was trained: with another rule the
/// ids are plausible and wrong, so a name that is not here is refused.
const BY_NAME: &[(&[&str], Rule)] = &[
    (
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
        ],
        Rule::Gpt2,
    ),
    // llama.cpp's rule for this name, from before GGUF files named theirs.
    (&["default"], Rule::Split(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"])),
];

/// The pre-tokenizer of a GGUF file. A file without `tokenizer.ggml.pre` gets GPT-2's rule: such files are
/// older than the field, and among the models of that time in GPT-2's own architecture there was no other.
pub(super) fn from_gguf_name(
    name: Option<&str>,
    add_prefix_space: bool,
) -> Result<PreTokenizerWrapper, TokenizerError> {
    let wanted = name.unwrap_or("gpt-2");
    let Some((_, rule)) = BY_NAME.iter().find(|(names, _)| names.contains(&wanted)) else {
        let names: Vec<&str> =
            BY_NAME.iter().flat_map(|(names, _)| names.iter().copied()).collect();
        return Err(TokenizerError::Unsupported {
            file: super::from_gguf::FILE.to_owned(),
            part: "pre-tokenizer",
            found: wanted.to_owned(),
            supported: names.join(", "),
        });
    };
    match rule {
        Rule::Gpt2 => Ok(gpt2(add_prefix_space)),
        Rule::Split(expressions) => {
            let mut steps = Vec::new();
            for expression in *expressions {
                let pattern = SplitPattern::Regex((*expression).to_owned());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(
                    |error| TokenizerError::Build {
                        file: super::from_gguf::FILE.to_owned(),
                        message: error.to_string(),
                    },
                )?;
                steps.push(split.into());
            }
            steps.push(ByteLevel::new(add_prefix_space, true, false).into());
            Ok(Sequence::new(steps).into())
        }
    }
}

/// GPT-2's pre-tokenizer.
pub(super) fn gpt2(add_prefix_space: bool) -> PreTokenizerWrapper {
    ByteLevel::new(add_prefix_space, true, true).into()
}

/// Those of the crate's pre-tokenizers that byte-level tokenizers use.
const STEPS: &[&str] = &["ByteLevel", "Split", "Digits", "Punctuation", "Sequence"];

/// The `pre_tokenizer` of a `tokenizer.json`. `add_prefix_space` overrides its own setting where it is
/// `ByteLevel` alone.
pub(super) fn from_json(
    file: &str,
    value: &Value,
    add_prefix_space: Option<bool>,
) -> Result<PreTokenizerWrapper, TokenizerError> {
    let mut byte_level = false;
    check(file, value, &mut byte_level)?;
    if !byte_level {
        return Err(TokenizerError::Unsupported {
            file: file.to_owned(),
            part: "pre-tokenizer",
            found: "without ByteLevel".to_owned(),
            supported: STEPS.join(", "),
        });
    }
    let mut value = value.clone();
    if value["type"] == "ByteLevel"
        && let Some(add) = add_prefix_space
    {
        value["add_prefix_space"] = json!(add);
    }
    serde_json::from_value(value).map_err(|error| TokenizerError::Field {
        file: file.to_owned(),
        field: "pre_tokenizer".to_owned(),
        problem: format!("is not valid: {error}"),
    })
}

fn check(file: &str, value: &Value, byte_level: &mut bool) -> Result<(), TokenizerError> {
    let found = value.get("type").and_then(Value::as_str);
    match found {
        Some("ByteLevel") => *byte_level = true,
        Some("Sequence") => {
            for step in value.get("pretokenizers").and_then(Value::as_array).into_iter().flatten() {
                check(file, step, byte_level)?;
            }
        }
        Some(name) if STEPS.contains(&name) => {}
        _ => {
            return Err(TokenizerError::Unsupported {
                file: file.to_owned(),
                part: "pre-tokenizer",
                found: found.unwrap_or("none").to_owned(),
                supported: STEPS.join(", "),
            });
        }
    }
    Ok(())
}
