//! Reasoning and calls of tools in the text of models that mark them with tags: `<think>` and `<tool_call>`.

use serde_json::Value;

const THINK: &str = "<think>";
const THINK_END: &str = "</think>";
const CALL: &str = "<tool_call>";
const CALL_END: &str = "</tool_call>";

/// All tags.
pub const TAGS: [&str; 4] = [THINK, THINK_END, CALL, CALL_END];

/// A part of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tagged {
    Text(String),
    Reasoning(String),
    /// A call of a tool, with its arguments in JSON.
    Call {
        name: String,
        arguments: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first text that is no space, where reasoning may begin.
    Start,
    Reasoning,
    Text,
    Call,
    /// After a call: space here only separates it from what follows.
    AfterCall,
}

/// Finds tags in a text that comes in pieces. How it is cut changes nothing in what is told, put together.
#[derive(Clone, Debug)]
pub struct TagReader {
    state: State,
    has_calls: bool,
    /// Text in which a tag may be beginning, or a call that is not complete.
    held: String,
    /// The space before the call that is being read.
    gap: String,
    /// Whether space at the start of the reasoning was passed.
    is_trimmed: bool,
}

impl TagReader {
    /// A reader of tags for reasoning and for calls, or for either. `starts_in_reasoning`: the prompt has the first tag
    /// already.
    pub fn new(has_reasoning: bool, starts_in_reasoning: bool, has_calls: bool) -> Self {
        let state = match (starts_in_reasoning, has_reasoning) {
            (true, _) => State::Reasoning,
            (false, true) => State::Start,
            (false, false) => State::Text,
        };
        let (held, gap) = (String::new(), String::new());
        TagReader { state, has_calls, held, gap, is_trimmed: false }
    }

    /// Whether the text now is reasoning.
    pub fn is_reasoning(&self) -> bool {
        self.state == State::Reasoning
    }

    /// Whether the text now is text of the answer.
    pub fn is_text(&self) -> bool {
        matches!(self.state, State::Start | State::Text)
    }

    /// Takes the next piece.
    pub fn push(&mut self, text: &str) -> Vec<Tagged> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.advance(&mut parts) {}
        parts
    }

    /// The text is over: what was held back.
    pub fn finish(mut self) -> Vec<Tagged> {
        let held = std::mem::take(&mut self.held);
        let part = match self.state {
            State::Reasoning => Tagged::Reasoning(held),
            // Some models leave the last tag away.
            State::Call => call(&held).unwrap_or_else(|| Tagged::Text(self.gap + CALL + &held)),
            State::AfterCall => return Vec::new(),
            State::Start | State::Text => Tagged::Text(held),
        };
        let is_empty =
            matches!(&part, Tagged::Text(text) | Tagged::Reasoning(text) if text.is_empty());
        if is_empty { Vec::new() } else { vec![part] }
    }

    /// Tells what is certain, and says whether there may be more.
    fn advance(&mut self, parts: &mut Vec<Tagged>) -> bool {
        match self.state {
            State::Start | State::AfterCall => {
                let text = self.held.trim_start();
                let begins = |tag: &str| tag.starts_with(text) && text.len() < tag.len();
                if self.state == State::Start && text.starts_with(THINK) {
                    self.held = text[THINK.len()..].to_string();
                    self.state = State::Reasoning;
                    return true;
                }
                if text.is_empty() || self.state == State::Start && begins(THINK) {
                    return false;
                }
                if self.state == State::AfterCall {
                    if begins(CALL) {
                        return false;
                    }
                    self.held = text.to_string();
                }
                self.state = State::Text;
                true
            }
            State::Reasoning => {
                if !self.is_trimmed {
                    self.held = self.held.trim_start().to_string();
                    self.is_trimmed = !self.held.is_empty();
                }
                match self.held.find(THINK_END) {
                    Some(end) => {
                        let text = self.held[..end].trim_end().to_string();
                        self.held = self.held[end + THINK_END.len()..].trim_start().to_string();
                        push(parts, Tagged::Reasoning(text));
                        // Space before the answer is passed as after a call.
                        self.state = State::AfterCall;
                        true
                    }
                    None => {
                        let text = self.certain(&[THINK_END]);
                        push(parts, Tagged::Reasoning(text));
                        false
                    }
                }
            }
            State::Text => {
                if !self.has_calls {
                    let text = std::mem::take(&mut self.held);
                    push(parts, Tagged::Text(text));
                    return false;
                }
                match self.held.find(CALL) {
                    Some(start) => {
                        // Space before a call only separates it.
                        let text = self.held[..start].trim_end().to_string();
                        self.gap = self.held[text.len()..start].to_string();
                        self.held = self.held[start + CALL.len()..].to_string();
                        push(parts, Tagged::Text(text));
                        self.state = State::Call;
                        true
                    }
                    None => {
                        let text = self.certain(&[CALL]);
                        push(parts, Tagged::Text(text));
                        false
                    }
                }
            }
            State::Call => {
                let Some(end) = self.held.find(CALL_END) else { return false };
                let inside = self.held[..end].to_string();
                self.held = self.held[end + CALL_END.len()..].to_string();
                match call(&inside) {
                    Some(call) => {
                        parts.push(call);
                        self.state = State::AfterCall;
                    }
                    // What is no call is shown, so that nothing is lost.
                    None => {
                        let gap = &self.gap;
                        push(parts, Tagged::Text(format!("{gap}{CALL}{inside}{CALL_END}")));
                        self.state = State::Text;
                    }
                }
                true
            }
        }
    }

    /// Takes the text that cannot belong to one of the tags, nor be space before it.
    fn certain(&mut self, tags: &[&str]) -> String {
        let starts = |from: &str| tags.iter().any(|tag| tag.starts_with(from));
        let places = self.held.char_indices().map(|(place, _)| place);
        let tag = places.clone().find(|place| starts(&self.held[*place..]));
        let end = tag.unwrap_or(self.held.len());
        let kept = self.held[..end].trim_end().len();
        let rest = self.held.split_off(kept);
        std::mem::replace(&mut self.held, rest)
    }
}

