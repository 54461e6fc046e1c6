//! Messages made of blocks as messages of a chat.

use crate::server::conversation::{self, Abilities};
use crate::server::error::ApiError;
use crate::server::fields::{Fields, wrong};
use serde_json::{Value, json};

/// Takes `system` and `messages`.
pub fn messages(fields: &mut Fields, can: Abilities) -> Result<Vec<Value>, ApiError> {
    let mut messages = Vec::new();
    if let Some(system) = fields.take("system") {
        let text = text(system, "system")?;
        messages.push(json!({"role": "system", "content": text}));
    }
    let given = match fields.require("messages")? {
        Value::Array(given) if !given.is_empty() => given,
        other => return Err(wrong("messages", "an array that is not empty", &other)),
    };
    for (index, value) in given.into_iter().enumerate() {
        let mut fields = Fields::of(value, &format!("messages[{index}]"))?;
        let role = fields.require("role")?;
        let content = fields.require("content")?;
        let path = fields.name("content");
        let role_path = fields.name("role");
        fields.finish()?;
        match role.as_str() {
            Some("user") => user(content, &path, &mut messages)?,
            Some("assistant") => messages.push(assistant(content, &path, can)?),
            _ => return Err(wrong(&role_path, "user or assistant", &role)),
        }
    }
    Ok(messages)
}

/// The text of a string or of blocks that are text.
fn text(content: Value, path: &str) -> Result<String, ApiError> {
    let mut fields = Fields::of(json!({"content": content}), path)?;
    Ok(conversation::content(&mut fields)?.unwrap_or_default())
}

/// The blocks of a content; a text is one block.
fn blocks(content: Value, path: &str) -> Result<Vec<(String, Fields)>, ApiError> {
    let blocks = match content {
        text @ Value::String(_) => vec![json!({"type": "text", "text": text})],
        Value::Array(blocks) => blocks,
        other => return Err(wrong(path, "a string or an array of blocks", &other)),
    };
    let block = |(index, block): (usize, Value)| {
        let path = format!("{path}[{index}]");
        let mut block = Fields::of(block, &path)?;
        let kind = block.require("type")?;
        block.ignore(&["cache_control"]);
        match kind {
            Value::String(kind) => Ok((kind, block)),
            other => Err(wrong(&block.name("type"), "a string", &other)),
        }
    };
    blocks.into_iter().enumerate().map(block).collect()
}

fn string(block: &mut Fields, field: &str) -> Result<String, ApiError> {
    let name = block.name(field);
    match block.require(field)? {
        Value::String(text) => Ok(text),
        other => Err(wrong(&name, "a string", &other)),
    }
}

/// What tools gave comes before what the user says.
fn user(content: Value, path: &str, messages: &mut Vec<Value>) -> Result<(), ApiError> {
    let mut said: Option<String> = None;
    for (kind, mut block) in blocks(content, path)? {
        match kind.as_str() {
            "text" => {
                block.ignore(&["citations"]);
                let text = string(&mut block, "text")?;
                said.get_or_insert_default().push_str(&text);
            }
            "tool_result" => {
                let id = block.require("tool_use_id")?;
                let content = block.take("content").unwrap_or_else(|| json!(""));
                let text = text(content, path)?;
                let is_error = block.boolean("is_error")?.unwrap_or(false);
                let text = if is_error { format!("Error: {text}") } else { text };
                messages.push(json!({"role": "tool", "tool_call_id": id, "content": text}));
            }
            _ => {
                let name = block.name("type");
                return Err(wrong(&name, "text or tool_result", &json!(kind)));
            }
        }
        block.finish()?;
    }
    if let Some(text) = said {
        messages.push(json!({"role": "user", "content": text}));
    }
    Ok(())
}

fn assistant(content: Value, path: &str, can: Abilities) -> Result<Value, ApiError> {
    let mut message = json!({"role": "assistant", "content": ""});
    let (mut said, mut thought, mut calls) = (String::new(), String::new(), Vec::new());
    for (kind, mut block) in blocks(content, path)? {
        match kind.as_str() {
            "text" => {
                block.ignore(&["citations"]);
                said += &string(&mut block, "text")?;
            }
            "thinking" => {
                block.ignore(&["signature"]);
                thought += &string(&mut block, "thinking")?;
            }
            "tool_use" => {
                let (id, name) = (block.require("id")?, block.require("name")?);
                let input = block.require("input")?;
                let arguments = conversation::arguments(&input.to_string(), can);
                calls.push(json!({
                    "id": id, "type": "function", "function": {"name": name, "arguments": arguments}
                }));
            }
            _ => {
                let name = block.name("type");
                return Err(wrong(&name, "text, thinking or tool_use", &json!(kind)));
            }
        }
        block.finish()?;
    }
    message["content"] = json!(said);
    if !thought.is_empty() {
        message["reasoning_content"] = json!(thought);
    }
    if !calls.is_empty() {
        message["tool_calls"] = json!(calls);
    }
    Ok(message)
}
