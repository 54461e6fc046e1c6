//! Whole GGUF files: what is read from good ones, and how bad ones are refused.

use proptest::prelude::*;

use super::super::{Bytes, Checkpoint, DType, FormatError, Source};
use super::hostile::{Hostile, array, string};
use super::{Array, Metadata, Value};

fn open(writer: &Hostile) -> Result<Checkpoint, FormatError> {
    Checkpoint::from_gguf_bytes("m.gguf", Bytes::from(writer.finish()))
}

fn metadata(checkpoint: &Checkpoint) -> &Metadata {
    match checkpoint.source() {
        Source::Gguf(metadata) => metadata,
        Source::HuggingFace(_) => panic!("not a directory"),
    }
}

/// Asserts which variant an error is, and that its message names the file.
macro_rules! assert_refused {
    ($writer:expr, $variant:pat) => {{
        let error = open(&$writer).expect_err("must be refused");
        assert!(matches!(error, $variant), "{error:?}");
        assert!(error.to_string().contains("m.gguf"), "{error}");
        error.to_string()
    }};
}

/// A file with every value type, nested arrays, and tensors of several types.
fn complete(version: u32) -> Hostile {
    let nested = [array(0, 2, &[1, 2]), array(7, 1, &[1])].concat();
    let mut writer = Hostile::new();
    writer.version = version;
    writer
        .string("general.architecture", "gpt2")
        .pair("u8", 0, &[200])
        .pair("i8", 1, &[0xFF])
        .pair("u16", 2, &0xABCDu16.to_le_bytes())
        .pair("i16", 3, &(-2i16).to_le_bytes())
        .u32("general.alignment", 32)
        .pair("i32", 5, &(-3i32).to_le_bytes())
        .pair("f32", 6, &1.5f32.to_le_bytes())
        .pair("bool", 7, &[1])
        .pair("string", 8, &string("Ġhello"))
        .strings("tokens", &["<|endoftext|>", "", "é"])
        .pair("array.u16", 9, &array(2, 2, &[1, 0, 2, 1]))
        .pair("array.f32", 9, &array(6, 1, &0.25f32.to_le_bytes()))
        .pair("array.bool", 9, &array(7, 3, &[0, 1, 0]))
        .pair("array.i64", 9, &array(11, 1, &i64::MIN.to_le_bytes()))
        .pair("array.f64", 9, &array(12, 0, &[]))
        .pair("nested", 9, &array(9, 2, &nested))
        .pair("u64", 10, &u64::MAX.to_le_bytes())
        .pair("i64", 11, &i64::MIN.to_le_bytes())
        .pair("f64", 12, &0.1f64.to_le_bytes())
        .tensor("matrix", &[3, 2], 0, &[7; 24])
        .tensor("blocks", &[32, 2, 1, 2], 8, &[8; 136])
        .tensor("number", &[], 1, &[9, 9])
}

#[test]
fn every_value_type_is_read_as_written() {
    for version in [2, 3] {
        let checkpoint = open(&complete(version)).unwrap();
        let m = metadata(&checkpoint);
        assert_eq!(m.architecture().unwrap(), "gpt2");
        for (key, value) in [
            ("u8", Value::U8(200)),
            ("i8", Value::I8(-1)),
            ("u16", Value::U16(0xABCD)),
            ("i16", Value::I16(-2)),
            ("general.alignment", Value::U32(32)),
            ("i32", Value::I32(-3)),
            ("f32", Value::F32(1.5)),
            ("bool", Value::Bool(true)),
            ("string", Value::String("Ġhello".into())),
            (
                "tokens",
                Value::Array(Array::String(["<|endoftext|>", "", "é"].map(Into::into).into())),
            ),
            ("array.u16", Value::Array(Array::U16(vec![1, 258]))),
            ("array.f32", Value::Array(Array::F32(vec![0.25]))),
            ("array.bool", Value::Array(Array::Bool(vec![false, true, false]))),
            ("array.i64", Value::Array(Array::I64(vec![i64::MIN]))),
            ("array.f64", Value::Array(Array::F64(vec![]))),
            (
                "nested",
                Value::Array(Array::Array(vec![Array::U8(vec![1, 2]), Array::Bool(vec![true])])),
            ),
            ("u64", Value::U64(u64::MAX)),
            ("i64", Value::I64(i64::MIN)),
            ("f64", Value::F64(0.1)),
        ] {
            assert_eq!(m.get(key), Some(&value), "{key}");
        }
        assert_eq!(m.iter().len(), 20);
        assert_eq!(m.iter().map(|(key, _)| key).nth(1), Some("u8"));
    }
}

