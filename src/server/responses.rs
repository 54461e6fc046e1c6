//! `/v1/responses`: OpenAI's newer API, without its memory: every request has the whole conversation.

mod input;
mod output;

use super::app::{App, Served};
use super::body;
use super::chat::{Chat, Wish};
use super::conversation::{self, Abilities};
use super::error::{ApiError, json_response};
use super::fields::{Fields, wrong};
use super::generation::Generation;
use super::sampling::Sampling;
use super::tools::{self, Tool};
use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use output::{Output, Told};
use serde_json::{Value, json};

const PATH: &str = "/v1/responses";

/// The handler.
pub async fn responses(
    State(app): State<&'static App>,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let served = app.served()?;
    let fields = body::fields(app, body).await?;
    let (mut generation, told, is_streamed) =
        body::in_background(move || parse(app, served, fields)).await?;
    if is_streamed {
        return Ok(output::stream(generation, told));
    }
    let mut output = Output::new(told);
    while let Some(change) = generation.next().await {
        output.add(change?);
    }
    output.end();
    Ok(json_response(StatusCode::OK, &output.response(Some(generation.usage()))))
}

fn parse(
    app: &'static App,
    served: &'static Served,
    mut fields: Fields,
) -> Result<(Generation, Told, bool), ApiError> {
    body::ignore_labels(&mut fields)?;
    let can = Abilities::of(conversation::format(served)?);
    let told = Told::new(app, &fields);
    for (field, value) in [
        ("background", json!(false)),
        ("include", json!([])),
        ("truncation", json!("disabled")),
        ("top_logprobs", json!(0)),
    ] {
        fields.only(field, &[value])?;
    }
    let sampling = Sampling::take(&mut fields, &served.sampling)?;
    if sampling.choices != 1 {
        return Err(ApiError::unsupported("n", "`n` is not supported here"));
    }
    let max_tokens = fields.integer("max_output_tokens", 1..=u64::from(u32::MAX))?;
    let is_streamed = fields.boolean("stream")?.unwrap_or(false);
    if let Some(mut options) = fields.object("stream_options")? {
        options.only("include_obfuscation", &[json!(false)])?;
        options.finish()?;
    }
    let mut messages = Vec::new();
    if let Some(instructions) = fields.string("instructions")? {
        messages.push(json!({"role": "system", "content": instructions}));
    }
    messages.extend(input::messages(&mut fields, can)?);
    let tools = functions(&mut fields)?;
    let choice = tools::tool_choice(&mut fields, &tools)?;
    let mut chat = Chat::new(can, messages, tools, choice);
    chat.one_call = !fields.boolean("parallel_tool_calls")?.unwrap_or(true);
    if let Some(mut text) = fields.object("text")? {
        chat.format = conversation::format_of(text.object("format")?)?;
        text.only("verbosity", &[json!("medium")])?;
        text.finish()?;
    }
    if let Some(mut reasoning) = fields.object("reasoning")? {
        if let Some(effort) = reasoning.string("effort")? {
            chat.set_effort("reasoning.effort", &effort)?;
        }
        // The reasoning itself is told, so that it needs no summary.
        reasoning.only("summary", &[json!("auto")])?;
        reasoning.finish()?;
    }
    fields.finish()?;
    let max_tokens = max_tokens.map(|count| count as usize);
    let wish = Wish { endpoint: PATH, sampling, max_tokens, logprobs: None };
    Ok((chat.begin(app, served, wish)?, told, is_streamed))
}

/// Takes `tools`, which have no object within them here; as chats have them.
fn functions(fields: &mut Fields) -> Result<Vec<Tool>, ApiError> {
    let tools = fields.array("tools")?.unwrap_or_default().into_iter().enumerate();
    let function = |(index, whole): (usize, Value)| {
        let path = format!("tools[{index}]");
        let mut function = Fields::of(whole.clone(), &path)?;
        function.only("type", &[json!("function")])?;
        let mut inner = match whole {
            Value::Object(fields) => fields,
            other => return Err(wrong(&path, "an object", &other)),
        };
        inner.shift_remove("type");
        let whole = json!({"type": "function", "function": inner});
        tools::function_of(function, whole)
    };
    let tools: Vec<Tool> = tools.map(function).collect::<Result<_, _>>()?;
    tools::check_names(&tools)?;
    Ok(tools)
}
