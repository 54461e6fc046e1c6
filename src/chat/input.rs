//! What the user types: lines of a terminal or of a pipe, put together to messages and commands.

use anyhow::{Context, Result};
use rustyline::config::Behavior;
use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};
use std::io::{self, IsTerminal};

/// What was typed.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// A message for the model.
    Message(String),
    /// A command without its slash: its name and the rest of the line.
    Command(String, String),
    /// Ctrl-C where nothing was begun.
    Interrupt,
    /// The end of the input.
    End,
}

/// Where lines come from.
pub enum Lines {
    /// A terminal, with a line editor.
    Terminal(Box<DefaultEditor>),
    /// Anything else, which gets no prompts.
    Pipe,
}

enum Line {
    Text(String),
    Interrupt,
    End,
}

impl Lines {
    /// Standard input.
    pub fn open() -> Result<Self> {
        if !io::stdin().is_terminal() {
            return Ok(Lines::Pipe);
        }
        // Standard output is for answers alone, and may be a file.
        let config = Config::builder().behavior(Behavior::PreferTerm).build();
        Ok(Lines::Terminal(Box::new(DefaultEditor::with_config(config).context("the terminal")?)))
    }

    /// Whether somebody sits there.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Lines::Terminal(_))
    }

    fn next(&mut self, prompt: &str) -> Result<Line> {
        match self {
            Lines::Terminal(editor) => match editor.readline(prompt) {
                Ok(line) => {
                    // A line that the history does not take is not worth an error.
                    let _ = editor.add_history_entry(line.as_str());
                    Ok(Line::Text(line))
                }
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupt),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(error) => Err(error).context("the terminal"),
            },
            Lines::Pipe => {
                let mut line = String::new();
                if io::stdin().read_line(&mut line).context("standard input")? == 0 {
                    return Ok(Line::End);
                }
                let line = line.strip_suffix('\n').unwrap_or(&line);
                Ok(Line::Text(line.strip_suffix('\r').unwrap_or(line).to_owned()))
            }
        }
    }

    /// Reads the next message or command. Empty lines are passed over.
    pub fn read(&mut self) -> Result<Input> {
        let mut composer = Composer::default();
        loop {
            match self.next(if composer.is_empty() { "> " } else { ". " })? {
                Line::Text(line) => {
                    if let Some(input) = composer.push(&line) {
                        return Ok(input);
                    }
                }
                Line::Interrupt if composer.is_empty() => return Ok(Input::Interrupt),
                Line::Interrupt => composer = Composer::default(),
                Line::End if composer.is_empty() => return Ok(Input::End),
                Line::End => return Ok(Input::Message(composer.finish())),
            }
        }
    }
}

/// Puts lines together.
#[derive(Debug, Default)]
struct Composer {
    lines: Vec<String>,
    in_block: bool,
}

/// What begins and ends a block of lines.
const QUOTES: &str = "\"\"\"";

impl Composer {
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && !self.in_block
    }

    /// Takes a line; what it completes.
    fn push(&mut self, line: &str) -> Option<Input> {
        if self.in_block {
            return self.push_to_block(line);
        }
        if self.lines.is_empty() {
            if line.trim().is_empty() {
                return None;
            }
            if let Some(first) = line.strip_prefix(QUOTES) {
                self.in_block = true;
                // Text begins on the line of the quotes or on the next one.
                return if first.is_empty() { None } else { self.push_to_block(first) };
            }
            if let Some(command) = line.strip_prefix('/') {
                if !command.starts_with('/') {
                    let (name, rest) =
                        command.split_once(char::is_whitespace).unwrap_or((command, ""));
                    return Some(Input::Command(name.to_owned(), rest.trim().to_owned()));
                }
                return self.push_line(command);
            }
        }
        self.push_line(line)
    }

    fn push_line(&mut self, line: &str) -> Option<Input> {
        let continued = line.strip_suffix('\\');
        self.lines.push(continued.unwrap_or(line).to_owned());
        match continued {
            Some(_) => None,
            None => Some(Input::Message(std::mem::take(self).finish())),
        }
    }

    fn push_to_block(&mut self, line: &str) -> Option<Input> {
        let Some(last) = line.trim_end().strip_suffix(QUOTES) else {
            self.lines.push(line.to_owned());
            return None;
        };
        if !last.is_empty() {
            self.lines.push(last.to_owned());
        }
        let text = std::mem::take(self).finish();
        (!text.is_empty()).then_some(Input::Message(text))
    }

    fn finish(self) -> String {
        self.lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Vec<Input> {
        let mut composer = Composer::default();
        lines.iter().filter_map(|line| composer.push(line)).collect()
    }

    fn message(text: &str) -> Input {
        Input::Message(text.to_owned())
    }

    #[test]
    fn lines_are_messages_and_empty_ones_are_not() {
        assert_eq!(read(&["one", "", "  ", " two "]), [message("one"), message(" two ")]);
    }

    #[test]
    fn a_backslash_goes_on_in_the_next_line() {
        assert_eq!(
            read(&["one\\", "two\\", "", "three"]),
            [message("one\ntwo\n"), message("three")]
        );
        assert_eq!(read(&["one\\", "/help"]), [message("one\n/help")]);
    }

    #[test]
    fn quotes_enclose_a_block() {
        assert_eq!(
            read(&["\"\"\"", "a\\", "", " /b", "\"\"\"", "c"]),
            [message("a\\\n\n /b"), message("c")]
        );
        assert_eq!(read(&["\"\"\"a", "b\"\"\" "]), [message("a\nb")]);
        assert_eq!(read(&["\"\"\"a\"\"\""]), [message("a")]);
        assert_eq!(read(&["\"\"\"", "\"\"\"", "b"]), [message("b")]);
    }

    #[test]
    fn a_slash_begins_a_command_and_two_do_not() {
        let command = |name: &str, rest: &str| Input::Command(name.to_owned(), rest.to_owned());
        assert_eq!(read(&["/system  Be brief. "]), [command("system", "Be brief.")]);
        assert_eq!(read(&["/help", "/"]), [command("help", ""), command("", "")]);
        assert_eq!(read(&["//etc\\", "x", " /etc"]), [message("/etc\nx"), message(" /etc")]);
    }
}
