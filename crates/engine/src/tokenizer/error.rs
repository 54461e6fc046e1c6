//! What can be wrong with a tokenizer or with what it is asked.

/// Why a tokenizer could not be built or used. `file` names the file, or `GGUF metadata`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A file could not be read.
    #[error("cannot read {file}: {source}")]
    Read {
        /// The file's path.
        file: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is larger than any tokenizer's.
    #[error("{file} has {size} bytes, more than the {limit} a tokenizer file may have")]
    FileTooLarge {
        /// The file's path.
        file: String,
        /// Its size.
        size: u64,
        /// The largest size accepted.
        limit: u64,
    },
    /// A file is not the JSON it should be.
    #[error("{file} is not valid: {message}")]
    Json {
        /// The file's name.
        file: String,
        /// What the JSON parser found, with its position.
        message: String,
    },
    /// A field that the tokenizer cannot do without is absent.
    #[error("{file} has no {field}")]
    Missing {
        /// The file's name.
        file: String,
        /// The field or companion file that is absent.
        field: String,
    },
    /// A field has a value it cannot have.
    #[error("{field} in {file} {problem}")]
    Field {
        /// The file's name.
        file: String,
        /// The field.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A kind of tokenizer, or of a part of one, that is not supported.
    #[error("{file} asks for {part} {found:?}, which is not supported (supported: {supported})")]
    Unsupported {
        /// The file's name.
        file: String,
        /// The part of the tokenizer.
        part: &'static str,
        /// What was asked for.
        found: String,
        /// What there is.
        supported: String,
    },
    /// A part of a tokenizer that the metadata of a GGUF file has no words for.
    #[error("{file}: {part} cannot be written to GGUF: expected {expected}, found {found}")]
    NotInGguf {
        /// The file's name.
        file: String,
        /// The part of the tokenizer.
        part: String,
        /// What GGUF can say.
        expected: String,
        /// What there is.
        found: String,
    },
    /// There are more entries than any tokenizer has.
    #[error("{file} has {count} {what}, more than the limit of {limit}")]
    TooMany {
        /// The file's name.
        file: String,
        /// What is counted.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// The same string stands for two ids.
    #[error("token {token:?} in {file} has two ids, {first} and {second}")]
    DuplicateToken {
        /// The file's name.
        file: String,
        /// The token.
        token: String,
        /// One of its ids.
        first: u32,
        /// The other.
        second: u32,
    },
    /// Two strings stand for the same id.
    #[error("id {id} in {file} has two tokens, {first:?} and {second:?}")]
    DuplicateId {
        /// The file's name.
        file: String,
        /// The id.
        id: u32,
        /// One of its tokens.
        first: String,
        /// The other.
        second: String,
    },
    /// An id is too large to be a row of an embedding.
    #[error("token {token:?} in {file} has id {id}, above the limit of {limit}")]
    IdTooLarge {
        /// The file's name.
        file: String,
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// The largest id accepted.
        limit: u32,
    },
    /// An added token's declared id is not the one it gets when tokens are added in order.
    #[error(
        "added token {token:?} in {file} is declared with id {declared}, but its place in the vocabulary is {actual}"
    )]
    AddedTokenId {
        /// The file's name.
        file: String,
        /// The token.
        token: String,
        /// The id the file gives it.
        declared: u32,
        /// The id its content or the end of the vocabulary gives it.
        actual: u32,
    },
    /// A merge is not a pair of tokens separated by one space.
    #[error("merge {index} in {file} is not two tokens and a space: {text:?}")]
    MergeSyntax {
        /// The file's name.
        file: String,
        /// Which merge, from 0.
        index: usize,
        /// Its text.
        text: String,
    },
    /// A merge takes or makes a token that the vocabulary lacks.
    #[error("merge {index} in {file} needs the token {token:?}, which is not in the vocabulary")]
    MergeToken {
        /// The file's name.
        file: String,
        /// Which merge, from 0.
        index: usize,
        /// The token that is not there.
        token: String,
    },
    /// A special token's id is not in the vocabulary.
    #[error("the {role} id {id} in {file} is not in the vocabulary of {size} tokens")]
    SpecialId {
        /// The file's name.
        file: String,
        /// What the token is for.
        role: &'static str,
        /// Its id.
        id: u32,
        /// One more than the largest id there is.
        size: usize,
    },
    /// The `tokenizers` crate refused what it was given.
    #[error("{file} is not a usable tokenizer: {message}")]
    Build {
        /// The file's name.
        file: String,
        /// The crate's reason.
        message: String,
    },
    /// A text could not be tokenised.
    #[error("the text cannot be tokenised: {message}")]
    Encode {
        /// The reason.
        message: String,
    },
    /// No token has this id.
    #[error("token id {id} is not in the vocabulary of {size} tokens")]
    UnknownId {
        /// The id.
        id: u32,
        /// One more than the largest id there is.
        size: usize,
    },
}