#[test]
fn tensors_are_outermost_first_and_have_their_bytes() {
    let writer = complete(3);
    let checkpoint = open(&writer).unwrap();
    assert_eq!(checkpoint.file_bytes(), writer.finish().len() as u64);
    let names: Vec<_> = checkpoint.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["matrix", "blocks", "number"]);
    for (name, dtype, shape, elements, bytes) in [
        ("matrix", DType::F32, vec![2, 3], 6, vec![7; 24]),
        ("blocks", DType::Q8_0, vec![2, 1, 2, 32], 128, vec![8; 136]),
        ("number", DType::F16, vec![], 1, vec![9; 2]),
    ] {
        let tensor = checkpoint.tensor(name).unwrap();
        assert_eq!((tensor.dtype, &tensor.shape), (dtype, &shape));
        assert_eq!((tensor.elements(), tensor.byte_len()), (elements, bytes.len()));
        assert_eq!(&*checkpoint.bytes(tensor), bytes);
    }
    assert!(checkpoint.tensor("absent").is_none());
}

#[test]
fn a_static_file_is_opened_by_its_name() {
    let bytes: &'static [u8] = complete(3).finish().leak();
    let checkpoint = Checkpoint::from_static("demo", bytes).unwrap();
    assert_eq!(checkpoint.path().to_str(), Some("demo"));
    let error = Checkpoint::from_static("demo", &bytes[..40]).unwrap_err();
    assert!(error.to_string().starts_with("demo: "), "{error}");
}

#[test]
fn tensors_may_leave_gaps_and_come_in_any_order() {
    let writer =
        Hostile::new().description("second", &[1], 0, 64).description("first", &[1], 0, 0).data(68);
    assert_eq!(open(&writer).unwrap().tensors().len(), 2);
}

#[test]
fn what_is_not_gguf_is_recognised() {
    for (start, found) in [
        (&b""[..], "an empty file"),
        (b"GGU", "\"GGU\""),
        (b"PK\x03\x04....", "zip archive"),
        (b"tjgg\x03\0\0\0", "old GGML file"),
        (b"\x40\0\0\0\0\0\0\0{\"a\":", "safetensors file"),
        (b"\x7fELF....", "\"\\x7fELF\""),
    ] {
        let error = Checkpoint::from_gguf_bytes("m.gguf", Bytes::from(start.to_vec())).unwrap_err();
        assert!(matches!(error, FormatError::NotGguf { .. }), "{error:?}");
        assert!(error.to_string().contains(found), "{error}");
    }
}

#[test]
fn a_git_lfs_pointer_is_recognised() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid".to_vec();
    let error = Checkpoint::from_gguf_bytes("m.gguf", Bytes::from(pointer)).unwrap_err();
    assert!(matches!(error, FormatError::LfsPointer { .. }), "{error:?}");
}

#[test]
fn versions_other_than_2_and_3() {
    for version in [0, 1, 4, 0x0301_0000] {
        let mut writer = Hostile::new();
        writer.version = version;
        assert_refused!(writer, FormatError::GgufVersion { .. });
    }
}

