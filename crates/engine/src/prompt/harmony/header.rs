//! What stands before the text of a message.

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The channel `analysis`: thoughts, not meant to be shown.
    Reasoning,
    /// The channel `commentary`: what the model says about the calls that it is going to make.
    Commentary,
    /// The channel `final`: the answer.
    Final,
    /// A call of a tool: its text is the arguments.
    ToolCall,
    /// Anything else: text without a header, without a channel or with another one, or of another author.
    Raw,
}

/// The header of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The text from which it was read, with the strings of its special tokens.
    pub raw: String,
    /// A role, or the name of a tool.
    pub author: String,
    /// The channel.
    pub channel: Option<String>,
    /// Whom the message is for: a tool.
    pub recipient: Option<String>,
    /// The type of the text, such as `json`.
    pub constraint: Option<String>,
    /// Whether `<|message|>` ended it. What has no such end is no message.
    pub is_complete: bool,
}

/// A piece of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    Channel,
    Constrain,
}

impl Header {
    /// Reads the pieces between `<|start|>`, or the start of the answer, and `<|message|>`. A recipient is one
    /// wherever it stands; of several of the same thing, the first counts.
    pub(super) fn read(raw: String, starts: bool, pieces: &[Piece]) -> Self {
        let mut header = Header { raw, is_complete: true, ..Header::default() };
        let mut author = None;
        let mut section = &Piece::Text(String::new());
        for piece in pieces {
            let Piece::Text(text) = piece else {
                section = piece;
                continue;
            };
            for word in text.split_whitespace() {
                if let Some(recipient) = word.strip_prefix("to=") {
                    header.recipient.get_or_insert_with(|| recipient.to_owned());
                    continue;
                }
                let slot = match section {
                    Piece::Text(_) => &mut author,
                    Piece::Channel if header.channel.is_none() => &mut header.channel,
                    // `commentary json` without a token in between has the type there too.
                    Piece::Channel | Piece::Constrain => &mut header.constraint,
                };
                slot.get_or_insert_with(|| word.to_owned());
            }
        }
        // The prompt ends with the author of the first message.
        let absent = if starts { "" } else { "assistant" };
        header.author = author.unwrap_or_else(|| absent.to_owned());
        header
    }

    /// What the message is for.
    pub fn kind(&self) -> Kind {
        if !self.is_complete || self.author != "assistant" {
            return Kind::Raw;
        }
        if self
            .recipient
            .as_deref()
            .is_some_and(|recipient| !["", "all", "user"].contains(&recipient))
        {
            return Kind::ToolCall;
        }
        match self.channel.as_deref() {
            Some("analysis") => Kind::Reasoning,
            Some("commentary") => Kind::Commentary,
            Some("final") => Kind::Final,
            _ => Kind::Raw,
        }
    }
}
