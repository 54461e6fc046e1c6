//! The items of `input` as messages of a chat.

use crate::server::conversation::{self, Abilities};
use crate::server::error::ApiError;
use crate::server::fields::{Fields, wrong};
use serde_json::{Map, Value, json};

/// Takes `input`: a text, or items.
pub fn messages(fields: &mut Fields, can: Abilities) -> Result<Vec<Value>, ApiError> {
    let items = match fields.require("input")? {
        Value::String(text) => return Ok(vec![json!({"role": "user", "content": text})]),
        Value::Array(items) => items,
        other => return Err(wrong("input", "a string or an array", &other)),
    };
    if items.is_empty() {
        return Err(ApiError::field("input", "`input` is empty"));
    }
    let mut turns = Turns { messages: Vec::new(), assistant: Map::new(), can };
    for (index, item) in items.into_iter().enumerate() {
        turns.add(Fields::of(item, &format!("input[{index}]"))?)?;
    }
    turns.flush();
    Ok(turns.messages)
}

/// The messages so far. What the assistant thinks, says and calls are several items, but one message.
struct Turns {
    messages: Vec<Value>,
    assistant: Map<String, Value>,
    can: Abilities,
}

impl Turns {
    fn flush(&mut self) {
        if self.assistant.is_empty() {
            return;
        }
        let mut message = std::mem::take(&mut self.assistant);
        message.insert("role".to_string(), json!("assistant"));
        message.entry("content").or_insert(json!(""));
        self.messages.push(Value::Object(message));
    }

    fn flush_if_has(&mut self, fields: &[&str]) {
        if fields.iter().any(|field| self.assistant.contains_key(*field)) {
            self.flush();
        }
    }

    fn add(&mut self, mut item: Fields) -> Result<(), ApiError> {
        let name = item.name("type");
        let kind = item.string("type")?.unwrap_or_else(|| "message".to_string());
        // Names and states of items that an earlier answer had.
        item.ignore(&["id", "status"]);
        match kind.as_str() {
            "message" => self.message(item),
            "reasoning" => self.reasoning(item),
            "function_call" => self.call(item),
            "function_call_output" => self.output(item),
            _ => {
                let expected = "message, reasoning, function_call or function_call_output";
                Err(wrong(&name, expected, &json!(kind)))
            }
        }
    }

    fn message(&mut self, mut item: Fields) -> Result<(), ApiError> {
        let role = item.require("role")?;
        let content = conversation::content(&mut item)?;
        let Some(content) = content else {
            return Err(item.require("content").expect_err("it is not there"));
        };
        let name = item.name("role");
        item.finish()?;
        match role.as_str() {
            Some("assistant") => {
                self.flush_if_has(&["content", "tool_calls"]);
                self.assistant.insert("content".to_string(), content.into());
            }
            Some("user" | "system" | "developer") => {
                self.flush();
                let is_known = role != "developer" || self.can.has_developer;
                let role = if is_known { role } else { json!("system") };
                self.messages.push(json!({"role": role, "content": content}));
            }
            _ => return Err(wrong(&name, "user, assistant, system or developer", &role)),
        }
        Ok(())
    }

    fn reasoning(&mut self, mut item: Fields) -> Result<(), ApiError> {
        // What is not encrypted need not be.
        item.only("encrypted_content", &[])?;
        let mut text = String::new();
        for field in ["content", "summary"] {
            for part in item.array(field)?.unwrap_or_default() {
                let mut part = Fields::of(part, &item.name(field))?;
                part.only("type", &[json!("reasoning_text"), json!("summary_text")])?;
                if let Some(part) = part.string("text")? {
                    text += &part;
                }
                part.finish()?;
            }
        }
        item.finish()?;
        self.flush_if_has(&["reasoning_content", "content", "tool_calls"]);
        self.assistant.insert("reasoning_content".to_string(), text.into());
        Ok(())
    }

    fn call(&mut self, mut item: Fields) -> Result<(), ApiError> {
        let (id, name) = (item.require("call_id")?, item.require("name")?);
        let arguments = item.require("arguments")?;
        let path = item.name("arguments");
        item.finish()?;
        let Value::String(text) = &arguments else {
            return Err(wrong(&path, "a string of JSON", &arguments));
        };
        let arguments = conversation::arguments(text, self.can);
        let call = json!({
            "id": id, "type": "function", "function": {"name": name, "arguments": arguments}
        });
        let calls = self.assistant.entry("tool_calls").or_insert(json!([]));
        if let Value::Array(calls) = calls {
            calls.push(call);
        }
        Ok(())
    }

    fn output(&mut self, mut item: Fields) -> Result<(), ApiError> {
        let id = item.require("call_id")?;
        let output = item.require("output")?;
        let path = item.name("output");
        item.finish()?;
        let text = match output {
            Value::String(text) => text,
            parts @ Value::Array(_) => {
                let mut output = Fields::of(json!({"content": parts}), &path)?;
                conversation::content(&mut output)?.unwrap_or_default()
            }
            other => return Err(wrong(&path, "a string or an array of parts", &other)),
        };
        self.flush();
        self.messages.push(json!({"role": "tool", "tool_call_id": id, "content": text}));
        Ok(())
    }
}
