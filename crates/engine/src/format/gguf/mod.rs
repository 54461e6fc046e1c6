//! GGUF files, versions 2 and 3, little endian.
//!
//! The layout is that of `docs/gguf.md` in the ggml repository: the magic `GGUF`, the version (u32),
//! the number of tensors and of keys (u64 each), the key-value pairs, the tensor descriptions, padding
//! to the alignment, and the tensors' data. Version 3 differs from 2 only in allowing big endian.
//!
//! Where that page and its readers leave a choice: a dimension of zero is refused, because no model
//! has such a weight and every consumer would have to think of it; the alignment is any multiple of
//! 8; strings that are not UTF-8 are refused, values included; tensors may leave gaps and come in any
//! order, but may not overlap.

mod file_type;
#[cfg(test)]
mod hostile;
mod metadata;
mod reader;
mod split;
#[cfg(test)]
mod tests;
mod value;
mod writer;

pub use file_type::{file_type, fitting, is_of_experts, keeps_f32, matrix_type};
pub use metadata::Metadata;
pub(super) use split::{from_bytes, open};
pub use value::{Array, Value};
pub use writer::{Existing, TensorHeader, Writer, check_destination, partial_path};

use super::dtype::DType;
use super::error::{FormatError, refuse_lfs_pointer};
use super::tensor::TensorInfo;
use reader::{Part, Reader};

const DEFAULT_ALIGNMENT: u32 = 32;
const MAX_ALIGNMENT: u32 = 1 << 20;
const MAX_DIMENSIONS: u32 = 4;

/// Bounds on what one file may declare, far above any model's; they keep what is allocated for a
/// hostile header within a few times the header's own size.
const MAX_KEYS: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 20;

/// The bytes of the shortest pair (empty key, one-byte value) and tensor description.
const MIN_PAIR_BYTES: u64 = 8 + 4 + 1;
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 4 + 8;

/// Reads the header of one file, the checkpoint's `index`th, and checks that the tensors lie in it.
pub(super) fn parse(
    file: &str,
    bytes: &[u8],
    index: usize,
) -> Result<(Metadata, Vec<TensorInfo>), FormatError> {
    refuse_lfs_pointer(file, bytes)?;
    match bytes.get(..4) {
        Some(b"GGUF") => {}
        Some(b"FUGG") => return Err(FormatError::BigEndian { file: file.to_owned() }),
        _ => {
            let found = describe_start(bytes);
            return Err(FormatError::NotGguf { file: file.to_owned(), found });
        }
    }
    let mut reader = Reader::new(file, bytes, 4);
    match reader.u32(Part::Version)? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 1..=3) => {
            return Err(FormatError::BigEndian { file: file.to_owned() });
        }
        version => return Err(FormatError::GgufVersion { file: file.to_owned(), version }),
    }
    let tensor_count = reader.u64(Part::Counts)?;
    let pair_count = reader.u64(Part::Counts)?;
    let at_most = |what, found, most: u64, room: u64| {
        let limit = most.min(room);
        if found <= limit {
            return Ok(());
        }
        Err(FormatError::CountTooLarge { file: file.to_owned(), what, found, limit })
    };

    at_most("keys", pair_count, MAX_KEYS, reader.left() / MIN_PAIR_BYTES)?;
    let mut metadata = Metadata::new(file.to_owned());
    for pair in 0..pair_count {
        let key = reader.string(Part::Key(pair))?;
        let value = reader.value(&key)?;
        metadata.insert(key, value)?;
    }
    let alignment = alignment(&metadata)?;

    at_most("tensors", tensor_count, MAX_TENSORS, reader.left() / MIN_TENSOR_BYTES)?;
    let mut descriptions = Vec::with_capacity(tensor_count as usize);
    for tensor in 0..tensor_count {
        let name = reader.string(Part::TensorName(tensor))?;
        descriptions.push(Description::read(&mut reader, file, name)?);
    }
    let data_start = (reader.position() as u64).next_multiple_of(alignment.into());
    let tensors: Vec<TensorInfo> = descriptions
        .into_iter()
        .map(|d| d.place(file, index, alignment.into(), data_start, bytes.len()))
        .collect::<Result<_, _>>()?;
    no_overlap(file, &tensors)?;
    Ok((metadata, tensors))
}