#[test]
fn big_endian_is_recognised() {
    let mut writer = Hostile::new();
    writer.version = 3u32.swap_bytes();
    assert_refused!(writer, FormatError::BigEndian { .. });
    writer.magic = *b"FUGG";
    assert_refused!(writer, FormatError::BigEndian { .. });
}

#[test]
fn truncated_header() {
    let bytes = complete(3).finish();
    for length in 4..24 {
        let error =
            Checkpoint::from_gguf_bytes("m", Bytes::from(bytes[..length].to_vec())).unwrap_err();
        assert!(matches!(error, FormatError::Truncated { .. }), "{length}: {error:?}");
    }
}

#[test]
fn every_truncation_is_refused() {
    let bytes = complete(3).finish();
    for length in 0..bytes.len() {
        let part = Bytes::from(bytes[..length].to_vec());
        assert!(Checkpoint::from_gguf_bytes("m", part).is_err(), "{length}");
    }
}

#[test]
fn count_larger_than_file() {
    for count in [1, 1 << 20, u64::MAX] {
        let mut writer = Hostile::new();
        writer.pair_count = Some(count);
        assert_refused!(writer, FormatError::CountTooLarge { what: "keys", .. });
        let mut writer = Hostile::new();
        writer.tensor_count = Some(count);
        assert_refused!(writer, FormatError::CountTooLarge { what: "tensors", .. });
    }
}

#[test]
fn more_keys_than_any_model_has() {
    let mut writer = Hostile::new();
    for _ in 0..70_000 {
        writer = writer.pair("", 0, &[0]);
    }
    assert_refused!(writer, FormatError::CountTooLarge { found: 70_000, limit: 65_536, .. });
}

#[test]
fn array_count_larger_than_file() {
    for id in 0..=12 {
        for count in [1 << 20, 1 << 61, u64::MAX] {
            let writer = Hostile::new().pair("a", 9, &array(id, count, &[0; 64]));
            assert_refused!(writer, FormatError::Truncated { .. });
        }
    }
}

#[test]
fn string_length_overflow() {
    for length in [1, 1 << 32, u64::MAX] {
        let writer = Hostile::new().pair("a", 8, &length.to_le_bytes());
        assert_refused!(writer, FormatError::Truncated { found: 0, .. });
    }
    let mut key = Hostile::new().finish();
    key[16] = 1;
    key.extend(u64::MAX.to_le_bytes());
    key.extend([0; 16]);
    let error = Checkpoint::from_gguf_bytes("m", Bytes::from(key)).unwrap_err();
    assert!(matches!(error, FormatError::Truncated { found: 16, .. }), "{error:?}");
}

#[test]
fn nested_arrays_too_deep() {
    let nest = |depth| (1..depth).fold(array(0, 1, &[7]), |inner, _| array(9, 1, &inner));
    let writer = |depth| Hostile::new().pair("a", 9, &nest(depth));
    assert!(open(&writer(4)).is_ok());
    assert_refused!(writer(5), FormatError::NestedTooDeep { limit: 4, .. });
    assert_refused!(writer(10_000), FormatError::NestedTooDeep { .. });
}

#[test]
fn unknown_value_type() {
    assert_refused!(
        Hostile::new().pair("a", 13, &[]),
        FormatError::UnknownValueType { id: 13, .. }
    );
    let writer = Hostile::new().pair("a", 9, &array(13, 0, &[]));
    assert_refused!(writer, FormatError::UnknownValueType { id: 13, .. });
}

#[test]
fn bool_that_is_neither() {
    assert_refused!(Hostile::new().pair("a", 7, &[2]), FormatError::BadBool { found: 2, .. });
    let writer = Hostile::new().pair("a", 9, &array(7, 2, &[1, 255]));
    assert_refused!(writer, FormatError::BadBool { found: 255, .. });
}

