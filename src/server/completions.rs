//! `/v1/completions`: texts to continue as they are.

use super::answer::{AnswerReader, Piece, Token};
use super::app::{App, Served, unix_seconds};
use super::body;
use super::error::{ApiError, json_response};
use super::fields::{Fields, whole, wrong};
use super::generation::{Change, Generation, Task};
use super::sampling::{MAX_TOP_LOGPROBS, Sampling};
use super::sse::{self, Step};
use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use oxgpt_engine::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

/// Without `max_tokens`, as in OpenAI's API.
const DEFAULT_MAX_TOKENS: usize = 16;
/// The most prompts of one request.
const MAX_PROMPTS: usize = 2048;

/// A prompt, and its text if it is to be repeated.
struct Prompt {
    tokens: Vec<u32>,
    echo: String,
}

/// The handler.
pub async fn completions(
    State(app): State<&'static App>,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let served = app.served()?;
    let fields = body::fields(app, body).await?;
    let (generation, answers, streamed) =
        body::in_background(move || parse(app, served, fields)).await?;
    match streamed {
        None => whole_answer(generation, answers).await,
        Some(includes_usage) => Ok(stream(generation, answers, includes_usage)),
    }
}

type Parsed = (Generation, Answers, Option<bool>);

fn parse(
    app: &'static App,
    served: &'static Served,
    mut fields: Fields,
) -> Result<Parsed, ApiError> {
    body::ignore_labels(&mut fields)?;
    let sampling = Sampling::take(&mut fields, &served.sampling)?;
    let max_tokens = fields.integer("max_tokens", 0..=u64::from(u32::MAX))?;
    let logprobs = fields.integer("logprobs", 0..=MAX_TOP_LOGPROBS)?.map(|count| count as usize);
    let echo = fields.boolean("echo")?.unwrap_or(false);
    if echo && logprobs.is_some() {
        let message = "`echo` together with `logprobs` is not supported";
        return Err(ApiError::unsupported("echo", message));
    }
    if let Some(best_of) = fields.integer("best_of", 1..=128)?
        && best_of != u64::from(sampling.choices)
    {
        let message = "`best_of` is only supported where it equals `n`";
        return Err(ApiError::unsupported("best_of", message));
    }
    fields.only("suffix", &[json!("")])?;
    let streamed = body::streaming(&mut fields)?;
    let prompt = fields.require("prompt")?;
    fields.finish()?;
    let prompts = prompts(served, prompt, echo)?;
    let echoes = prompts.iter().map(|prompt| prompt.echo.clone()).collect();
    let end_tokens = if sampling.ignore_eos { Vec::new() } else { served.model.end_tokens() };
    let answers = Answers {
        id: body::id("cmpl-"),
        created: unix_seconds(),
        model: app.settings.name.clone(),
        tokenizer: served.model.tokenizer.as_ref(),
        echoes,
        per_prompt: sampling.choices as usize,
        has_logprobs: logprobs.is_some(),
    };
    let stop = sampling.stop.clone();
    let task = Task {
        endpoint: "/v1/completions",
        prompts: prompts.into_iter().map(|prompt| prompt.tokens).collect(),
        sampling,
        max_tokens: max_tokens.map(|count| count as usize),
        default_max_tokens: Some(DEFAULT_MAX_TOKENS),
        logprobs,
        end_tokens,
        one_call: false,
        is_turn: false,
    };
    let reader = || AnswerReader::text(served, stop.clone());
    let generation = Generation::begin(app, served, task, &reader, &|| None)?;
    Ok((generation, answers, streamed))
}

/// A text, an array of texts, an array of ids, or an array of arrays of ids.
fn prompts(served: &Served, value: Value, echo: bool) -> Result<Vec<Prompt>, ApiError> {
    const EXPECTED: &str = "a string, strings, token ids, or arrays of token ids";
    let text = |text: String| -> Result<Prompt, ApiError> {
        let tokens = served.tokenizer()?.encode(&text)?;
        Ok(Prompt { tokens, echo: if echo { text } else { String::new() } })
    };
    let ids = |values: &[Value]| -> Result<Prompt, ApiError> {
        let tokens = token_ids("prompt", values)?;
        let echo = if echo { served.tokenizer()?.decode(&tokens)? } else { String::new() };
        Ok(Prompt { tokens, echo })
    };
    let values = match value {
        Value::String(value) => return Ok(vec![text(value)?]),
        Value::Array(values) => values,
        other => return Err(wrong("prompt", EXPECTED, &other)),
    };
    match values.first() {
        None => Err(ApiError::field("prompt", "`prompt` is empty")),
        Some(Value::Number(_)) => Ok(vec![ids(&values)?]),
        Some(_) if values.len() > MAX_PROMPTS => {
            let message = format!("`prompt` has {} entries, more than {MAX_PROMPTS}", values.len());
            Err(ApiError::field("prompt", message))
        }
        Some(_) => {
            let prompt = |value: Value| match value {
                Value::String(value) => text(value),
                Value::Array(values) => ids(&values),
                other => Err(wrong("prompt", EXPECTED, &other)),
            };
            values.into_iter().map(prompt).collect()
        }
    }
}

