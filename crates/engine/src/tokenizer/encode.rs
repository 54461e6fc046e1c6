//! Text to token ids.

use std::borrow::Cow;
use std::collections::HashMap;

use tokenizers::{AddedVocabulary, NormalizedString, OffsetReferential, OffsetType};

use super::bpe::Scratch;
use super::decoder::{Decoder, SPACE};
use super::{Tokenizer, TokenizerError};

/// How a text is to be encoded. The default is what `transformers` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Whether to put the tokens around the text that the tokenizer is configured to add.
    pub add_special_tokens: bool,
    /// Whether the string of a special token in the text is that token. If not, it is ordinary text;
    /// added tokens that are not special are found all the same.
    pub parse_special: bool,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self { add_special_tokens: true, parse_special: true }
    }
}

/// A part of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// The text.
    pub text: Cow<'a, str>,
    /// Whether the string of a special token in it is that token.
    pub parse_special: bool,
}

impl Tokenizer {
    /// The ids of a text: those of `tokenizer(text)` in `transformers`. `bos` and `eos` are added as the
    /// tokenizer is configured to, and special tokens in the text are parsed.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, EncodeOptions::default())
    }

    /// The ids of a text.
    pub fn encode_with(
        &self,
        text: &str,
        options: EncodeOptions,
    ) -> Result<Vec<u32>, TokenizerError> {
        let added = if options.parse_special { &self.added } else { &self.added_without_special };
        let mut ids = Vec::new();
        if options.add_special_tokens {
            ids.extend_from_slice(&self.prefix);
        }
        self.cut(text, added, None, &mut ids)?;
        if options.add_special_tokens {
            ids.extend_from_slice(&self.suffix);
        }
        Ok(ids)
    }

    /// The ids of a prompt, with nothing added around it.
    ///
    /// The segments are one text: words and merges run across their borders, and the ids are those of the
    /// whole text, except that in a segment with `parse_special` off the string of a special token is
    /// ordinary text, and that no added token is found across the border of such a segment.
    pub fn encode_segments(&self, segments: &[Segment<'_>]) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        if segments.iter().all(|segment| segment.parse_special) {
            let text: String = segments.iter().map(|segment| segment.text.as_ref()).collect();
            self.cut(&text, &self.added, None, &mut ids)?;
            return Ok(ids);
        }
        let mut hidden = Hidden::new(segments)?;
        let mut text = String::new();
        for segment in segments {
            if segment.parse_special {
                text.push_str(&segment.text);
            } else if !segment.text.is_empty() {
                text.push(hidden.border);
                self.hide(&segment.text, &mut hidden, &mut text)?;
                text.push(hidden.border);
            }
        }
        self.cut(&text, &self.added, Some(&hidden), &mut ids)?;
        Ok(ids)
    }

    /// Appends the text with a placeholder for every special token's string.
    fn hide(
        &self,
        text: &str,
        hidden: &mut Hidden,
        output: &mut String,
    ) -> Result<(), TokenizerError> {
        let pieces = self.added.extract_and_normalize(self.normalizer.as_ref(), text);
        let mut shown = 0;
        for (_, (start, end), tokens) in
            pieces.get_splits(OffsetReferential::Original, OffsetType::Byte)
        {
            let is_special = tokens
                .as_ref()
                .is_some_and(|tokens| tokens.iter().any(|token| self.is_special(token.id)));
            // A token that strips whitespace can overlap the one before it.
            let start = start.max(shown);
            if !is_special || start >= end {
                continue;
            }
            let (Some(before), Some(special)) = (text.get(shown..start), text.get(start..end))
            else {
                return Err(TokenizerError::Encode {
                    message: "a special token was found inside a character".to_owned(),
                });
            };
            output.push_str(before);
            output.push(hidden.placeholder(special)?);
            shown = end;
        }
        output.push_str(&text[shown..]);
        Ok(())
    }

    /// Appends the ids of a text: added tokens first, then words, then their tokens.
    fn cut(
        &self,
        text: &str,
        added: &AddedVocabulary,
        hidden: Option<&Hidden>,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let failed =
            |error: tokenizers::Error| TokenizerError::Encode { message: error.to_string() };
        let mut pieces = added.extract_and_normalize(self.normalizer.as_ref(), text);
        if let Some(hidden) = hidden {
            // Now that the added tokens are found, what was hidden from them is text again, in its place
            // between its neighbours, before the text is cut into words.
            let space = match self.decoder {
                Decoder::ByteLevel => ' '.to_string(),
                Decoder::Metaspace { .. } => SPACE.to_string(),
            };
            pieces
                .split(|_, piece| {
                    let text = piece.get();
                    // The normalizer puts a space before each piece; before borders alone there is no text.
                    let borders = if self.prepends { text.strip_prefix(SPACE) } else { None };
                    let is_empty =
                        borders.is_some_and(|rest| !rest.is_empty() && hidden.is_borders(rest));
                    let shown = if is_empty { String::new() } else { hidden.show(text, &space) };
                    Ok([NormalizedString::from(shown)])
                })
                .map_err(failed)?;
        }
        self.pre_tokenizer.cut(&mut pieces).map_err(failed)?;
        let mut scratch = Scratch::default();
        for (word, _, tokens) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::None)
        {
            match tokens {
                Some(tokens) => ids.extend(tokens.iter().map(|token| token.id)),
                None => self.model.tokenize(&self.vocabulary, word, &mut scratch, ids)?,
            }
        }
        Ok(())
    }
}

