//! Where the text of an answer goes: the answer to standard output, reasoning and calls of tools to standard error.

use anyhow::Result;
use oxgpt_engine::prompt::harmony::{Delta, HarmonyParser, Kind, ToolCall};
use oxgpt_engine::stop::StopMatcher;
use oxgpt_engine::tokenizer::StreamDecoder;
use std::io::{self, IsTerminal, Write};

/// What an answer says.
#[derive(Default)]
pub struct Spoken {
    /// The answer itself, without special tokens and the matched stop string; `None` without a tokenizer.
    pub text: Option<String>,
    /// Its other parts, for a format that has them.
    pub parts: Option<Parts>,
}

/// The parts of an answer that are not the answer itself.
#[derive(Default)]
pub struct Parts {
    pub reasoning: String,
    pub commentary: String,
    pub tool_calls: Vec<ToolCall>,
}

/// What turns tokens into text.
pub enum Reader<'a> {
    /// No tokenizer: the ids are shown.
    Ids,
    /// All text is the answer.
    Plain(StreamDecoder<'a>),
    /// The answer has parts.
    Harmony(Box<HarmonyParser<'a>>),
}

/// The output of one answer.
pub struct Output<'a> {
    reader: Reader<'a>,
    stop: StopMatcher,
    /// Whether text is printed as it comes.
    stream: bool,
    shows_reasoning: bool,
    /// What the part that is being read is for.
    kind: Kind,
    /// Whether a part is being written to standard error.
    aside: bool,
    spoken: Spoken,
}

impl<'a> Output<'a> {
    /// An output that prints text as it comes if `stream` says so, and reasoning too if `shows_reasoning` does.
    pub fn new(reader: Reader<'a>, stop: StopMatcher, stream: bool, shows_reasoning: bool) -> Self {
        let mut spoken = Spoken::default();
        if !matches!(reader, Reader::Ids) {
            spoken.text = Some(String::new());
        }
        if matches!(reader, Reader::Harmony(_)) {
            spoken.parts = Some(Parts::default());
        }
        Output { reader, stop, stream, shows_reasoning, kind: Kind::Raw, aside: false, spoken }
    }

    /// Takes a token and says whether a stop string was completed.
    pub fn push(&mut self, token: u32, first: bool) -> Result<bool> {
        match &mut self.reader {
            Reader::Ids => {
                if self.stream {
                    let separator = if first { "" } else { "," };
                    print(&format!("{separator}{token}"))?;
                }
                Ok(false)
            }
            Reader::Plain(decoder) => {
                let text = decoder.push(token)?;
                self.answer(&text)
            }
            Reader::Harmony(parser) => {
                let deltas = parser.push(token);
                self.deltas(deltas)
            }
        }
    }

    /// Shows what was held back for a character or a stop string that did not come.
    pub fn finish(mut self) -> Result<Spoken> {
        match std::mem::replace(&mut self.reader, Reader::Ids) {
            Reader::Ids => return Ok(self.spoken),
            Reader::Plain(decoder) => {
                self.answer(&decoder.finish())?;
            }
            Reader::Harmony(parser) => {
                let (deltas, parts) = parser.finish();
                self.deltas(deltas)?;
                if let Some(spoken) = &mut self.spoken.parts {
                    spoken.tool_calls = parts.iter().filter_map(|part| part.tool_call()).collect();
                }
            }
        }
        if self.stop.push("").matched.is_none() {
            let held_back = self.stop.clone().finish();
            self.show(&held_back)?;
        }
        self.end_aside()?;
        Ok(self.spoken)
    }

    fn deltas(&mut self, deltas: Vec<Delta>) -> Result<bool> {
        let mut is_stopped = false;
        for delta in deltas {
            match delta {
                Delta::Start(header) => {
                    self.kind = header.kind();
                    if self.kind == Kind::ToolCall {
                        let recipient = header.recipient.unwrap_or_default();
                        self.aside(&format!("[calls {recipient}] "))?;
                    }
                }
                Delta::Text(text) => match self.kind {
                    Kind::Reasoning | Kind::Commentary => {
                        if let Some(parts) = &mut self.spoken.parts {
                            let part = match self.kind {
                                Kind::Reasoning => &mut parts.reasoning,
                                _ => &mut parts.commentary,
                            };
                            part.push_str(&text);
                        }
                        if self.shows_reasoning {
                            self.aside(&text)?;
                        }
                    }
                    Kind::ToolCall => self.aside(&text)?,
                    Kind::Final | Kind::Raw => is_stopped |= self.answer(&text)?,
                },
                Delta::End(_) => self.end_aside()?,
            }
        }
        Ok(is_stopped)
    }

    /// Takes text of the answer itself, and says whether a stop string was completed.
    fn answer(&mut self, text: &str) -> Result<bool> {
        let emit = self.stop.push(text);
        self.show(&emit.text)?;
        Ok(emit.matched.is_some())
    }

    fn show(&mut self, text: &str) -> Result<()> {
        if let Some(shown) = &mut self.spoken.text {
            shown.push_str(text);
        }
        if self.stream && !text.is_empty() {
            print(text)?;
        }
        Ok(())
    }

    /// Writes to standard error, dimmed where that is a terminal.
    fn aside(&mut self, text: &str) -> Result<()> {
        if !self.stream {
            return Ok(());
        }
        let mut stderr = io::stderr().lock();
        if !self.aside && is_dimmed() {
            write!(stderr, "\x1b[2m")?;
        }
        self.aside = true;
        write!(stderr, "{text}")?;
        Ok(stderr.flush()?)
    }

    fn end_aside(&mut self) -> Result<()> {
        if std::mem::take(&mut self.aside) {
            let reset = if is_dimmed() { "\x1b[0m" } else { "" };
            writeln!(io::stderr().lock(), "{reset}")?;
        }
        Ok(())
    }
}

/// Whether standard error shows attributes of text, and may.
fn is_dimmed() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}
