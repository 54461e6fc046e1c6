//! How text is cut into words before a model cuts these into tokens.

use serde_json::{Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper};

use super::TokenizerError;
use super::decoder::Decoder;
use super::rules::{Cut, Rule};

/// The steps, one after the other.
#[derive(Default)]
pub(super) struct PreTokenizer {
    pub steps: Vec<Step>,
}

pub(super) enum Step {
    /// One of the `tokenizers` crate.
    Crate(PreTokenizerWrapper),
    /// Spaces as `▁`, with one put before the text; applied here, as the crate asks the place of a piece in the
    /// original text, which pieces lose when hidden strings are put back in.
    Metaspace(Metaspace),
}

impl PreTokenizer {
    /// Cuts the pieces that are still text.
    pub(super) fn cut(&self, pieces: &mut PreTokenizedString) -> tokenizers::Result<()> {
        for step in &self.steps {
            match step {
                Step::Crate(step) => step.pre_tokenize(pieces)?,
                Step::Metaspace(step) => metaspace(step, pieces)?,
            }
        }
        Ok(())
    }

    /// The pre-tokenizer of a named rule.
    pub(super) fn from_rule(
        file: &str,
        rule: &Rule,
        add_prefix_space: bool,
    ) -> Result<Self, TokenizerError> {
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        for cut in rule.cuts {
            match cut {
                Cut::Gpt2 => return Ok(Self::crate_steps(steps, gpt2(add_prefix_space))),
                Cut::Digits => steps.push(Digits::new(true).into()),
                Cut::Split(expression) => {
                    let pattern = SplitPattern::Regex((*expression).to_owned());
                    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
                    let split = split.map_err(|error| TokenizerError::Build {
                        file: file.to_owned(),
                        message: error.to_string(),
                    })?;
                    steps.push(split.into());
                }
            }
        }
        Ok(Self::crate_steps(steps, ByteLevel::new(add_prefix_space, true, false).into()))
    }

    fn crate_steps(steps: Vec<PreTokenizerWrapper>, last: PreTokenizerWrapper) -> Self {
        Self { steps: steps.into_iter().chain([last]).map(Step::Crate).collect() }
    }

    /// GPT-2's pre-tokenizer.
    pub(super) fn gpt2(add_prefix_space: bool) -> Self {
        Self { steps: vec![Step::Crate(gpt2(add_prefix_space))] }
    }

    /// What each step is, in words that are the same for steps that do the same; and whether a space goes before
    /// the text.
    pub(super) fn describe(&self) -> (Vec<String>, bool) {
        let mut names = Vec::new();
        let mut prefix = false;
        for step in &self.steps {
            match step {
                Step::Crate(PreTokenizerWrapper::ByteLevel(bytes)) => {
                    prefix |= bytes.add_prefix_space;
                    names.push(if bytes.use_regex { "GPT-2" } else { "ByteLevel" }.to_owned());
                }
                Step::Crate(step) => {
                    let value = json!(step);
                    let isolated = value["behavior"] == "Isolated" && value["invert"] != true;
                    match (value["type"].as_str(), value["pattern"]["Regex"].as_str()) {
                        (Some("Digits"), _) if value["individual_digits"] == true => {
                            names.push("Digits".to_owned());
                        }
                        (Some("Split"), Some(r"\p{N}")) if isolated => {
                            names.push("Digits".to_owned());
                        }
                        (Some("Split"), Some(regex)) if isolated => {
                            // Some files write line ends as they are.
                            let regex = regex.replace('\r', r"\r").replace('\n', r"\n");
                            names.push(format!("Split {regex}"));
                        }
                        _ => names.push(value.to_string()),
                    }
                }
                Step::Metaspace(step) => {
                    let scheme = match step.prepend_scheme {
                        PrependScheme::First => "first",
                        PrependScheme::Never => "never",
                        PrependScheme::Always => "always",
                    };
                    let split = if step.split { ", split" } else { "" };
                    names.push(format!("Metaspace {scheme}{split}"));
                }
            }
        }
        (names, prefix)
    }
}

