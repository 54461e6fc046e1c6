//! Typed look-ups in `config.json`, with errors that name the file, the key, and what was found.

use super::super::ModelError;
use serde_json::{Map, Value};
use std::path::PathBuf;

/// A JSON object that came from a file.
#[derive(Clone)]
pub struct Json<'a> {
    path: PathBuf,
    /// The keys that lead to it, each with a dot after it.
    within: String,
    map: &'a Map<String, Value>,
}

impl<'a> Json<'a> {
    /// The object `map` of the file at `path`.
    pub fn new(path: PathBuf, map: &'a Map<String, Value>) -> Self {
        Json { path, within: String::new(), map }
    }

    /// The object at `key`.
    pub fn object(&self, key: &str) -> Result<Option<Json<'a>>, ModelError> {
        let map = self.typed(key, "an object", Value::as_object)?;
        let (path, within) = (self.path.clone(), format!("{}{key}.", self.within));
        Ok(map.map(|map| Json { path, within, map }))
    }

    /// What errors call the file.
    pub fn file(&self) -> String {
        self.path.display().to_string()
    }

    /// The error for a key that has to be there.
    pub fn missing(&self, key: &str, expected: &str) -> ModelError {
        self.error(key, expected, "nothing")
    }

    /// The error for a key whose value is not what it should be.
    pub fn error(&self, key: &str, expected: &str, found: impl ToString) -> ModelError {
        ModelError::Configuration {
            file: self.file(),
            key: format!("{}{key}", self.within),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// The value at `key`; `null` is as good as nothing.
    fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether there is a value that is not `null`.
    pub fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// Whether there is a value that is `null`.
    pub fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| {
            let mut found = value.to_string();
            if let Some((end, _)) = found.char_indices().nth(60) {
                found.truncate(end);
                found.push_str("...");
            }
            self.error(key, expected, found)
        })
    }

    /// A string.
    pub fn string(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// `true` or `false`.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A finite number.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, ModelError> {
        self.typed(key, "a number", |value| {
            value.as_f64().map(|number| number as f32).filter(|number| number.is_finite())
        })
    }

    /// A finite number.
    pub fn f64(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.typed(key, "a number", |value| value.as_f64().filter(|number| number.is_finite()))
    }

    /// A list of numbers.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, ModelError> {
        self.typed(key, "a list of numbers", |value| {
            value
                .as_array()?
                .iter()
                .map(|value| value.as_f64().map(|number| number as f32))
                .collect()
        })
    }

    /// A list of strings.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&'a str>>, ModelError> {
        self.typed(key, "a list of strings", |value| {
            value.as_array()?.iter().map(Value::as_str).collect()
        })
    }

    /// An integer from 0 to 2^32 - 1.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, ModelError> {
        self.typed(key, "an integer from 0 to 4294967295", |value| {
            value.as_u64().and_then(|number| u32::try_from(number).ok())
        })
    }

    /// An integer from 1 to 2^32 - 1.
    pub fn size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.typed(key, "a positive integer", |value| {
            let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
            number.filter(|number| *number > 0).map(|number| number as usize)
        })
    }

    /// A [`Json::size`] that has to be there.
    pub fn required_size(&self, key: &str) -> Result<usize, ModelError> {
        self.size(key)?.ok_or_else(|| self.missing(key, "a positive integer"))
    }

    /// One token id or a list of them; empty where there is none.
    pub fn ids(&self, key: &str) -> Result<Vec<u32>, ModelError> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = self.typed(key, "a token id or a list of token ids", |value| match value {
            Value::Array(values) => values.iter().map(id).collect(),
            value => id(value).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }
}
