//! The tokens of an answer as what clients read: text, reasoning, calls of tools, log-probabilities.

use super::app::Served;
use super::body;
use super::tags::{TAGS, TagReader, Tagged};
use oxgpt_engine::prompt::ChatFormat;
use oxgpt_engine::prompt::harmony::{Delta, HarmonyParser, Kind};
use oxgpt_engine::sampler::TokenLogprobs;
use oxgpt_engine::stop::StopMatcher;
use oxgpt_engine::tokenizer::{StreamDecoder, Tokenizer};
use std::collections::VecDeque;

/// A part of an answer, in the order in which it comes.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Text of the answer itself.
    Text(String),
    /// What the model thinks.
    Reasoning(String),
    /// It calls a tool, under a name of the call's own; the arguments follow.
    Call { name: String, id: String },
    /// Arguments of the call that began last.
    Arguments(String),
    /// The log-probability of a token whose text was told before.
    Logprob(Token),
}

/// A token with what the model thought of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub id: u32,
    pub logprobs: TokenLogprobs,
    /// Where its text begins in the text of the answer, in characters.
    pub offset: usize,
}

enum Reader {
    /// No tokenizer: there is no text.
    Ids,
    Plain(StreamDecoder<'static>),
    Tagged(&'static Tokenizer, StreamDecoder<'static>, TagReader),
    Harmony(Box<HarmonyParser<'static>>),
}

/// Reads the tokens of one answer.
pub struct AnswerReader {
    reader: Reader,
    stop: StopMatcher,
    stopped_by: Option<usize>,
    /// What the part that is being read is for.
    kind: Kind,
    /// Whether calls of tools are told as such; else they are text.
    has_tools: bool,
    /// Characters of the answer's text that were read, and that were told.
    read: usize,
    told: usize,
    /// Tokens whose text is not told yet, with where it ends.
    held: VecDeque<(Token, usize)>,
    /// Tokens of the reasoning.
    pub reasoning_tokens: usize,
}

impl AnswerReader {
    /// A reader for an answer that is nothing but text.
    pub fn text(served: &Served, stop: StopMatcher) -> Self {
        let tokenizer = served.model.tokenizer.as_ref();
        let reader = match tokenizer {
            None => Reader::Ids,
            Some(tokenizer) => Reader::Plain(tokenizer.decoder(true)),
        };
        Self::new(reader, stop, false)
    }

    /// A reader for an answer in the format of the model.
    pub fn chat(served: &Served, stop: StopMatcher, has_tools: bool, tags: TagReader) -> Self {
        let reader = match (&served.model.tokenizer, &served.format) {
            (None, _) => Reader::Ids,
            (Some(tokenizer), Some(ChatFormat::Harmony(harmony))) => {
                Reader::Harmony(Box::new(harmony.parser(tokenizer)))
            }
            (Some(tokenizer), _) => Reader::Tagged(tokenizer, tokenizer.decoder(true), tags),
        };
        Self::new(reader, stop, has_tools)
    }

    fn new(reader: Reader, stop: StopMatcher, has_tools: bool) -> Self {
        AnswerReader {
            reader,
            stop,
            stopped_by: None,
            kind: Kind::Raw,
            has_tools,
            read: 0,
            told: 0,
            held: VecDeque::new(),
            reasoning_tokens: 0,
        }
    }

    /// The place of the stop string that was found: the answer is over.
    pub fn stopped_by(&self) -> Option<usize> {
        self.stopped_by
    }

    /// Whether arguments of a call may still come.
    pub fn in_call(&self) -> bool {
        self.kind == Kind::ToolCall
    }

    /// Takes a token.
    pub fn push(&mut self, id: u32, logprobs: Option<TokenLogprobs>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let offset = self.read;
        match &mut self.reader {
            Reader::Ids => {}
            // A token that the tokenizer does not have stands for no text.
            Reader::Plain(decoder) => {
                let text = decoder.push(id).unwrap_or_default();
                self.answer(&text, &mut pieces);
            }
            Reader::Tagged(tokenizer, decoder, tags) => {
                let mut text = decoder.push(id).unwrap_or_default();
                if let Some(tag) = special_tag(tokenizer, id) {
                    text += tag;
                }
                let tagged = tags.push(&text);
                let thinks = tags.is_reasoning();
                self.tagged(tagged, &mut pieces);
                self.reasoning_tokens += usize::from(thinks);
            }
            Reader::Harmony(parser) => {
                let deltas = parser.push(id);
                self.deltas(deltas, &mut pieces);
                self.reasoning_tokens += usize::from(self.kind == Kind::Reasoning);
            }
        }
        if let Some(logprobs) = logprobs
            && self.is_answer(id)
        {
            self.held.push_back((Token { id, logprobs, offset }, self.read));
        }
        self.tell_logprobs(&mut pieces);
        pieces
    }

    /// What was held back for a character, a tag or a stop string that did not come.
    pub fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        match std::mem::replace(&mut self.reader, Reader::Ids) {
            Reader::Ids => {}
            Reader::Plain(decoder) => self.answer(&decoder.finish(), &mut pieces),
            Reader::Tagged(_, decoder, mut tags) => {
                let mut tagged = tags.push(&decoder.finish());
                tagged.extend(tags.finish());
                self.tagged(tagged, &mut pieces);
            }
            Reader::Harmony(parser) => {
                let (mut deltas, _) = parser.finish();
                // A header that was cut is not text of the answer.
                let is_cut =
                    |delta: &Delta| matches!(delta, Delta::Start(header) if !header.is_complete);
                if let Some(start) = deltas.iter().position(is_cut)
                    && let Some(Delta::Text(text)) = deltas.get(start + 1)
                    && text.starts_with("<|")
                {
                    deltas.truncate(start);
                }
                self.deltas(deltas, &mut pieces);
            }
        }
        if self.stopped_by.is_none() {
            let held = self.stop.clone().finish();
            self.tell(held, &mut pieces);
        }
        self.tell_logprobs(&mut pieces);
        pieces
    }

    /// Whether a token is of the text of the answer.
    fn is_answer(&self, id: u32) -> bool {
        match &self.reader {
            Reader::Ids => true,
            Reader::Plain(decoder) => decoder.bytes(id).is_ok_and(|bytes| !bytes.is_empty()),
            Reader::Tagged(_, decoder, tags) => {
                tags.is_text() && decoder.bytes(id).is_ok_and(|bytes| !bytes.is_empty())
            }
            Reader::Harmony(parser) => {
                parser.in_text(id) && matches!(self.kind, Kind::Final | Kind::Raw)
            }
        }
    }

    fn tagged(&mut self, tagged: Vec<Tagged>, pieces: &mut Vec<Piece>) {
        for part in tagged {
            match part {
                Tagged::Text(text) => self.answer(&text, pieces),
                Tagged::Reasoning(text) => reasoning(text, pieces),
                Tagged::Call { name, arguments } => {
                    pieces.push(Piece::Call { name, id: body::id("") });
                    pieces.push(Piece::Arguments(arguments));
                }
            }
        }
    }

    fn deltas(&mut self, deltas: Vec<Delta>, pieces: &mut Vec<Piece>) {
        for delta in deltas {
            match delta {
                Delta::Start(header) => {
                    self.kind = header.kind();
                    if self.kind == Kind::ToolCall {
                        if self.has_tools {
                            let recipient = header.recipient.unwrap_or_default();
                            let name = recipient.strip_prefix("functions.").unwrap_or(&recipient);
                            let (name, id) = (name.to_string(), body::id(""));
                            pieces.push(Piece::Call { name, id });
                        } else {
                            // Nobody offered a tool, so these are words.
                            self.kind = Kind::Raw;
                        }
                    }
                }
                Delta::Text(text) => match self.kind {
                    Kind::Reasoning => reasoning(text, pieces),
                    Kind::ToolCall => pieces.push(Piece::Arguments(text)),
                    Kind::Commentary | Kind::Final | Kind::Raw => self.answer(&text, pieces),
                },
                Delta::End(_) => self.kind = Kind::Raw,
            }
        }
    }

    /// Takes text of the answer itself.
    fn answer(&mut self, text: &str, pieces: &mut Vec<Piece>) {
        self.read += text.chars().count();
        let emit = self.stop.push(text);
        self.stopped_by = emit.matched;
        self.tell(emit.text, pieces);
    }

    fn tell(&mut self, text: String, pieces: &mut Vec<Piece>) {
        if text.is_empty() {
            return;
        }
        self.told += text.chars().count();
        match pieces.last_mut() {
            Some(Piece::Text(last)) => last.push_str(&text),
            _ => pieces.push(Piece::Text(text)),
        }
    }

    /// Tells the log-probabilities of tokens whose text was told; of the token in which a stop string begins too, if some
    /// of its text was.
    fn tell_logprobs(&mut self, pieces: &mut Vec<Piece>) {
        while let Some((token, end)) = self.held.front()
            && (*end <= self.told || self.stopped_by.is_some() && token.offset < self.told)
        {
            if let Some((token, _)) = self.held.pop_front() {
                pieces.push(Piece::Logprob(token));
            }
        }
    }
}

/// The tag that a special token is, which is not shown as text otherwise.
fn special_tag(tokenizer: &Tokenizer, id: u32) -> Option<&str> {
    let bytes = tokenizer.token_bytes(id).filter(|_| tokenizer.is_special(id))?;
    std::str::from_utf8(bytes).ok().filter(|text| TAGS.contains(text))
}

fn reasoning(text: String, pieces: &mut Vec<Piece>) {
    if text.is_empty() {
        return;
    }
    match pieces.last_mut() {
        Some(Piece::Reasoning(last)) => last.push_str(&text),
        _ => pieces.push(Piece::Reasoning(text)),
    }
}
