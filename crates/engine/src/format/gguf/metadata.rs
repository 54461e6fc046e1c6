//! The key-value pairs of a GGUF file, and reading them as the type that is wanted.

use std::collections::HashMap;

use super::super::error::FormatError;
use super::value::{Array, Value};

/// The metadata of a GGUF file. The accessors never cast: a value of another type, or one that does
/// not fit, is an error that names the file, the key, what was expected and what was found.
#[derive(Clone, Debug)]
pub struct Metadata {
    file: String,
    pairs: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

const STRING: &str = "a string";
const U64: &str = "a non-negative integer";
const U32: &str = "an integer from 0 to 4294967295";
const F32: &str = "a floating-point number";
const BOOL: &str = "a bool";
const STRINGS: &str = "an array of strings";
const I32S: &str = "an array of i32";
const F32S: &str = "an array of f32";

impl Metadata {
    /// Metadata of the file that errors call `file`, so far without keys.
    pub fn new(file: String) -> Self {
        Self { file, pairs: Vec::new(), index: HashMap::new() }
    }

    /// Adds a pair; a key that is there already is an error.
    pub(super) fn insert(&mut self, key: String, value: Value) -> Result<(), FormatError> {
        if self.index.insert(key.clone(), self.pairs.len()).is_some() {
            return Err(FormatError::DuplicateKey { file: self.file.clone(), key });
        }
        self.pairs.push((key, value));
        Ok(())
    }

