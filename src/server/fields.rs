//! Reading the fields of a request: each by its name and type, and none left over.

use super::error::ApiError;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// The fields of a JSON object that nobody has asked for yet. A field that is `null` is as good as absent.
#[derive(Debug, Default)]
pub struct Fields {
    fields: Map<String, Value>,
    /// What stands before the name of a field in errors, such as `messages[2].`.
    path: String,
}

impl Fields {
    /// The fields of a request's body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let text = std::str::from_utf8(body)
            .map_err(|error| ApiError::bad(format!("the body is not UTF-8: {error}")))?;
        let value: Value = serde_json::from_str(text)
            .map_err(|error| ApiError::bad(format!("the body is not valid JSON: {error}")))?;
        match value {
            Value::Object(fields) => Ok(Fields { fields, path: String::new() }),
            other => Err(ApiError::bad(format!("expected a JSON object, found {}", kind(&other)))),
        }
    }

    /// The fields of a value within a request, which is at `path`.
    pub fn of(value: Value, path: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(fields) => Ok(Fields { fields, path: format!("{path}.") }),
            other => Err(wrong(path, "an object", &other)),
        }
    }

    /// The name of a field in errors.
    pub fn name(&self, field: &str) -> String {
        format!("{}{field}", self.path)
    }

    /// Whether a field is there.
    pub fn has(&self, field: &str) -> bool {
        self.fields.get(field).is_some_and(|value| !value.is_null())
    }

    /// A field that is left where it is.
    pub fn peek(&self, field: &str) -> Option<&Value> {
        self.fields.get(field)
    }

    /// Takes a field as it is.
    pub fn take(&mut self, field: &str) -> Option<Value> {
        self.fields.shift_remove(field).filter(|value| !value.is_null())
    }

    /// Takes a field that must be there.
    pub fn require(&mut self, field: &str) -> Result<Value, ApiError> {
        let missing =
            || ApiError::field(self.name(field), format!("`{}` is missing", self.name(field)));
        let missing = missing();
        self.take(field).ok_or(missing)
    }

    pub fn string(&mut self, field: &str) -> Result<Option<String>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(&self.name(field), "a string", &other)),
        }
    }

    pub fn boolean(&mut self, field: &str) -> Result<Option<bool>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong(&self.name(field), "true or false", &other)),
        }
    }

    pub fn number(&mut self, field: &str) -> Result<Option<f32>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(number.as_f64().map(|number| number as f32)),
            Some(other) => Err(wrong(&self.name(field), "a number", &other)),
        }
    }

    pub fn integer(
        &mut self,
        field: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match whole(&value).filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let expected = format!("an integer from {} to {}", range.start(), range.end());
                Err(wrong(&self.name(field), &expected, &value))
            }
        }
    }

    pub fn array(&mut self, field: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(wrong(&self.name(field), "an array", &other)),
        }
    }

    pub fn object(&mut self, field: &str) -> Result<Option<Fields>, ApiError> {
        self.take(field).map(|value| Fields::of(value, &self.name(field))).transpose()
    }

    /// Takes fields that change nothing in the answer, whatever is in them.
    pub fn ignore(&mut self, fields: &[&str]) {
        for field in fields {
            self.fields.shift_remove(*field);
        }
    }

    /// Takes a field that is supported with one value alone, the one that changes nothing.
    pub fn only(&mut self, field: &str, values: &[Value]) -> Result<(), ApiError> {
        match self.take(field) {
            None => Ok(()),
            Some(value) if values.contains(&value) => Ok(()),
            Some(value) => {
                let name = self.name(field);
                let values: Vec<String> = values.iter().map(Value::to_string).collect();
                let message = format!(
                    "`{name}`: {} is not supported (supported: {})",
                    short(&value),
                    values.join(", ")
                );
                Err(ApiError::unsupported(name, message))
            }
        }
    }

    /// Refuses what nobody has asked for.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.fields.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((field, _)) => {
                let name = self.name(&short_text(field));
                let message = format!("`{name}` is not supported");
                Err(ApiError::unsupported(name, message))
            }
        }
    }
}

/// A number that is a whole one, also written as `5.0`.
pub fn whole(value: &Value) -> Option<u64> {
    let float = || {
        let number = value.as_f64()?;
        let is_whole = number.fract() == 0.0 && (0.0..9e15).contains(&number);
        is_whole.then_some(number as u64)
    };
    value.as_u64().or_else(float)
}

/// The error for a value of the wrong type or out of range.
pub fn wrong(name: &str, expected: &str, found: &Value) -> ApiError {
    ApiError::field(name, format!("`{name}`: expected {expected}, found {}", short(found)))
}

/// A value in a few words.
pub fn short(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => kind(value).to_string(),
        Value::String(text) => format!("{:?}", short_text(text)),
        value => value.to_string(),
    }
}

fn short_text(text: &str) -> String {
    if text.chars().count() > 64 {
        return text.chars().take(61).collect::<String>() + "...";
    }
    text.to_string()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        Fields::parse(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn what_nobody_asks_for_is_refused_by_name() {
        let mut request = fields(json!({"a": 1, "b": {"c": null, "d": 2}, "e": null}));
        assert_eq!(request.integer("a", 0..=1).unwrap(), Some(1));
        let error = request.object("b").unwrap().unwrap().finish().unwrap_err();
        assert_eq!(error.message, "`b.d` is not supported");
        assert_eq!(error.param.as_deref(), Some("b.d"));
        request.finish().unwrap();
    }

    #[test]
    fn types_and_ranges_are_named() {
        let mut request = fields(json!({"a": "x", "b": -1, "c": 1.5, "d": 2.0, "e": [1]}));
        let message = |error: ApiError| error.message;
        assert_eq!(
            message(request.number("a").unwrap_err()),
            "`a`: expected a number, found \"x\""
        );
        assert_eq!(
            message(request.integer("b", 0..=9).unwrap_err()),
            "`b`: expected an integer from 0 to 9, found -1"
        );
        assert!(request.integer("c", 0..=9).is_err());
        assert_eq!(request.integer("d", 0..=9).unwrap(), Some(2));
        assert_eq!(
            message(request.string("e").unwrap_err()),
            "`e`: expected a string, found an array"
        );
        assert_eq!(message(request.require("f").unwrap_err()), "`f` is missing");
    }

    #[test]
    fn bodies_that_are_no_objects_are_refused() {
        for (body, part) in [
            (&b"{\"a\":"[..], "not valid JSON"),
            (b"{\"a\": NaN}", "not valid JSON"),
            (b"{\"a\": 1e999}", "not valid JSON"),
            (b"[]", "expected a JSON object, found an array"),
            (b"{\"a\": \"\xff\"}", "not UTF-8"),
            (b"", "not valid JSON"),
        ] {
            let error = Fields::parse(body).unwrap_err();
            assert!(error.message.contains(part), "{}", error.message);
            assert_eq!(error.status.as_u16(), 400);
        }
    }
}
