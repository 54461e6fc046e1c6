//! Answers as items, whole or in events.

use crate::server::answer::Piece;
use crate::server::app::{App, unix_seconds};
use crate::server::body;
use crate::server::fields::Fields;
use crate::server::generation::{Change, Finish, Generation, Usage};
use crate::server::sse::{self, Step};
use axum::body::Body;
use axum::http::Response;
use serde_json::{Map, Value, json};

/// What of the request is repeated in the response.
pub struct Told {
    id: String,
    created: u64,
    model: String,
    repeated: Map<String, Value>,
}

impl Told {
    pub fn new(app: &App, fields: &Fields) -> Self {
        let mut repeated = Map::new();
        for (field, default) in [
            ("instructions", Value::Null),
            ("max_output_tokens", Value::Null),
            ("metadata", json!({})),
            ("parallel_tool_calls", json!(true)),
            ("reasoning", json!({"effort": null, "summary": null})),
            ("temperature", Value::Null),
            ("text", json!({"format": {"type": "text"}})),
            ("tool_choice", json!("auto")),
            ("tools", json!([])),
            ("top_p", Value::Null),
            ("user", Value::Null),
        ] {
            repeated.insert(field.to_string(), fields.peek(field).cloned().unwrap_or(default));
        }
        let model = app.settings.name.clone();
        Told { id: body::id("resp_"), created: unix_seconds(), model, repeated }
    }
}

/// The item that is being told.
enum Open {
    Reasoning { id: String, text: String },
    Message { id: String, text: String },
    Call { id: String, call: String, name: String, arguments: String },
}

/// The items of an answer, and the events that tell them.
pub struct Output {
    told: Told,
    items: Vec<Value>,
    open: Option<Open>,
    finish: Option<Finish>,
    error: Option<Value>,
    events: String,
    count: u64,
}

impl Output {
    pub fn new(told: Told) -> Self {
        let (items, events) = (Vec::new(), String::new());
        Output { told, items, open: None, finish: None, error: None, events, count: 0 }
    }

    fn event(&mut self, name: &str, mut value: Value) {
        value["type"] = json!(name);
        value["sequence_number"] = json!(self.count);
        self.count += 1;
        self.events += &sse::event(name, &value);
    }

    /// Of the item that is open: its id, and its place.
    fn place(&self, id: &str) -> Value {
        json!({"item_id": id, "output_index": self.items.len()})
    }

    /// Takes the next part of the answer in.
    pub fn add(&mut self, change: Change) {
        for piece in change.pieces {
            match piece {
                Piece::Reasoning(more) => {
                    if !matches!(self.open, Some(Open::Reasoning { .. })) {
                        let (id, text) = (body::id("rs_"), String::new());
                        self.begin(Open::Reasoning { id, text });
                    }
                    let Some(Open::Reasoning { id, text }) = &mut self.open else { continue };
                    text.push_str(&more);
                    let id = id.clone();
                    self.delta("response.reasoning_text.delta", &id, &more, true);
                }
                Piece::Text(more) => {
                    if !matches!(self.open, Some(Open::Message { .. })) {
                        let (id, text) = (body::id("msg_"), String::new());
                        self.begin(Open::Message { id, text });
                    }
                    let Some(Open::Message { id, text }) = &mut self.open else { continue };
                    text.push_str(&more);
                    let id = id.clone();
                    self.delta("response.output_text.delta", &id, &more, true);
                }
                Piece::Call { name, id } => {
                    let (id, call) = (body::id("fc_"), format!("call_{id}"));
                    self.begin(Open::Call { id, call, name, arguments: String::new() });
                }
                Piece::Arguments(more) => {
                    let Some(Open::Call { id, arguments, .. }) = &mut self.open else { continue };
                    arguments.push_str(&more);
                    let id = id.clone();
                    self.delta("response.function_call_arguments.delta", &id, &more, false);
                }
                Piece::Logprob(_) => {}
            }
        }
        self.finish = change.finish.or(self.finish);
    }

    fn delta(&mut self, name: &str, id: &str, text: &str, has_parts: bool) {
        let mut event = self.place(id);
        event["delta"] = json!(text);
        if has_parts {
            event["content_index"] = json!(0);
        }
        if name == "response.output_text.delta" {
            event["logprobs"] = json!([]);
        }
        self.event(name, event);
    }

