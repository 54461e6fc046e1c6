//! Decoding token by token, without ever showing half a character.

use super::{Tokenizer, TokenizerError};

/// Turns tokens into text one at a time.
///
/// The pieces of all [`push`](Self::push)es and of [`finish`](Self::finish), put together, are what
/// `String::from_utf8_lossy` makes of all the tokens' bytes together: a character split over tokens is
/// held back until it is complete, and bytes that can no longer become a character are U+FFFD at once.
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// The start of a character that is not complete yet; at most three bytes between calls.
    pending: Vec<u8>,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, pending: Vec::new() }
    }

    /// The text that the token completes, possibly none.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        let bytes = self.bytes(id)?;
        Ok(self.push_bytes(bytes))
    }

    /// The bytes of the token as they are; none for a special token that is skipped. The decoder's state
    /// is not touched, so a caller that wants both bytes and text hands these to [`push_bytes`](Self::push_bytes).
    pub fn bytes(&self, id: u32) -> Result<&'a [u8], TokenizerError> {
        let bytes = self.tokenizer.token_bytes(id).ok_or_else(|| self.tokenizer.unknown(id))?;
        Ok(if self.skip_special && self.tokenizer.is_special(id) { &[] } else { bytes })
    }

    /// The text that the bytes complete, possibly none.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut used = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            used += chunk.valid().len();
            let invalid = chunk.invalid();
            let is_last = used + invalid.len() == self.pending.len();
            if invalid.is_empty() || (is_last && is_incomplete(invalid)) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            used += invalid.len();
        }
        self.pending.drain(..used);
        text
    }

    /// What is left: nothing, or U+FFFD for a character that was never completed.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// Whether more bytes could still make these, the last ones, a character.
fn is_incomplete(invalid: &[u8]) -> bool {
    std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none())
}