    /// Gives a key a value, in the place of the one that it has.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        match self.index.get(key).and_then(|&index| self.pairs.get_mut(index)) {
            Some((_, old)) => *old = value.into(),
            None => {
                self.index.insert(key.to_owned(), self.pairs.len());
                self.pairs.push((key.to_owned(), value.into()));
            }
        }
    }

    /// What errors call the file.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The pairs, in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).and_then(|&index| self.pairs.get(index)).map(|(_, value)| value)
    }

    /// The model family, `general.architecture`, which every model file has.
    pub fn architecture(&self) -> Result<&str, FormatError> {
        self.require_string("general.architecture")
    }

    /// A string.
    pub fn string(&self, key: &str) -> Result<Option<&str>, FormatError> {
        self.read(key, STRING, |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// An integer of any type whose value is not negative.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, FormatError> {
        self.read(key, U64, Value::as_u64)
    }

    /// An integer of any type whose value fits.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, FormatError> {
        self.read(key, U32, |value| value.as_u64()?.try_into().ok())
    }

    /// An integer of any type whose value fits.
    pub fn usize(&self, key: &str) -> Result<Option<usize>, FormatError> {
        self.read(key, U64, |value| value.as_u64()?.try_into().ok())
    }

    /// A number of type F32, or of type F64 rounded to F32.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, FormatError> {
        self.read(key, F32, |value| match *value {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => None,
        })
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, FormatError> {
        self.read(key, BOOL, |value| match *value {
            Value::Bool(v) => Some(v),
            _ => None,
        })
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, FormatError> {
        self.read(key, STRINGS, |value| match value {
            Value::Array(Array::String(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// An array of I32.
    pub fn i32s(&self, key: &str) -> Result<Option<&[i32]>, FormatError> {
        self.read(key, I32S, |value| match value {
            Value::Array(Array::I32(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// An array of F32.
    pub fn f32s(&self, key: &str) -> Result<Option<&[f32]>, FormatError> {
        self.read(key, F32S, |value| match value {
            Value::Array(Array::F32(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// [`Self::string`] of a key that must be there.
    pub fn require_string(&self, key: &str) -> Result<&str, FormatError> {
        self.present(key, STRING, self.string(key)?)
    }

    /// [`Self::u64`] of a key that must be there.
    pub fn require_u64(&self, key: &str) -> Result<u64, FormatError> {
        self.present(key, U64, self.u64(key)?)
    }

    /// [`Self::u32`] of a key that must be there.
    pub fn require_u32(&self, key: &str) -> Result<u32, FormatError> {
        self.present(key, U32, self.u32(key)?)
    }

    /// [`Self::usize`] of a key that must be there.
    pub fn require_usize(&self, key: &str) -> Result<usize, FormatError> {
        self.present(key, U64, self.usize(key)?)
    }

    /// [`Self::f32`] of a key that must be there.
    pub fn require_f32(&self, key: &str) -> Result<f32, FormatError> {
        self.present(key, F32, self.f32(key)?)
    }

    /// [`Self::bool`] of a key that must be there.
    pub fn require_bool(&self, key: &str) -> Result<bool, FormatError> {
        self.present(key, BOOL, self.bool(key)?)
    }

    /// [`Self::strings`] of a key that must be there.
    pub fn require_strings(&self, key: &str) -> Result<&[String], FormatError> {
        self.present(key, STRINGS, self.strings(key)?)
    }

    /// [`Self::i32s`] of a key that must be there.
    pub fn require_i32s(&self, key: &str) -> Result<&[i32], FormatError> {
        self.present(key, I32S, self.i32s(key)?)
    }

    /// [`Self::f32s`] of a key that must be there.
    pub fn require_f32s(&self, key: &str) -> Result<&[f32], FormatError> {
        self.present(key, F32S, self.f32s(key)?)
    }

    fn read<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        cast: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, FormatError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match cast(value) {
            Some(read) => Ok(Some(read)),
            None => Err(FormatError::WrongType {
                file: self.file.clone(),
                key: key.to_owned(),
                expected,
                found: format!("{} {value}", value.type_name()),
            }),
        }
    }

    fn present<T>(
        &self,
        key: &str,
        expected: &'static str,
        value: Option<T>,
    ) -> Result<T, FormatError> {
        value.ok_or_else(|| FormatError::MissingKey {
            file: self.file.clone(),
            key: key.to_owned(),
            expected,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Metadata {
        let mut metadata = Metadata::new("m.gguf".into());
        for (key, value) in [
            ("general.architecture", Value::String("gpt2".into())),
            ("u8", Value::U8(255)),
            ("i32", Value::I32(12)),
            ("negative", Value::I32(-1)),
            ("u64", Value::U64(1 << 40)),
            ("f32", Value::F32(1e-5)),
            ("f64", Value::F64(0.1)),
            ("bool", Value::Bool(true)),
            ("strings", Value::Array(Array::String(vec!["a".into(), "b".into()]))),
            ("i32s", Value::Array(Array::I32(vec![1, -2]))),
            ("f32s", Value::Array(Array::F32(vec![0.5]))),
        ] {
            metadata.insert(key.into(), value).unwrap();
        }
        metadata
    }

    #[test]
    fn values_are_read_as_what_they_are() {
        let m = metadata();
        assert_eq!(m.architecture().unwrap(), "gpt2");
        assert_eq!(m.require_u32("u8").unwrap(), 255);
        assert_eq!(m.require_usize("i32").unwrap(), 12);
        assert_eq!(m.require_u64("u64").unwrap(), 1 << 40);
        assert_eq!(m.require_f32("f32").unwrap(), 1e-5);
        assert_eq!(m.require_f32("f64").unwrap(), 0.1);
        assert!(m.require_bool("bool").unwrap());
        assert_eq!(m.require_strings("strings").unwrap(), ["a", "b"]);
        assert_eq!(m.require_i32s("i32s").unwrap(), [1, -2]);
        assert_eq!(m.require_f32s("f32s").unwrap(), [0.5]);
        assert_eq!(m.u32("absent").unwrap(), None);
        assert_eq!(m.iter().next().unwrap().0, "general.architecture");
        assert_eq!(m.iter().len(), 11);
    }

    #[test]
    fn nothing_is_cast() {
        let m = metadata();
        for error in [
            m.u64("negative").unwrap_err(),
            m.u32("u64").unwrap_err(),
            m.u32("f32").unwrap_err(),
            m.u32("bool").unwrap_err(),
            m.f32("i32").unwrap_err(),
            m.bool("u8").unwrap_err(),
            m.string("strings").unwrap_err(),
            m.strings("general.architecture").unwrap_err(),
            m.i32s("f32s").unwrap_err(),
            m.f32s("i32s").unwrap_err(),
        ] {
            assert!(matches!(error, FormatError::WrongType { .. }), "{error}");
        }
        assert_eq!(
            m.u32("negative").unwrap_err().to_string(),
            "m.gguf: key \"negative\" should hold an integer from 0 to 4294967295, found i32 -1"
        );
        assert_eq!(
            m.require_u32("absent").unwrap_err().to_string(),
            "m.gguf: key \"absent\" is missing, expected an integer from 0 to 4294967295"
        );
    }

    #[test]
    fn a_key_occurs_once() {
        let error = metadata().insert("bool".into(), Value::Bool(false)).unwrap_err();
        assert!(matches!(error, FormatError::DuplicateKey { .. }), "{error}");
    }
}
