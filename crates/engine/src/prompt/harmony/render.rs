//! A conversation as a prompt for gpt-oss.

use std::borrow::Cow;

use serde_json::Value;

use super::Harmony;
use super::schema::{Function, tools_section};
use crate::prompt::date::strftime;
use crate::prompt::template::{Conversation, Rendered, TemplateError, reasoning_of};
use crate::tokenizer::Segment;

const IDENTITY: &str = "You are ChatGPT, a large language model trained by OpenAI.";
const KNOWLEDGE_CUTOFF: &str = "2024-06";

/// A message in the format's own terms.
struct Message {
    /// The author as the header has it: a role, or the name of a tool.
    author: String,
    recipient: Option<String>,
    channel: Option<&'static str>,
    /// What follows the channel: the type of a call's arguments.
    is_json: bool,
    text: String,
}

impl Message {
    fn new(author: &str, text: String) -> Self {
        Message { author: author.to_owned(), recipient: None, channel: None, is_json: false, text }
    }

    fn assistant(channel: &'static str, text: String) -> Self {
        Message { channel: Some(channel), ..Message::new("assistant", text) }
    }
}

impl Harmony {
    /// Renders a conversation. Everything that comes from outside stays text, wherever it stands.
    ///
    /// The variables `reasoning_effort` (`low`, `medium` or `high`), `model_identity` and `response_format` (a JSON
    /// schema, or an object with `name`, `description` and `schema`) are used.
    ///
    /// # Errors
    /// When a message or a tool is not one that the format can say.
    pub fn render(&self, conversation: &Conversation) -> Result<Rendered, TemplateError> {
        let functions = functions(conversation)?;
        let mut messages =
            vec![Message::new("system", system(conversation, !functions.is_empty())?)];
        let mut rest = &conversation.messages[..];
        let mut instructions = None;
        if let Some(first) = rest.first()
            && matches!(first["role"].as_str(), Some("system" | "developer"))
        {
            instructions = Some(text_of(first, 0)?);
            rest = &rest[1..];
        }
        let developer = developer(instructions, &functions, conversation)?;
        messages.extend(developer.map(|text| Message::new("developer", text)));
        let first_index = conversation.messages.len() - rest.len();
        let mut calls = Vec::new();
        for (offset, message) in rest.iter().enumerate() {
            push(&mut messages, message, first_index + offset, &mut calls)?;
        }
        drop_old_reasoning(&mut messages);
        let mut writer = Writer::default();
        messages.iter().for_each(|message| writer.message(message));
        if conversation.add_generation_prompt {
            writer.special("<|start|>");
            writer.text("assistant");
        }
        Ok(Rendered { segments: writer.segments })
    }
}

/// The text of the system message.
fn system(conversation: &Conversation, has_functions: bool) -> Result<String, TemplateError> {
    let variable = |name: &str| conversation.variables.get(name).filter(|value| !value.is_null());
    let identity = match variable("model_identity") {
        None => IDENTITY,
        Some(value) => value.as_str().ok_or_else(|| wrong("model_identity", "a string", value))?,
    };
    let effort = match variable("reasoning_effort") {
        None => "medium",
        Some(value) => value
            .as_str()
            .filter(|effort| ["low", "medium", "high"].contains(effort))
            .ok_or_else(|| wrong("reasoning_effort", "low, medium or high", value))?,
    };
    let now = conversation.now.unwrap_or_else(std::time::SystemTime::now);
    let date = strftime(now, "%Y-%m-%d").map_err(|message| TemplateError::Render { message })?;
    let mut text = format!(
        "{identity}\nKnowledge cutoff: {KNOWLEDGE_CUTOFF}\nCurrent date: {date}\n\nReasoning: {effort}\n\n\
         # Valid channels: analysis, commentary, final. Channel must be included for every message."
    );
    if has_functions {
        text += "\nCalls to these tools must go to the commentary channel: 'functions'.";
    }
    Ok(text)
}

