//! An opened checkpoint, whichever format it has.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::bytes::Bytes;
use super::error::FormatError;
use super::tensor::TensorInfo;
use super::{gguf, hugging_face};

/// A model's files: mapped, listed and checked.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    source: Source,
    names: Vec<String>,
    files: Vec<Bytes>,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
}

/// The format of a checkpoint, with what it says about the model besides the tensors.
#[derive(Debug)]
pub enum Source {
    /// GGUF, with the metadata of its (first) file.
    Gguf(gguf::Metadata),
    /// A directory in Hugging Face layout.
    HuggingFace(hugging_face::Files),
}

/// What the reader of a format found. Tensors refer to files by position.
pub(super) struct Contents<S> {
    pub source: S,
    /// What errors call each file, and its bytes.
    pub files: Vec<(String, Bytes)>,
    pub tensors: Vec<TensorInfo>,
}

impl Checkpoint {
    /// Opens a GGUF file, whatever it is called and with all parts if it is one of a split set, or a
    /// directory in Hugging Face layout.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        if path.is_dir() {
            Self::new(path, hugging_face::open(path)?, Source::HuggingFace)
        } else {
            Self::new(path, gguf::open(path)?, Source::Gguf)
        }
    }

    /// Opens a GGUF file that is part of the program; `name` is what errors call it.
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self, FormatError> {
        Self::from_gguf_bytes(name, Bytes::from_static(bytes))
    }

    pub(super) fn from_gguf_bytes(name: &str, bytes: Bytes) -> Result<Self, FormatError> {
        Self::new(Path::new(name), gguf::from_bytes(name, bytes)?, Source::Gguf)
    }

    fn new<S>(
        path: &Path,
        contents: Contents<S>,
        source: impl FnOnce(S) -> Source,
    ) -> Result<Self, FormatError> {
        let Contents { source: found, files, tensors } = contents;
        let mut index = HashMap::with_capacity(tensors.len());
        for (position, tensor) in tensors.iter().enumerate() {
            if index.insert(tensor.name.clone(), position).is_some() {
                let file = files.get(tensor.file).map(|(name, _)| name.clone()).unwrap_or_default();
                let tensor = tensor.name.clone();
                return Err(FormatError::DuplicateTensor { file, tensor });
            }
        }
        let (names, files) = files.into_iter().unzip();
        Ok(Self { path: path.to_owned(), source: source(found), names, files, tensors, index })
    }

    /// The path as it was given, or the name of a checkpoint in the program.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The format, and what it says about the model.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The tensors: file by file; in a GGUF file as it lists them, in a safetensors file as they lie.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).and_then(|&position| self.tensors.get(position))
    }

    /// The bytes of a tensor, [`TensorInfo::byte_len`] of them, without copying any.
    ///
    /// # Panics
    ///
    /// If `tensor` comes from another checkpoint and lies outside this one's files.
    pub fn bytes(&self, tensor: &TensorInfo) -> Bytes {
        let bytes = self.files.get(tensor.file).and_then(|file| file.slice(tensor.range.clone()));
        bytes.unwrap_or_else(|| panic!("tensor {:?} is not of this checkpoint", tensor.name))
    }

    /// What errors call the weight files: their paths, where they are files.
    pub fn file_names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// The size of the weight files together.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len() as u64).sum()
    }
}
