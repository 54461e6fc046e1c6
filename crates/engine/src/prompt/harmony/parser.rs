//! The tokens of an answer, one by one, as messages.

use super::HarmonyTokens;
use super::header::{Header, Kind, Piece};
use crate::tokenizer::{StreamDecoder, Tokenizer};

/// A header longer than this, in bytes, is text: the model has lost the format, and its words should be seen.
const MAX_HEADER: usize = 1024;

/// What a token adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// A message begins. Its text follows.
    Start(Header),
    /// Text of the message that began last.
    Text(String),
    /// The message is over.
    End(End),
}

/// What ended a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// `<|end|>`.
    Message,
    /// `<|return|>`: the answer is over.
    Answer,
    /// `<|call|>`: the answer is over, and a tool is to be called.
    Call,
    /// Another special token, which is no part of a message.
    Other,
    /// The next header, without an end before it, or the end of the tokens.
    None,
}

/// A message of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its header. Text without one has an empty one.
    pub header: Header,
    /// Its text.
    pub text: String,
    /// What ended it.
    pub end: End,
    /// The string of the token that ended it; empty where none did.
    pub end_text: String,
}

impl Part {
    /// What the message is for.
    pub fn kind(&self) -> Kind {
        self.header.kind()
    }

    /// The call that the message is, if it is one.
    pub fn tool_call(&self) -> Option<ToolCall> {
        let recipient = self.header.recipient.as_deref()?;
        (self.kind() == Kind::ToolCall).then(|| ToolCall {
            name: recipient.strip_prefix("functions.").unwrap_or(recipient).to_owned(),
            arguments: self.text.clone(),
            constraint: self.header.constraint.clone(),
        })
    }
}

/// A call of a tool, as the model wrote it: nothing says that the arguments are valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// The function's name, without the namespace `functions`; other tools keep theirs, as in `browser.search`.
    pub name: String,
    /// The arguments.
    pub arguments: String,
    /// What the arguments are said to be, such as `json`.
    pub constraint: Option<String>,
}

/// Where the parser stands.
enum State {
    /// In a header: its text with the special tokens' strings, whether `<|start|>` began it, and its pieces.
    Header { raw: String, starts: bool, pieces: Vec<Piece> },
    /// In the text of the last part.
    Text,
    /// After the end of a message.
    Between,
}

/// Reads the answer of a gpt-oss model, which continues a prompt that ends with `<|start|>assistant`.
///
/// Every sequence of tokens has a result: what is not as the format wants it becomes a [`Kind::Raw`] part. Nothing is
/// lost: the headers, texts and ends of all [`parts`](Self::finish), put together, are the text of all tokens. The
/// [`Delta`]s of [`push`](Self::push) and [`finish`](Self::finish) tell the same as the parts do, as it comes.
pub struct HarmonyParser<'a> {
    tokenizer: &'a Tokenizer,
    tokens: HarmonyTokens,
    state: State,
    decoder: StreamDecoder<'a>,
    parts: Vec<Part>,
    deltas: Vec<Delta>,
}

