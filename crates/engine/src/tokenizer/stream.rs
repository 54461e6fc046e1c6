//! Decoding token by token, without ever showing half a character.

use super::decoder::{Decoder, SPACE, Start};
use super::{Tokenizer, TokenizerError};

/// Turns tokens into text one at a time.
///
/// The pieces of all [`push`](Self::push)es and of [`finish`](Self::finish), put together, are what the tokenizer's
/// own decoder makes of all tokens at once:
///
/// - Of byte-level tokens, `String::from_utf8_lossy` of all their bytes: a character split over tokens is held back
///   until it is complete, and bytes that can no longer become a character are U+FFFD at once.
/// - Of SentencePiece's, the text of each, where a run of byte tokens (`<0xE2>`) is text if the whole run is UTF-8
///   and else one U+FFFD for each: a run is held back until it ends. The space that encoding put before the text is
///   taken away again.
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Byte-level: the start of a character that is not complete yet, at most three bytes between calls.
    /// SentencePiece: a run of byte tokens.
    pending: Vec<u8>,
    /// What is to be taken from the start of the text, while nothing of it was shown.
    start: Start,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        let start = match tokenizer.decoder {
            Decoder::ByteLevel => Start::Keep,
            Decoder::Metaspace { start, .. } => start,
        };
        Self { tokenizer, skip_special, pending: Vec::new(), start }
    }

    /// The text that the token completes, possibly none.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        let bytes = self.bytes(id)?;
        if self.skip_special && self.tokenizer.is_special(id) {
            return Ok(String::new());
        }
        Ok(match self.tokenizer.decoder {
            Decoder::ByteLevel => self.complete(bytes),
            Decoder::Metaspace { .. } if self.tokenizer.table.is_byte(id) => {
                self.pending.extend_from_slice(bytes);
                String::new()
            }
            Decoder::Metaspace { .. } => {
                let mut text = self.end_of_run();
                if self.start == Start::FirstToken {
                    self.start = Start::Keep;
                    text.push_str(&self.tokenizer.token_text(id).replace(SPACE, ""));
                } else {
                    text.push_str(&self.after_start(&String::from_utf8_lossy(bytes)));
                }
                text
            }
        })
    }

    /// The bytes of the token as they are; none for a special token that is skipped.
    pub fn bytes(&self, id: u32) -> Result<&'a [u8], TokenizerError> {
        let bytes = self.tokenizer.token_bytes(id).ok_or_else(|| self.tokenizer.unknown(id))?;
        Ok(if self.skip_special && self.tokenizer.is_special(id) { &[] } else { bytes })
    }

    /// The text that the bytes complete, possibly none.
    fn complete(&mut self, bytes: &[u8]) -> String {
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

    /// The text of the run of byte tokens that ends here.
    fn end_of_run(&mut self) -> String {
        let run = std::mem::take(&mut self.pending);
        let text = String::from_utf8(run).unwrap_or_else(|error| {
            String::from(char::REPLACEMENT_CHARACTER).repeat(error.as_bytes().len())
        });
        self.after_start(&text)
    }

    /// The text without the space that is to be taken from the start.
    fn after_start(&mut self, text: &str) -> String {
        if self.start != Start::Space || text.is_empty() {
            return text.to_owned();
        }
        self.start = Start::Keep;
        text.strip_prefix(' ').unwrap_or(text).to_owned()
    }

    /// What is left: nothing, or the text of what was never completed.
    pub fn finish(mut self) -> String {
        match self.tokenizer.decoder {
            Decoder::ByteLevel => String::from_utf8_lossy(&self.pending).into_owned(),
            Decoder::Metaspace { .. } => self.end_of_run(),
        }
    }
}

/// Whether more bytes could still make these, the last ones, a character.
fn is_incomplete(invalid: &[u8]) -> bool {
    std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none())
}
