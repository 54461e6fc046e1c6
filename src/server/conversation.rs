//! The messages and tools of a request, checked, as the model's format reads them.

use super::app::Served;
use super::error::ApiError;
use super::fields::{Fields, short, wrong};
use super::tools::is_name;
use oxgpt_engine::prompt::ChatFormat;
use serde_json::{Map, Value, json};

/// What a format can say.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// It is harmony.
    pub is_harmony: bool,
    /// Its template shows tools, and has them called in a way that we read; else they are told in the system message.
    pub shows_tools: bool,
    /// It knows the role `developer`.
    pub has_developer: bool,
    /// It marks reasoning with tags.
    pub has_tags: bool,
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
                has_tags: false,
                effort: Effort::Level,
            },
            ChatFormat::Template(template) => {
                let has = |text: &str| template.source().contains(text);
                Abilities {
                    is_harmony: false,
                    shows_tools: has("tools") && has("<tool_call>"),
                    has_developer: has("developer"),
                    has_tags: has("<think>"),
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
pub fn content(fields: &mut Fields) -> Result<Option<String>, ApiError> {
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
        let arguments = match arguments {
            Value::String(text) => self::arguments(&text, can),
            object => object,
        };
        Ok(json!({
            "id": id, "type": "function", "function": {"name": name, "arguments": arguments}
        }))
    };
    calls.map(call).collect()
}

/// The arguments of a call as a format takes them: templates print them as JSON, harmony has the text as the model wrote it.
pub fn arguments(text: &str, can: Abilities) -> Value {
    let parsed = if can.is_harmony { None } else { serde_json::from_str::<Value>(text).ok() };
    parsed.filter(Value::is_object).unwrap_or_else(|| json!(text))
}

/// What the text of an answer must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    Text,
    /// A JSON object.
    Object,
    /// JSON of this schema, with its name and description as harmony tells them.
    Schema {
        schema: Value,
        told: Value,
    },
}

/// Takes `response_format`, or another field of that shape.
pub fn format_of(fields: Option<Fields>) -> Result<Format, ApiError> {
    let Some(mut fields) = fields else { return Ok(Format::Text) };
    let kind = fields.require("type")?;
    let format = match kind.as_str() {
        Some("text") => Format::Text,
        Some("json_object") => Format::Object,
        Some("json_schema") => {
            // The responses API has these beside the type.
            let nested = fields.object("json_schema")?;
            let own = nested.is_none();
            let mut schema = match nested {
                Some(nested) => nested,
                None => std::mem::take(&mut fields),
            };
            let format = json_schema(&mut schema)?;
            schema.finish()?;
            if own {
                return Ok(format);
            }
            format
        }
        _ => return Err(wrong(&fields.name("type"), "text, json_object or json_schema", &kind)),
    };
    fields.finish()?;
    Ok(format)
}

fn json_schema(fields: &mut Fields) -> Result<Format, ApiError> {
    let name = fields.string("name")?.unwrap_or_else(|| "response".to_string());
    let description = fields.string("description")?;
    // What is held to a grammar is strict.
    fields.boolean("strict")?;
    let schema = match fields.require("schema")? {
        schema @ Value::Object(_) => schema,
        other => return Err(wrong(&fields.name("schema"), "an object", &other)),
    };
    if !is_name(&name) {
        let expected = "1 to 64 letters, digits, `_` and `-`";
        return Err(wrong(&fields.name("name"), expected, &json!(name)));
    }
    let mut told = json!({"name": name, "schema": schema});
    if let Some(description) = description {
        told["description"] = description.into();
    }
    Ok(Format::Schema { schema, told })
}

/// Tells the schema of the answer in the system message, for a template that does not show it.
pub fn tell_schema(messages: &mut Vec<Value>, schema: &Value) {
    tell(messages, &format!("Answer with JSON of this schema, and nothing else:\n{schema}"));
}

/// Appends a text to the system message.
pub fn tell(messages: &mut Vec<Value>, text: &str) {
    if let Some(first) = messages.first_mut().filter(|first| first["role"] == "system") {
        let said = first["content"].as_str().unwrap_or_default();
        first["content"] = format!("{said}\n\n{text}").into();
    } else {
        messages.insert(0, json!({"role": "system", "content": text}));
    }
}
