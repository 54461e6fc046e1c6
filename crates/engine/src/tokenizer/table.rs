//! The bytes of every token, by id.

use std::collections::HashSet;

use tokenizers::AddedVocabulary;

use super::TokenizerError;
use super::byte_level::bytes_of;
use super::decoder::{self, Decoder, SPACE};
use super::vocabulary::Vocabulary;

/// The bytes of every token, by id.
pub(super) struct TokenTable {
    bytes: Vec<u8>,
    /// Where a token's bytes are; none for an id that the vocabulary skips.
    spans: Vec<Option<(u32, u32)>>,
    special: HashSet<u32>,
    /// The tokens that are one byte, of those whose decoder knows such.
    single: HashSet<u32>,
}

impl TokenTable {
    /// The added tokens stand for the same id's string in the vocabulary where both exist.
    pub(super) fn new(
        vocabulary: &Vocabulary,
        added: &AddedVocabulary,
        decoder: Decoder,
    ) -> Result<Self, TokenizerError> {
        let added_tokens = added.get_added_tokens_decoder();
        let size = added_tokens.keys().map(|id| *id as usize + 1).max().unwrap_or(0);
        let size = size.max(vocabulary.size());
        if size == 0 {
            return Err(TokenizerError::Missing {
                file: vocabulary.file().to_owned(),
                field: "tokens".to_owned(),
            });
        }
        let mut table = Self {
            bytes: Vec::new(),
            spans: vec![None; size],
            special: HashSet::new(),
            single: HashSet::new(),
        };
        for (token, id) in vocabulary.tokens() {
            if !added_tokens.contains_key(&id) {
                table.insert(vocabulary.file(), id, token, decoder)?;
            }
        }
        for (id, token) in added_tokens {
            // The form the crate decodes: that after the normalizer, where it changes the token.
            let text = added.simple_id_to_token(*id).unwrap_or_else(|| token.content.clone());
            table.insert(vocabulary.file(), *id, &text, decoder)?;
            if token.special {
                table.special.insert(*id);
            }
        }
        Ok(table)
    }

    fn insert(
        &mut self,
        file: &str,
        id: u32,
        token: &str,
        decoder: Decoder,
    ) -> Result<(), TokenizerError> {
        let start = self.bytes.len();
        match decoder {
            Decoder::ByteLevel => self.bytes.extend_from_slice(&bytes_of(token)),
            Decoder::Metaspace { bytes, .. } => match decoder::byte_of(token).filter(|_| bytes) {
                Some(byte) => {
                    self.bytes.push(byte);
                    self.single.insert(id);
                }
                None => self.bytes.extend_from_slice(token.replace(SPACE, " ").as_bytes()),
            },
        }
        let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(self.bytes.len())) else {
            return Err(TokenizerError::TooMany {
                file: file.to_owned(),
                what: "bytes of tokens",
                count: self.bytes.len(),
                limit: u32::MAX as usize,
            });
        };
        self.spans[id as usize] = Some((start, end));
        Ok(())
    }

    pub(super) fn size(&self) -> usize {
        self.spans.len()
    }

    pub(super) fn contains(&self, id: u32) -> bool {
        self.get(id).is_some()
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// Whether the token is one byte that its neighbours may make a character.
    pub(super) fn is_byte(&self, id: u32) -> bool {
        self.single.contains(&id)
    }

    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let (start, end) = (*self.spans.get(id as usize)?)?;
        self.bytes.get(start as usize..end as usize)
    }
}