impl<'a> HarmonyParser<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, tokens: HarmonyTokens) -> Self {
        HarmonyParser {
            tokenizer,
            tokens,
            state: State::Header { raw: String::new(), starts: false, pieces: Vec::new() },
            decoder: tokenizer.decoder(false),
            parts: Vec::new(),
            deltas: Vec::new(),
        }
    }

    /// Takes the next token. A token that the tokenizer does not have stands for no text.
    pub fn push(&mut self, token: u32) -> Vec<Delta> {
        let Some(bytes) = self.tokenizer.token_bytes(token) else { return Vec::new() };
        if self.tokenizer.is_special(token) {
            self.special(token, &String::from_utf8_lossy(bytes));
        } else {
            let text = self.decoder.push(token).unwrap_or_default();
            self.text(&text);
        }
        std::mem::take(&mut self.deltas)
    }

    /// What the end of the tokens adds, and the whole answer.
    pub fn finish(mut self) -> (Vec<Delta>, Vec<Part>) {
        self.flush();
        self.close(End::None, "");
        (self.deltas, self.parts)
    }

    /// The messages so far; the last one may still grow.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Whether a token that was just taken is part of the text of a message.
    pub fn in_text(&self, token: u32) -> bool {
        matches!(self.state, State::Text) && !self.tokenizer.is_special(token)
    }

    fn text(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        match &mut self.state {
            State::Header { raw, pieces, .. } => {
                raw.push_str(text);
                match pieces.last_mut() {
                    Some(Piece::Text(last)) => last.push_str(text),
                    _ => pieces.push(Piece::Text(text.to_owned())),
                }
                if raw.len() > MAX_HEADER {
                    let text = std::mem::take(raw);
                    self.open(Header::default());
                    self.append(&text);
                }
            }
            State::Text => self.append(text),
            State::Between => {
                self.open(Header::default());
                self.append(text);
            }
        }
    }

    fn special(&mut self, token: u32, string: &str) {
        self.flush();
        let tokens = self.tokens;
        if token == tokens.start {
            // The very first header may be written out though the prompt has it already.
            self.close(End::None, "");
            self.header(string, true);
        } else if token == tokens.channel || token == tokens.constrain {
            let piece = if token == tokens.channel { Piece::Channel } else { Piece::Constrain };
            match &mut self.state {
                State::Header { raw, pieces, .. } => {
                    raw.push_str(string);
                    pieces.push(piece);
                }
                // A constraint within a text says nothing; a channel begins the next message.
                State::Text if piece == Piece::Constrain => self.append(string),
                State::Text | State::Between => {
                    self.close(End::None, "");
                    self.header(string, false);
                    if let State::Header { pieces, .. } = &mut self.state {
                        pieces.push(piece);
                    }
                }
            }
        } else if token == tokens.message {
            match &mut self.state {
                State::Header { raw, starts, pieces } => {
                    let header = Header::read(std::mem::take(raw) + string, *starts, pieces);
                    self.open(header);
                }
                State::Text => self.append(string),
                State::Between => self.open(Header::read(string.to_owned(), false, &[])),
            }
        } else {
            let end = match token {
                token if token == tokens.end => End::Message,
                token if token == tokens.end_of_answer => End::Answer,
                token if token == tokens.call => End::Call,
                _ => End::Other,
            };
            self.close(end, string);
        }
    }

    /// Gives up on a character that a special token cut short.
    fn flush(&mut self) {
        let decoder = std::mem::replace(&mut self.decoder, self.tokenizer.decoder(false));
        let rest = decoder.finish();
        self.text(&rest);
    }

    fn header(&mut self, raw: &str, starts: bool) {
        self.state = State::Header { raw: raw.to_owned(), starts, pieces: Vec::new() };
    }

    fn open(&mut self, header: Header) {
        self.deltas.push(Delta::Start(header.clone()));
        let (text, end_text) = (String::new(), String::new());
        self.parts.push(Part { header, text, end: End::None, end_text });
        self.state = State::Text;
    }

    fn append(&mut self, text: &str) {
        if let Some(part) = self.parts.last_mut() {
            part.text.push_str(text);
            self.deltas.push(Delta::Text(text.to_owned()));
        }
    }

    /// Ends the message or the header, if there is one.
    fn close(&mut self, end: End, string: &str) {
        match std::mem::replace(&mut self.state, State::Between) {
            State::Header { raw, .. } if !raw.is_empty() => {
                self.open(Header::default());
                self.append(&raw);
            }
            State::Text => {}
            // Only a token that must not get lost makes a message of nothing.
            State::Header { .. } | State::Between if string.is_empty() => return,
            State::Header { .. } | State::Between => self.open(Header::default()),
        }
        self.state = State::Between;
        if let Some(part) = self.parts.last_mut() {
            part.end = end;
            part.end_text = string.to_owned();
        }
        self.deltas.push(Delta::End(end));
    }
}
