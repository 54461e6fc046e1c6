//! Writing GGUF files, version 3, front to back.
//!
//! The header says where every tensor lies, so types and shapes come first and the data follows in the same order, in
//! pieces of any size: a file of any length is written with the memory of one piece. Everything goes to a file beside
//! the destination, which takes the destination's name only once it is whole.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::super::dtype::DType;
use super::super::error::FormatError;
use super::metadata::Metadata;
use super::value::{Array, Value};

/// Pieces this small are collected before they are written.
const BUFFER: usize = 1 << 20;

/// What the header says about a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorHeader {
    /// The name.
    pub name: String,
    /// The type of the elements.
    pub dtype: DType,
    /// The dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl TensorHeader {
    /// The bytes of the tensor; `None` if its rows are no whole blocks, or the number does not fit.
    pub fn byte_len(&self) -> Option<usize> {
        self.dtype.bytes_for(self.shape.last().copied().unwrap_or(1))?;
        let elements = self.shape.iter().try_fold(1usize, |product, &d| product.checked_mul(d))?;
        self.dtype.bytes_for(elements)
    }
}

/// Whether a file of the destination's name may be there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It is an error.
    Refuse,
    /// It is replaced once the new file is whole.
    Replace,
}

/// A GGUF file that is being written. Dropped before [`Writer::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct Writer {
    destination: PathBuf,
    existing: Existing,
    partial: PathBuf,
    file: BufWriter<File>,
    alignment: u64,
    /// Bytes written so far.
    position: u64,
    /// Bytes of the tensors that are not complete, the current one last.
    left: Vec<usize>,
}

impl Writer {
    /// Writes the header: `metadata`, whose `general.alignment` is followed, and `tensors` in the order in which their
    /// data will come.
    ///
    /// # Errors
    /// When the destination may not be written, or a tensor cannot be stored in its type.
    pub fn create(
        destination: &Path,
        existing: Existing,
        metadata: &Metadata,
        tensors: &[TensorHeader],
    ) -> Result<Self, FormatError> {
        check_destination(destination, existing)?;
        let alignment = u64::from(super::alignment(metadata)?);
        let mut header = Vec::new();
        header.extend(b"GGUF");
        header.extend(3u32.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.iter().len() as u64).to_le_bytes());
        for (key, value) in metadata.iter() {
            push_string(&mut header, key);
            push_value(&mut header, value);
        }
        let mut left = Vec::with_capacity(tensors.len());
        let mut offset = 0u64;
        for tensor in tensors {
            let bytes = checked_byte_len(destination, tensor)?;
            push_string(&mut header, &tensor.name);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            for &dimension in tensor.shape.iter().rev() {
                header.extend((dimension as u64).to_le_bytes());
            }
            let id = tensor.dtype.ggml_id().ok_or_else(|| not_ggml(destination, tensor))?;
            header.extend(id.to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset += (bytes as u64).next_multiple_of(alignment);
            left.push(bytes);
        }
        header.resize((header.len() as u64).next_multiple_of(alignment) as usize, 0);
        left.reverse();

        let partial = partial_path(destination);
        let file = OpenOptions::new().write(true).create_new(true).open(&partial);
        let file = file.map_err(|cause| FormatError::io(&partial, "create", cause))?;
        let file = BufWriter::with_capacity(BUFFER, file);
        let destination = destination.to_owned();
        let mut writer =
            Self { destination, existing, partial, file, alignment, position: 0, left };
        writer.put(&header)?;
        Ok(writer)
    }

    /// Writes the next bytes of the tensors' data, which may end anywhere within the current tensor.
    ///
    /// # Errors
    /// When the file cannot be written.
    ///
    /// # Panics
    /// When the bytes are more than the current tensor has left.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let left = self.left.last_mut().expect("no more bytes than the header has room for");
        *left = left.checked_sub(bytes.len()).expect("no more bytes than the tensor has left");
        let complete = *left == 0;
        self.put(bytes)?;
        if complete {
            self.left.pop();
            let padding = self.position.next_multiple_of(self.alignment) - self.position;
            self.put(&vec![0; padding as usize])?;
        }
        Ok(())
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// When the file cannot be written, or another has taken its name meanwhile.
    ///
    /// # Panics
    /// When the data of a tensor is missing.
    pub fn finish(mut self) -> Result<(), FormatError> {
        assert!(self.left.is_empty(), "the data of every tensor was written");
        let failed = |action| {
            let file = self.destination.clone();
            move |cause| FormatError::io(&file, action, cause)
        };
        self.file.flush().map_err(failed("write"))?;
        // Some file systems only say now that the disk is full.
        self.file.get_ref().sync_all().map_err(failed("write"))?;
        check_destination(&self.destination, self.existing)?;
        fs::rename(&self.partial, &self.destination).map_err(failed("create"))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        self.position += bytes.len() as u64;
        let written = self.file.write_all(bytes);
        written.map_err(|cause| FormatError::io(&self.destination, "write", cause))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // After a rename there is nothing to remove, and an error that came before matters more than one here.
        let _ = fs::remove_file(&self.partial);
    }
}