fn push(parts: &mut Vec<Tagged>, part: Tagged) {
    if !matches!(&part, Tagged::Text(text) | Tagged::Reasoning(text) if text.is_empty()) {
        parts.push(part);
    }
}

/// The call that a JSON object with `name` and `arguments` is.
fn call(text: &str) -> Option<Tagged> {
    let value: Value = serde_json::from_str(text.trim()).ok()?;
    let name = value.get("name")?.as_str()?.to_string();
    let arguments = match value.get("arguments").or_else(|| value.get("parameters")) {
        None | Some(Value::Null) => "{}".to_string(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    Some(Tagged::Call { name, arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of a text in pieces of so many characters, put together.
    fn read(reader: TagReader, text: &str, piece: usize) -> Vec<Tagged> {
        let (mut reader, mut parts) = (reader, Vec::new());
        let characters: Vec<char> = text.chars().collect();
        for piece in characters.chunks(piece) {
            parts.extend(reader.push(&piece.iter().collect::<String>()));
        }
        parts.extend(reader.finish());
        let mut joined: Vec<Tagged> = Vec::new();
        for part in parts {
            match (joined.last_mut(), part) {
                (Some(Tagged::Text(last)), Tagged::Text(text))
                | (Some(Tagged::Reasoning(last)), Tagged::Reasoning(text)) => last.push_str(&text),
                (_, part) => joined.push(part),
            }
        }
        joined
    }

    fn text(text: &str) -> Tagged {
        Tagged::Text(text.to_string())
    }

    fn reasoning(text: &str) -> Tagged {
        Tagged::Reasoning(text.to_string())
    }

    fn call_of(name: &str, arguments: &str) -> Tagged {
        Tagged::Call { name: name.to_string(), arguments: arguments.to_string() }
    }

    #[test]
    fn parts_are_found_however_the_text_is_cut() {
        let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, 2]}}\n</tool_call>";
        let both = || TagReader::new(true, false, true);
        for (reader, input, expected) in [
            (both(), "Hi <b>.\n".to_string(), vec![text("Hi <b>.\n")]),
            (
                both(),
                "<think>\nSo é.\n</think>\n\nYes  ".to_string(),
                vec![reasoning("So é."), text("Yes  ")],
            ),
            (
                TagReader::new(true, true, false),
                "\nSo</think>Yes".to_string(),
                vec![reasoning("So"), text("Yes")],
            ),
            (
                both(),
                format!("Well.\n{call}\n{call}\n"),
                vec![text("Well."), call_of("f", "{\"a\":[1,2]}"), call_of("f", "{\"a\":[1,2]}")],
            ),
            (
                both(),
                "a <tool_call>no</tool_call> b".to_string(),
                vec![text("a <tool_call>no</tool_call> b")],
            ),
            (both(), "<tool_call>{\"name\":\"g\"}".to_string(), vec![call_of("g", "{}")]),
            (both(), "<tool_call>{\"na".to_string(), vec![text("<tool_call>{\"na")]),
            (both(), "x <think>y</think>".to_string(), vec![text("x <think>y</think>")]),
            (both(), "<think>endless".to_string(), vec![reasoning("endless")]),
            (
                TagReader::new(false, false, false),
                format!("<think>a</think>{call}"),
                vec![text(&format!("<think>a</think>{call}"))],
            ),
            (both(), "1 < 2 <to".to_string(), vec![text("1 < 2 <to")]),
        ] {
            for piece in [1, 2, 3, 7, 100] {
                assert_eq!(read(reader.clone(), &input, piece), expected, "{input} by {piece}");
            }
        }
    }

    #[test]
    fn text_that_is_certain_is_told_at_once() {
        let mut reader = TagReader::new(true, false, true);
        assert_eq!(reader.push("Hello <to"), [text("Hello")]);
        assert_eq!(reader.push("ast"), [text(" <toast")]);
        assert_eq!(reader.push(" \n"), []);
        assert_eq!(reader.push("x"), [text(" \nx")]);
    }
}
