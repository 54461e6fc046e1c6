//! GGUF files on disk: one, or a set of parts.
//!
//! The parts of a set are named `NAME-00001-of-0000N.gguf` and carry `split.no` (from 0),
//! `split.count` and `split.tensors.count` (of the whole set), as `llama-gguf-split` and the `gguf`
//! Python package write them. The first part has the model's metadata.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use super::super::bytes::Bytes;
use super::super::checkpoint::Contents;
use super::super::error::FormatError;
use super::super::tensor::TensorInfo;
use super::{Metadata, parse};

/// `split.no` and `split.count` are u16.
const MAX_PARTS: u32 = u16::MAX as u32;

/// One opened file of a set.
struct Part {
    name: String,
    bytes: Bytes,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
}

impl Part {
    fn open(path: &Path, index: usize) -> Result<Self, FormatError> {
        Self::parse(path.display().to_string(), Bytes::map(path)?, index)
    }

    fn parse(name: String, bytes: Bytes, index: usize) -> Result<Self, FormatError> {
        let (metadata, tensors) = parse(&name, &bytes, index)?;
        Ok(Self { name, bytes, metadata, tensors })
    }

    fn agrees<T: PartialEq + Display>(
        &self,
        what: &'static str,
        found: T,
        expected: T,
    ) -> Result<(), FormatError> {
        if found == expected {
            return Ok(());
        }
        let (found, expected) = (found.to_string(), expected.to_string());
        Err(FormatError::SplitDisagrees { file: self.name.clone(), what, expected, found })
    }
}

/// Opens a file and, if it is part of a set, the rest of the set.
pub(in super::super) fn open(path: &Path) -> Result<Contents<Metadata>, FormatError> {
    let opened = Part::open(path, 0)?;
    let count = part_count(&opened)?;
    if count == 1 {
        return Ok(join(opened, Vec::new()));
    }
    let paths = part_paths(path, &opened, count)?;
    let mut parts = paths.iter().enumerate().map(|(index, path)| Part::open(path, index));
    let first = parts.next().unwrap_or(Ok(opened))?;
    let rest = parts.collect::<Result<Vec<_>, _>>()?;
    check_set(&first, &rest)?;
    Ok(join(first, rest))
}

/// A whole file in memory, `name` to errors.
pub(in super::super) fn from_bytes(
    name: &str,
    bytes: Bytes,
) -> Result<Contents<Metadata>, FormatError> {
    let part = Part::parse(name.to_owned(), bytes, 0)?;
    let count = part_count(&part)?;
    if count > 1 {
        let missing = "the others".to_owned();
        return Err(FormatError::SplitMissing { file: part.name, count, missing });
    }
    Ok(join(part, Vec::new()))
}

fn part_count(part: &Part) -> Result<u32, FormatError> {
    let count = part.metadata.u32("split.count")?.unwrap_or(1).max(1);
    if count > MAX_PARTS {
        return Err(FormatError::CountTooLarge {
            file: part.name.clone(),
            what: "parts",
            found: count.into(),
            limit: MAX_PARTS.into(),
        });
    }
    Ok(count)
}

/// The paths of all parts, which must be there.
fn part_paths(path: &Path, part: &Part, count: u32) -> Result<Vec<PathBuf>, FormatError> {
    let suffix = |number: u32| format!("-{number:05}-of-{count:05}.gguf");
    let number = part.metadata.require_u32("split.no")?.saturating_add(1);
    let name = path.file_name().and_then(|name| name.to_str());
    let Some(stem) = name.and_then(|name| name.strip_suffix(&suffix(number))) else {
        return Err(FormatError::SplitName { file: part.name.clone(), number, count });
    };
    let paths: Vec<PathBuf> = (1..=count)
        .map(|number| path.with_file_name(format!("{stem}{}", suffix(number))))
        .collect();

    const NAMED: usize = 3;
    let mut missing = paths
        .iter()
        .filter(|path| !path.exists())
        .filter_map(|path| Some(path.file_name()?.display().to_string()));
    let named: Vec<String> = missing.by_ref().take(NAMED).collect();
    if named.is_empty() {
        return Ok(paths);
    }
    let more = if missing.next().is_some() { " and others" } else { "" };
    let missing = named.join(", ") + more;
    Err(FormatError::SplitMissing { file: part.name.clone(), count, missing })
}

/// Checks that the parts are those of one set, in order.
fn check_set(first: &Part, rest: &[Part]) -> Result<(), FormatError> {
    let parts = || std::iter::once(first).chain(rest);
    let architecture = first.metadata.architecture()?;
    for (index, part) in parts().enumerate() {
        let metadata = &part.metadata;
        part.agrees("split.no", metadata.require_u64("split.no")?, index as u64)?;
        let count = rest.len() as u64 + 1;
        part.agrees("split.count", metadata.require_u64("split.count")?, count)?;
        let found = metadata.string("general.architecture")?.unwrap_or(architecture);
        part.agrees("general.architecture", found, architecture)?;
    }
    let tensors = parts().map(|part| part.tensors.len() as u64).sum();
    for part in parts() {
        let found = part.metadata.u64("split.tensors.count")?.unwrap_or(tensors);
        part.agrees("split.tensors.count", found, tensors)?;
    }
    Ok(())
}

/// One checkpoint of all parts, with the metadata of the first.
fn join(first: Part, rest: Vec<Part>) -> Contents<Metadata> {
    let mut contents = Contents {
        source: first.metadata,
        files: vec![(first.name, first.bytes)],
        tensors: first.tensors,
    };
    for part in rest {
        contents.files.push((part.name, part.bytes));
        contents.tensors.extend(part.tensors);
    }
    contents
}

