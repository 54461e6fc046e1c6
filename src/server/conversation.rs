//! The messages and tools of a request, checked, as the model's format reads them.

use super::app::Served;
use super::error::ApiError;
use super::fields::{Fields, short, wrong};
use oxgpt_engine::prompt::ChatFormat;
use serde_json::{Map, Value, json};

/// What a format can say.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// It is harmony.
    pub is_harmony: bool,
    /// Its template shows tools; else they are told in the system message.
    pub shows_tools: bool,
    /// It knows the role `developer`.
    pub has_developer: bool,
    /// It marks reasoning with tags.
    pub has_reasoning: bool,
    /// What it calls the wish for reasoning.
    pub effort: Effort,
}

/// How a format is told how much to reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// It is not.
    None,
    /// By the variable `reasoning_effort`.
    Level,
    /// By the variable `enable_thinking`.
    Switch,
}

impl Abilities {
    /// Those of a format.
    pub fn of(format: &ChatFormat) -> Self {
        match format {
            ChatFormat::Harmony(_) => Abilities {
                is_harmony: true,
                shows_tools: true,
                has_developer: true,
                has_reasoning: true,
                effort: Effort::Level,
            },
            ChatFormat::Template(template) => {
                let has = |text: &str| template.source().contains(text);
                Abilities {
                    is_harmony: false,
                    shows_tools: has("tools"),
                    has_developer: has("developer"),
                    has_reasoning: has("<think>"),
                    effort: match (has("reasoning_effort"), has("enable_thinking")) {
                        (true, _) => Effort::Level,
                        (false, true) => Effort::Switch,
                        (false, false) => Effort::None,
                    },
                }
            }
        }
    }
}

/// The format of a model that can chat.
pub fn format(served: &Served) -> Result<&ChatFormat, ApiError> {
    let missing = "the model has no chat template (/v1/completions continues text without one)";
    served.format.as_ref().ok_or_else(|| ApiError::bad(missing).with_code("no_chat_template"))
}

/// Takes `messages`.
pub fn messages(fields: &mut Fields, can: Abilities) -> Result<Vec<Value>, ApiError> {
    let messages = match fields.require("messages")? {
        Value::Array(messages) => messages,
        other => return Err(wrong("messages", "an array", &other)),
    };
    if messages.is_empty() {
        return Err(ApiError::field("messages", "`messages` is empty"));
    }
    let messages = messages.into_iter().enumerate();
    messages.map(|(index, value)| message(value, &format!("messages[{index}]"), can)).collect()
}

fn message(value: Value, path: &str, can: Abilities) -> Result<Value, ApiError> {
    let mut fields = Fields::of(value, path)?;
    let mut role = match fields.require("role")? {
        Value::String(role) => role,
        other => return Err(wrong(&fields.name("role"), "a string", &other)),
    };
    let known = ["system", "developer", "user", "assistant", "tool"];
    if !known.contains(&role.as_str()) {
        let name = fields.name("role");
        let role = short(&Value::String(role));
        let message =
            format!("`{name}`: {role} is not supported (supported: {})", known.join(", "));
        return Err(ApiError::field(name, message));
    }
    let is_assistant = role == "assistant";
    if role == "developer" && !can.has_developer {
        role = "system".to_string();
    }
    let mut message = Map::new();
    message.insert("role".to_string(), role.clone().into());
    let calls = if is_assistant { tool_calls(&mut fields, can)? } else { Vec::new() };
    let content = content(&mut fields)?;
    if content.is_none() && calls.is_empty() {
        let name = fields.name("content");
        return Err(ApiError::field(name.clone(), format!("`{name}` is missing")));
    }
    // Templates compare it with a text, and `none` is not one to all of them.
    message.insert("content".to_string(), content.unwrap_or_default().into());
    if is_assistant {
        for name in ["reasoning_content", "reasoning", "thinking"] {
            if let Some(text) = fields.string(name)? {
                message.insert("reasoning_content".to_string(), text.into());
            }
        }
        fields.only("annotations", &[json!([])])?;
        if !calls.is_empty() {
            message.insert("tool_calls".to_string(), calls.into());
        }
    }
    if role == "tool" {
        let name = fields.name("tool_call_id");
        let id = fields.string("tool_call_id")?;
        let missing = || ApiError::field(name.clone(), format!("`{name}` is missing"));
        message.insert("tool_call_id".to_string(), id.ok_or_else(missing)?.into());
    }
    if let Some(name) = fields.string("name")? {
        if can.is_harmony && role != "tool" {
            let message = "the model's format has no names of participants";
            return Err(ApiError::unsupported(fields.name("name"), message));
        }
        message.insert("name".to_string(), name.into());
    }
    fields.finish()?;
    Ok(Value::Object(message))
}

/// Takes the text of a message: a string, or parts that are text.
fn content(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let path = fields.name("content");
    let parts = match fields.take("content") {
        None => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text)),
        Some(Value::Array(parts)) => parts,
        Some(other) => return Err(wrong(&path, "a string or an array of parts", &other)),
    };
    let mut text = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let mut part = Fields::of(part, &format!("{path}[{index}]"))?;
        part.only("type", &[json!("text"), json!("input_text"), json!("output_text")])?;
        match part.require("text")? {
            Value::String(part) => text.push_str(&part),
            other => return Err(wrong(&part.name("text"), "a string", &other)),
        }
        // For the service's own caches and citations.
        part.ignore(&["cache_control", "annotations", "logprobs"]);
        part.finish()?;
    }
    Ok(Some(text))
}

