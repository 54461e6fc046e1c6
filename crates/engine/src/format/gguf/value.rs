//! The values of GGUF metadata.

use std::fmt;

use super::super::error::quote;

/// A value: one of the 13 types of the GGUF specification.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // each variant holds the Rust type of its name
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array, stored as one vector of its element type: a vocabulary has hundreds of thousands.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // each variant holds the Rust type of its name
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// The same expression for every variant of an array, with its vector as `$v`.
macro_rules! of_array {
    ($array:expr, $v:ident => $e:expr) => {
        match $array {
            Array::U8($v) => $e,
            Array::I8($v) => $e,
            Array::U16($v) => $e,
            Array::I16($v) => $e,
            Array::U32($v) => $e,
            Array::I32($v) => $e,
            Array::F32($v) => $e,
            Array::Bool($v) => $e,
            Array::String($v) => $e,
            Array::Array($v) => $e,
            Array::U64($v) => $e,
            Array::I64($v) => $e,
            Array::F64($v) => $e,
        }
    };
}

impl Value {
    /// What the type is called in messages and listings.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::U8(_) => "u8",
            Self::I8(_) => "i8",
            Self::U16(_) => "u16",
            Self::I16(_) => "i16",
            Self::U32(_) => "u32",
            Self::I32(_) => "i32",
            Self::F32(_) => "f32",
            Self::Bool(_) => "bool",
            Self::String(_) => "string",
            Self::Array(array) => array.type_name(),
            Self::U64(_) => "u64",
            Self::I64(_) => "i64",
            Self::F64(_) => "f64",
        }
    }

    /// The number that stands for the type in a file.
    pub(super) fn type_id(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::String(_) => 8,
            Self::Array(_) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    /// The value as an unsigned integer, if it is an integer and not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::U32(v) => Some(v.into()),
            Self::U64(v) => Some(v),
            Self::I8(v) => v.try_into().ok(),
            Self::I16(v) => v.try_into().ok(),
            Self::I32(v) => v.try_into().ok(),
            Self::I64(v) => v.try_into().ok(),
            Self::F32(_) | Self::F64(_) | Self::Bool(_) | Self::String(_) | Self::Array(_) => None,
        }
    }
}

impl Array {
    /// The number of elements of this array; arrays inside it count as one each.
    pub fn len(&self) -> usize {
        of_array!(self, v => v.len())
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number that stands for the type of the elements in a file.
    pub(super) fn element_type_id(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::String(_) => 8,
            Self::Array(_) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    /// What the type is called in messages and listings.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::U8(_) => "array of u8",
            Self::I8(_) => "array of i8",
            Self::U16(_) => "array of u16",
            Self::I16(_) => "array of i16",
            Self::U32(_) => "array of u32",
            Self::I32(_) => "array of i32",
            Self::F32(_) => "array of f32",
            Self::Bool(_) => "array of bool",
            Self::String(_) => "array of string",
            Self::Array(_) => "array of arrays",
            Self::U64(_) => "array of u64",
            Self::I64(_) => "array of i64",
            Self::F64(_) => "array of f64",
        }
    }
}

/// Values of the types that a writer makes.
macro_rules! from {
    ($($type:ty => $value:expr;)*) => {
        $(impl From<$type> for Value {
            fn from(value: $type) -> Self {
                $value(value)
            }
        })*
    };
}

from! {
    u32 => Value::U32;
    u64 => Value::U64;
    i32 => Value::I32;
    f32 => Value::F32;
    bool => Value::Bool;
    String => Value::String;
    Vec<String> => |v| Value::Array(Array::String(v));
    Vec<i32> => |v| Value::Array(Array::I32(v));
    Vec<f32> => |v| Value::Array(Array::F32(v));
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::String(value.to_owned())
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U8(v) => v.fmt(f),
            Self::I8(v) => v.fmt(f),
            Self::U16(v) => v.fmt(f),
            Self::I16(v) => v.fmt(f),
            Self::U32(v) => v.fmt(f),
            Self::I32(v) => v.fmt(f),
            Self::F32(v) => v.fmt(f),
            Self::Bool(v) => v.fmt(f),
            Self::String(v) => f.write_str(&quote(v)),
            Self::Array(v) => v.fmt(f),
            Self::U64(v) => v.fmt(f),
            Self::I64(v) => v.fmt(f),
            Self::F64(v) => v.fmt(f),
        }
    }
}

/// The first few elements, and how many there are if that is not all of them.
impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 6;
        f.write_str("[")?;
        match self {
            Self::String(v) => list(f, v.iter().take(SHOWN).map(|text| quote(text)))?,
            other => of_array!(other, v => list(f, v.iter().take(SHOWN))?),
        }
        if self.len() > SHOWN {
            write!(f, ", ... ({} elements)", self.len())?;
        }
        f.write_str("]")
    }
}

fn list(
    f: &mut fmt::Formatter<'_>,
    elements: impl Iterator<Item = impl fmt::Display>,
) -> fmt::Result {
    for (index, element) in elements.enumerate() {
        if index > 0 {
            f.write_str(", ")?;
        }
        element.fmt(f)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_integers_that_fit_are_unsigned() {
        assert_eq!(Value::U8(7).as_u64(), Some(7));
        assert_eq!(Value::I32(0).as_u64(), Some(0));
        assert_eq!(Value::I64(i64::MAX).as_u64(), Some(i64::MAX as u64));
        assert_eq!(Value::U64(u64::MAX).as_u64(), Some(u64::MAX));
        assert_eq!(Value::I8(-1).as_u64(), None);
        assert_eq!(Value::F32(1.0).as_u64(), None);
        assert_eq!(Value::Bool(true).as_u64(), None);
        assert_eq!(Value::String("1".into()).as_u64(), None);
    }

    #[test]
    fn long_values_are_abbreviated() {
        assert_eq!(Value::F32(0.5).to_string(), "0.5");
        assert_eq!(Value::String("a\"b".into()).to_string(), r#""a\"b""#);
        assert_eq!(Value::Array(Array::I32(vec![])).to_string(), "[]");
        assert_eq!(Value::Array(Array::I32(vec![1; 6])).to_string(), "[1, 1, 1, 1, 1, 1]");
        let vocabulary = Value::Array(Array::String(vec!["▁a\n".into(); 200_000]));
        assert_eq!(
            vocabulary.to_string(),
            r#"["▁a\n", "▁a\n", "▁a\n", "▁a\n", "▁a\n", "▁a\n", ... (200000 elements)]"#
        );
        let nested = Array::Array(vec![Array::U8(vec![1, 2]), Array::Bool(vec![true])]);
        assert_eq!(nested.to_string(), "[[1, 2], [true]]");
        assert_eq!(Value::Array(nested).type_name(), "array of arrays");
    }
}
