//! Reading the header of a GGUF file front to back, never past its end.

use std::fmt;

use super::super::error::{FormatError, quote};
use super::value::{Array, Value};

/// The most bytes that a header (metadata and tensor list) may have. A vocabulary of a million
/// tokens with its merges takes some 40 MB.
pub(super) const MAX_HEADER_BYTES: usize = 128 << 20;

/// How deep arrays may nest. Files in use have no nested arrays at all.
pub(super) const MAX_NESTING: usize = 4;

/// A position in the header of a file.
pub(super) struct Reader<'a> {
    file: &'a str,
    header: &'a [u8],
    position: usize,
    file_bytes: usize,
}

/// The part of the header that is being read, for messages.
#[derive(Clone, Copy)]
pub(super) enum Part<'a> {
    Version,
    Counts,
    Key(u64),
    Value(&'a str),
    TensorName(u64),
    Tensor(&'a str),
}

impl fmt::Display for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version => f.write_str("the version"),
            Self::Counts => f.write_str("the number of tensors and keys"),
            Self::Key(index) => write!(f, "the name of key {index}"),
            Self::Value(key) => write!(f, "the value of key {}", quote(key)),
            Self::TensorName(index) => write!(f, "the name of tensor {index}"),
            Self::Tensor(name) => write!(f, "the description of tensor {}", quote(name)),
        }
    }
}

impl<'a> Reader<'a> {
    /// Starts at `position` of a file that errors call `file`.
    pub fn new(file: &'a str, bytes: &'a [u8], position: usize) -> Self {
        let header = bytes.get(..MAX_HEADER_BYTES).unwrap_or(bytes);
        Self { file, header, position, file_bytes: bytes.len() }
    }

    /// Bytes from the start of the file.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Bytes that are left.
    pub fn left(&self) -> u64 {
        self.header.len().saturating_sub(self.position) as u64
    }

    fn need(&self, bytes: u64, part: Part<'_>) -> Result<(), FormatError> {
        if bytes <= self.left() {
            return Ok(());
        }
        let (file, what, offset) = (self.file.to_owned(), part.to_string(), self.position as u64);
        let in_file = self.file_bytes.saturating_sub(self.position) as u64;
        Err(if bytes <= in_file {
            FormatError::HeaderTooLong { file, what, offset, limit: MAX_HEADER_BYTES as u64 }
        } else {
            FormatError::Truncated { file, what, offset, expected: bytes, found: in_file }
        })
    }

    fn take(&mut self, bytes: u64, part: Part<'_>) -> Result<&'a [u8], FormatError> {
        self.need(bytes, part)?;
        // In range and without overflow: `need` compared the sum with the header's length.
        let end = self.position + bytes as usize;
        let taken = &self.header[self.position..end];
        self.position = end;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self, part: Part<'_>) -> Result<[u8; N], FormatError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64, part)?);
        Ok(bytes)
    }

    pub fn u32(&mut self, part: Part<'_>) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.number(part)?))
    }

    pub fn u64(&mut self, part: Part<'_>) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.number(part)?))
    }

    /// A string: its length in bytes as u64, then its bytes.
    pub fn string(&mut self, part: Part<'_>) -> Result<String, FormatError> {
        let bytes = self.u64(part)?;
        // Copied before it is checked: the file is mapped and could change in between.
        match String::from_utf8(self.take(bytes, part)?.to_vec()) {
            Ok(text) => Ok(text),
            Err(_) => {
                Err(FormatError::NotUtf8 { file: self.file.to_owned(), what: part.to_string() })
            }
        }
    }

    /// The value of `key`: its type as u32, then the value.
    pub fn value(&mut self, key: &str) -> Result<Value, FormatError> {
        let part = Part::Value(key);
        Ok(match self.u32(part)? {
            0 => Value::U8(u8::from_le_bytes(self.number(part)?)),
            1 => Value::I8(i8::from_le_bytes(self.number(part)?)),
            2 => Value::U16(u16::from_le_bytes(self.number(part)?)),
            3 => Value::I16(i16::from_le_bytes(self.number(part)?)),
            4 => Value::U32(u32::from_le_bytes(self.number(part)?)),
            5 => Value::I32(i32::from_le_bytes(self.number(part)?)),
            6 => Value::F32(f32::from_le_bytes(self.number(part)?)),
            7 => {
                let [byte] = self.number(part)?;
                Value::Bool(self.truth(byte, key)?)
            }
            8 => Value::String(self.string(part)?),
            9 => Value::Array(self.array(key, 1)?),
            10 => Value::U64(u64::from_le_bytes(self.number(part)?)),
            11 => Value::I64(i64::from_le_bytes(self.number(part)?)),
            12 => Value::F64(f64::from_le_bytes(self.number(part)?)),
            id => return Err(self.unknown_type(key, id)),
        })
    }

    /// An array: the type of its elements as u32, their number as u64, then the elements.
    fn array(&mut self, key: &str, depth: usize) -> Result<Array, FormatError> {
        if depth > MAX_NESTING {
            let (file, key) = (self.file.to_owned(), key.to_owned());
            return Err(FormatError::NestedTooDeep { file, key, limit: MAX_NESTING });
        }
        let part = Part::Value(key);
        let id = self.u32(part)?;
        let count = self.u64(part)?;
        Ok(match id {
            0 => Array::U8(self.numbers(count, part, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(count, part, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(count, part, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(count, part, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(count, part, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(count, part, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(count, part, f32::from_le_bytes)?),
            7 => {
                let bytes = self.take(count, part)?;
                Array::Bool(
                    bytes.iter().map(|&byte| self.truth(byte, key)).collect::<Result<_, _>>()?,
                )
            }
            8 => {
                let mut strings = self.room_for(count, 8, part)?;
                for _ in 0..count {
                    strings.push(self.string(part)?);
                }
                Array::String(strings)
            }
            9 => {
                let mut arrays = self.room_for(count, 12, part)?;
                for _ in 0..count {
                    arrays.push(self.array(key, depth + 1)?);
                }
                Array::Array(arrays)
            }
            10 => Array::U64(self.numbers(count, part, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(count, part, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(count, part, f64::from_le_bytes)?),
            id => return Err(self.unknown_type(key, id)),
        })
    }

    fn numbers<const N: usize, T>(
        &mut self,
        count: u64,
        part: Part<'_>,
        from_le_bytes: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, FormatError> {
        let bytes = self.take(count.saturating_mul(N as u64), part)?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|&chunk| from_le_bytes(chunk)).collect())
    }

    /// An empty vector with room for `count` elements of at least `element_bytes` each, provided that
    /// so many can still follow.
    fn room_for<T>(
        &self,
        count: u64,
        element_bytes: u64,
        part: Part<'_>,
    ) -> Result<Vec<T>, FormatError> {
        self.need(count.saturating_mul(element_bytes), part)?;
        Ok(Vec::with_capacity(count as usize))
    }

    fn truth(&self, byte: u8, key: &str) -> Result<bool, FormatError> {
        match byte {
            0 => Ok(false),
            1 => Ok(true),
            found => {
                let (file, key) = (self.file.to_owned(), key.to_owned());
                Err(FormatError::BadBool { file, key, found })
            }
        }
    }

    fn unknown_type(&self, key: &str, id: u32) -> FormatError {
        let (file, key) = (self.file.to_owned(), key.to_owned());
        FormatError::UnknownValueType { file, key, id }
    }
}