impl Cut {
    /// As [`PreTokenizer::describe`] says it.
    pub(super) fn describe(self) -> String {
        match self {
            Cut::Gpt2 => "GPT-2".to_owned(),
            Cut::Digits | Cut::Split(r"\p{N}") => "Digits".to_owned(),
            Cut::Split(regex) => format!("Split {regex}"),
        }
    }
}

fn gpt2(add_prefix_space: bool) -> PreTokenizerWrapper {
    ByteLevel::new(add_prefix_space, true, true).into()
}

fn metaspace(step: &Metaspace, pieces: &mut PreTokenizedString) -> tokenizers::Result<()> {
    let space = step.get_replacement().to_string();
    pieces.split(|index, mut piece| {
        piece.replace(' ', &space)?;
        let prepend = match step.prepend_scheme {
            PrependScheme::Always => true,
            PrependScheme::First => index == 0 && piece.offsets_original().0 == 0,
            PrependScheme::Never => false,
        };
        if prepend && !piece.get().starts_with(step.get_replacement()) {
            piece.prepend(&space);
        }
        match step.split {
            true => piece.split(step.get_replacement(), SplitDelimiterBehavior::MergedWithNext),
            false => Ok(vec![piece]),
        }
    })
}

/// The crate's pre-tokenizers that can be read.
const STEPS: &[&str] =
    &["ByteLevel", "Split", "Digits", "Punctuation", "Metaspace", "WhitespaceSplit", "Sequence"];

/// The `pre_tokenizer` of a `tokenizer.json`. `add_prefix_space` overrides its own setting where it is
/// `ByteLevel` alone.
pub(super) fn from_json(
    file: &str,
    value: &Value,
    add_prefix_space: Option<bool>,
    decoder: Decoder,
) -> Result<PreTokenizer, TokenizerError> {
    let mut all = Vec::new();
    flatten(file, value, &mut all)?;
    let byte_level = |step: &&Value| step["type"] == "ByteLevel";
    let wrong = |found: &str| {
        Err(TokenizerError::Unsupported {
            file: file.to_owned(),
            part: "pre-tokenizer",
            found: found.to_owned(),
            supported: STEPS.join(", "),
        })
    };
    match decoder {
        Decoder::ByteLevel if value.is_null() => return wrong("none"),
        Decoder::ByteLevel if !all.iter().any(byte_level) => return wrong("without ByteLevel"),
        Decoder::Metaspace { .. } if all.iter().any(byte_level) => {
            return wrong("ByteLevel with a decoder of another kind");
        }
        _ => {}
    }
    let mut steps = Vec::new();
    for step in all {
        let mut step = step.clone();
        if value["type"] == "ByteLevel"
            && let Some(add) = add_prefix_space
        {
            step["add_prefix_space"] = json!(add);
        }
        let step = serde_json::from_value(step).map_err(|error| TokenizerError::Field {
            file: file.to_owned(),
            field: "pre_tokenizer".to_owned(),
            problem: format!("is not valid: {error}"),
        })?;
        steps.push(match step {
            PreTokenizerWrapper::Metaspace(step) => Step::Metaspace(step),
            step => Step::Crate(step),
        });
    }
    Ok(PreTokenizer { steps })
}

/// The steps of nested sequences.
fn flatten<'a>(
    file: &str,
    value: &'a Value,
    steps: &mut Vec<&'a Value>,
) -> Result<(), TokenizerError> {
    let found = value.get("type").and_then(Value::as_str);
    match found {
        None if value.is_null() => {}
        Some("Sequence") => {
            for step in value.get("pretokenizers").and_then(Value::as_array).into_iter().flatten() {
                flatten(file, step, steps)?;
            }
        }
        Some(name) if STEPS.contains(&name) => steps.push(value),
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
