//! Answers as blocks, whole or in events.

use crate::server::answer::Piece;
use crate::server::app::App;
use crate::server::body;
use crate::server::error::ApiError;
use crate::server::generation::{Change, Finish, Generation, Usage};
use crate::server::sse::{self, Step};
use axum::body::Body;
use axum::http::Response;
use serde_json::{Value, json};

/// What all parts of a response share.
pub struct Told {
    id: String,
    model: String,
    stops: Vec<String>,
}

impl Told {
    pub fn new(app: &App, stops: Vec<String>) -> Self {
        Told { id: body::id("msg_"), model: app.settings.name.clone(), stops }
    }
}

/// The block that is being told.
enum Open {
    Thinking(String),
    Text(String),
    Tool { id: String, name: String, input: String },
}

impl Open {
    fn block(&self) -> Value {
        match self {
            Open::Thinking(text) => json!({"type": "thinking", "thinking": text, "signature": ""}),
            Open::Text(text) => json!({"type": "text", "text": text}),
            Open::Tool { id, name, input } => {
                // What a model wrote need not be an object; as such it would be no input.
                let parsed = serde_json::from_str::<Value>(input).ok().filter(Value::is_object);
                let input = parsed.unwrap_or_else(|| json!({"arguments": input}));
                json!({"type": "tool_use", "id": id, "name": name, "input": input})
            }
        }
    }
}

/// The blocks of an answer, and the events that tell them.
pub struct Output {
    told: Told,
    blocks: Vec<Value>,
    open: Option<Open>,
    finish: Option<Finish>,
    stop: Option<usize>,
    events: String,
}

impl Output {
    pub fn new(told: Told) -> Self {
        let (blocks, events) = (Vec::new(), String::new());
        Output { told, blocks, open: None, finish: None, stop: None, events }
    }

    fn event(&mut self, name: &str, mut value: Value) {
        value["type"] = json!(name);
        self.events += &sse::event(name, &value);
    }

    /// Takes the next part of the answer in.
    pub fn add(&mut self, change: Change) {
        for piece in change.pieces {
            let delta = match piece {
                Piece::Reasoning(more) => {
                    if !matches!(self.open, Some(Open::Thinking(_))) {
                        self.begin(Open::Thinking(String::new()));
                    }
                    let Some(Open::Thinking(text)) = &mut self.open else { continue };
                    text.push_str(&more);
                    json!({"type": "thinking_delta", "thinking": more})
                }
                Piece::Text(more) => {
                    if !matches!(self.open, Some(Open::Text(_))) {
                        self.begin(Open::Text(String::new()));
                    }
                    let Some(Open::Text(text)) = &mut self.open else { continue };
                    text.push_str(&more);
                    json!({"type": "text_delta", "text": more})
                }
                Piece::Call { name, id } => {
                    let (id, input) = (format!("toolu_{id}"), String::new());
                    self.begin(Open::Tool { id, name, input });
                    continue;
                }
                Piece::Arguments(more) => {
                    let Some(Open::Tool { input, .. }) = &mut self.open else { continue };
                    input.push_str(&more);
                    json!({"type": "input_json_delta", "partial_json": more})
                }
                Piece::Logprob(_) => continue,
            };
            let index = self.blocks.len();
            self.event("content_block_delta", json!({"index": index, "delta": delta}));
        }
        self.finish = change.finish.or(self.finish);
        self.stop = change.stop.or(self.stop);
    }

    fn begin(&mut self, open: Open) {
        self.close();
        let mut block = open.block();
        if matches!(open, Open::Tool { .. }) {
            block["input"] = json!({});
        }
        let index = self.blocks.len();
        self.event("content_block_start", json!({"index": index, "content_block": block}));
        self.open = Some(open);
    }

    fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        let index = self.blocks.len();
        self.event("content_block_stop", json!({"index": index}));
        self.blocks.push(open.block());
    }

    /// The answer is over.
    pub fn end(&mut self) {
        self.close();
    }

    fn stop_reason(&self) -> (Option<&'static str>, Option<&String>) {
        let matched = self.stop.and_then(|index| self.told.stops.get(index));
        let reason = self.finish.map(|finish| match finish {
            Finish::Stop if matched.is_some() => "stop_sequence",
            Finish::Stop => "end_turn",
            Finish::Length => "max_tokens",
            Finish::ToolCalls => "tool_use",
        });
        (reason, matched)
    }

    /// The whole message.
    pub fn message(&self, usage: Usage) -> Value {
        let (reason, sequence) = self.stop_reason();
        json!({
            "id": self.told.id,
            "type": "message",
            "role": "assistant",
            "model": self.told.model,
            "content": self.blocks,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage_of(usage)
        })
    }
}

/// Tokens that were taken over do not count as input here.
fn usage_of(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens
    })
}

/// The body of an error.
pub fn error(error: &ApiError) -> Value {
    let kind = match error.status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        504 => "timeout_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": error.message}})
}

/// The message in events.
pub fn stream(generation: Generation, told: Told) -> Response<Body> {
    let begun = generation.usage();
    let mut output = Output::new(told);
    sse::stream(generation, move |step| {
        match step {
            Step::Begin => {
                let message = output.message(begun);
                output.event("message_start", json!({"message": message}));
            }
            Step::Change(change) => output.add(change.clone()),
            Step::End(usage) => {
                output.end();
                let (reason, sequence) = output.stop_reason();
                let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
                let delta = json!({"delta": delta, "usage": usage_of(usage)});
                output.event("message_delta", delta);
                output.event("message_stop", json!({}));
            }
            Step::Failed(failure) => {
                output.events += &sse::event("error", &error(failure));
            }
        }
        std::mem::take(&mut output.events)
    })
}