/// Token ids in JSON.
pub fn token_ids(name: &str, values: &[Value]) -> Result<Vec<u32>, ApiError> {
    let id = |value: &Value| {
        let id = whole(value).and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| wrong(name, "token ids", value))
    };
    values.iter().map(id).collect()
}

/// What all parts of a response share.
struct Answers {
    id: String,
    created: u64,
    model: String,
    tokenizer: Option<&'static Tokenizer>,
    /// What is repeated of each prompt.
    echoes: Vec<String>,
    per_prompt: usize,
    has_logprobs: bool,
}

impl Answers {
    fn response(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": super::FINGERPRINT,
            "choices": choices
        })
    }

    fn choice(&self, index: usize, text: &str, tokens: &[Token], finish: Option<&str>) -> Value {
        let logprobs = self.has_logprobs.then(|| self.logprobs(tokens));
        json!({"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish})
    }

    fn logprobs(&self, tokens: &[Token]) -> Value {
        let text = |id| token_text(self.tokenizer, id);
        let top = |token: &Token| -> Value {
            let top = token.logprobs.top.iter();
            // Of tokens with the same text, the more probable one comes first.
            let mut by_text = Map::new();
            for (id, value) in top {
                by_text.entry(text(*id)).or_insert_with(|| json!(finite(*value)));
            }
            // That of the chosen token is there in any case, so that there may be one more.
            by_text.entry(text(token.id)).or_insert_with(|| json!(finite(token.logprobs.chosen)));
            by_text.into()
        };
        json!({
            "tokens": tokens.iter().map(|token| text(token.id)).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|t| finite(t.logprobs.chosen)).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
            "text_offset": tokens.iter().map(|token| token.offset).collect::<Vec<_>>()
        })
    }
}

/// The text of a token, as far as it is UTF-8; its id without a tokenizer.
pub fn token_text(tokenizer: Option<&Tokenizer>, id: u32) -> String {
    match tokenizer.and_then(|tokenizer| tokenizer.token_bytes(id)) {
        Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        None => format!("token_id:{id}"),
    }
}

/// A log-probability as OpenAI's API writes it, since JSON has no infinity. With as many digits as it takes.
pub fn finite(logprob: f32) -> f64 {
    if logprob.is_finite() { logprob.to_string().parse().unwrap_or(-9999.0) } else { -9999.0 }
}

fn split(change: &Change) -> (String, Vec<Token>) {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    for piece in &change.pieces {
        match piece {
            Piece::Text(part) => text.push_str(part),
            Piece::Logprob(token) => tokens.push(token.clone()),
            // Texts have no such parts.
            Piece::Reasoning(_) | Piece::Call { .. } | Piece::Arguments(_) => {}
        }
    }
    (text, tokens)
}

async fn whole_answer(
    mut generation: Generation,
    answers: Answers,
) -> Result<Response<Body>, ApiError> {
    let count = answers.echoes.len() * answers.per_prompt;
    let echoes = (0..count).map(|choice| answers.echoes[choice / answers.per_prompt].clone());
    let mut texts: Vec<String> = echoes.collect();
    let mut tokens = vec![Vec::new(); count];
    let mut finishes = vec!["stop"; count];
    while let Some(change) = generation.next().await {
        let change = change?;
        let (text, new) = split(&change);
        texts[change.choice].push_str(&text);
        tokens[change.choice].extend(new);
        if let Some(finish) = change.finish {
            finishes[change.choice] = finish.name();
        }
    }
    let choices = (0..count)
        .map(|index| answers.choice(index, &texts[index], &tokens[index], Some(finishes[index])));
    let mut response = answers.response(choices.collect());
    response["usage"] = generation.usage().json();
    Ok(json_response(StatusCode::OK, &response))
}

fn stream(generation: Generation, answers: Answers, includes_usage: bool) -> Response<Body> {
    let chunk = move |answers: &Answers, choices: Vec<Value>| {
        let mut response = answers.response(choices);
        if includes_usage {
            response["usage"] = Value::Null;
        }
        sse::data(&response)
    };
    sse::stream(generation, move |step| match step {
        Step::Begin => {
            let count = answers.echoes.len() * answers.per_prompt;
            let echo = |index: usize| &answers.echoes[index / answers.per_prompt];
            let repeated = (0..count).filter(|index| !echo(*index).is_empty());
            let choice = |index| answers.choice(index, echo(index), &[], None);
            repeated.map(|index| chunk(&answers, vec![choice(index)])).collect()
        }
        Step::Change(change) => {
            let (text, tokens) = split(change);
            let finish = change.finish.map(|finish| finish.name());
            if text.is_empty() && tokens.is_empty() && finish.is_none() {
                return String::new();
            }
            chunk(&answers, vec![answers.choice(change.choice, &text, &tokens, finish)])
        }
        Step::End(usage) => {
            let mut events = String::new();
            if includes_usage {
                let mut response = answers.response(Vec::new());
                response["usage"] = usage.json();
                events = sse::data(&response);
            }
            events + "data: [DONE]\n\n"
        }
        Step::Failed(error) => sse::data(&error.body()),
    })
}
