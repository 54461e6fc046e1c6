//! Harmony, the format of gpt-oss: conversations to prompts, and the model's tokens to reasoning, text and tool calls.
//!
//! A message is `<|start|>HEADER<|message|>TEXT<|end|>`, where the header has the author, and may have `to=RECIPIENT`,
//! `<|channel|>CHANNEL` and `<|constrain|>TYPE`. The assistant reasons in the channel `analysis`, calls functions in
//! `commentary` and answers in `final`. Prompts are those of OpenAI's `openai-harmony` package.

mod header;
mod parser;
mod render;
mod schema;
#[cfg(test)]
mod tests;

pub use self::header::{Header, Kind};
pub use self::parser::{Delta, End, HarmonyParser, Part, ToolCall};

use crate::tokenizer::Tokenizer;

/// The ids of the tokens that structure a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HarmonyTokens {
    /// `<|start|>`: a header follows.
    pub start: u32,
    /// `<|message|>`: the header is over, the text follows.
    pub message: u32,
    /// `<|end|>`: the message is over.
    pub end: u32,
    /// `<|channel|>`: the name of a channel follows.
    pub channel: u32,
    /// `<|constrain|>`: the type of the text follows.
    pub constrain: u32,
    /// `<|return|>`: the answer is over.
    pub end_of_answer: u32,
    /// `<|call|>`: the answer is over, and its last message is a call of a tool.
    pub call: u32,
}

impl HarmonyTokens {
    /// Those of a tokenizer; none unless it has every one as a special token.
    pub fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let id = |text| tokenizer.token_id(text).filter(|id| tokenizer.is_special(*id));
        Some(Self {
            start: id("<|start|>")?,
            message: id("<|message|>")?,
            end: id("<|end|>")?,
            channel: id("<|channel|>")?,
            constrain: id("<|constrain|>")?,
            end_of_answer: id("<|return|>")?,
            call: id("<|call|>")?,
        })
    }
}

/// The format with the tokens of one tokenizer.
#[derive(Clone, Copy, Debug)]
pub struct Harmony {
    tokens: HarmonyTokens,
}

impl Harmony {
    /// The format of a tokenizer that has its tokens.
    pub fn of(tokenizer: &Tokenizer) -> Option<Self> {
        HarmonyTokens::of(tokenizer).map(|tokens| Self { tokens })
    }

    /// Reads the tokens of an answer.
    pub fn parser<'a>(&self, tokenizer: &'a Tokenizer) -> HarmonyParser<'a> {
        HarmonyParser::new(tokenizer, self.tokens)
    }

    /// The tokens that end an answer, given all those that the model's files name: `<|end|>` is not one of them, since
    /// the answer follows the reasoning as another message.
    pub fn end_tokens(&self, of_files: &[u32]) -> Vec<u32> {
        let mut ids = vec![self.tokens.end_of_answer, self.tokens.call];
        ids.extend(of_files.iter().filter(|id| **id != self.tokens.end));
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}