/// The strings hidden from the search for added tokens, each behind a character that no segment contains.
struct Hidden {
    free: Box<dyn Iterator<Item = char>>,
    /// Stands for nothing: it keeps tokens from being found across a border.
    border: char,
    placeholders: HashMap<String, char>,
    strings: HashMap<char, String>,
}

/// Every private-use character, those outside the basic plane first: texts and vocabularies rarely have them.
pub(crate) fn private_use() -> impl Iterator<Item = char> {
    ('\u{F0000}'..='\u{FFFFD}').chain('\u{100000}'..='\u{10FFFD}').chain('\u{E000}'..='\u{F8FF}')
}

impl Hidden {
    fn new(segments: &[Segment<'_>]) -> Result<Self, TokenizerError> {
        let used: std::collections::HashSet<char> = segments
            .iter()
            .flat_map(|segment| segment.text.chars())
            .filter(|c| is_private_use(*c))
            .collect();
        let mut free = private_use().filter(move |character| !used.contains(character));
        let border = free.next().ok_or_else(none_free)?;
        Ok(Self {
            free: Box::new(free),
            border,
            placeholders: HashMap::new(),
            strings: HashMap::new(),
        })
    }

    fn placeholder(&mut self, string: &str) -> Result<char, TokenizerError> {
        if let Some(placeholder) = self.placeholders.get(string) {
            return Ok(*placeholder);
        }
        let placeholder = self.free.next().ok_or_else(none_free)?;
        self.placeholders.insert(string.to_owned(), placeholder);
        self.strings.insert(placeholder, string.to_owned());
        Ok(placeholder)
    }

    fn is_borders(&self, text: &str) -> bool {
        text.chars().all(|character| character == self.border)
    }

    /// The text with the strings in place of their placeholders, with the tokenizer's spaces in them.
    fn show(&self, text: &str, space: &str) -> String {
        let mut shown = String::with_capacity(text.len());
        for character in text.chars() {
            if let Some(string) = self.strings.get(&character) {
                shown.push_str(&string.replace(' ', space));
            } else if character != self.border {
                shown.push(character);
            }
        }
        shown
    }
}

fn none_free() -> TokenizerError {
    TokenizerError::Encode { message: "it uses every private-use character".to_owned() }
}

/// Whether [`private_use`] has the character.
pub(crate) fn is_private_use(character: char) -> bool {
    matches!(character, '\u{E000}'..='\u{F8FF}' | '\u{F0000}'..='\u{FFFFD}' | '\u{100000}'..='\u{10FFFD}')
}
