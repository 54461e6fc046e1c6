//! What an answer may be as a whole: its reasoning, then calls of tools, or a text that a grammar describes.

use super::{Grammar, with_space};
use oxgpt_engine::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// How a model's format tells the parts of an answer apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// All is text of the answer.
    Bare,
    /// The answer follows its reasoning, which ends with this tag and begins with the first one, unless the prompt has that
    /// already.
    Tags {
        /// In Lark's notation: a token, or a text.
        open: Option<String>,
        /// The same.
        close: String,
        /// Whether the reasoning is a text up to the tag, or all up to the token.
        is_text: bool,
    },
    /// As gpt-oss.
    Harmony,
}

impl Shape {
    /// That of a format with the tags `<think>` and `</think>`.
    pub fn think(tokenizer: &Tokenizer, starts_in_reasoning: bool) -> Self {
        let tag = |tag: &str| {
            let is_token = tokenizer.token_id(tag).is_some_and(|id| tokenizer.is_special(id));
            if is_token { tag.to_string() } else { format!("{tag:?}") }
        };
        let (open, close) = (tag("<think>"), tag("</think>"));
        let is_text = close.starts_with('"');
        Shape::Tags { open: (!starts_in_reasoning).then_some(open), close, is_text }
    }
}

/// A function that may be called.
#[derive(Clone, Debug, PartialEq)]
pub struct Callable {
    /// Its name.
    pub name: String,
    /// The schema of its arguments.
    pub schema: Value,
}

/// What an answer may be.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    pub shape: Shape,
    /// The text of the answer; any if `None`.
    pub body: Option<Grammar>,
    pub calls: Vec<Callable>,
    /// Whether there must be a call.
    pub must_call: bool,
    /// Whether several calls may follow each other, where the format allows that.
    pub many_calls: bool,
}

/// Any text, over several lines.
const ANY: &str = "TEXT: /(?s:.+)/\n";
/// Space between parts.
const GAP: &str = "GAP: /[ \\n\\r]{1,4}/\n";

impl Rules {
    /// The grammar of the whole answer.
    pub fn grammar(&self) -> Grammar {
        let Shape::Harmony = &self.shape else { return self.tagged() };
        Grammar::Lark(self.harmony())
    }

    fn tagged(&self) -> Grammar {
        if let (Shape::Bare, Some(body), []) = (&self.shape, &self.body, &self.calls[..]) {
            return body.clone();
        }
        let mut rules = String::new();
        let thought = match &self.shape {
            Shape::Tags { open, close, is_text } => {
                let reasoning = if *is_text {
                    format!("reasoning[lazy]: /(?s:.*)/ {close}\n")
                } else {
                    format!("reasoning: TEXT? {close}\n")
                };
                rules += &reasoning;
                match open {
                    Some(open) => {
                        rules += &format!("thought: {open} reasoning GAP?\n");
                        "thought? "
                    }
                    None => {
                        rules += "thought: reasoning GAP?\n";
                        "thought "
                    }
                }
            }
            Shape::Bare | Shape::Harmony => "",
        };
        let answer = match (&self.body, &self.calls[..]) {
            (None, []) => "TEXT?".to_string(),
            (Some(_), []) => "body".to_string(),
            (_, _) if self.must_call => "calls".to_string(),
            (Some(_), _) => "(calls | body)".to_string(),
            (None, _) => "(talk callee)* REST?".to_string(),
        };
        if !self.calls.is_empty() {
            let plus = if self.many_calls { "+" } else { "" };
            rules += &format!("calls: call{plus}\ncall: \"<tool_call>\" GAP? callee\n");
            rules += "callee: call_json GAP? \"</tool_call>\" GAP?\n";
            // Text before a call, up to the tag; and text without one.
            rules += "talk[lazy]: /(?s:.*)/ \"<tool_call>\" /\\n?/\n";
            rules += "REST: /(?s:.+)/ & ~/(?s:.*)<tool_call>(?s:.*)/\n";
            let call = |call: &Callable| {
                json!({
                    "type": "object",
                    "properties": {"name": {"const": call.name}, "arguments": call.schema},
                    "required": ["name", "arguments"],
                    "additionalProperties": false
                })
            };
            let any: Vec<Value> = self.calls.iter().map(call).collect();
            rules += &format!("call_json: {}\n", embedded(&Grammar::Schema(json!({"anyOf": any}))));
        }
        if let Some(body) = &self.body {
            rules += &format!("body: {}\n", embedded(body));
        }
        Grammar::Lark(format!("start: {thought}{answer}\n{rules}{ANY}{GAP}"))
    }

    /// Every message has a header that is one; reasoning is any text.
    fn harmony(&self) -> String {
        let mut rules = String::new();
        let mut last = Vec::new();
        if !self.must_call {
            last.push("final".to_string());
            rules += &match &self.body {
                None => "final: <|channel|> \"final\" <|message|> TEXT?\n".to_string(),
                Some(body) => format!(
                    "final: <|channel|> \"final\" json? <|message|> body\nbody: {}\n",
                    embedded(body)
                ),
            };
        }
        for (index, Callable { name, schema }) in self.calls.iter().enumerate() {
            let to = format!("{:?}", format!(" to=functions.{name}"));
            let commentary = format!("{:?}", format!("commentary to=functions.{name}"));
            let arguments = embedded(&Grammar::Schema(schema.clone()));
            rules += &format!(
                "call{index}: (<|channel|> {commentary} | {to} <|channel|> \"commentary\") json? <|message|> args{index}\n\
                 args{index}: {arguments}\n"
            );
            last.push(format!("call{index}"));
        }
        let before = match (self.calls.is_empty(), self.must_call) {
            (true, _) => "analysis*",
            (false, false) => "(analysis | preamble)*",
            // Else a model that wants to call nothing could put it off for ever.
            (false, true) => "analysis? preamble?",
        };
        let next = "<|end|> <|start|> \"assistant\"";
        rules += &format!("analysis: <|channel|> \"analysis\" <|message|> TEXT? {next}\n");
        rules += &format!("preamble: <|channel|> \"commentary\" <|message|> TEXT? {next}\n");
        rules += "json: (\" \"? <|constrain|> \"json\") | \" json\"\n";
        format!("start: {before} ({})\n{rules}{ANY}", last.join(" | "))
    }
}

/// A grammar as a part of another.
fn embedded(grammar: &Grammar) -> String {
    match grammar {
        Grammar::Schema(schema) => format!("%json {}", with_space(schema)),
        Grammar::Lark(rules) => format!("%lark {{\n{rules}\n}}"),
    }
}