/// Where a file is until it is whole: a name beside the destination that no other process uses. Who ends the program
/// while it writes must remove it.
pub fn partial_path(destination: &Path) -> PathBuf {
    let mut name = destination.as_os_str().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    PathBuf::from(name)
}

/// Refuses to replace what must not be replaced. Looks at the name itself: a link is not followed.
pub fn check_destination(destination: &Path, existing: Existing) -> Result<(), FormatError> {
    let file = || destination.display().to_string();
    match fs::symlink_metadata(destination) {
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(cause) => Err(FormatError::io(destination, "create", cause)),
        Ok(metadata) if !metadata.is_file() => Err(FormatError::NotReplaceable { file: file() }),
        Ok(_) if existing == Existing::Refuse => Err(FormatError::Exists { file: file() }),
        Ok(_) => Ok(()),
    }
}

fn checked_byte_len(file: &Path, tensor: &TensorHeader) -> Result<usize, FormatError> {
    let (file, name, dtype) = (file.display().to_string(), tensor.name.clone(), tensor.dtype);
    if tensor.shape.contains(&0) {
        return Err(FormatError::ZeroDimension { file, tensor: name, shape: tensor.shape.clone() });
    }
    let (limit, found) = (super::MAX_DIMENSIONS, tensor.shape.len() as u32);
    if found > limit {
        return Err(FormatError::TooManyDimensions { file, tensor: name, found, limit });
    }
    let row = tensor.shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(dtype.block_size()) {
        return Err(FormatError::PartialBlock { file, tensor: name, dtype, found: row });
    }
    tensor.byte_len().ok_or_else(|| {
        let shape = tensor.shape.iter().map(|&d| d as u64).collect();
        FormatError::SizeOverflow { file, tensor: name, dtype, shape }
    })
}

fn not_ggml(file: &Path, tensor: &TensorHeader) -> FormatError {
    let (file, tensor, dtype) =
        (file.display().to_string(), tensor.name.clone(), tensor.dtype.name().to_owned());
    FormatError::NotAGgmlType { file, tensor, dtype }
}

/// Its length in bytes as u64, then its bytes.
fn push_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Its type as u32, then the value.
fn push_value(out: &mut Vec<u8>, value: &Value) {
    out.extend(value.type_id().to_le_bytes());
    match value {
        Value::U8(v) => out.extend(v.to_le_bytes()),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(v) => push_string(out, v),
        Value::Array(v) => push_array(out, v),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
    }
}

