//! Hiding the strings of special tokens in a conversation from the template's text.
//!
//! Each becomes one private-use character that occurs nowhere else. A template can move, trim and repeat it
//! like any character, and cannot take it apart; after rendering it is the string again, known to be text.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::template::{Rendered, TemplateError};
use crate::tokenizer::{Segment, is_private_use, private_use};

/// Which character stands for which string in one rendering.
pub(super) struct Marks<'a> {
    /// The strings to hide by their first character, the longest first.
    strings: HashMap<char, Vec<&'a str>>,
    free: Box<dyn Iterator<Item = char>>,
    marks: HashMap<&'a str, char>,
    hidden: HashMap<char, &'a str>,
}

impl<'a> Marks<'a> {
    /// Marks that occur neither in the template nor in any value.
    pub(super) fn new<'v>(
        strings: &'a [String],
        template: &str,
        values: impl Iterator<Item = &'v Value>,
    ) -> Self {
        let mut used: HashSet<char> = template.chars().filter(|c| is_private_use(*c)).collect();
        values.for_each(|value| collect(value, &mut used));
        used.extend(
            strings.iter().flat_map(|string| string.chars()).filter(|c| is_private_use(*c)),
        );
        let mut by_first: HashMap<char, Vec<&str>> = HashMap::new();
        for string in strings {
            if let Some(first) = string.chars().next() {
                by_first.entry(first).or_default().push(string);
            }
        }
        for strings in by_first.values_mut() {
            strings.sort_by_key(|string| std::cmp::Reverse(string.len()));
        }
        let free = private_use().filter(move |character| !used.contains(character));
        Self {
            strings: by_first,
            free: Box::new(free),
            marks: HashMap::new(),
            hidden: HashMap::new(),
        }
    }

    /// The value with every special string hidden, in keys too: what templates look up is no such string, and a tool's
    /// parameters are written with their names.
    pub(super) fn hide(&mut self, value: &Value) -> Result<Value, TemplateError> {
        Ok(match value {
            Value::String(text) => Value::String(self.hide_text(text)?),
            Value::Array(values) => {
                Value::Array(values.iter().map(|value| self.hide(value)).collect::<Result<_, _>>()?)
            }
            Value::Object(object) => {
                let mut hidden = Map::new();
                for (key, value) in object {
                    hidden.insert(self.hide_text(key)?, self.hide(value)?);
                }
                Value::Object(hidden)
            }
            value => value.clone(),
        })
    }

    fn hide_text(&mut self, text: &str) -> Result<String, TemplateError> {
        let mut output = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let found = self.strings.get(&first).and_then(|strings| {
                strings.iter().copied().find(|string| rest.starts_with(string))
            });
            match found {
                Some(string) => {
                    output.push(self.mark(string)?);
                    rest = &rest[string.len()..];
                }
                None => {
                    output.push(first);
                    rest = &rest[first.len_utf8()..];
                }
            }
        }
        Ok(output)
    }

    fn mark(&mut self, string: &'a str) -> Result<char, TemplateError> {
        if let Some(mark) = self.marks.get(string) {
            return Ok(*mark);
        }
        let mark = self.free.next().ok_or(TemplateError::NoMarks)?;
        self.marks.insert(string, mark);
        self.hidden.insert(mark, string);
        Ok(mark)
    }

    /// The rendered text with every mark a string again, in a segment of its own.
    pub(super) fn show(&self, text: &str) -> Rendered {
        let mut segments: Vec<Segment<'static>> = Vec::new();
        let mut start = 0;
        let mut push = |text: &str, parse_special: bool| {
            if !text.is_empty() {
                segments.push(Segment { text: text.to_owned().into(), parse_special });
            }
        };
        for (at, character) in text.char_indices() {
            if let Some(string) = self.hidden.get(&character) {
                push(&text[start..at], true);
                push(string, false);
                start = at + character.len_utf8();
            }
        }
        push(&text[start..], true);
        Rendered { segments }
    }
}

fn collect(value: &Value, used: &mut HashSet<char>) {
    match value {
        Value::String(text) => used.extend(text.chars().filter(|c| is_private_use(*c))),
        Value::Array(values) => values.iter().for_each(|value| collect(value, used)),
        Value::Object(object) => {
            for (key, value) in object {
                used.extend(key.chars().filter(|c| is_private_use(*c)));
                collect(value, used);
            }
        }
        _ => {}
    }
}
