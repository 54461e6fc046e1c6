//! `/v1/chat/completions`: conversations in the model's own format.

mod response;

use super::answer::AnswerReader;
use super::app::{App, Served};
use super::body;
use super::conversation::{self, Abilities, Effort, Tool};
use super::error::ApiError;
use super::fields::{Fields, short, wrong};
use super::generation::{Generation, Task};
use super::sampling::{MAX_TOP_LOGPROBS, Sampling};
use super::tags::TagReader;
use axum::body::Body;
use axum::extract::State;
use axum::http::Response;
use oxgpt_engine::prompt::Conversation;
use response::Answers;
use serde_json::{Map, Value, json};

/// The handler.
pub async fn chat_completions(
    State(app): State<&'static App>,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let served = app.served()?;
    let fields = body::fields(app, body).await?;
    // Templates and tokenizers may take a while over a long conversation.
    let parse = move || parse(app, served, fields);
    let parsed = tokio::task::spawn_blocking(parse).await;
    let (generation, answers, streamed) =
        parsed.map_err(|error| ApiError::internal(error.to_string()))??;
    match streamed {
        None => response::whole(generation, answers).await,
        Some(includes_usage) => Ok(response::stream(generation, answers, includes_usage)),
    }
}

type Parsed = (Generation, Answers, Option<bool>);

fn parse(app: &'static App, served: &Served, mut fields: Fields) -> Result<Parsed, ApiError> {
    body::ignore_labels(&mut fields)?;
    fields.only("modalities", &[json!(["text"])])?;
    fields.only("response_format", &[json!({"type": "text"})])?;
    let sampling = Sampling::take(&mut fields, &served.sampling)?;
    let max_tokens = max_tokens(&mut fields)?;
    let logprobs = logprobs(&mut fields)?;
    let streamed = body::streaming(&mut fields)?;
    let chat = Chat::take(&mut fields, served)?;
    fields.finish()?;
    let answers = Answers::new(app, served, logprobs.is_some());
    let generation =
        chat.begin(app, served, "/v1/chat/completions", sampling, max_tokens, logprobs)?;
    Ok((generation, answers, streamed))
}

/// Takes the most tokens of an answer, under either name.
fn max_tokens(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
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

/// A conversation to go on with.
pub struct Chat {
    conversation: Conversation,
    tools: Vec<Tool>,
    one_call: bool,
    can: Abilities,
}

impl Chat {
    /// Takes the messages, the tools and how to answer out of a request.
    pub fn take(fields: &mut Fields, served: &Served) -> Result<Self, ApiError> {
        let can = Abilities::of(conversation::format(served)?);
        let messages = conversation::messages(fields, can)?;
        let mut tools = conversation::tools(fields)?;
        match fields.take("tool_choice") {
            None => {}
            Some(choice) if choice == "auto" => {}
            Some(choice) if choice == "none" => tools.clear(),
            Some(other) => {
                let message = format!(
                    "`tool_choice`: {} is not supported (supported: \"auto\", \"none\")",
                    short(&other)
                );
                return Err(ApiError::unsupported("tool_choice", message));
            }
        }
        let one_call = !fields.boolean("parallel_tool_calls")?.unwrap_or(true);
        let mut variables = match fields.take("chat_template_kwargs") {
            None => Map::new(),
            Some(Value::Object(variables)) => variables,
            Some(other) => return Err(wrong("chat_template_kwargs", "an object", &other)),
        };
        if let Some(effort) = fields.string("reasoning_effort")? {
            set_effort(&mut variables, can.effort, effort)?;
        }
        let conversation = Conversation {
            messages,
            add_generation_prompt: true,
            variables,
            ..Conversation::default()
        };
        Ok(Chat { conversation, tools, one_call, can })
    }

    /// The ids of the prompt, and whether it ends within the model's reasoning.
    pub fn prompt(&mut self, served: &Served) -> Result<(Vec<u32>, bool), ApiError> {
        let format = conversation::format(served)?;
        if !self.tools.is_empty() {
            if self.can.shows_tools {
                let tools = self.tools.iter().map(|tool| tool.whole.clone());
                self.conversation.tools = Some(tools.collect());
            } else {
                conversation::tell_tools(&mut self.conversation.messages, &self.tools);
            }
        }
        let rendered = format.render(&self.conversation)?;
        let text = rendered.text();
        let starts_in_reasoning = self.can.has_reasoning && text.trim_end().ends_with("<think>");
        Ok((served.tokenizer()?.encode_segments(&rendered.segments)?, starts_in_reasoning))
    }

    /// Begins to answer.
    fn begin(
        mut self,
        app: &'static App,
        served: &Served,
        endpoint: &'static str,
        sampling: Sampling,
        max_tokens: Option<usize>,
        logprobs: Option<usize>,
    ) -> Result<Generation, ApiError> {
        let (tokens, starts_in_reasoning) = self.prompt(served)?;
        let has_tools = !self.tools.is_empty();
        let has_reasoning = self.can.has_reasoning && !self.can.is_harmony;
        let tags = TagReader::new(has_reasoning, starts_in_reasoning, has_tools);
        let stop = sampling.stop.clone();
        let reader = || AnswerReader::chat(served, stop.clone(), has_tools, tags.clone());
        let task = Task {
            endpoint,
            prompts: vec![tokens],
            end_tokens: end_tokens(served, &sampling),
            sampling,
            max_tokens,
            default_max_tokens: None,
            logprobs,
            one_call: self.one_call,
        };
        Generation::begin(app, served, task, &reader, &|| None)
    }
}

/// The tokens that end an answer of a chat.
fn end_tokens(served: &Served, sampling: &Sampling) -> Vec<u32> {
    let of_files = served.model.end_tokens();
    match &served.format {
        _ if sampling.ignore_eos => Vec::new(),
        Some(format) => format.end_tokens(of_files),
        None => of_files,
    }
}

/// Tells the format how much to reason.
fn set_effort(
    variables: &mut Map<String, Value>,
    by: Effort,
    effort: String,
) -> Result<(), ApiError> {
    let (name, value) = match by {
        Effort::Level if ["low", "medium", "high"].contains(&effort.as_str()) => {
            ("reasoning_effort", json!(effort))
        }
        Effort::Switch if effort == "none" => ("enable_thinking", json!(false)),
        Effort::Switch if ["low", "medium", "high"].contains(&effort.as_str()) => {
            ("enable_thinking", json!(true))
        }
        _ => {
            let supported = match by {
                Effort::None => "the model's format has no such setting",
                Effort::Level => "supported: low, medium, high",
                Effort::Switch => "supported: none, and low, medium and high, which are the same",
            };
            let effort = short(&json!(effort));
            let message = format!("`reasoning_effort`: {effort} is not supported ({supported})");
            return Err(ApiError::unsupported("reasoning_effort", message));
        }
    };
    variables.entry(name).or_insert(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effort_is_told_as_the_format_wants_it() {
        let set = |by, effort: &str| {
            let mut variables = Map::new();
            set_effort(&mut variables, by, effort.to_string()).map(|()| Value::Object(variables))
        };
        assert_eq!(set(Effort::Level, "low").unwrap(), json!({"reasoning_effort": "low"}));
        assert_eq!(set(Effort::Switch, "none").unwrap(), json!({"enable_thinking": false}));
        assert_eq!(set(Effort::Switch, "high").unwrap(), json!({"enable_thinking": true}));
        for (by, effort) in [(Effort::Level, "none"), (Effort::None, "low"), (Effort::Level, "x")] {
            assert!(set(by, effort).unwrap_err().message.contains("is not supported"));
        }
    }
}