/// The type of its elements as u32, their number as u64, then the elements.
fn push_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.element_type_id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::U16(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I16(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::U32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::F32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|v| u8::from(*v))),
        Array::String(v) => v.iter().for_each(|v| push_string(out, v)),
        Array::Array(v) => v.iter().for_each(|v| push_array(out, v)),
        Array::U64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::F64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::super::super::{Checkpoint, Source};
    use super::*;

    fn header(name: &str, dtype: DType, shape: &[usize]) -> TensorHeader {
        TensorHeader { name: name.into(), dtype, shape: shape.to_vec() }
    }

    /// Every type of value, nested arrays, and an alignment of its own.
    fn metadata() -> Metadata {
        let mut metadata = Metadata::new("m.gguf".into());
        for (key, value) in [
            ("u8", Value::U8(200)),
            ("i8", Value::I8(-1)),
            ("u16", Value::U16(0xABCD)),
            ("i16", Value::I16(-2)),
            ("general.alignment", Value::U32(64)),
            ("i32", Value::I32(-3)),
            ("f32", Value::F32(1.5)),
            ("bool", Value::Bool(true)),
            ("string", Value::String("Ġhello".into())),
            ("u64", Value::U64(u64::MAX)),
            ("i64", Value::I64(i64::MIN)),
            ("f64", Value::F64(0.1)),
            ("u8s", Value::Array(Array::U8(vec![1, 2]))),
            ("i8s", Value::Array(Array::I8(vec![-1]))),
            ("u16s", Value::Array(Array::U16(vec![1, 258]))),
            ("i16s", Value::Array(Array::I16(vec![-258]))),
            ("u32s", Value::Array(Array::U32(vec![1 << 30]))),
            ("i32s", Value::Array(Array::I32(vec![-(1 << 30)]))),
            ("f32s", Value::Array(Array::F32(vec![0.25]))),
            ("bools", Value::Array(Array::Bool(vec![false, true]))),
            ("strings", Value::Array(Array::String(vec!["".into(), "é".into()]))),
            ("arrays", Value::Array(Array::Array(vec![Array::U8(vec![7]), Array::I8(vec![])]))),
            ("u64s", Value::Array(Array::U64(vec![1 << 60]))),
            ("i64s", Value::Array(Array::I64(vec![-1]))),
            ("f64s", Value::Array(Array::F64(vec![]))),
        ] {
            metadata.insert(key.into(), value).unwrap();
        }
        metadata
    }

    fn names(folder: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(folder.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let tensors = [
            header("matrix", DType::F32, &[3, 2]),
            header("blocks", DType::Q8_0, &[2, 1, 2, 32]),
            header("number", DType::F16, &[]),
        ];
        let metadata = metadata();
        let mut writer = Writer::create(&path, Existing::Refuse, &metadata, &tensors).unwrap();
        // In pieces that are no whole elements.
        for piece in [&[7; 5][..], &[7; 19], &[8; 136], &[], &[9; 2]] {
            writer.write(piece).unwrap();
        }
        assert!(!path.exists(), "it has its name only once it is whole");
        writer.finish().unwrap();
        assert_eq!(names(&folder), ["m.gguf"]);

        let checkpoint = Checkpoint::open(&path).unwrap();
        let Source::Gguf(found) = checkpoint.source() else { panic!("not a directory") };
        assert!(found.iter().eq(metadata.iter()));
        for (tensor, (header, byte)) in checkpoint.tensors().iter().zip(tensors.iter().zip(7..)) {
            assert_eq!(tensor.name, header.name);
            assert_eq!((tensor.dtype, &tensor.shape), (header.dtype, &header.shape));
            assert_eq!(Some(tensor.byte_len()), header.byte_len());
            assert!(tensor.range.start.is_multiple_of(64), "{}", tensor.name);
            assert!(checkpoint.bytes(tensor).iter().all(|&found| found == byte));
        }
    }

    #[test]
    fn what_is_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let tensors = [header("a", DType::F32, &[2])];
        let mut writer = Writer::create(&path, Existing::Refuse, &metadata(), &tensors).unwrap();
        writer.write(&[0; 4]).unwrap();
        drop(writer);
        assert!(names(&folder).is_empty());
    }

    #[test]
    fn only_what_may_be_replaced_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        fs::write(&path, "older").unwrap();
        let create = |path: &Path, existing| Writer::create(path, existing, &metadata(), &[]);
        let error = create(&path, Existing::Refuse).unwrap_err();
        assert!(matches!(error, FormatError::Exists { .. }), "{error}");
        let error = create(folder.path(), Existing::Replace).unwrap_err();
        assert!(matches!(error, FormatError::NotReplaceable { .. }), "{error}");
        let error = create(&folder.path().join("no/m.gguf"), Existing::Refuse).unwrap_err();
        assert!(matches!(error, FormatError::Io { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"older");
        create(&path, Existing::Replace).unwrap().finish().unwrap();
        assert!(fs::read(&path).unwrap().starts_with(b"GGUF"));

        // One that comes while ours is written is not replaced either.
        let other = folder.path().join("other.gguf");
        let writer = create(&other, Existing::Refuse).unwrap();
        fs::write(&other, "theirs").unwrap();
        writer.finish().unwrap_err();
        assert_eq!(fs::read(&other).unwrap(), b"theirs");
        assert_eq!(names(&folder).len(), 2);
    }

    #[test]
    fn tensors_that_no_file_can_hold_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        for (dtype, shape) in [
            (DType::Q8_0, &[2, 33][..]),
            (DType::F32, &[0]),
            (DType::F32, &[1; 5]),
            (DType::F32, &[usize::MAX, 2]),
            (DType::U8, &[1]),
        ] {
            let tensors = [header("a", dtype, shape)];
            let error = Writer::create(&path, Existing::Refuse, &metadata(), &tensors).unwrap_err();
            assert!(error.to_string().contains("\"a\""), "{error}");
        }
        assert!(names(&folder).is_empty());
    }
}