#[test]
fn text_that_is_not_utf8() {
    let bad = b"\xff\xfe";
    let message = assert_refused!(Hostile::new().pair(bad, 0, &[0]), FormatError::NotUtf8 { .. });
    assert!(message.contains("the name of key 0"), "{message}");
    let writer = Hostile::new().pair("tokens", 9, &array(8, 1, &string(bad)));
    let message = assert_refused!(writer, FormatError::NotUtf8 { .. });
    assert!(message.contains("the value of key \"tokens\""), "{message}");
    let writer = Hostile::new().description(bad, &[1], 0, 0).data(4);
    assert_refused!(writer, FormatError::NotUtf8 { .. });
}

#[test]
fn duplicate_names() {
    assert_refused!(Hostile::new().u32("a", 1).u32("a", 1), FormatError::DuplicateKey { .. });
    let writer = Hostile::new().tensor("t", &[1], 0, &[0; 4]).tensor("t", &[1], 0, &[0; 4]);
    assert_refused!(writer, FormatError::DuplicateTensor { .. });
}

#[test]
fn alignment_zero_odd_or_huge() {
    for alignment in [0, 1, 4, 12, 33, (1 << 20) + 8, u32::MAX] {
        let writer = Hostile::new().u32("general.alignment", alignment);
        assert_refused!(writer, FormatError::Alignment { .. });
    }
    let writer = Hostile::new().string("general.alignment", "32");
    assert_refused!(writer, FormatError::WrongType { .. });
    for alignment in [8, 24, 64, 1 << 20] {
        let mut writer = Hostile::new().u32("general.alignment", alignment);
        writer.alignment = alignment as usize;
        let writer = writer.tensor("a", &[1], 0, &[1; 4]).tensor("b", &[1], 0, &[2; 4]);
        let checkpoint = open(&writer).unwrap();
        assert_eq!(&*checkpoint.bytes(checkpoint.tensor("b").unwrap()), [2; 4]);
    }
}

#[test]
fn misaligned_tensor() {
    let writer = Hostile::new().description("t", &[1], 0, 8).data(64);
    assert_refused!(writer, FormatError::Misaligned { offset: 8, alignment: 32, .. });
}

#[test]
fn tensor_past_end() {
    for offset in [0, 32, 1 << 40, u64::MAX - 31] {
        let writer = Hostile::new().description("t", &[9], 0, offset).data(35);
        assert_refused!(writer, FormatError::TensorPastEnd { .. });
    }
    let writer = Hostile::new().description("t", &[1], 0, 0);
    let message = assert_refused!(writer, FormatError::TensorPastEnd { .. });
    assert!(message.contains("incomplete"), "{message}");
}

#[test]
fn overlapping_tensors() {
    let overlapping = Hostile::new().description("a", &[9], 0, 0).description("b", &[1], 0, 32);
    assert_refused!(overlapping.data(64), FormatError::TensorsOverlap { .. });
    let same = Hostile::new().description("a", &[1], 0, 0).description("b", &[1], 0, 0);
    assert_refused!(same.data(64), FormatError::TensorsOverlap { .. });
}

#[test]
fn dims_overflow() {
    for shape in [&[u64::MAX, 2][..], &[1 << 32, 1 << 32], &[1 << 62], &[1 << 16; 4]] {
        let writer = Hostile::new().description("t", shape, 0, 0).data(64);
        assert_refused!(writer, FormatError::SizeOverflow { .. });
    }
    let writer = Hostile::new().description("t", &[1; 5], 0, 0).data(64);
    assert_refused!(writer, FormatError::TooManyDimensions { found: 5, limit: 4, .. });
    let mut many = Hostile::new().description("t", &[], 0, 0).data(64).finish();
    many[24 + 9..24 + 13].fill(0xFF);
    let error = Checkpoint::from_gguf_bytes("m", Bytes::from(many)).unwrap_err();
    assert!(matches!(error, FormatError::TooManyDimensions { .. }), "{error:?}");
}

#[test]
fn zero_dimension() {
    for shape in [&[0][..], &[4, 0], &[0, u64::MAX]] {
        let writer = Hostile::new().description("t", shape, 0, 0).data(64);
        assert_refused!(writer, FormatError::ZeroDimension { .. });
    }
}