/// The text of the developer message, if there is anything to say in it.
fn developer(
    instructions: Option<String>,
    functions: &[Function<'_>],
    conversation: &Conversation,
) -> Result<Option<String>, TemplateError> {
    let mut sections = Vec::new();
    if let Some(instructions) = instructions {
        sections.push(format!("# Instructions\n\n{instructions}"));
    }
    if !functions.is_empty() {
        sections.push(tools_section(functions));
    }
    let format = conversation.variables.get("response_format");
    if let Some(format) = format.filter(|value| !value.is_null()) {
        sections.push(response_format(format)?);
    }
    Ok((!sections.is_empty()).then(|| sections.join("\n\n")))
}

fn response_format(format: &Value) -> Result<String, TemplateError> {
    let object =
        format.as_object().ok_or_else(|| wrong("response_format", "a JSON schema", format))?;
    let (name, description, schema) = match object.get("schema") {
        Some(schema) => (
            object.get("name").and_then(Value::as_str).unwrap_or("response"),
            object.get("description").and_then(Value::as_str),
            schema,
        ),
        None => ("response", None, format),
    };
    let comment = description.map_or(String::new(), |description| format!("// {description}\n"));
    Ok(format!("# Response Formats\n\n## {name}\n\n{comment}{schema}"))
}

/// The functions among the tools, in the order given. A tool is `{"type": "function", "function": {..}}` or the inner
/// object alone.
fn functions(conversation: &Conversation) -> Result<Vec<Function<'_>>, TemplateError> {
    let tools = conversation.tools.as_deref().unwrap_or_default();
    tools
        .iter()
        .map(|tool| {
            let function = tool.get("function").unwrap_or(tool);
            let name = function["name"].as_str().filter(|name| is_name(name));
            Ok(Function {
                name: name.ok_or_else(|| wrong("a tool's name", "a word", &function["name"]))?,
                description: function["description"].as_str().unwrap_or_default(),
                parameters: function.get("parameters").filter(|schema| !schema.is_null()),
            })
        })
        .collect()
}

/// Whether the header of a message can have this as a name: words have a meaning of their own there.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.chars().any(|c| c.is_whitespace() || c.is_control())
}

/// Appends a message of the conversation, which may be several of the format's. `calls` has the id and name of every
/// call of a function so far.
fn push(
    messages: &mut Vec<Message>,
    message: &Value,
    index: usize,
    calls: &mut Vec<(Option<String>, String)>,
) -> Result<(), TemplateError> {
    let role = message["role"].as_str().unwrap_or_default();
    match role {
        "user" => messages.push(Message::new("user", text_of(message, index)?)),
        "system" | "developer" => {
            let text = format!("# Instructions\n\n{}", text_of(message, index)?);
            messages.push(Message::new("developer", text));
        }
        "assistant" => assistant(messages, message, index, calls)?,
        "tool" => {
            let named = message["name"].as_str().map(str::to_owned);
            let id = message["tool_call_id"].as_str();
            let called = || {
                let call =
                    calls.iter().rev().find(|(call, _)| id.is_none() || call.as_deref() == id);
                call.map(|(_, name)| name.clone())
            };
            let name = named.or_else(called).filter(|name| is_name(name));
            let Some(name) = name else {
                return Err(in_message(index, "the result of a tool names no call before it"));
            };
            messages.push(Message {
                recipient: Some("assistant".to_owned()),
                channel: Some("commentary"),
                ..Message::new(&qualified(&name), text_of(message, index)?)
            });
        }
        _ => {
            let roles = "expected the role system, developer, user, assistant or tool";
            return Err(in_message(index, &format!("{roles}, found {}", message["role"])));
        }
    }
    Ok(())
}

