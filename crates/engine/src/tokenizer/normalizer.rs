//! What is done to a text before it is cut into words.

use serde_json::{Value, json};
use tokenizers::NormalizerWrapper;

use super::TokenizerError;
use super::decoder::SPACE;

/// Those of the crate's normalizers that can be read.
const NORMALIZERS: &[&str] =
    &["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "Replace", "Strip", "Sequence"];
/// A text can grow this much by replacements; those of tokenizers write one character of three bytes.
const MAX_GROWTH: usize = 1 << 10;

/// The `normalizer` of a `tokenizer.json`.
pub(super) fn from_json(
    file: &str,
    value: Value,
) -> Result<Option<NormalizerWrapper>, TokenizerError> {
    let mut growth = 1;
    let steps = check(file, &value, &mut growth)?;
    if growth > MAX_GROWTH {
        return Err(TokenizerError::TooMany {
            file: file.to_owned(),
            what: "bytes that its normalizer makes of one",
            count: growth,
            limit: MAX_GROWTH,
        });
    }
    match steps {
        0 => Ok(None),
        _ => parse(file, value).map(Some),
    }
}

fn parse(file: &str, value: Value) -> Result<NormalizerWrapper, TokenizerError> {
    serde_json::from_value(value).map_err(|error| TokenizerError::Field {
        file: file.to_owned(),
        field: "normalizer".to_owned(),
        problem: format!("is not valid: {error}"),
    })
}

/// How many steps there are; multiplies `growth` by how much longer each can make a text.
fn check(file: &str, value: &Value, growth: &mut usize) -> Result<usize, TokenizerError> {
    if value.is_null() {
        return Ok(0);
    }
    let found = value.get("type").and_then(Value::as_str).unwrap_or("without a type");
    if !NORMALIZERS.contains(&found) {
        return Err(TokenizerError::Unsupported {
            file: file.to_owned(),
            part: "normalizer",
            found: found.to_owned(),
            supported: NORMALIZERS.join(", "),
        });
    }
    let text = if found == "Prepend" { &value["prepend"] } else { &value["content"] };
    let length = text.as_str().map_or(1, |text| text.len().max(1));
    *growth = growth.saturating_mul(length);
    match value.get("normalizers").and_then(Value::as_array).filter(|_| found == "Sequence") {
        None => Ok(1),
        Some(steps) => steps.iter().map(|step| check(file, step, growth)).sum(),
    }
}

/// SentencePiece's: spaces as `▁`, and where it adds a space before the text, one there.
pub(super) fn sentencepiece(
    file: &str,
    add_space_prefix: bool,
) -> Result<NormalizerWrapper, TokenizerError> {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let prepend = json!({"type": "Prepend", "prepend": SPACE});
    let value = match add_space_prefix {
        true => json!({"type": "Sequence", "normalizers": [prepend, replace]}),
        false => replace,
    };
    parse(file, value)
}

/// Whether a `▁` is put before the text.
pub(super) fn prepends(normalizer: &NormalizerWrapper) -> bool {
    match normalizer {
        NormalizerWrapper::Prepend(prepend) => prepend.prepend.contains(SPACE),
        NormalizerWrapper::Sequence(steps) => steps.as_ref().iter().any(prepends),
        _ => false,
    }
}

/// Whether there is a normalizer that [`prepends`].
pub(super) fn prepends_to(normalizer: &Option<NormalizerWrapper>) -> bool {
    normalizer.as_ref().is_some_and(prepends)
}

/// Composition of characters and marks.
pub(super) fn nfc(file: &str) -> Result<NormalizerWrapper, TokenizerError> {
    parse(file, json!({"type": "NFC"}))
}
