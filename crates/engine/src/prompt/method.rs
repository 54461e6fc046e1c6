//! Python's methods of strings, lists and dictionaries.
//!
//! `minijinja-contrib` has them, but only what they return counts against the template's budget, after it was
//! made. The few that can make much from little are measured here first.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::template::MAX_OUTPUT;

/// The most parts a string can be split into; a part takes some ten times the memory of its character.
const MAX_PARTS: usize = 1 << 20;
/// The widest field of `str.format`.
const MAX_WIDTH_DIGITS: usize = 4;

/// Calls a method that Jinja itself does not know.
pub(super) fn call(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        check(text, name, arguments)?;
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

fn check(text: &str, name: &str, arguments: &[Value]) -> Result<(), Error> {
    let too_much = || Error::from(ErrorKind::OutOfFuel);
    match name {
        "replace" => {
            let (old, new, _): (&str, &str, Option<i32>) = from_args(arguments)?;
            let added = new.len().saturating_sub(old.len());
            let length = text.matches(old).count().saturating_mul(added).saturating_add(text.len());
            if length > MAX_OUTPUT {
                return Err(too_much());
            }
        }
        "join" => {
            let (values,): (&Value,) = from_args(arguments)?;
            let mut length = 0usize;
            for value in values.try_iter()? {
                // Lists and dictionaries can hold one long string many times; strings are what is joined.
                if matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
                    return Err(Error::new(ErrorKind::InvalidOperation, "join takes strings"));
                }
                let part = value.as_str().map_or(32, |part| part.len() + 1);
                length = length.saturating_add(part).saturating_add(text.len());
                if length > MAX_OUTPUT {
                    return Err(too_much());
                }
            }
        }
        "split" => {
            let parts = match arguments.first().and_then(Value::as_str) {
                Some(separator) => text.matches(separator).count(),
                None => text.chars().filter(|character| character.is_whitespace()).count(),
            };
            if parts > MAX_PARTS {
                return Err(too_much());
            }
        }
        "splitlines" if text.matches('\n').count() > MAX_PARTS => return Err(too_much()),
        "format" => {
            let mut digits = 0;
            let mut depth = 0;
            for character in text.chars() {
                digits = if character.is_ascii_digit() { digits + 1 } else { 0 };
                depth = match character {
                    '{' => depth + 1,
                    '}' => 0,
                    _ if depth > 1 => return Err(unsupported_format()),
                    _ => depth,
                };
                if depth == 1 && digits > MAX_WIDTH_DIGITS {
                    return Err(unsupported_format());
                }
            }
        }
        _ => {}
    }
    Ok(())
}

fn unsupported_format() -> Error {
    Error::new(ErrorKind::InvalidOperation, "format takes plain fields no wider than 9999")
}
