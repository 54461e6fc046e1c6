//! Text to token ids and back.
//!
//! A [`Tokenizer`] comes from a Hugging Face directory ([`Tokenizer::from_directory`]) or from the metadata
//! of a GGUF file ([`Tokenizer::from_gguf`]), and gives the ids that `transformers` gives for the same files.
//! Each source is read and checked in a file of its own and handed over as `Parts`. Finding added tokens,
//! normalizing and cutting into words is that of the `tokenizers` crate; the models that cut words into tokens
//! (`bpe`, `unigram`) are here. `docs/tokenizers.md` says what there is.

mod bpe;
mod build;
mod byte_level;
mod decoder;
mod directory;
mod encode;
mod error;
mod from_gguf;
mod from_json;
mod from_vocab_merges;
mod json;
mod metadata;
mod model;
mod normalizer;
mod post_processor;
mod pre_tokenizer;
mod rules;
mod scores;
mod stream;
mod table;
#[cfg(test)]
mod tests;
mod to_gguf;
mod unigram;
mod vocabulary;

use std::path::Path;

use tokenizers::{AddedVocabulary, NormalizerWrapper};

use self::build::Parts;
use self::decoder::Decoder;
pub use self::encode::{EncodeOptions, Segment};
pub(crate) use self::encode::{is_private_use, private_use};
pub use self::error::TokenizerError;
pub use self::from_gguf::GgufTokenizer;
pub use self::metadata::{TokenizerKind, TokenizerMetadata};
use self::model::Model;
use self::pre_tokenizer::PreTokenizer;
pub use self::stream::StreamDecoder;
use self::table::TokenTable;
pub use self::to_gguf::to_gguf;
use self::vocabulary::Vocabulary;

/// Turns text into token ids and back.
pub struct Tokenizer {
    vocabulary: Vocabulary,
    model: Model,
    added: AddedVocabulary,
    /// The same, but passing over special tokens in the text.
    added_without_special: AddedVocabulary,
    normalizer: Option<NormalizerWrapper>,
    /// Whether the normalizer puts a `▁` before every piece of text.
    prepends: bool,
    pre_tokenizer: PreTokenizer,
    decoder: Decoder,
    /// What `encode` puts before and after a text.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    table: TokenTable,
    metadata: TokenizerMetadata,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("metadata", &self.metadata)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// The tokenizer of a Hugging Face directory: `tokenizer.json`, else `vocab.json` with `merges.txt`.
    ///
    /// `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`, `config.json`,
    /// `generation_config.json` and `chat_template.jinja` are read where they exist. None if the directory
    /// has no tokenizer. Settings of a `tokenizer.json` for truncation and padding are not followed: they
    /// are for batches, and `tokenizer(text)` of `transformers` does neither.
    pub fn from_directory(directory: &Path) -> Result<Option<Self>, TokenizerError> {
        directory::read(directory)?.map(Parts::build).transpose()
    }

    /// The tokenizer in the metadata of a GGUF file.
    pub fn from_gguf(fields: GgufTokenizer<'_>) -> Result<Self, TokenizerError> {
        from_gguf::read(fields)
    }

    /// The text that the ids stand for, special tokens included, nothing cleaned up. Bytes that are not
    /// UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let mut decoder = self.decoder(false);
        let mut text = String::new();
        for id in ids {
            text.push_str(&decoder.push(*id)?);
        }
        text.push_str(&decoder.finish());
        Ok(text)
    }

    /// A decoder for tokens that come one at a time.
    pub fn decoder(&self, skip_special: bool) -> StreamDecoder<'_> {
        StreamDecoder::new(self, skip_special)
    }

    /// What the tokenizer knows about itself.
    pub fn metadata(&self) -> &TokenizerMetadata {
        &self.metadata
    }

    /// The exact bytes that a token stands for; none if no token has this id. Those of SentencePiece's tokens have
    /// spaces for `▁`.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.table.get(id)
    }

    /// Whether the token is a special one: not part of the text, skipped when text is shown.
    pub fn is_special(&self, id: u32) -> bool {
        self.table.is_special(id)
    }

    /// The id of a token by its string, as the vocabulary writes it (`Ġthe`), or of an added token.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.added.get_vocab().get(token).copied().or_else(|| self.vocabulary.id(token))
    }

    /// The string of a token as the vocabulary writes it, empty if there is none.
    fn token_text(&self, id: u32) -> &str {
        let added = self.added.get_added_tokens_decoder().get(&id);
        let text = added.map(|token| token.content.as_str()).or_else(|| self.vocabulary.text(id));
        text.unwrap_or_default()
    }

    /// The largest id there is, and so the largest that `encode` can give.
    pub fn max_id(&self) -> u32 {
        // A table is never empty and its ids are u32.
        (self.table.size() - 1) as u32
    }

    fn unknown(&self, id: u32) -> TokenizerError {
        TokenizerError::UnknownId { id, size: self.table.size() }
    }
}

/// Refuses a score with which tokens could not be compared.
fn check_score(file: &str, token: &str, score: f64) -> Result<(), TokenizerError> {
    if score.is_finite() {
        return Ok(());
    }
    Err(TokenizerError::Field {
        file: file.to_owned(),
        field: format!("the score of token {token:?}"),
        problem: format!("is {score}"),
    })
}