/// `general.alignment`, which every tensor's offset is a multiple of.
fn alignment(metadata: &Metadata) -> Result<u32, FormatError> {
    let alignment = metadata.u32("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if alignment == 0 || alignment % 8 != 0 || alignment > MAX_ALIGNMENT {
        let file = metadata.file().to_owned();
        return Err(FormatError::Alignment { file, found: alignment, limit: MAX_ALIGNMENT });
    }
    Ok(alignment)
}

/// A tensor as the header describes it, with a size that is known to be possible.
struct Description {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    bytes: usize,
    /// From the start of the data.
    offset: u64,
}

impl Description {
    fn read(reader: &mut Reader<'_>, file: &str, tensor: String) -> Result<Self, FormatError> {
        let file = file.to_owned();
        let part = Part::Tensor(&tensor);
        let dimensions = reader.u32(part)?;
        if dimensions > MAX_DIMENSIONS {
            let (found, limit) = (dimensions, MAX_DIMENSIONS);
            return Err(FormatError::TooManyDimensions { file, tensor, found, limit });
        }
        // The file has the innermost dimension first.
        let mut shape = vec![0; dimensions as usize];
        for dimension in shape.iter_mut().rev() {
            *dimension = reader.u64(part)?;
        }
        let id = reader.u32(part)?;
        let offset = reader.u64(part)?;

        let Some(dtype) = DType::from_ggml_id(id) else {
            return Err(FormatError::UnknownGgmlType { file, tensor, id });
        };
        let Some((shape, elements)) = addressable(&shape) else {
            return Err(FormatError::SizeOverflow { file, tensor, dtype, shape });
        };
        if elements == 0 {
            return Err(FormatError::ZeroDimension { file, tensor, shape });
        }
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(dtype.block_size()) {
            return Err(FormatError::PartialBlock { file, tensor, dtype, found: row });
        }
        let Some(bytes) = dtype.bytes_for(elements) else {
            let shape = shape.iter().map(|&d| d as u64).collect();
            return Err(FormatError::SizeOverflow { file, tensor, dtype, shape });
        };
        Ok(Self { name: tensor, dtype, shape, bytes, offset })
    }

    fn place(
        self,
        file: &str,
        index: usize,
        alignment: u64,
        data_start: u64,
        file_bytes: usize,
    ) -> Result<TensorInfo, FormatError> {
        let Self { name, dtype, shape, bytes, offset } = self;
        if !offset.is_multiple_of(alignment) {
            let (file, tensor) = (file.to_owned(), name);
            return Err(FormatError::Misaligned { file, tensor, offset, alignment });
        }
        let start = data_start.saturating_add(offset);
        let end = start.saturating_add(bytes as u64);
        if end > file_bytes as u64 {
            let (file, tensor) = (file.to_owned(), name);
            let found = file_bytes as u64;
            return Err(FormatError::TensorPastEnd { file, tensor, expected: end, found });
        }
        // Both fit: they are at most the length of the bytes in memory.
        Ok(TensorInfo { name, dtype, shape, file: index, range: start as usize..end as usize })
    }
}

/// The dimensions as sizes, and their product; `None` if one of them does not fit.
fn addressable(shape: &[u64]) -> Option<(Vec<usize>, usize)> {
    let shape =
        shape.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<usize>, _>>().ok()?;
    let elements = shape.iter().try_fold(1usize, |product, &d| product.checked_mul(d))?;
    Some((shape, elements))
}

fn no_overlap(file: &str, tensors: &[TensorInfo]) -> Result<(), FormatError> {
    let mut by_start: Vec<&TensorInfo> = tensors.iter().collect();
    by_start.sort_by_key(|tensor| tensor.range.start);
    for pair in by_start.windows(2) {
        if let [first, second] = pair
            && second.range.start < first.range.end
        {
            return Err(FormatError::TensorsOverlap {
                file: file.to_owned(),
                first: first.name.clone(),
                second: second.name.clone(),
            });
        }
    }
    Ok(())
}

/// What a file that does not start with the magic starts with, recognising what people have instead.
fn describe_start(bytes: &[u8]) -> String {
    let known = if bytes.is_empty() {
        "an empty file"
    } else if bytes.starts_with(b"PK\x03\x04") {
        "a zip archive, as PyTorch writes"
    } else if [b"lmgg", b"fmgg", b"tjgg"].iter().any(|magic| bytes.starts_with(*magic)) {
        "an old GGML file, from before GGUF"
    } else if bytes.get(8) == Some(&b'{') {
        "a safetensors file, which is opened by its directory"
    } else {
        let start = bytes.get(..4).unwrap_or(bytes);
        return format!("\"{}\"", start.escape_ascii());
    };
    known.to_owned()
}