#[test]
fn unknown_tensor_type() {
    let writer = Hostile::new().description("blk.0.w", &[32], 43, 0).data(64);
    assert_eq!(
        assert_refused!(writer, FormatError::UnknownGgmlType { id: 43, .. }),
        "m.gguf: tensor \"blk.0.w\" has the unknown ggml type 43, expected one of F32, F16, BF16, Q8_0, Q4_0, Q4_1, \
         Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4"
    );
}

#[test]
fn rows_of_partial_blocks() {
    // 64 elements are whole blocks; rows of 16 are not.
    let writer = Hostile::new().description("t", &[16, 4], 8, 0).data(68);
    assert_refused!(writer, FormatError::PartialBlock { found: 16, .. });
    let writer = Hostile::new().description("t", &[], 8, 0).data(68);
    assert_refused!(writer, FormatError::PartialBlock { found: 1, .. });
    // Of a type that we do not have, in any row length.
    let writer = Hostile::new().description("t", &[64], 16, 0).data(68);
    assert_eq!(
        assert_refused!(writer, FormatError::PartialBlock { found: 64, .. }),
        "m.gguf: tensor \"t\" of type IQ2_XXS has rows of 64 elements, expected a multiple of 256, and one of the \
         types F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4"
    );
}

#[test]
fn a_header_that_never_ends() {
    // An array that fits into the file, but not into what a header may have.
    let count = (super::reader::MAX_HEADER_BYTES + 1) as u64;
    let mut bytes = Hostile::new().pair("a", 9, &array(0, count, &[])).finish();
    bytes.resize(bytes.len() + count as usize, 0);
    let error = Checkpoint::from_gguf_bytes("m", Bytes::from(bytes)).unwrap_err();
    assert!(matches!(error, FormatError::HeaderTooLong { .. }), "{error:?}");
}

#[test]
fn a_large_vocabulary_is_read() {
    let tokens: Vec<String> = (0..200_000).map(|id| format!("token{id}")).collect();
    let writer = Hostile::new().strings("tokenizer.ggml.tokens", &tokens);
    let checkpoint = open(&writer).unwrap();
    assert_eq!(metadata(&checkpoint).require_strings("tokenizer.ggml.tokens").unwrap(), tokens);
}

/// Uses everything of a checkpoint that opened, so that a range let through would show.
fn use_all(checkpoint: &Checkpoint) {
    let m = metadata(checkpoint);
    for (key, value) in m.iter() {
        let _ = (value.to_string(), m.u32(key), m.f32(key), m.strings(key), m.i32s(key));
    }
    for tensor in checkpoint.tensors() {
        assert_eq!(checkpoint.bytes(tensor).len(), tensor.byte_len());
        assert_eq!(tensor.dtype.bytes_for(tensor.elements()), Some(tensor.byte_len()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn changed_bytes_never_panic(
        version in 2u32..=3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        length in any::<prop::sample::Index>(),
        truncate in any::<bool>(),
    ) {
        let mut bytes = complete(version).finish();
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if truncate {
            bytes.truncate(length.index(bytes.len()));
        }
        if let Ok(checkpoint) = Checkpoint::from_gguf_bytes("m", Bytes::from(bytes)) {
            use_all(&checkpoint);
        }
    }

    #[test]
    fn changed_numbers_never_panic(
        at in any::<prop::sample::Index>(),
        number in prop_oneof![any::<u64>(), 0u64..300, (0u32..64).prop_map(|n| 1 << n)],
    ) {
        // Lengths, counts, dimensions and offsets are where extreme numbers hurt.
        let mut bytes = complete(3).finish();
        let at = at.index(bytes.len() - 8);
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        if let Ok(checkpoint) = Checkpoint::from_gguf_bytes("m", Bytes::from(bytes)) {
            use_all(&checkpoint);
        }
    }
}
