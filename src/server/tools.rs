//! The functions that a model may call.

use super::conversation::tell;
use super::error::ApiError;
use super::fields::{Fields, short, wrong};
use serde_json::{Value, json};

/// A function that the model may call.
#[derive(Clone, Debug)]
pub struct Tool {
    pub name: String,
    /// The JSON schema of its arguments.
    pub parameters: Option<Value>,
    /// Whether the arguments must be of that schema.
    pub is_strict: bool,
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
    check_names(&tools)?;
    Ok(tools)
}

/// Refuses two functions of the same name.
pub fn check_names(tools: &[Tool]) -> Result<(), ApiError> {
    for (index, tool) in tools.iter().enumerate() {
        if tools[..index].iter().any(|other| other.name == tool.name) {
            let message = format!("`tools` has two functions called `{}`", tool.name);
            return Err(ApiError::field("tools", message));
        }
    }
    Ok(())
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
    let parameters = match function.take("parameters") {
        Some(other) if !other.is_object() => {
            return Err(wrong(&function.name("parameters"), "an object", &other));
        }
        parameters => parameters,
    };
    let is_strict = function.boolean("strict")?.unwrap_or(false);
    function.finish()?;
    Ok(Tool { name, parameters, is_strict, whole })
}

/// Whether tools are to be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// As the model likes.
    Auto,
    /// No tool may be.
    None,
    /// Any tool must be.
    Required,
    /// This one must be.
    Named(String),
}

/// Takes `tool_choice`.
pub fn tool_choice(fields: &mut Fields, tools: &[Tool]) -> Result<ToolChoice, ApiError> {
    const EXPECTED: &str = "\"auto\", \"none\", \"required\" or a function's name";
    let choice = match fields.take("tool_choice") {
        None => ToolChoice::Auto,
        Some(Value::String(choice)) => match choice.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            "required" => ToolChoice::Required,
            _ => return Err(wrong("tool_choice", EXPECTED, &json!(choice))),
        },
        Some(value @ Value::Object(_)) => {
            let mut choice = Fields::of(value, "tool_choice")?;
            choice.only("type", &[json!("function")])?;
            // The responses API has the name beside the type.
            let name = match choice.object("function")? {
                Some(mut function) => {
                    let name = function.require("name")?;
                    function.finish()?;
                    name
                }
                None => choice.require("name")?,
            };
            choice.finish()?;
            let known = |name: &&str| tools.iter().any(|tool| tool.name == *name);
            match name.as_str().filter(known) {
                Some(name) => ToolChoice::Named(name.to_string()),
                None => {
                    let message = format!("`tool_choice`: there is no function {}", short(&name));
                    return Err(ApiError::field("tool_choice", message));
                }
            }
        }
        Some(other) => return Err(wrong("tool_choice", EXPECTED, &other)),
    };
    if choice == ToolChoice::Required && tools.is_empty() {
        let message = "`tool_choice` is \"required\", but there are no tools";
        return Err(ApiError::field("tool_choice", message));
    }
    Ok(choice)
}

/// Whether this can be the name of a function or a schema.
pub fn is_name(name: &str) -> bool {
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
    tell(messages, &text);
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