fn assistant(
    messages: &mut Vec<Message>,
    message: &Value,
    index: usize,
    calls: &mut Vec<(Option<String>, String)>,
) -> Result<(), TemplateError> {
    if let Some(reasoning) = message.as_object().and_then(reasoning_of)
        && !is_empty(reasoning)
    {
        let Some(reasoning) = reasoning.as_str() else {
            return Err(in_message(index, "the reasoning is not a string"));
        };
        messages.push(Message::assistant("analysis", reasoning.to_owned()));
    }
    let tool_calls = match &message["tool_calls"] {
        Value::Null => &[][..],
        Value::Array(calls) => calls,
        _ => return Err(in_message(index, "`tool_calls` is not a list")),
    };
    if tool_calls.is_empty() {
        messages.push(Message::assistant("final", text_of(message, index)?));
        return Ok(());
    }
    if !is_empty(&message["content"]) {
        messages.push(Message::assistant("commentary", text_of(message, index)?));
    }
    for call in tool_calls {
        let function = call.get("function").unwrap_or(call);
        let Some(name) = function["name"].as_str().filter(|name| is_name(name)) else {
            return Err(in_message(index, "a tool call has no name that is a word"));
        };
        let arguments = match &function["arguments"] {
            Value::Null => "{}".to_owned(),
            Value::String(json) => json.clone(),
            value => value.to_string(),
        };
        calls.push((call["id"].as_str().map(str::to_owned), name.to_owned()));
        messages.push(Message {
            recipient: Some(qualified(name)),
            is_json: true,
            ..Message::assistant("commentary", arguments)
        });
    }
    Ok(())
}

/// The name of a function with its namespace.
fn qualified(name: &str) -> String {
    if name.starts_with("functions.") { name.to_owned() } else { format!("functions.{name}") }
}

/// As `openai-harmony` does: once the assistant's last message is an answer, the reasoning before its first answer
/// goes. A call of a tool that waits for its result keeps the reasoning that led to it.
fn drop_old_reasoning(messages: &mut Vec<Message>) {
    let last = messages.iter().rev().find(|message| message.author == "assistant");
    if last.and_then(|message| message.channel) != Some("final") {
        return;
    }
    let first_answer = messages.iter().position(|message| message.channel == Some("final"));
    let mut index = 0;
    messages.retain(|message| {
        index += 1;
        message.channel != Some("analysis") || first_answer.is_some_and(|first| index > first)
    });
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_str() == Some("") || value.as_array().is_some_and(Vec::is_empty)
}

/// The text of a message: a string, or a list of parts that are text.
fn text_of(message: &Value, index: usize) -> Result<String, TemplateError> {
    let part = |part: &Value| match part["text"].as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(in_message(index, "a part of the content is not text")),
    };
    match &message["content"] {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => parts.iter().map(part).collect(),
        other => {
            Err(in_message(index, &format!("expected a text as content, found {}", kind(other))))
        }
    }
}

fn in_message(index: usize, message: &str) -> TemplateError {
    TemplateError::Message { number: index + 1, message: message.to_owned() }
}

fn wrong(name: &str, expected: &str, found: &Value) -> TemplateError {
    TemplateError::Render { message: format!("{name}: expected {expected}, found {}", kind(found)) }
}

/// A value in a few words.
fn kind(value: &Value) -> Cow<'static, str> {
    match value {
        Value::Null => "nothing".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        Value::String(text) if text.len() > 64 => "a long text".into(),
        value => value.to_string().into(),
    }
}

/// Puts a prompt together, structure and content apart.
#[derive(Default)]
struct Writer {
    segments: Vec<Segment<'static>>,
}

impl Writer {
    fn special(&mut self, token: &'static str) {
        self.segments.push(Segment { text: token.into(), parse_special: true });
    }

    fn text(&mut self, text: impl Into<Cow<'static, str>>) {
        let text = text.into();
        if text.is_empty() {
            return;
        }
        self.segments.push(Segment { text, parse_special: false });
    }

    fn message(&mut self, message: &Message) {
        self.special("<|start|>");
        let recipient = message.recipient.iter().map(|recipient| format!(" to={recipient}"));
        self.text(message.author.clone() + &recipient.collect::<String>());
        if let Some(channel) = message.channel {
            self.special("<|channel|>");
            self.text(channel.to_owned() + if message.is_json { " " } else { "" });
        }
        if message.is_json {
            self.special("<|constrain|>");
            self.text("json");
        }
        self.special("<|message|>");
        self.text(message.text.clone());
        self.special(if message.is_json { "<|call|>" } else { "<|end|>" });
    }
}
