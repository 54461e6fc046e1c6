//! Tools as the developer message lists them: a TypeScript namespace, made from JSON schemas.

use std::fmt::Write as _;

use serde_json::Value;

/// Schemas nested deeper than this are `any`; no model follows them so far down.
const MAX_DEPTH: usize = 64;

/// A function that the model can call.
pub(super) struct Function<'a> {
    pub name: &'a str,
    pub description: &'a str,
    pub parameters: Option<&'a Value>,
}

/// The section `# Tools` with the functions in the namespace `functions`.
pub(super) fn tools_section(functions: &[Function<'_>]) -> String {
    let mut text = "# Tools\n\n## functions\n\nnamespace functions {\n\n".to_owned();
    for Function { name, description, parameters } in functions {
        for line in description.lines() {
            text += &format!("// {line}\n");
        }
        match parameters {
            Some(schema) => {
                text += &format!("type {name} = (_: {}) => any;\n\n", ts(schema, "", 0))
            }
            None => text += &format!("type {name} = () => any;\n\n"),
        }
    }
    text + "} // namespace functions"
}

/// The type that a schema describes, in the layout that gpt-oss was trained on.
fn ts(schema: &Value, indent: &str, depth: usize) -> String {
    if depth > MAX_DEPTH {
        return "any".to_owned();
    }
    if let Some(variants) = schema["oneOf"].as_array() {
        let mut text = String::new();
        for variant in variants {
            let comment = comment([text_of(variant, "description"), default(variant, false)]);
            text += &format!("\n{indent} | {}{comment}", nullable_ts(variant, indent, 3, depth));
        }
        return text;
    }
    if let Some(types) = schema["type"].as_array() {
        let names = types.iter().filter_map(Value::as_str).map(|name| match name {
            "integer" => "number",
            name => name,
        });
        let union = names.collect::<Vec<_>>().join(" | ");
        return if union.is_empty() { "any".to_owned() } else { union };
    }
    match schema["type"].as_str() {
        Some("object") => object(schema, indent, depth),
        Some("string") => {
            let values = schema["enum"].as_array().map_or(&[][..], Vec::as_slice);
            let values =
                values.iter().filter_map(Value::as_str).map(|value| format!("\"{value}\""));
            let union = values.collect::<Vec<_>>().join(" | ");
            if union.is_empty() { "string".to_owned() } else { union }
        }
        Some("number" | "integer") => "number".to_owned(),
        Some("boolean") => "boolean".to_owned(),
        Some("array") => match schema.get("items") {
            Some(items) => format!("{}[]", ts(items, indent, depth + 1)),
            None => "Array<any>".to_owned(),
        },
        _ => "any".to_owned(),
    }
}

fn object(schema: &Value, indent: &str, depth: usize) -> String {
    let mut text = String::new();
    if let Some(description) = schema["description"].as_str() {
        text += &format!("{indent}// {description}\n");
    }
    text += "{\n";
    let required = schema["required"].as_array().map_or(&[][..], Vec::as_slice);
    for (key, value) in schema["properties"].as_object().into_iter().flatten() {
        let is_required = required.iter().any(|name| name.as_str() == Some(key));
        property(&mut text, key, value, is_required, indent, depth);
    }
    text + indent + "}"
}

fn property(
    text: &mut String,
    key: &str,
    value: &Value,
    is_required: bool,
    indent: &str,
    depth: usize,
) {
    let mark = if is_required { "" } else { "?" };
    let variants = value["oneOf"].as_array();
    let description = value["description"].as_str();
    if let Some(title) = value["title"].as_str() {
        *text += &format!("{indent}// {title}\n{indent}//\n");
    }
    if let (None, Some(description)) = (value.get("oneOf"), description) {
        *text += &format!("{indent}// {description}\n");
    }
    if let Some(examples) = value["examples"].as_array().filter(|examples| !examples.is_empty()) {
        *text += &format!("{indent}// Examples:\n");
        for example in examples.iter().filter_map(Value::as_str) {
            *text += &format!("{indent}// - \"{example}\"\n");
        }
    }
    let Some(variants) = variants else {
        *text += &format!("{indent}{key}{mark}: {},", nullable_ts(value, indent, 4, depth));
        if value.get("oneOf").is_none() {
            *text += &comment([None, default(value, true)]);
        }
        text.push('\n');
        return;
    };
    // A description that the first variant has too stands there alone.
    let first = variants.first().and_then(|variant| variant["description"].as_str());
    let above = description.filter(|description| first != Some(*description));
    if let Some(description) = above {
        *text += &format!("{indent}// {description}\n");
    }
    if let Some(default) = default(value, true) {
        *text += &format!("{indent}// {default}\n");
    }
    *text += &format!("{indent}{key}{mark}:\n");
    for (index, variant) in variants.iter().enumerate() {
        let own = text_of(variant, "description")
            .filter(|own| Some(own.as_str()) != description && (index > 0 || above.is_none()));
        let comment = comment([own, default(variant, true)]);
        // Writing to a string does not fail.
        let _ = writeln!(text, "{indent} | {}{comment}", nullable_ts(variant, indent, 3, depth));
    }
    *text += &format!("{indent},\n");
}

/// The type of a part, with `null` if it may be that.
fn nullable_ts(schema: &Value, indent: &str, deeper: usize, depth: usize) -> String {
    let mut text = ts(schema, &format!("{indent}{}", " ".repeat(deeper)), depth + 1);
    if schema["nullable"].as_bool() == Some(true) && !text.contains("null") {
        text += " | null";
    }
    text
}

fn text_of(schema: &Value, key: &str) -> Option<String> {
    schema[key].as_str().map(str::to_owned)
}

/// The default value: a string in quotes, but bare among those of an enumeration where `bare_enum` says so.
fn default(schema: &Value, bare_enum: bool) -> Option<String> {
    let value = schema.get("default")?;
    let is_enum = schema["enum"].as_array().is_some_and(|values| !values.is_empty());
    Some(match value.as_str() {
        Some(text) if !is_enum => format!("default: \"{text}\""),
        Some(text) if bare_enum => format!("default: {text}"),
        _ => format!("default: {value}"),
    })
}

fn comment(parts: [Option<String>; 2]) -> String {
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { String::new() } else { format!(" // {}", parts.join(" ")) }
}
