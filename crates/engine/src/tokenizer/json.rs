//! The lists of a `tokenizer.json`, read without a copy of each string.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A string, borrowed where the file writes it as it is.
pub(super) struct Text<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Text<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a token")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Any)
    }
}

/// The tokens of a model, in the file's order, duplicates kept, so that they can be refused.
#[derive(Default)]
pub(super) enum Tokens<'a> {
    #[default]
    None,
    /// `{"token": id, ..}`
    Ids(Vec<(Text<'a>, u32)>),
    /// `[["token", score], ..]`: the ids are the places in the list.
    Scores(Vec<(Text<'a>, f64)>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Tokens<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Tokens<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("tokens with their ids or scores")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tokens<'de>, A::Error> {
                let mut tokens = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    tokens.push(entry);
                }
                Ok(Tokens::Ids(tokens))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tokens<'de>, A::Error> {
                let mut tokens = Vec::new();
                while let Some(entry) = list.next_element()? {
                    tokens.push(entry);
                }
                Ok(Tokens::Scores(tokens))
            }

            fn visit_unit<E>(self) -> Result<Tokens<'de>, E> {
                Ok(Tokens::None)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// A merge of a `tokenizer.json`: `"left right"`, or since 0.20 `["left", "right"]`.
pub(super) struct MergeText<'a>(pub Cow<'a, str>, pub Option<Cow<'a, str>>);

impl<'de: 'a, 'a> Deserialize<'de> for MergeText<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pair<'de>(PhantomData<&'de ()>);
        impl<'de> Visitor<'de> for Pair<'de> {
            type Value = MergeText<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a merge: two tokens")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<MergeText<'de>, E> {
                Ok(MergeText(Cow::Borrowed(text), None))
            }

            fn visit_str<E>(self, text: &str) -> Result<MergeText<'de>, E> {
                Ok(MergeText(Cow::Owned(text.to_owned()), None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<MergeText<'de>, A::Error> {
                let missing = |n| A::Error::invalid_length(n, &"two tokens");
                let Text(left) = list.next_element()?.ok_or_else(|| missing(0))?;
                let Text(right) = list.next_element()?.ok_or_else(|| missing(1))?;
                if list.next_element::<IgnoredAny>()?.is_some() {
                    return Err(missing(3));
                }
                Ok(MergeText(left, Some(right)))
            }
        }
        deserializer.deserialize_any(Pair(PhantomData))
    }
}
