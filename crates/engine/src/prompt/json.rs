//! `tojson` as chat templates know it: Python's `json.dumps`, which escapes no HTML.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::template::MAX_OUTPUT;

/// Deeper values than this are refused; templates have no use for them.
const MAX_DEPTH: usize = 128;
/// What a value costs of the template's budget: reaching one in a list of lists can take long.
const VALUE_COST: u64 = 8;

/// The filter `tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
pub(super) fn tojson(state: &State, value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<Value> = options.get("indent")?;
    let indent = match indent {
        Some(indent) if !indent.is_none() => Some(match indent.as_str() {
            Some(indent) => indent.to_owned(),
            None => " ".repeat(usize::try_from(indent)?.min(64)),
        }),
        _ => None,
    };
    let separators: Option<Value> = options.get("separators")?;
    let (item, key) = match separators {
        Some(separators) if !separators.is_none() => {
            let text = |index: usize| -> Result<String, Error> {
                Ok(separators.get_item_by_index(index)?.as_str().unwrap_or_default().to_owned())
            };
            (text(0)?, text(1)?)
        }
        _ if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        _ => (", ".to_owned(), ": ".to_owned()),
    };
    let mut writer = Writer {
        state,
        output: String::new(),
        indent,
        item,
        key,
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    // They are written once an item, so a long one is much from little.
    if [&writer.item, &writer.key].into_iter().chain(&writer.indent).any(|text| text.len() > 64) {
        return Err(Error::new(ErrorKind::InvalidOperation, "indent or separators are too long"));
    }
    writer.value(value, 0)?;
    Ok(writer.output)
}

struct Writer<'a> {
    state: &'a State<'a, 'a>,
    output: String,
    indent: Option<String>,
    item: String,
    key: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        // One long string can be in a list many times, at no cost until it is written.
        if self.output.len() > MAX_OUTPUT {
            return Err(Error::from(ErrorKind::OutOfFuel));
        }
        self.state.consume_fuel(VALUE_COST)?;
        if depth > MAX_DEPTH {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "the value is nested too deeply for tojson",
            ));
        }
        match value.kind() {
            ValueKind::None => self.output.push_str("null"),
            ValueKind::Bool => self.output.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.output.push_str(&number(value)?),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                // Not collected: a list added to itself again and again is long and takes no memory.
                let items = value.try_iter()?;
                self.list('[', ']', items, depth, |writer, item| writer.value(&item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.list('{', '}', keys.iter(), depth, |writer, key| {
                    match key.kind() {
                        ValueKind::String => writer.string(key.as_str().unwrap_or_default()),
                        ValueKind::Number => writer.string(&number(key)?),
                        ValueKind::Bool => {
                            writer.string(if key.is_true() { "true" } else { "false" })
                        }
                        ValueKind::None => writer.string("null"),
                        kind => return Err(not_serializable(kind)),
                    }
                    writer.output.push_str(&writer.key);
                    writer.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            kind => return Err(not_serializable(kind)),
        }
        Ok(())
    }

    fn list<T>(
        &mut self,
        open: char,
        close: char,
        items: impl Iterator<Item = T>,
        depth: usize,
        mut element: impl FnMut(&mut Self, T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.output.push(open);
        let mut is_empty = true;
        for item in items {
            if !is_empty {
                self.output.push_str(&self.item);
            }
            is_empty = false;
            self.line(depth + 1);
            element(self, item)?;
        }
        if !is_empty {
            self.line(depth);
        }
        self.output.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.output.push('\n');
            for _ in 0..depth {
                self.output.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.output.push('"');
        for character in text.chars() {
            match character {
                '"' => self.output.push_str("\\\""),
                '\\' => self.output.push_str("\\\\"),
                '\n' => self.output.push_str("\\n"),
                '\r' => self.output.push_str("\\r"),
                '\t' => self.output.push_str("\\t"),
                '\u{8}' => self.output.push_str("\\b"),
                '\u{c}' => self.output.push_str("\\f"),
                '\0'..='\x1f' => self.escape(character),
                // A private-use character can be the placeholder of a special token's string, which must
                // be found again in the output.
                _ if self.ensure_ascii
                    && (!character.is_ascii() || character == '\x7f')
                    && !crate::tokenizer::is_private_use(character) =>
                {
                    self.escape(character);
                }
                _ => self.output.push(character),
            }
        }
        self.output.push('"');
    }

    fn escape(&mut self, character: char) {
        let mut units = [0; 2];
        for unit in character.encode_utf16(&mut units) {
            self.output.push_str(&format!("\\u{unit:04x}"));
        }
    }
}

fn not_serializable(kind: ValueKind) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("{kind} cannot be written as JSON"))
}

/// A number as Python writes it: floats in the fewest digits, with an exponent below 1e-4 and from 1e16.
fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let number = f64::try_from(value.clone())?;
    if number.is_nan() {
        return Ok("NaN".to_owned());
    }
    if number.is_infinite() {
        return Ok(if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned());
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return Ok(format!("{digits}e{sign}{:02}", exponent.abs()));
    }
    // `Debug` keeps the `.0` of a whole number.
    Ok(format!("{number:?}"))
}