/// Takes the calls of tools of an assistant's message.
fn tool_calls(fields: &mut Fields, can: Abilities) -> Result<Vec<Value>, ApiError> {
    let path = fields.name("tool_calls");
    let calls = fields.array("tool_calls")?.unwrap_or_default().into_iter().enumerate();
    let call = |(index, call): (usize, Value)| {
        let mut call = Fields::of(call, &format!("{path}[{index}]"))?;
        call.only("type", &[json!("function")])?;
        call.ignore(&["index"]);
        let id = call.string("id")?;
        let function = call.require("function")?;
        let mut function = Fields::of(function, &call.name("function"))?;
        call.finish()?;
        let name = match function.require("name")? {
            Value::String(name) => name,
            other => return Err(wrong(&function.name("name"), "a string", &other)),
        };
        let arguments = function.take("arguments").unwrap_or_else(|| json!("{}"));
        if !matches!(arguments, Value::String(_) | Value::Object(_)) {
            return Err(wrong(&function.name("arguments"), "a string of JSON", &arguments));
        }
        function.finish()?;
        // Templates print the arguments as JSON; harmony takes the text as the model wrote it.
        let parsed = match &arguments {
            Value::String(text) if !can.is_harmony => serde_json::from_str::<Value>(text).ok(),
            _ => None,
        };
        let arguments = parsed.filter(Value::is_object).unwrap_or(arguments);
        Ok(json!({
            "id": id, "type": "function", "function": {"name": name, "arguments": arguments}
        }))
    };
    calls.map(call).collect()
}

/// A function that the model may call.
#[derive(Clone, Debug)]
pub struct Tool {
    pub name: String,
    /// As the request has it.
    pub whole: Value,
}

/// Takes `tools`.
pub fn tools(fields: &mut Fields) -> Result<Vec<Tool>, ApiError> {
    let tools = fields.array("tools")?.unwrap_or_default().into_iter().enumerate();
    let tools: Vec<Tool> = tools
        .map(|(index, whole)| {
            let mut tool = Fields::of(whole.clone(), &format!("tools[{index}]"))?;
            tool.only("type", &[json!("function")])?;
            let function = tool.require("function")?;
            let function = Fields::of(function, &tool.name("function"))?;
            tool.finish()?;
            function_of(function, whole)
        })
        .collect::<Result<_, ApiError>>()?;
    for (index, tool) in tools.iter().enumerate() {
        if tools[..index].iter().any(|other| other.name == tool.name) {
            let message = format!("`tools` has two functions called `{}`", tool.name);
            return Err(ApiError::field("tools", message));
        }
    }
    Ok(tools)
}

/// The function that these fields describe.
pub fn function_of(mut function: Fields, whole: Value) -> Result<Tool, ApiError> {
    let name = match function.require("name")? {
        Value::String(name) if is_name(&name) => name,
        other => {
            let expected = "1 to 64 letters, digits, `_` and `-`";
            return Err(wrong(&function.name("name"), expected, &other));
        }
    };
    function.string("description")?;
    if let Some(other) = function.take("parameters").filter(|schema| !schema.is_object()) {
        return Err(wrong(&function.name("parameters"), "an object", &other));
    }
    function.only("strict", &[json!(false)])?;
    function.finish()?;
    Ok(Tool { name, whole })
}

fn is_name(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (1..=64).contains(&name.len()) && name.chars().all(is_allowed)
}

/// Tells tools in the system message, for a template that does not show them.
pub fn tell_tools(messages: &mut Vec<Value>, tools: &[Tool]) {
    let list: Vec<String> = tools.iter().map(|tool| tool.whole.to_string()).collect();
    let text = format!(
        "You may call functions to help with the user's request. These are there:\n<tools>\n{}\n</tools>\n\nTo call one, \
         answer with its name and arguments as JSON in tags, and nothing else:\n<tool_call>\n{{\"name\": \"NAME\", \
         \"arguments\": {{...}}}}\n</tool_call>",
        list.join("\n")
    );
    if let Some(first) = messages.first_mut().filter(|first| first["role"] == "system") {
        let said = first["content"].as_str().unwrap_or_default();
        first["content"] = format!("{said}\n\n{text}").into();
    } else {
        messages.insert(0, json!({"role": "system", "content": text}));
    }
    // What was called and what came of it has to be told too.
    for message in messages {
        if let Some(calls) = message["tool_calls"].as_array().cloned() {
            let calls = calls.iter().map(|call| {
                let function = &call["function"];
                let call = json!({"name": function["name"], "arguments": function["arguments"]});
                format!("<tool_call>\n{call}\n</tool_call>")
            });
            let calls = calls.collect::<Vec<_>>().join("\n");
            let said = message["content"].as_str().unwrap_or_default();
            let text = if said.is_empty() { calls } else { format!("{said}\n{calls}") };
            *message = json!({"role": "assistant", "content": text});
        } else if message["role"] == "tool" {
            let said = message["content"].as_str().unwrap_or_default();
            let text = format!("<tool_response>\n{said}\n</tool_response>");
            *message = json!({"role": "user", "content": text});
        }
    }
}
