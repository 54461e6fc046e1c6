//! The log: a line on standard error for each request and each answer, never with what they say.

use super::app::{Log, unix_seconds};
use serde_json::{Value, json};

/// Writes a line with the time and the fields of an object.
pub fn write(log: Log, fields: Value) {
    let mut line = json!({"time": unix_seconds()});
    if let (Value::Object(line), Value::Object(fields)) = (&mut line, fields) {
        line.extend(fields);
    }
    match log {
        Log::Off => {}
        Log::Json => eprintln!("{line}"),
        Log::Text => {
            let fields = line.as_object().into_iter().flatten();
            let fields = fields.map(|(name, value)| match value {
                Value::String(text) if is_plain(text) => format!("{name}={text}"),
                Value::Number(number) if number.is_f64() => {
                    format!("{name}={:.1}", number.as_f64().unwrap_or_default())
                }
                value => format!("{name}={value}"),
            });
            eprintln!("{}", fields.collect::<Vec<_>>().join(" "));
        }
    }
}

/// Whether a text needs no quotes to be told from the next field.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && c != '"')
}
