//! `/v1/chat/completions`: conversations in the model's own format.

mod answering;
mod response;

pub use answering::{Chat, Wish};

use super::app::{App, Served};
use super::body;
use super::conversation::{self, Abilities};
use super::error::ApiError;
use super::fields::{Fields, wrong};
use super::generation::Generation;
use super::sampling::{MAX_TOP_LOGPROBS, Sampling};
use super::tools;
use axum::body::Body;
use axum::extract::State;
use axum::http::Response;
use response::Answers;
use serde_json::{Map, Value, json};

/// The handler.
pub async fn chat_completions(
    State(app): State<&'static App>,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let served = app.served()?;
    let fields = body::fields(app, body).await?;
    let (generation, answers, streamed) =
        body::in_background(move || parse(app, served, fields)).await?;
    match streamed {
        None => response::whole(generation, answers).await,
        Some(includes_usage) => Ok(response::stream(generation, answers, includes_usage)),
    }
}

type Parsed = (Generation, Answers, Option<bool>);

fn parse(
    app: &'static App,
    served: &'static Served,
    mut fields: Fields,
) -> Result<Parsed, ApiError> {
    body::ignore_labels(&mut fields)?;
    fields.only("modalities", &[json!(["text"])])?;
    let sampling = Sampling::take(&mut fields, &served.sampling)?;
    let max_tokens = max_tokens(&mut fields)?;
    let logprobs = logprobs(&mut fields)?;
    let streamed = body::streaming(&mut fields)?;
    let chat = take(&mut fields, served)?;
    fields.finish()?;
    let answers = Answers::new(app, served, logprobs.is_some());
    let wish = Wish { endpoint: "/v1/chat/completions", sampling, max_tokens, logprobs };
    Ok((chat.begin(app, served, wish)?, answers, streamed))
}

/// Takes the messages, the tools and how to answer out of a request.
pub fn take(fields: &mut Fields, served: &Served) -> Result<Chat, ApiError> {
    let can = Abilities::of(conversation::format(served)?);
    let messages = conversation::messages(fields, can)?;
    let tools = tools::tools(fields)?;
    let choice = tools::tool_choice(fields, &tools)?;
    let mut chat = Chat::new(can, messages, tools, choice);
    chat.one_call = !fields.boolean("parallel_tool_calls")?.unwrap_or(true);
    chat.format = conversation::format_of(fields.object("response_format")?)?;
    chat.variables = match fields.take("chat_template_kwargs") {
        None => Map::new(),
        Some(Value::Object(variables)) => variables,
        Some(other) => return Err(wrong("chat_template_kwargs", "an object", &other)),
    };
    if let Some(effort) = fields.string("reasoning_effort")? {
        chat.set_effort("reasoning_effort", &effort)?;
    }
    Ok(chat)
}

/// Takes the most tokens of an answer, under either name.
pub fn max_tokens(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let range = || 1..=u64::from(u32::MAX);
    let old = fields.integer("max_tokens", range())?;
    let new = fields.integer("max_completion_tokens", range())?;
    if let (Some(old), Some(new)) = (old, new)
        && old != new
    {
        let message = format!("`max_tokens` is {old}, but `max_completion_tokens` is {new}");
        return Err(ApiError::field("max_tokens", message));
    }
    Ok(new.or(old).map(|count| count as usize))
}

/// Takes how many of the most probable tokens are reported, if log-probabilities are.
fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let is_wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
    match (is_wanted, top) {
        (false, Some(1..)) => {
            let message = "`top_logprobs` is only for `logprobs: true`";
            Err(ApiError::field("top_logprobs", message))
        }
        (false, _) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0) as usize)),
    }
}
