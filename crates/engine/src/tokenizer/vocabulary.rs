//! The vocabulary: every token once, every id once, every merge within it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;
use tokenizers::AddedToken;

use super::TokenizerError;

/// No embedding has more rows; it bounds what a hostile file can make us allocate.
pub(super) const MAX_TOKENS: usize = 1 << 22;
/// A merge makes a token, and some vocabularies reach the same token by several merges.
pub(super) const MAX_MERGES: usize = 4 * MAX_TOKENS;
/// Stands for no token in lists by id.
const NONE: u32 = u32::MAX;

/// The model's own tokens, checked.
pub(super) struct Vocabulary {
    file: String,
    tokens: Vec<(Arc<str>, u32)>,
    ids: HashMap<Arc<str>, u32, RandomState>,
    /// Where each id's token is in `tokens`.
    places: Vec<u32>,
}

/// What a merge takes and makes, by id: `left`, `right`, and the token of both strings together.
pub(super) type Merge = [u32; 3];

impl Vocabulary {
    pub(super) fn new<T: AsRef<str>>(
        file: &str,
        tokens: impl ExactSizeIterator<Item = (T, u32)>,
    ) -> Result<Self, TokenizerError> {
        too_many(file, "tokens", tokens.len(), MAX_TOKENS)?;
        let mut vocabulary = Self {
            file: file.to_owned(),
            tokens: Vec::with_capacity(tokens.len()),
            ids: HashMap::with_capacity_and_hasher(tokens.len(), RandomState::new()),
            places: vec![NONE; tokens.len()],
        };
        for (token, id) in tokens {
            vocabulary.push(token.as_ref(), id)?;
        }
        Ok(vocabulary)
    }

    fn push(&mut self, token: &str, id: u32) -> Result<(), TokenizerError> {
        check_id(&self.file, token, id)?;
        let text: Arc<str> = token.into();
        if let Some(first) = self.ids.insert(text.clone(), id) {
            return Err(TokenizerError::DuplicateToken {
                file: self.file.clone(),
                token: token.to_owned(),
                first,
                second: id,
            });
        }
        if self.places.len() <= id as usize {
            self.places.resize(id as usize + 1, NONE);
        }
        if let Some(first) = self.text(id) {
            return Err(TokenizerError::DuplicateId {
                file: self.file.clone(),
                id,
                first: first.to_owned(),
                second: token.to_owned(),
            });
        }
        // Fewer than `MAX_TOKENS`.
        self.places[id as usize] = self.tokens.len() as u32;
        self.tokens.push((text, id));
        Ok(())
    }

    /// Gives a token another string, which no token has yet; whether it could.
    pub(super) fn rename(&mut self, id: u32, text: &str) -> bool {
        let Some(place) = self.places.get(id as usize).map(|place| *place as usize) else {
            return false;
        };
        if self.ids.contains_key(text) || place >= self.tokens.len() {
            return false;
        }
        self.ids.remove(&self.tokens[place].0);
        self.tokens[place].0 = text.into();
        self.ids.insert(text.into(), id);
        true
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The tokens in the file's order.
    pub(super) fn tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        self.tokens.iter().map(|(token, id)| (&**token, *id))
    }

    /// One more than the largest id; 0 of none.
    pub(super) fn size(&self) -> usize {
        self.tokens.iter().map(|(_, id)| *id as usize + 1).max().unwrap_or(0)
    }

    /// The ids of a list of merges, each `(left, right)`. A later merge of the same two counts, as in the
    /// `tokenizers` crate.
    pub(super) fn merges<'a>(
        &self,
        file: &str,
        merges: impl ExactSizeIterator<Item = Result<(Cow<'a, str>, Cow<'a, str>), TokenizerError>>,
    ) -> Result<Vec<Merge>, TokenizerError> {
        too_many(file, "merges", merges.len(), MAX_MERGES)?;
        let mut ids = Vec::with_capacity(merges.len());
        let mut merged = String::new();
        for (index, merge) in merges.enumerate() {
            let (left, right) = merge?;
            merged.clear();
            merged.push_str(&left);
            merged.push_str(&right);
            let id = |token: &str| {
                self.id(token).ok_or_else(|| TokenizerError::MergeToken {
                    file: file.to_owned(),
                    index,
                    token: token.to_owned(),
                })
            };
            ids.push([id(&left)?, id(&right)?, id(&merged)?]);
        }
        Ok(ids)
    }

    /// The id of every added token, as the `tokenizers` crate and so `transformers` assign it: that of the
    /// same string in the vocabulary, else the next after the vocabulary's length and the added tokens.
    pub(super) fn place(&self, added: &[Added]) -> Result<HashMap<String, u32>, TokenizerError> {
        let mut placed: HashMap<String, u32> = HashMap::new();
        let mut taken: HashMap<u32, &str> = HashMap::new();
        let mut next = self.len() as u32;
        for Added { token, id: declared, file } in added {
            let content = token.content.as_str();
            let id = match placed.get(content).or_else(|| self.ids.get(content)) {
                Some(id) => *id,
                None => {
                    next += 1;
                    next - 1
                }
            };
            check_id(file, content, id)?;
            if let Some(declared) = declared.filter(|declared| *declared != id) {
                return Err(TokenizerError::AddedTokenId {
                    file: file.clone(),
                    token: content.to_owned(),
                    declared,
                    actual: id,
                });
            }
            let taken = taken.insert(id, content).or_else(|| self.text(id));
            if let Some(first) = taken.filter(|first| *first != content) {
                return Err(TokenizerError::DuplicateId {
                    file: file.clone(),
                    id,
                    first: first.to_owned(),
                    second: content.to_owned(),
                });
            }
            placed.insert(content.to_owned(), id);
        }
        Ok(placed)
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// The string of an id.
    pub(super) fn text(&self, id: u32) -> Option<&str> {
        let place = self.places.get(id as usize)?;
        self.tokens.get(*place as usize).map(|(token, _)| &**token)
    }

    pub(super) fn file(&self) -> &str {
        &self.file
    }
}

fn too_many(
    file: &str,
    what: &'static str,
    count: usize,
    limit: usize,
) -> Result<(), TokenizerError> {
    if count > limit {
        return Err(TokenizerError::TooMany { file: file.to_owned(), what, count, limit });
    }
    Ok(())
}

fn check_id(file: &str, token: &str, id: u32) -> Result<(), TokenizerError> {
    if id as usize >= MAX_TOKENS {
        return Err(TokenizerError::IdTooLarge {
            file: file.to_owned(),
            token: token.to_owned(),
            id,
            limit: MAX_TOKENS as u32 - 1,
        });
    }
    Ok(())
}

/// A token that is looked for in the text before it is cut into words.
pub(super) struct Added {
    pub token: AddedToken,
    /// The id its file declares, where it does.
    pub id: Option<u32>,
    /// The file it comes from.
    pub file: String,
}

/// The two tokens of `"left right"`: exactly one space, as no token of a byte-level alphabet has one.
pub(super) fn split_merge<'a>(
    file: &str,
    index: usize,
    text: &'a str,
) -> Result<(Cow<'a, str>, Cow<'a, str>), TokenizerError> {
    match text.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
            Ok((left.into(), right.into()))
        }
        _ => {
            Err(TokenizerError::MergeSyntax { file: file.to_owned(), index, text: text.to_owned() })
        }
    }
}
