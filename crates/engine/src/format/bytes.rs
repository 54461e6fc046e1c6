//! A shared range of bytes: of a mapped file, of the program itself, or of memory.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::error::FormatError;

/// A range of shared bytes. Cloning and slicing copy no bytes; the file stays mapped for as long as
/// any range of it lives.
#[derive(Clone)]
pub struct Bytes {
    owner: Owner,
    range: Range<usize>,
}

#[derive(Clone)]
enum Owner {
    Map(Arc<Mmap>),
    Static(&'static [u8]),
    Memory(Arc<Vec<u8>>),
}

impl Bytes {
    /// No bytes.
    pub fn empty() -> Self {
        Self::from_static(&[])
    }

    /// Bytes that are part of the program.
    pub fn from_static(bytes: &'static [u8]) -> Self {
        Self { owner: Owner::Static(bytes), range: 0..bytes.len() }
    }

    /// Maps a whole file. An empty file gives no bytes; what is not a regular file is an error.
    pub(super) fn map(path: &Path) -> Result<Self, FormatError> {
        let failed = |action| move |cause| FormatError::io(path, action, cause);
        // Looked at before it is opened: to open a named pipe waits for a writer.
        let metadata = std::fs::metadata(path).map_err(failed("open"))?;
        if !metadata.is_file() {
            return Err(FormatError::NotAFile { file: path.display().to_string() });
        }
        // The operating system refuses a mapping of no bytes.
        if metadata.len() == 0 {
            return Ok(Self::empty());
        }
        let file = File::open(path).map_err(failed("open"))?;
        let map = map_read_only(&file).map_err(failed("map"))?;
        let range = 0..map.len();
        Ok(Self { owner: Owner::Map(Arc::new(map)), range })
    }

    /// The part of these bytes at `range`; `None` if it does not lie inside.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        let start = self.range.start + range.start;
        let end = self.range.start + range.end;
        Some(Self { owner: self.owner.clone(), range: start..end })
    }

    /// Gives the memory of these bytes back to the system, for what is read once from beginning to end. Bytes of a mapped
    /// file are read from it again when they are looked at again; others stay.
    pub fn release(&self) {
        if let Owner::Map(map) = &self.owner {
            // Where the system does not do that, it has a little less memory for others.
            let _ = release(map, &self.range);
        }
    }
}

#[cfg(unix)]
#[allow(unsafe_code)] // the one place that maps files
fn release(map: &Mmap, range: &Range<usize>) -> std::io::Result<()> {
    let advice = memmap2::UncheckedAdvice::DontNeed;
    // SAFETY: the map is of a file and read-only, so no page of it has been changed: dropped pages come back from the file
    // with the same bytes, and the addresses stay mapped. The range lies in the map.
    unsafe { map.unchecked_advise_range(advice, range.start, range.len()) }
}

#[cfg(not(unix))]
fn release(_: &Mmap, _: &Range<usize>) -> std::io::Result<()> {
    Ok(())
}

#[allow(unsafe_code)] // the one place that maps files
fn map_read_only(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the mapping is read-only but shared with the system's cache, so another process that writes to or
    // truncates the file changes what we read or ends the program with SIGBUS. No loader that maps
    // can rule that out; reading gigabytes into memory instead would cost every start-up. What we
    // rely on for memory safety, offsets and lengths, is copied out and checked once at opening,
    // and weights are plain numbers, for which every bit pattern is valid.
    unsafe { Mmap::map(file) }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &self.owner {
            Owner::Map(map) => map,
            Owner::Static(bytes) => bytes,
            Owner::Memory(bytes) => bytes,
        };
        &all[self.range.clone()]
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { owner: Owner::Memory(Arc::new(bytes)), range }
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({} bytes)", self.range.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_bytes_are_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let (file, written) = (folder.path().join("a"), (0u8..200).cycle().take(1 << 20));
        let written: Vec<u8> = written.collect();
        std::fs::write(&file, &written).unwrap();
        let bytes = Bytes::map(&file).unwrap();
        assert!(*bytes == *written);
        bytes.slice(5000..900_001).unwrap().release();
        bytes.slice(1..1).unwrap().release();
        assert!(*bytes == *written);
        Bytes::from(written.clone()).release();
    }

    #[test]
    fn a_slice_of_a_slice_is_relative_to_it() {
        let bytes = Bytes::from((0u8..100).collect::<Vec<_>>());
        let part = bytes.slice(10..50).unwrap();
        let inner = part.slice(5..8).unwrap();
        assert_eq!(&*inner, [15, 16, 17]);
        assert!(part.slice(40..40).unwrap().is_empty());
        assert!(part.slice(39..41).is_none());
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = part.slice(3..2);
        assert!(reversed.is_none());
    }

    #[test]
    fn an_empty_file_is_no_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Bytes::map(file.path()).unwrap().is_empty());
    }

    #[test]
    fn a_mapped_file_outlives_its_name_and_crosses_threads() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"weights").unwrap();
        let bytes = Bytes::map(file.path()).unwrap();
        drop(file);
        let part = bytes.slice(1..4).unwrap();
        drop(bytes);
        let copied = std::thread::spawn(move || part.to_vec()).join().unwrap();
        assert_eq!(copied, b"eig");
    }

    #[test]
    fn a_directory_and_a_missing_file_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = Bytes::map(directory.path()).unwrap_err();
        assert!(matches!(error, FormatError::NotAFile { .. }), "{error}");
        let error = Bytes::map(&directory.path().join("absent.gguf")).unwrap_err();
        assert!(matches!(error, FormatError::Io { .. }), "{error}");
        assert!(error.to_string().contains("absent.gguf"), "{error}");
    }
}
