//! The vocabulary while it is put together: every token once, every id once, every merge within it.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use tokenizers::AddedToken;

use super::TokenizerError;

/// No embedding has more rows; it bounds what a hostile file can make us allocate.
pub(super) const MAX_TOKENS: usize = 1 << 22;
/// A merge makes a token, and some vocabularies reach the same token by several merges.
pub(super) const MAX_MERGES: usize = 4 * MAX_TOKENS;

/// The model's own tokens, checked.
pub(super) struct Vocabulary {
    file: String,
    tokens: Vec<(String, u32)>,
    ids: HashMap<String, u32>,
    texts: HashMap<u32, usize>,
}

impl Vocabulary {
    pub(super) fn new(file: &str, tokens: Vec<(String, u32)>) -> Result<Self, TokenizerError> {
        if tokens.len() > MAX_TOKENS {
            return Err(TokenizerError::TooMany {
                file: file.to_owned(),
                what: "tokens",
                count: tokens.len(),
                limit: MAX_TOKENS,
            });
        }
        let mut ids = HashMap::with_capacity(tokens.len());
        let mut texts: HashMap<u32, usize> = HashMap::with_capacity(tokens.len());
        for (index, (token, id)) in tokens.iter().enumerate() {
            check_id(file, token, *id)?;
            if let Some(first) = ids.insert(token.clone(), *id) {
                return Err(TokenizerError::DuplicateToken {
                    file: file.to_owned(),
                    token: token.clone(),
                    first,
                    second: *id,
                });
            }
            if let Some(first) = texts.insert(*id, index) {
                return Err(TokenizerError::DuplicateId {
                    file: file.to_owned(),
                    id: *id,
                    first: tokens[first].0.clone(),
                    second: token.clone(),
                });
            }
        }
        Ok(Self { file: file.to_owned(), tokens, ids, texts })
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn tokens(&self) -> &[(String, u32)] {
        &self.tokens
    }

    pub(super) fn into_tokens(self) -> Vec<(String, u32)> {
        self.tokens
    }

    /// Checks that both halves and the result of every merge are tokens. The `tokenizers` crate relies
    /// on it: a result longer than every token overruns its buffer and panics.
    pub(super) fn check_merges(
        &self,
        file: &str,
        merges: &[(String, String)],
    ) -> Result<(), TokenizerError> {
        if merges.len() > MAX_MERGES {
            return Err(TokenizerError::TooMany {
                file: file.to_owned(),
                what: "merges",
                count: merges.len(),
                limit: MAX_MERGES,
            });
        }
        let mut merged = String::new();
        for (index, (left, right)) in merges.iter().enumerate() {
            merged.clear();
            merged.push_str(left);
            merged.push_str(right);
            for token in [left.as_str(), right.as_str(), merged.as_str()] {
                if !self.ids.contains_key(token) {
                    return Err(TokenizerError::MergeToken {
                        file: file.to_owned(),
                        index,
                        token: token.to_owned(),
                    });
                }
            }
        }
        Ok(())
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
            let in_vocabulary = self.texts.get(&id).map(|index| self.tokens[*index].0.as_str());
            if let Some(first) =
                taken.insert(id, content).or(in_vocabulary).filter(|first| *first != content)
            {
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

    pub(super) fn file(&self) -> &str {
        &self.file
    }
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

/// `{"token": id, ..}` in the file's order, duplicates kept, so that they can be refused. Anything but
/// an object reads as none: a list is another kind of model's vocabulary, refused by the model's name.
#[derive(Default)]
pub(super) struct TokenMap(pub Option<Vec<(String, u32)>>);

impl<'de> Deserialize<'de> for TokenMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tokens;
        impl<'de> Visitor<'de> for Tokens {
            type Value = TokenMap;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of tokens and their ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TokenMap, A::Error> {
                let mut tokens = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    tokens.push(entry);
                }
                Ok(TokenMap(Some(tokens)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<TokenMap, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(TokenMap(None))
            }
        }
        deserializer.deserialize_any(Tokens)
    }
}

/// A merge of a `tokenizer.json`: `"left right"`, or since 0.20 `["left", "right"]`.
pub(super) struct Merge(pub String, pub Option<String>);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pair;
        impl<'de> Visitor<'de> for Pair {
            type Value = Merge;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a merge: two tokens")
            }

            fn visit_str<E>(self, text: &str) -> Result<Merge, E> {
                Ok(Merge(text.to_owned(), None))
            }

            fn visit_string<E>(self, text: String) -> Result<Merge, E> {
                Ok(Merge(text, None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merge, A::Error> {
                let missing = |n| serde::de::Error::invalid_length(n, &"two tokens");
                let left = list.next_element()?.ok_or_else(|| missing(0))?;
                let right = list.next_element()?.ok_or_else(|| missing(1))?;
                if list.next_element::<IgnoredAny>()?.is_some() {
                    return Err(missing(3));
                }
                Ok(Merge(left, Some(right)))
            }
        }
        deserializer.deserialize_any(Pair)
    }
}

/// The two tokens of `"left right"`: exactly one space, as no token of a byte-level alphabet has one.
pub(super) fn split_merge(
    file: &str,
    index: usize,
    text: &str,
) -> Result<(String, String), TokenizerError> {
    match text.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
            Ok((left.to_owned(), right.to_owned()))
        }
        _ => {
            Err(TokenizerError::MergeSyntax { file: file.to_owned(), index, text: text.to_owned() })
        }
    }
}