#[cfg(test)]
mod tests {
    use super::super::super::{Checkpoint, Source};
    use super::super::hostile::Hostile;
    use super::*;

    fn metadata(checkpoint: &Checkpoint) -> &Metadata {
        match checkpoint.source() {
            Source::Gguf(metadata) => metadata,
            Source::HuggingFace(_) => panic!("not a directory"),
        }
    }

    fn part(number: u32, count: u32, total: u32) -> Hostile {
        let writer = Hostile::new()
            .pair("split.no", 2, &(number as u16).to_le_bytes())
            .pair("split.count", 2, &(count as u16).to_le_bytes())
            .pair("split.tensors.count", 5, &total.to_le_bytes());
        if number == 0 { writer.string("general.architecture", "gpt2") } else { writer }
    }

    fn path(directory: &Path, number: u32, count: u32) -> PathBuf {
        directory.join(format!("m-{:05}-of-{count:05}.gguf", number + 1))
    }

    /// Three parts: one with metadata alone, two with a tensor each.
    fn write(directory: &Path) {
        for (number, writer) in [
            (0, part(0, 3, 2)),
            (1, part(1, 3, 2).tensor("a", &[1], 0, &[1; 4])),
            (2, part(2, 3, 2).tensor("b", &[1], 0, &[2; 4])),
        ] {
            std::fs::write(path(directory, number, 3), writer.finish()).unwrap();
        }
    }

    #[test]
    fn any_part_opens_all() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path());
        for number in 0..3 {
            let given = path(directory.path(), number, 3);
            let checkpoint = Checkpoint::open(&given).unwrap();
            assert_eq!(checkpoint.path(), given);
            assert_eq!(metadata(&checkpoint).architecture().unwrap(), "gpt2");
            assert_eq!(metadata(&checkpoint).u32("split.no").unwrap(), Some(0));
            let names: Vec<_> = checkpoint.tensors().iter().map(|t| t.name.as_str()).collect();
            assert_eq!(names, ["a", "b"]);
            assert_eq!(&*checkpoint.bytes(checkpoint.tensor("a").unwrap()), [1; 4]);
            assert_eq!(&*checkpoint.bytes(checkpoint.tensor("b").unwrap()), [2; 4]);
            let on_disk = (0..3).map(|n| path(directory.path(), n, 3).metadata().unwrap().len());
            assert_eq!(checkpoint.file_bytes(), on_disk.sum::<u64>());
        }
    }

    #[test]
    fn missing_parts_are_named() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path());
        std::fs::remove_file(path(directory.path(), 1, 3)).unwrap();
        let error = Checkpoint::open(&path(directory.path(), 0, 3)).unwrap_err();
        assert!(matches!(error, FormatError::SplitMissing { count: 3, .. }), "{error:?}");
        assert!(error.to_string().contains("m-00002-of-00003.gguf"), "{error}");
    }

    #[test]
    fn a_part_of_many_names_only_some() {
        let directory = tempfile::tempdir().unwrap();
        let only = path(directory.path(), 0, 65_535);
        std::fs::write(&only, part(0, 65_535, 0).finish()).unwrap();
        let message = Checkpoint::open(&only).unwrap_err().to_string();
        assert!(message.contains("and others") && message.len() < 400, "{message}");
    }

    #[test]
    fn a_renamed_part_cannot_find_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let renamed = directory.path().join("model.gguf");
        std::fs::write(&renamed, part(1, 3, 0).finish()).unwrap();
        let error = Checkpoint::open(&renamed).unwrap_err();
        assert!(matches!(error, FormatError::SplitName { number: 2, count: 3, .. }), "{error:?}");
        assert!(error.to_string().contains("-00002-of-00003.gguf"), "{error}");
    }

    #[test]
    fn a_part_in_the_program_is_refused() {
        let error = from_bytes("m", part(0, 3, 0).finish().into()).map(|_| ()).unwrap_err();
        assert!(matches!(error, FormatError::SplitMissing { .. }), "{error:?}");
    }

    #[test]
    fn one_part_of_one_is_whole() {
        for count in [0, 1] {
            assert!(from_bytes("m", part(0, count, 0).finish().into()).is_ok());
        }
    }

    #[test]
    fn parts_that_disagree() {
        let b = |writer: Hostile| writer.tensor("b", &[1], 0, &[2; 4]);
        for (what, second) in [
            ("split.no", b(part(2, 3, 2))),
            ("split.count", b(part(1, 4, 2))),
            ("split.tensors.count", b(part(1, 3, 7))),
            ("general.architecture", b(part(1, 3, 2)).string("general.architecture", "llama")),
        ] {
            let directory = tempfile::tempdir().unwrap();
            write(directory.path());
            std::fs::write(path(directory.path(), 1, 3), second.finish()).unwrap();
            let error = Checkpoint::open(&path(directory.path(), 0, 3)).unwrap_err();
            match &error {
                FormatError::SplitDisagrees { what: found, .. } => assert_eq!(*found, what),
                _ => panic!("{what}: {error:?}"),
            }
        }
    }

    #[test]
    fn a_part_that_is_no_part_and_a_tensor_twice() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path());
        let second = path(directory.path(), 1, 3);
        std::fs::write(&second, Hostile::new().finish()).unwrap();
        let error = Checkpoint::open(&path(directory.path(), 0, 3)).unwrap_err();
        assert!(matches!(error, FormatError::MissingKey { .. }), "{error:?}");
        std::fs::write(&second, part(1, 3, 2).tensor("b", &[1], 0, &[2; 4]).finish()).unwrap();
        let error = Checkpoint::open(&path(directory.path(), 0, 3)).unwrap_err();
        assert!(matches!(error, FormatError::DuplicateTensor { .. }), "{error:?}");
    }
}
