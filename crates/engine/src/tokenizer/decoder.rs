//! How tokens become text again.

use serde::Deserialize;
use serde_json::Value;

use super::TokenizerError;

/// SentencePiece's space.
pub(super) const SPACE: char = '\u{2581}';
/// The decoders that can be read.
const SUPPORTED: &str = "ByteLevel, Metaspace, Sequence of Replace (\u{2581} by a space), ByteFallback, Fuse, Strip (one space on the left)";

/// How tokens become text again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decoder {
    /// Each character of a token is a byte.
    ByteLevel,
    /// Each `▁` is a space.
    Metaspace {
        /// Whether `<0xE2>` is a byte. A run of such tokens that is not UTF-8 is one U+FFFD for each of them.
        bytes: bool,
        start: Start,
    },
}

/// What is taken from the start of the text, which encoding put there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Keep,
    /// One space.
    Space,
    /// Every space of the first token, as the `Metaspace` decoder does.
    FirstToken,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Step {
    Replace { pattern: Pattern, content: String },
    ByteFallback {},
    Fuse {},
    Strip { content: char, start: usize, stop: usize },
}

#[derive(Deserialize, PartialEq)]
enum Pattern {
    String(String),
    Regex(String),
}

impl Decoder {
    /// Reads the `decoder` of a `tokenizer.json`.
    pub(super) fn from_json(file: &str, value: &Value) -> Result<Self, TokenizerError> {
        match value.get("type").and_then(Value::as_str) {
            Some("ByteLevel") => Ok(Self::ByteLevel),
            Some("Metaspace") => {
                let is_space = value.get("replacement").is_none_or(|r| *r == SPACE.to_string());
                let prepends = value.get("prepend_scheme").is_none_or(|scheme| scheme != "never");
                let prepends =
                    prepends && value.get("add_prefix_space") != Some(&Value::Bool(false));
                let start = if prepends { Start::FirstToken } else { Start::Keep };
                match is_space {
                    true => Ok(Self::Metaspace { bytes: false, start }),
                    false => Err(unsupported(file, "Metaspace with another replacement")),
                }
            }
            Some("Sequence") => sequence(file, value),
            found => Err(unsupported(file, found.unwrap_or("none"))),
        }
    }
}

fn unsupported(file: &str, found: &str) -> TokenizerError {
    TokenizerError::Unsupported {
        file: file.to_owned(),
        part: "decoder",
        found: found.to_owned(),
        supported: SUPPORTED.to_owned(),
    }
}

/// Each step at most once, in the order in which they work on text that SentencePiece wrote.
fn sequence(file: &str, value: &Value) -> Result<Decoder, TokenizerError> {
    let names = |steps: &[Value]| {
        let names = steps.iter().map(|step| step["type"].as_str().unwrap_or("none"));
        format!("Sequence of {}", names.collect::<Vec<_>>().join(", "))
    };
    let steps = value.get("decoders").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let failed = || unsupported(file, &names(steps));
    let (mut replaced, mut bytes, mut fused, mut stripped) = (false, false, false, false);
    for step in steps {
        match Step::deserialize(step).map_err(|_| failed())? {
            Step::Replace { pattern, content }
                if pattern == Pattern::String(SPACE.to_string())
                    && content == " "
                    && !(replaced || bytes || fused || stripped) =>
            {
                replaced = true;
            }
            Step::ByteFallback {} if replaced && !(bytes || fused || stripped) => bytes = true,
            Step::Fuse {} if replaced && !(fused || stripped) => fused = true,
            Step::Strip { content: ' ', start: 1, stop: 0 } if fused && !stripped => {
                stripped = true
            }
            _ => return Err(failed()),
        }
    }
    if !replaced {
        return Err(failed());
    }
    let start = if stripped { Start::Space } else { Start::Keep };
    Ok(Decoder::Metaspace { bytes, start })
}

/// The byte that a token such as `<0xE2>` stands for.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hex.then(|| u8::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sequences_of_known_steps_in_order() {
        let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
        let bytes = json!({"type": "ByteFallback"});
        let fuse = json!({"type": "Fuse"});
        let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
        let read = |steps: &[&Value]| {
            let value = json!({"type": "Sequence", "decoders": steps});
            Decoder::from_json("f", &value).map_err(|error| error.to_string())
        };
        let all = read(&[&replace, &bytes, &fuse, &strip]);
        assert_eq!(all, Ok(Decoder::Metaspace { bytes: true, start: Start::Space }));
        let gemma = read(&[&replace, &bytes, &fuse]);
        assert_eq!(gemma, Ok(Decoder::Metaspace { bytes: true, start: Start::Keep }));
        let two = json!({"type": "Strip", "content": " ", "start": 2, "stop": 0});
        for steps in [
            &[][..],
            &[&bytes],
            &[&bytes, &replace],
            &[&replace, &bytes, &strip],
            &[&replace, &bytes, &fuse, &two],
            &[&replace, &replace],
        ] {
            let error = read(steps).unwrap_err();
            assert!(error.contains("decoder \"Sequence of"), "{error}");
        }
    }

    #[test]
    fn byte_tokens_have_two_digits() {
        assert_eq!(byte_of("<0x0A>"), Some(10));
        assert_eq!(byte_of("<0xff>"), Some(255));
        for token in ["<0x0>", "<0x0AA>", "<0x+1>", "0x0A", "<0xG0>", "<0x>"] {
            assert_eq!(byte_of(token), None);
        }
    }
}
