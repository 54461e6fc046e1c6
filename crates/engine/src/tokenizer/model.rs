//! The model of a tokenizer: what cuts a word into tokens.

use std::collections::HashSet;

use ahash::RandomState;

use super::bpe::{Bpe, ByteTokens, Scratch, Unknown, UnknownToken};
use super::unigram::Unigram;
use super::vocabulary::{Merge, Vocabulary};
use super::{TokenizerError, TokenizerKind};

/// What a source says of its model, checked against its vocabulary.
pub(super) enum ModelParts {
    /// Byte-pair encoding by a list of merges.
    Merges {
        merges: Vec<Merge>,
        unknown_token: Option<String>,
        fuse_unknown: bool,
        byte_fallback: bool,
        /// Whether a word that is a token is that token, whatever the merges say.
        whole_words: bool,
    },
    /// SentencePiece's byte-pair encoding by the scores of tokens.
    Scores {
        /// By id; none for tokens that no merge makes.
        scores: Vec<Option<f32>>,
        bytes: ByteTokens,
        unknown: Option<u32>,
    },
    /// SentencePiece's unigram model.
    Unigram {
        /// By id; none for tokens that text does not become.
        scores: Vec<Option<f64>>,
        /// The lowest of all scores.
        lowest: f64,
        bytes: ByteTokens,
        unknown: Option<u32>,
    },
}

/// What cuts a word into tokens.
pub(super) enum Model {
    Bpe(Bpe),
    Unigram(Unigram),
}

impl ModelParts {
    /// The model; `special` are the tokens that text becomes only where it is parsed for them.
    pub(super) fn build(
        self,
        vocabulary: &Vocabulary,
        special: HashSet<u32, RandomState>,
    ) -> Model {
        match self {
            Self::Merges { merges, unknown_token, fuse_unknown, byte_fallback, whole_words } => {
                let bytes =
                    if byte_fallback { ByteTokens::of(vocabulary) } else { ByteTokens::default() };
                let token = unknown_token.map(|token| match vocabulary.id(&token) {
                    Some(id) => UnknownToken::Id(id),
                    None => UnknownToken::Missing(token),
                });
                let unknown = Unknown { bytes, token, fuse: fuse_unknown };
                Model::Bpe(Bpe::ranked(&merges, unknown, whole_words, special))
            }
            Self::Scores { scores, bytes, unknown } => {
                let token = unknown.map(UnknownToken::Id);
                let unknown = Unknown { bytes, token, fuse: true };
                Model::Bpe(Bpe::scored(vocabulary, &scores, unknown, special))
            }
            Self::Unigram { mut scores, lowest, bytes, unknown } => {
                for id in special {
                    if let Some(score) = scores.get_mut(id as usize) {
                        *score = None;
                    }
                }
                Model::Unigram(Unigram::new(vocabulary, &scores, lowest, unknown, bytes))
            }
        }
    }

    /// What to call it.
    pub(super) fn kind(&self, is_byte_level: bool) -> TokenizerKind {
        match self {
            Self::Merges { .. } if is_byte_level => TokenizerKind::ByteLevelBpe,
            Self::Merges { .. } | Self::Scores { .. } => TokenizerKind::SentencePieceBpe,
            Self::Unigram { .. } => TokenizerKind::Unigram,
        }
    }
}

impl Model {
    /// Appends the ids of a word.
    pub(super) fn tokenize(
        &self,
        vocabulary: &Vocabulary,
        word: &str,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        match self {
            Self::Bpe(model) => model.tokenize(vocabulary, word, scratch, ids),
            Self::Unigram(model) => model.tokenize(word, ids),
        }
    }
}
