//! Answers as OpenAI's chat completions: whole, or in chunks.

use crate::server::answer::{Piece, Token};
use crate::server::app::{App, Served, unix_seconds};
use crate::server::body;
use crate::server::completions::{finite, token_text};
use crate::server::error::{ApiError, json_response};
use crate::server::generation::{Change, Finish, Generation};
use crate::server::sse::{self, Step};
use axum::body::Body;
use axum::http::{Response, StatusCode};
use oxgpt_engine::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// What all parts of a response share.
pub struct Answers {
    id: String,
    created: u64,
    model: String,
    tokenizer: Option<&'static Tokenizer>,
    has_logprobs: bool,
}

impl Answers {
    pub fn new(app: &App, served: &Served, has_logprobs: bool) -> Self {
        Answers {
            id: body::id("chatcmpl-"),
            created: unix_seconds(),
            model: app.settings.name.clone(),
            tokenizer: served.model.tokenizer.as_ref(),
            has_logprobs,
        }
    }

    fn response(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": crate::server::FINGERPRINT,
            "choices": choices
        })
    }

    fn logprobs(&self, tokens: &[Token]) -> Value {
        if !self.has_logprobs {
            return Value::Null;
        }
        let entry = |id: u32, logprob: f32| {
            let bytes = self.tokenizer.and_then(|tokenizer| tokenizer.token_bytes(id));
            json!({
                "token": token_text(self.tokenizer, id), "logprob": finite(logprob), "bytes": bytes
            })
        };
        let token = |token: &Token| {
            let mut value = entry(token.id, token.logprobs.chosen);
            let top = token.logprobs.top.iter().map(|(id, logprob)| entry(*id, *logprob));
            value["top_logprobs"] = top.collect();
            value
        };
        json!({"content": tokens.iter().map(token).collect::<Vec<_>>(), "refusal": null})
    }
}

/// One answer, put together.
#[derive(Clone, Debug, Default)]
pub struct Said {
    pub text: String,
    pub reasoning: String,
    /// The names of the calls and of their tools, and the arguments.
    pub calls: Vec<(String, String, String)>,
    pub tokens: Vec<Token>,
    pub finish: Option<Finish>,
}

impl Said {
    /// Takes the next part in.
    pub fn add(&mut self, change: Change) {
        for piece in change.pieces {
            match piece {
                Piece::Text(text) => self.text.push_str(&text),
                Piece::Reasoning(text) => self.reasoning.push_str(&text),
                Piece::Call { name, id } => self.calls.push((id, name, String::new())),
                Piece::Arguments(text) => {
                    if let Some((_, _, arguments)) = self.calls.last_mut() {
                        arguments.push_str(&text);
                    }
                }
                Piece::Logprob(token) => self.tokens.push(token),
            }
        }
        self.finish = change.finish.or(self.finish);
    }

    /// Runs a generation to its end; the answers in order.
    pub async fn all(generation: &mut Generation) -> Result<Vec<Said>, ApiError> {
        let mut all = vec![Said::default(); generation.choices()];
        while let Some(change) = generation.next().await {
            let change = change?;
            let choice = change.choice;
            all[choice].add(change);
        }
        Ok(all)
    }

    fn message(&self) -> Value {
        let content = if self.text.is_empty() && !self.calls.is_empty() {
            Value::Null
        } else {
            json!(self.text)
        };
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if !self.reasoning.is_empty() {
            // Clients look under either name.
            message["reasoning"] = json!(self.reasoning);
            message["reasoning_content"] = json!(self.reasoning);
        }
        if !self.calls.is_empty() {
            let call = |(id, name, arguments): &(String, String, String)| {
                json!({
                    "id": format!("call_{id}"),
                    "type": "function",
                    "function": {"name": name, "arguments": arguments}
                })
            };
            message["tool_calls"] = self.calls.iter().map(call).collect();
        }
        message
    }
}

/// The whole response.
pub async fn whole(
    mut generation: Generation,
    answers: Answers,
) -> Result<Response<Body>, ApiError> {
    let said = Said::all(&mut generation).await?;
    let choice = |(index, said): (usize, &Said)| {
        json!({
            "index": index,
            "message": said.message(),
            "logprobs": answers.logprobs(&said.tokens),
            "finish_reason": said.finish.map(Finish::name)
        })
    };
    let choices = said.iter().enumerate().map(choice).collect();
    let mut response = answers.response("chat.completion", choices);
    response["usage"] = generation.usage().json();
    Ok(json_response(StatusCode::OK, &response))
}

/// The response in chunks.
pub fn stream(generation: Generation, answers: Answers, includes_usage: bool) -> Response<Body> {
    let choices = generation.choices();
    // Of each answer, the calls so far.
    let mut calls = vec![0usize; choices];
    let chunk = move |answers: &Answers, choice: Value| {
        let mut response = answers.response("chat.completion.chunk", vec![choice]);
        if includes_usage {
            response["usage"] = Value::Null;
        }
        sse::data(&response)
    };
    let choice = |index: usize, delta: Value, logprobs: Value, finish: Option<Finish>| {
        json!({
            "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish.map(Finish::name)
        })
    };
    sse::stream(generation, move |step| match step {
        Step::Begin => {
            let delta = json!({"role": "assistant", "content": "", "refusal": null});
            let first = |index| choice(index, delta.clone(), Value::Null, None);
            (0..choices).map(|index| chunk(&answers, first(index))).collect()
        }
        Step::Change(change) => {
            let index = change.choice;
            let mut events = String::new();
            let mut tokens = Vec::new();
            let mut text = None;
            for piece in &change.pieces {
                let delta = match piece {
                    Piece::Logprob(token) => {
                        tokens.push(token.clone());
                        continue;
                    }
                    Piece::Text(part) => {
                        // Told with the log-probabilities of its tokens, which follow.
                        text.get_or_insert_with(String::new).push_str(part);
                        continue;
                    }
                    Piece::Reasoning(text) => json!({"reasoning": text, "reasoning_content": text}),
                    Piece::Call { name, id } => {
                        calls[index] += 1;
                        json!({"tool_calls": [{
                            "index": calls[index] - 1,
                            "id": format!("call_{id}"),
                            "type": "function",
                            "function": {"name": name, "arguments": ""}
                        }]})
                    }
                    Piece::Arguments(text) => json!({"tool_calls": [{
                        "index": calls[index].saturating_sub(1), "function": {"arguments": text}
                    }]}),
                };
                if let Some(text) = text.take() {
                    let delta = json!({"content": text});
                    events += &chunk(&answers, choice(index, delta, Value::Null, None));
                }
                events += &chunk(&answers, choice(index, delta, Value::Null, None));
            }
            if text.is_some() || !tokens.is_empty() {
                let delta = json!({"content": text.unwrap_or_default()});
                let logprobs = answers.logprobs(&tokens);
                events += &chunk(&answers, choice(index, delta, logprobs, None));
            }
            if change.finish.is_some() {
                events += &chunk(&answers, choice(index, json!({}), Value::Null, change.finish));
            }
            events
        }
        Step::End(usage) => {
            let mut events = String::new();
            if includes_usage {
                let mut response = answers.response("chat.completion.chunk", Vec::new());
                response["usage"] = usage.json();
                events = sse::data(&response);
            }
            events + "data: [DONE]\n\n"
        }
        Step::Failed(error) => sse::data(&error.body()),
    })
}