    fn begin(&mut self, open: Open) {
        self.close();
        let index = self.items.len();
        let (id, part) = match &open {
            Open::Reasoning { id, .. } => (id, Some(json!({"type": "reasoning_text", "text": ""}))),
            Open::Message { id, .. } => (id, Some(text_part(""))),
            Open::Call { id, .. } => (id, None),
        };
        let mut part_event = self.place(id);
        let item = item(&open, "in_progress");
        self.event("response.output_item.added", json!({"output_index": index, "item": item}));
        if let Some(part) = part {
            part_event["content_index"] = json!(0);
            part_event["part"] = part;
            self.event("response.content_part.added", part_event);
        }
        self.open = Some(open);
    }

    /// Ends the item that is open.
    fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        let index = self.items.len();
        match &open {
            Open::Reasoning { id, text } => {
                let part = json!({"type": "reasoning_text", "text": text});
                self.close_part("response.reasoning_text.done", id, text, part);
            }
            Open::Message { id, text } => {
                self.close_part("response.output_text.done", id, text, text_part(text));
            }
            Open::Call { id, name, arguments, .. } => {
                let mut done = self.place(id);
                (done["name"], done["arguments"]) = (json!(name), json!(arguments));
                self.event("response.function_call_arguments.done", done);
            }
        }
        let item = item(&open, "completed");
        self.event("response.output_item.done", json!({"output_index": index, "item": item}));
        self.items.push(item);
    }

    fn close_part(&mut self, name: &str, id: &str, text: &str, part: Value) {
        let mut done = self.place(id);
        done["content_index"] = json!(0);
        let mut part_done = done.clone();
        done["text"] = json!(text);
        if name == "response.output_text.done" {
            done["logprobs"] = json!([]);
        }
        self.event(name, done);
        part_done["part"] = part;
        self.event("response.content_part.done", part_done);
    }

    /// The answer is over.
    pub fn end(&mut self) {
        self.close();
        let says = |item: &Value| item["type"] != "reasoning";
        if !self.items.iter().any(says) {
            // Clients look for a message.
            self.begin(Open::Message { id: body::id("msg_"), text: String::new() });
            self.close();
        }
    }

    /// The response, as far as it is known.
    pub fn response(&self, usage: Option<Usage>) -> Value {
        let is_cut = self.finish == Some(Finish::Length);
        let status = match self.finish {
            _ if self.error.is_some() => "failed",
            None => "in_progress",
            Some(Finish::Length) => "incomplete",
            Some(Finish::Stop | Finish::ToolCalls) => "completed",
        };
        let Told { id, created, model, repeated } = &self.told;
        let mut response = json!({
            "id": id,
            "object": "response",
            "created_at": created,
            "status": status,
            "background": false,
            "error": self.error,
            "incomplete_details": is_cut.then(|| json!({"reason": "max_output_tokens"})),
            "model": model,
            "output": self.items,
            "previous_response_id": null,
            "store": false,
            "truncation": "disabled",
            "usage": usage.map(|usage| json!({
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
                "total_tokens": usage.prompt_tokens + usage.completion_tokens
            }))
        });
        if let Value::Object(fields) = &mut response {
            fields.extend(repeated.clone());
        }
        response
    }
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn item(open: &Open, status: &str) -> Value {
    let has_content = status == "completed";
    match open {
        Open::Reasoning { id, text } => {
            let content = json!([{"type": "reasoning_text", "text": text}]);
            let content = if has_content { content } else { json!([]) };
            json!({"id": id, "type": "reasoning", "summary": [], "content": content, "status": status})
        }
        Open::Message { id, text } => {
            let content = if has_content { json!([text_part(text)]) } else { json!([]) };
            json!({
                "id": id, "type": "message", "role": "assistant", "content": content, "status": status
            })
        }
        Open::Call { id, call, name, arguments } => json!({
            "id": id, "type": "function_call", "call_id": call, "name": name, "arguments": arguments,
            "status": status
        }),
    }
}

/// The response in events.
pub fn stream(generation: Generation, told: Told) -> Response<Body> {
    let mut output = Output::new(told);
    sse::stream(generation, move |step| {
        match step {
            Step::Begin => {
                for name in ["response.created", "response.in_progress"] {
                    let response = output.response(None);
                    output.event(name, json!({"response": response}));
                }
            }
            Step::Change(change) => output.add(change.clone()),
            Step::End(usage) => {
                output.end();
                let response = output.response(Some(usage));
                let is_cut = output.finish == Some(Finish::Length);
                let name = if is_cut { "response.incomplete" } else { "response.completed" };
                output.event(name, json!({"response": response}));
            }
            Step::Failed(error) => {
                output.close();
                let code = error.code.unwrap_or("server_error");
                output.error = Some(json!({"code": code, "message": error.message}));
                let response = output.response(None);
                output.event("response.failed", json!({"response": response}));
            }
        }
        std::mem::take(&mut output.events)
    })
}
