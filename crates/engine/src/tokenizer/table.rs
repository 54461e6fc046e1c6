//! The bytes of every token, by id.

use std::collections::HashSet;

use tokenizers::AddedVocabulary;

use super::TokenizerError;
use super::byte_level::bytes_of;

/// The bytes of every token, by id.
pub(super) struct TokenTable {
    bytes: Vec<u8>,
    /// Where a token's bytes are; none for an id that the vocabulary skips.
    spans: Vec<Option<(u32, u32)>>,
    special: HashSet<u32>,
}

impl TokenTable {
    /// `tokens` are the model's; the added ones stand for the same id's string where both exist.
    pub(super) fn new(
        file: &str,
        tokens: &[(String, u32)],
        added: &AddedVocabulary,
    ) -> Result<Self, TokenizerError> {
        let added_tokens = added.get_added_tokens_decoder();
        let largest = tokens.iter().map(|(_, id)| id).chain(added_tokens.keys()).max();
        let Some(largest) = largest else {
            return Err(TokenizerError::Missing {
                file: file.to_owned(),
                field: "tokens".to_owned(),
            });
        };
        let mut table = Self {
            bytes: Vec::new(),
            spans: vec![None; *largest as usize + 1],
            special: HashSet::new(),
        };
        for (token, id) in tokens {
            if !added_tokens.contains_key(id) {
                table.insert(file, *id, token)?;
            }
        }
        for (id, token) in added_tokens {
            // The form the crate decodes: that after the normalizer, where it changes the token.
            let text = added.simple_id_to_token(*id).unwrap_or_else(|| token.content.clone());
            table.insert(file, *id, &text)?;
            if token.special {
                table.special.insert(*id);
            }
        }
        Ok(table)
    }

    fn insert(&mut self, file: &str, id: u32, token: &str) -> Result<(), TokenizerError> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&bytes_of(token));
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

    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let (start, end) = (*self.spans.get(id as usize)?)?;
        self.bytes.get(start as usize..end as usize)
    }
}
