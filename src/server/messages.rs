//! `/v1/messages`: Anthropic's API.

mod input;
mod output;

use super::app::{App, Served};
use super::body;
use super::chat::{Chat, Wish};
use super::conversation::{self, Abilities};
use super::error::{ApiError, json_response};
use super::fields::{Fields, wrong};
use super::generation::Generation;
use super::sampling::{self, Sampling};
use super::tools::{self, Tool, ToolChoice};
use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use output::{Output, Told};
use serde_json::{Value, json};

const PATH: &str = "/v1/messages";

/// The handler.
pub async fn messages(State(app): State<&'static App>, body: Body) -> Response<Body> {
    answer(app, body).await.unwrap_or_else(|error| refuse(&error))
}

/// The handler that only counts.
pub async fn count_tokens(State(app): State<&'static App>, body: Body) -> Response<Body> {
    count(app, body).await.unwrap_or_else(|error| refuse(&error))
}

/// An error in the shape of this API.
pub fn refuse(error: &ApiError) -> Response<Body> {
    error.response(&output::error(error))
}

async fn answer(app: &'static App, body: Body) -> Result<Response<Body>, ApiError> {
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
    Ok(json_response(StatusCode::OK, &output.message(generation.usage())))
}

async fn count(app: &'static App, body: Body) -> Result<Response<Body>, ApiError> {
    let served = app.served()?;
    let mut fields = body::fields(app, body).await?;
    let count = body::in_background(move || {
        let chat = chat(&mut fields, served)?;
        fields.finish()?;
        Ok(chat.prompt(served)?.0.len())
    });
    let count = count.await?;
    Ok(json_response(StatusCode::OK, &json!({"input_tokens": count})))
}

fn parse(
    app: &'static App,
    served: &'static Served,
    mut fields: Fields,
) -> Result<(Generation, Told, bool), ApiError> {
    fields.ignore(&["metadata", "service_tier"]);
    let max_tokens = fields.integer("max_tokens", 1..=u64::from(u32::MAX))?;
    let Some(max_tokens) = max_tokens else {
        return Err(fields.require("max_tokens").expect_err("it is not there"));
    };
    // It has another name here.
    fields.only("stop", &[])?;
    let stops = sampling::stop(&mut fields, "stop_sequences")?;
    let mut sampling = Sampling::take(&mut fields, &served.sampling)?;
    sampling.set_stop(stops.clone())?;
    if sampling.choices != 1 {
        return Err(ApiError::unsupported("n", "`n` is not supported here"));
    }
    let is_streamed = fields.boolean("stream")?.unwrap_or(false);
    let chat = chat(&mut fields, served)?;
    fields.finish()?;
    let told = Told::new(app, stops);
    let max_tokens = Some(max_tokens as usize);
    let wish = Wish { endpoint: PATH, sampling, max_tokens, logprobs: None };
    Ok((chat.begin(app, served, wish)?, told, is_streamed))
}

/// Takes the conversation out of a request.
fn chat(fields: &mut Fields, served: &Served) -> Result<Chat, ApiError> {
    let can = Abilities::of(conversation::format(served)?);
    let messages = input::messages(fields, can)?;
    let tools = functions(fields)?;
    let (choice, one_call) = choice(fields, &tools)?;
    let mut chat = Chat::new(can, messages, tools, choice);
    chat.one_call = one_call;
    if let Some(mut thinking) = fields.object("thinking")? {
        match thinking.require("type")?.as_str() {
            Some("disabled") if can.effort == conversation::Effort::Switch => {
                chat.set_effort("thinking.type", "none")?;
            }
            Some("disabled") if can.is_harmony => {
                let message = "`thinking`: the model's format has no way to turn it off";
                return Err(ApiError::unsupported("thinking", message));
            }
            // As the model likes, which is what it does without this too.
            Some("adaptive" | "disabled") => {}
            _ => {
                let message =
                    "`thinking`: budgets are not supported (supported: adaptive, disabled)";
                return Err(ApiError::unsupported("thinking", message));
            }
        }
        thinking.finish()?;
    }
    Ok(chat)
}

/// Takes `tools`; as chats have them.
fn functions(fields: &mut Fields) -> Result<Vec<Tool>, ApiError> {
    let tools = fields.array("tools")?.unwrap_or_default().into_iter().enumerate();
    let function = |(index, tool): (usize, Value)| {
        let path = format!("tools[{index}]");
        let mut tool = Fields::of(tool, &path)?;
        tool.only("type", &[json!("custom")])?;
        tool.ignore(&["cache_control"]);
        let mut function = json!({"name": tool.require("name")?});
        for (theirs, ours) in
            [("description", "description"), ("input_schema", "parameters"), ("strict", "strict")]
        {
            if let Some(value) = tool.take(theirs) {
                function[ours] = value;
            }
        }
        tool.finish()?;
        let whole = json!({"type": "function", "function": function});
        tools::function_of(Fields::of(function, &path)?, whole)
    };
    let tools: Vec<Tool> = tools.map(function).collect::<Result<_, _>>()?;
    tools::check_names(&tools)?;
    Ok(tools)
}

/// Takes `tool_choice`, and whether there may be but one call.
fn choice(fields: &mut Fields, tools: &[Tool]) -> Result<(ToolChoice, bool), ApiError> {
    let Some(mut choice) = fields.object("tool_choice")? else {
        return Ok((ToolChoice::Auto, false));
    };
    let kind = choice.require("type")?;
    let one_call = choice.boolean("disable_parallel_tool_use")?.unwrap_or(false);
    let choice_of = match kind.as_str() {
        Some("auto") => ToolChoice::Auto,
        Some("none") => ToolChoice::None,
        Some("any") if tools.is_empty() => {
            let message = "`tool_choice` is \"any\", but there are no tools";
            return Err(ApiError::field("tool_choice", message));
        }
        Some("any") => ToolChoice::Required,
        Some("tool") => {
            let name = choice.require("name")?;
            let known = |name: &&str| tools.iter().any(|tool| tool.name == *name);
            match name.as_str().filter(known) {
                Some(name) => ToolChoice::Named(name.to_string()),
                None => {
                    let message = format!("`tool_choice`: there is no tool {name}");
                    return Err(ApiError::field("tool_choice", message));
                }
            }
        }
        _ => return Err(wrong("tool_choice.type", "auto, any, tool or none", &kind)),
    };
    choice.finish()?;
    Ok((choice_of, one_call))
}
