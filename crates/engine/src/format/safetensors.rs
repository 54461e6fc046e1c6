//! The header of a safetensors file.
//!
//! The layout is that of the `safetensors` crate: the header's length (u64, little endian), the
//! header (a JSON object: `dtype`, `shape` and `data_offsets` by tensor name), and the data, which the
//! tensors' ranges cover without gaps. That crate's own reader is not used because it keeps one of
//! several tensors of the same name, says neither which tensor has an unknown type nor how many bytes
//! a truncated file lacks, and adds ranges up unchecked.

use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::dtype::DType;
use super::error::{FormatError, refuse_lfs_pointer};
use super::tensor::TensorInfo;

/// The limit of the `safetensors` crate.
const MAX_HEADER_BYTES: u64 = 100_000_000;

const LENGTH_BYTES: usize = 8;

/// The tensors of a file, the checkpoint's `index`th, in the order of their bytes. Names may repeat.
pub(super) fn parse(
    file: &str,
    bytes: &[u8],
    index: usize,
) -> Result<Vec<TensorInfo>, FormatError> {
    refuse_lfs_pointer(file, bytes)?;
    let Some(length) = bytes.first_chunk::<LENGTH_BYTES>() else {
        return Err(truncated(
            file,
            "the length of the header",
            0,
            LENGTH_BYTES as u64,
            bytes.len(),
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(FormatError::HeaderTooLong {
            file: file.to_owned(),
            what: format!("the header of {length} bytes"),
            offset: LENGTH_BYTES as u64,
            limit: MAX_HEADER_BYTES,
        });
    }
    let rest = &bytes[LENGTH_BYTES..];
    let Some((header, data)) = rest.split_at_checked(length as usize) else {
        return Err(truncated(file, "the header", LENGTH_BYTES as u64, length, rest.len()));
    };
    // Copied before its strings are checked: the file is mapped and could change in between.
    let header = header.to_vec();
    let Header(mut entries) =
        serde_json::from_slice(&header).map_err(|cause| json(file, &cause))?;
    entries.sort_by_key(|(_, entry)| entry.data_offsets);

    let data_start = LENGTH_BYTES + header.len();
    let mut tensors: Vec<TensorInfo> = Vec::with_capacity(entries.len());
    let mut covered = 0;
    for (name, entry) in entries {
        let (start, end) = entry.data_offsets;
        let (dtype, shape) = entry.check(file, &name)?;
        if start < covered {
            let first = tensors.last().map(|tensor| tensor.name.clone()).unwrap_or_default();
            let file = file.to_owned();
            return Err(FormatError::TensorsOverlap { file, first, second: name });
        }
        if start > covered {
            return Err(FormatError::UnusedBytes {
                file: file.to_owned(),
                start: covered,
                end: start,
            });
        }
        if end > data.len() as u64 {
            return Err(FormatError::TensorPastEnd {
                file: file.to_owned(),
                tensor: name,
                expected: end.saturating_add(data_start as u64),
                found: bytes.len() as u64,
            });
        }
        covered = end;
        // Both are at most the data's length.
        let range = data_start + start as usize..data_start + end as usize;
        tensors.push(TensorInfo { name, dtype, shape, file: index, range });
    }
    if covered < data.len() as u64 {
        let (file, end) = (file.to_owned(), data.len() as u64);
        return Err(FormatError::UnusedBytes { file, start: covered, end });
    }
    Ok(tensors)
}

fn truncated(file: &str, what: &str, offset: u64, expected: u64, found: usize) -> FormatError {
    let (file, what, found) = (file.to_owned(), what.to_owned(), found as u64);
    FormatError::Truncated { file, what, offset, expected, found }
}

/// An error of a JSON file. What the parser says can quote a string of the file in full.
pub(super) fn json(file: &str, cause: &serde_json::Error) -> FormatError {
    const SHOWN: usize = 200;
    let mut text = cause.to_string();
    if let Some((end, _)) = text.char_indices().nth(SHOWN) {
        text.truncate(end);
        text.push_str("...");
    }
    FormatError::Json { file: file.to_owned(), cause: text }
}

/// The entries of a header, without `__metadata__`, and with any that repeat.
struct Header(Vec<(String, Entry)>);

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

impl Entry {
    /// The type and shape, if the range is as long as they require.
    fn check(self, file: &str, tensor: &str) -> Result<(DType, Vec<usize>), FormatError> {
        let (file, tensor) = (file.to_owned(), tensor.to_owned());
        let Some(dtype) = DType::from_safetensors_name(&self.dtype) else {
            return Err(FormatError::UnknownSafetensorsType { file, tensor, dtype: self.dtype });
        };
        let sizes = self.shape.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>();
        let bytes = sizes.as_ref().and_then(|sizes| {
            let elements = sizes.iter().try_fold(1usize, |product, &d| product.checked_mul(d))?;
            // Only types of less than a byte have blocks here, and they may cross rows.
            elements.div_ceil(dtype.block_size()).checked_mul(dtype.block_bytes())
        });
        let (Some(shape), Some(bytes)) = (sizes, bytes) else {
            return Err(FormatError::SizeOverflow { file, tensor, dtype, shape: self.shape });
        };
        let (start, end) = self.data_offsets;
        let (expected, found) = (bytes as u64, end.saturating_sub(start));
        if end < start || expected != found {
            let shape = self.shape;
            return Err(FormatError::WrongLength { file, tensor, dtype, shape, expected, found });
        }
        Ok((dtype, shape))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 7);
        bytes
    }

    /// Asserts that a file is refused with this variant, naming the file.
    macro_rules! assert_refused {
        ($header:expr, $data:expr, $variant:pat) => {{
            let error = parse("m.safetensors", &file($header, $data), 0).expect_err("refused");
            assert!(matches!(error, $variant), "{error:?}");
            assert!(error.to_string().contains("m.safetensors"), "{error}");
            error.to_string()
        }};
    }

    const TWO: &str = r#"{"__metadata__":{"format":"pt"},
        "b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},
        "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
        "empty":{"dtype":"I64","shape":[0,5],"data_offsets":[4,4]}}"#;

    #[test]
    fn tensors_are_in_the_order_of_their_bytes() {
        let bytes = file(TWO, 16);
        let tensors = parse("m", &bytes, 3).unwrap();
        let names: Vec<_> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["a", "empty", "b"]);
        assert_eq!((tensors[2].dtype, &tensors[2].shape[..]), (DType::BF16, &[2, 3][..]));
        assert_eq!((tensors[2].file, tensors[2].range.end), (3, bytes.len()));
        assert_eq!((tensors[0].elements(), tensors[0].byte_len()), (1, 4));
        assert_eq!((tensors[1].elements(), tensors[1].byte_len()), (0, 0));
    }

    #[test]
    fn what_the_safetensors_crate_writes_is_read() {
        use ::safetensors::tensor::{Dtype, TensorView};
        let data: Vec<u8> = (0..24).collect();
        let views = [
            ("half", TensorView::new(Dtype::F16, vec![2, 2], &data[..8]).unwrap()),
            ("fp8", TensorView::new(Dtype::F8_E4M3, vec![16], &data[8..]).unwrap()),
            ("fp4", TensorView::new(Dtype::F4, vec![3, 2], &data[..3]).unwrap()),
        ];
        let bytes = ::safetensors::serialize(views, None).unwrap();
        let tensors = parse("m", &bytes, 0).unwrap();
        let found = |name| tensors.iter().find(|tensor| tensor.name == name).unwrap();
        assert_eq!(found("half").dtype, DType::F16);
        assert_eq!(&bytes[found("half").range.clone()], &data[..8]);
        assert_eq!(found("fp8").dtype, DType::F8_E4M3);
        assert_eq!(&bytes[found("fp8").range.clone()], &data[8..]);
        assert_eq!((found("fp4").dtype, found("fp4").elements()), (DType::F4, 6));
    }

    #[test]
    fn a_truncated_file_says_what_it_lacks() {
        let bytes = file(TWO, 16);
        for length in 0..8 {
            let error = parse("m", &bytes[..length], 0).unwrap_err();
            assert!(matches!(error, FormatError::Truncated { expected: 8, .. }), "{error:?}");
        }
        for length in 8..bytes.len() - 16 {
            let error = parse("m", &bytes[..length], 0).unwrap_err();
            assert!(matches!(error, FormatError::Truncated { .. }), "{error:?}");
        }
        let (whole, short) = (bytes.len(), bytes.len() - 1);
        let message = parse("m", &bytes[..short], 0).unwrap_err().to_string();
        assert!(message.contains(&format!("byte {whole} ")), "{message}");
        assert!(message.contains(&format!("only {short}")), "{message}");
    }

    #[test]
    fn header_length_overflow() {
        for length in [100_000_001, u64::MAX] {
            let error = parse("m", &length.to_le_bytes(), 0).unwrap_err();
            assert!(matches!(error, FormatError::HeaderTooLong { .. }), "{error:?}");
        }
    }

    #[test]
    fn a_git_lfs_pointer_is_recognised() {
        let error = parse("m", b"version https://git-lfs.github.com/spec/v1\noid", 0).unwrap_err();
        assert!(matches!(error, FormatError::LfsPointer { .. }), "{error:?}");
    }

    #[test]
    fn headers_that_are_not_json_of_tensors() {
        for header in [
            "",
            "[]",
            "{",
            r#"{"a":1}"#,
            r#"{"a":{"dtype":"F32","shape":[1]}}"#,
            r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}}"#,
        ] {
            assert_refused!(header, 4, FormatError::Json { .. });
        }
        let nested = format!(r#"{{"a":{}"#, "[".repeat(100_000));
        assert_refused!(&nested, 0, FormatError::Json { .. });
        let long = format!(r#"{{"a":"{}"}}"#, "é".repeat(100_000));
        let message = assert_refused!(&long, 0, FormatError::Json { .. });
        assert!(message.len() < 600, "{} bytes", message.len());
    }

    #[test]
    fn ranges_that_are_not_those_of_the_tensors() {
        for (entry, data) in [
            (r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#, 4),
            (r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#, 4),
            (r#"{"dtype":"F32","shape":[0],"data_offsets":[4,0]}"#, 4),
            (r#"{"dtype":"F4","shape":[3],"data_offsets":[0,1]}"#, 1),
        ] {
            let header = format!(r#"{{"w":{entry}}}"#);
            let message = assert_refused!(&header, data, FormatError::WrongLength { .. });
            assert!(message.contains("tensor \"w\""), "{message}");
        }
    }

    #[test]
    fn dims_overflow() {
        for shape in
            ["[18446744073709551615,2]", "[4294967296,4294967296]", "[9223372036854775807]"]
        {
            let header =
                format!(r#"{{"w":{{"dtype":"F32","shape":{shape},"data_offsets":[0,4]}}}}"#);
            assert_refused!(&header, 4, FormatError::SizeOverflow { .. });
        }
    }

    #[test]
    fn ranges_that_add_up_past_the_largest_number() {
        // Eight tensors of 2^61 - 1 bytes: each is addressable, the sum with the header is not.
        let size = (1u64 << 61) - 1;
        let entries = (0..8).map(|i| {
            let (start, end) = (i * size, (i + 1) * size);
            format!(r#""{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{start},{end}]}}"#)
        });
        let header = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
        assert_refused!(&header, 64, FormatError::TensorPastEnd { .. });
    }

    #[test]
    fn overlapping_tensors_gaps_and_rests() {
        let header = |second: &str| {
            format!(
                r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},
                     "b":{{"dtype":"U8","shape":[4],"data_offsets":{second}}}}}"#
            )
        };
        assert_refused!(&header("[2,6]"), 6, FormatError::TensorsOverlap { .. });
        assert_refused!(&header("[0,4]"), 4, FormatError::TensorsOverlap { .. });
        assert_refused!(&header("[6,10]"), 10, FormatError::UnusedBytes { start: 4, end: 6, .. });
        assert_refused!(&header("[4,8]"), 9, FormatError::UnusedBytes { start: 8, end: 9, .. });
        assert_refused!("{}", 1, FormatError::UnusedBytes { .. });
    }

    #[test]
    fn unknown_types_are_named_with_their_tensor() {
        for dtype in ["Q8_0", "F128", "f32", ""] {
            let header =
                format!(r#"{{"w":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,4]}}}}"#);
            let message = assert_refused!(&header, 4, FormatError::UnknownSafetensorsType { .. });
            assert!(message.contains(&format!("\"w\" has the unknown type \"{dtype}\"")));
        }
    }

    #[test]
    fn repeated_names_are_kept_for_the_checkpoint_to_refuse() {
        let empty = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
        let bytes = file(&format!(r#"{{"a":{empty},"a":{empty}}}"#), 0);
        assert_eq!(parse("m", &bytes, 0).unwrap().len(), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn changed_bytes_never_panic(
            changes in prop::collection::vec(
                (any::<prop::sample::Index>(), prop_oneof![any::<u8>(), b'0'..=b'9']),
                1..6,
            ),
            length in any::<prop::sample::Index>(),
            truncate in any::<bool>(),
        ) {
            let mut bytes = file(TWO, 16);
            for (index, byte) in changes {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
            if truncate {
                bytes.truncate(length.index(bytes.len()));
            }
            for tensor in parse("m", &bytes, 0).unwrap_or_default() {
                prop_assert!(bytes.get(tensor.range.clone()).is_some());
                prop_assert_eq!(tensor.dtype.bytes_for(tensor.elements()), Some(tensor.byte_len()));
            }
        }
    }
}
