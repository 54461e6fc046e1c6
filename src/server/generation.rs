//! Answers under way: from prompts to pieces of text, with what they cost.

use super::answer::{AnswerReader, Piece};
use super::app::{Answering, App, Log, Served};
use super::error::ApiError;
use super::sampling::Sampling;
use super::thoughts::Thoughts;
use super::turns::Turns;
use super::worker::{Busy, Submitted, Update};
use axum::http::StatusCode;
use oxgpt_engine::kv::{PrefixMiss, PrefixUse};
use oxgpt_engine::sequence::{Constraint, FinishReason, Request};
use oxgpt_engine::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::mpsc::UnboundedReceiver;

/// What to answer.
pub struct Task {
    /// What shows up in the log.
    pub endpoint: &'static str,
    /// Each has as many answers as the sampling says.
    pub prompts: Vec<Vec<u32>>,
    pub sampling: Sampling,
    /// The most tokens of an answer, if that was asked for.
    pub max_tokens: Option<usize>,
    /// The same, where that is no more than a default: less where the context holds less.
    pub default_max_tokens: Option<usize>,
    /// How many of the most probable tokens are reported.
    pub logprobs: Option<usize>,
    pub end_tokens: Vec<u32>,
    /// Whether a second call of a tool ends an answer.
    pub one_call: bool,
    /// Whether the answers may come back in a next turn, after their prompt.
    pub is_turn: bool,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, or a stop string.
    Stop,
    /// The most tokens were generated, or the context is full.
    Length,
    /// It calls tools.
    ToolCalls,
}

impl Finish {
    /// What OpenAI's API calls it.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::ToolCalls => "tool_calls",
        }
    }
}

/// What has become of an answer.
#[derive(Clone)]
pub struct Change {
    /// Which answer.
    pub choice: usize,
    pub pieces: Vec<Piece>,
    /// If it is over.
    pub finish: Option<Finish>,
    /// Which of the stop strings ended it, if one did.
    pub stop: Option<usize>,
}

struct Choice {
    reader: AnswerReader,
    is_cancelled: Arc<AtomicBool>,
    tokens: Vec<u32>,
    reasoning: String,
    /// The names of the calls so far.
    calls: Vec<String>,
    is_over: bool,
}

/// Answers that are being generated. To drop it is to cancel what is not over.
pub struct Generation {
    choices: Vec<Choice>,
    updates: UnboundedReceiver<(usize, Update)>,
    left: usize,
    one_call: bool,
    /// Changes that are known but were not told.
    known: VecDeque<Change>,
    memory: Option<Memory>,
    thoughts: Option<&'static Thoughts>,
    record: Record,
}

impl Choice {
    /// Takes note of what a next turn may need.
    fn note(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            match piece {
                Piece::Call { id, .. } => self.calls.push(id.clone()),
                Piece::Reasoning(text) => self.reasoning.push_str(text),
                Piece::Text(_) | Piece::Arguments(_) | Piece::Logprob(_) => {}
            }
        }
    }
}

/// Where answers are remembered.
struct Memory {
    turns: &'static Turns,
    tokenizer: &'static Tokenizer,
    prompt: Vec<u32>,
}

/// What the log and the client are told of a generation.
struct Record {
    app: &'static App,
    endpoint: &'static str,
    prompt_tokens: usize,
    /// Of each prompt.
    prefixes: Vec<Option<PrefixUse>>,
    answers_per_prompt: usize,
    tokens: usize,
    reasoning_tokens: usize,
    finish: &'static str,
    begin: Instant,
    first_token: Option<Instant>,
    _answering: Answering,
}

impl Generation {
    /// Submits the requests of a task. `reader` makes a reader for an answer, and `constraint` what holds it to a grammar.
    pub fn begin(
        app: &'static App,
        served: &'static Served,
        task: Task,
        reader: &dyn Fn() -> AnswerReader,
        constraint: &dyn Fn() -> Option<Box<dyn Constraint>>,
    ) -> Result<Self, ApiError> {
        let Task { prompts, sampling, max_tokens, logprobs, .. } = task;
        for prompt in &prompts {
            if prompt.is_empty() {
                return Err(ApiError::bad("the prompt is empty"));
            }
            if let Some(id) = prompt.iter().find(|id| **id as usize >= served.vocab_size) {
                let size = served.vocab_size;
                let message =
                    format!("token {id} is not below the model's vocabulary size of {size}");
                return Err(ApiError::field("prompt", message));
            }
            served.room(prompt.len(), max_tokens)?;
        }
        sampling.options.validate_vocabulary(served.logit_width)?;
        let answers_per_prompt = sampling.choices as usize;
        let count = prompts.len() * answers_per_prompt;
        if count > served.worker.limit() {
            let message = format!(
                "{count} answers were asked for, more than the {} that the server holds",
                served.worker.limit()
            );
            return Err(ApiError::field("n", message));
        }
        let memory = match (&served.turns, &served.model.tokenizer) {
            (Some(turns), Some(tokenizer)) if task.is_turn => {
                Some(Memory { turns, tokenizer, prompt: prompts.concat() })
            }
            _ => None,
        };
        let prompt_tokens = prompts.iter().map(Vec::len).sum();
        let prefixes = vec![None; prompts.len()];
        let mut requests = Vec::with_capacity(count);
        for prompt in prompts {
            for choice in 0..sampling.choices {
                requests.push(Request {
                    tokens: prompt.clone(),
                    max_tokens: max_tokens.or(task.default_max_tokens),
                    sampling: sampling.options.clone(),
                    choice,
                    end_tokens: task.end_tokens.clone(),
                    min_tokens: sampling.min_tokens,
                    logprobs,
                    constraint: constraint(),
                });
            }
        }
        let record = Record {
            app,
            endpoint: task.endpoint,
            prompt_tokens,
            prefixes,
            answers_per_prompt,
            tokens: 0,
            reasoning_tokens: 0,
            finish: "cancelled",
            begin: Instant::now(),
            first_token: None,
            _answering: app.begin_answer(),
        };
        let Submitted { updates, cancels } =
            served.worker.submit(requests).map_err(|busy| refuse(app, busy))?;
        let choices = cancels.into_iter().map(|is_cancelled| Choice {
            reader: reader(),
            is_cancelled,
            tokens: Vec::new(),
            reasoning: String::new(),
            calls: Vec::new(),
            is_over: false,
        });
        let choices: Vec<Choice> = choices.collect();
        let (left, one_call) = (choices.len(), task.one_call);
        let (known, thoughts) = (VecDeque::new(), served.thoughts.as_ref());
        Ok(Generation { choices, updates, left, one_call, known, memory, thoughts, record })
    }

    /// How many answers there are.
    pub fn choices(&self) -> usize {
        self.choices.len()
    }

    /// The next change; none when all answers are over. Can be dropped and called again without losing anything.
    pub async fn next(&mut self) -> Option<Result<Change, ApiError>> {
        loop {
            if let Some(change) = self.known.pop_front() {
                return Some(Ok(change));
            }
            if self.left == 0 {
                return None;
            }
            let update = match self.record.app.settings.request_timeout {
                None => self.updates.recv().await,
                Some(timeout) => {
                    let deadline = tokio::time::Instant::from_std(self.record.begin + timeout);
                    match tokio::time::timeout_at(deadline, self.updates.recv()).await {
                        Ok(update) => update,
                        Err(_) => return Some(Err(self.too_late(timeout.as_secs_f64()))),
                    }
                }
            };
            let Some((choice, update)) = update else {
                return Some(Err(self.fail(ApiError::internal("the engine has stopped"))));
            };
            if let Err(error) = self.take(choice, update) {
                return Some(Err(self.fail(error)));
            }
        }
    }

    fn fail(&mut self, error: ApiError) -> ApiError {
        (self.left, self.record.finish) = (0, "error");
        error
    }

    fn too_late(&mut self, seconds: f64) -> ApiError {
        let message = format!("the answer was not complete after {seconds} seconds");
        let error = ApiError::new(StatusCode::GATEWAY_TIMEOUT, message).with_code("timeout");
        (self.left, self.record.finish) = (0, "timeout");
        error
    }

    fn take(&mut self, place: usize, update: Update) -> Result<(), ApiError> {
        let record = &mut self.record;
        let choice = &mut self.choices[place];
        if choice.is_over {
            return Ok(());
        }
        match update {
            Update::Started(prefix) => {
                if place.is_multiple_of(record.answers_per_prompt) {
                    record.prefixes[place / record.answers_per_prompt] = Some(prefix);
                }
            }
            Update::Token(id, logprobs) => {
                record.first_token.get_or_insert_with(Instant::now);
                record.tokens += 1;
                choice.tokens.push(id);
                let pieces = choice.reader.push(id, logprobs);
                choice.note(&pieces);
                let is_enough =
                    self.one_call && !choice.calls.is_empty() && !choice.reader.in_call();
                if choice.reader.stopped_by().is_some() || is_enough {
                    choice.is_cancelled.store(true, Ordering::Relaxed);
                    self.end(place, pieces, Finish::Stop);
                } else if !pieces.is_empty() {
                    let change = Change { choice: place, pieces, finish: None, stop: None };
                    self.known.push_back(change);
                }
            }
            Update::Finished(FinishReason::Stop) => self.end(place, Vec::new(), Finish::Stop),
            Update::Finished(FinishReason::Length) => self.end(place, Vec::new(), Finish::Length),
            Update::Failed(error) => return Err(error.into()),
            Update::Rejected(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn end(&mut self, place: usize, mut pieces: Vec<Piece>, finish: Finish) {
        let choice = &mut self.choices[place];
        let rest = choice.reader.finish();
        choice.note(&rest);
        pieces.extend(rest);
        choice.is_over = true;
        let has_calls = !choice.calls.is_empty();
        if let Some(Memory { turns, tokenizer, prompt }) = &self.memory {
            turns.remember(tokenizer, prompt, &choice.tokens);
        }
        if let Some(thoughts) = self.thoughts {
            thoughts.remember(std::mem::take(&mut choice.calls), &choice.reasoning);
        }
        let is_call = has_calls && finish == Finish::Stop;
        let finish = if is_call { Finish::ToolCalls } else { finish };
        self.record.reasoning_tokens += choice.reader.reasoning_tokens;
        self.record.finish = finish.name();
        self.left -= 1;
        let stop = choice.reader.stopped_by();
        self.known.push_back(Change { choice: place, pieces, finish: Some(finish), stop });
    }

    /// What the answers so far cost.
    pub fn usage(&self) -> Usage {
        let Record { prompt_tokens, tokens, reasoning_tokens, prefixes, .. } = &self.record;
        let started = prefixes.iter().flatten();
        Usage {
            prompt_tokens: *prompt_tokens,
            completion_tokens: *tokens,
            reasoning_tokens: *reasoning_tokens,
            cached_tokens: started.clone().map(|prefix| prefix.cached).sum(),
            miss: started.clone().find_map(|prefix| prefix.miss),
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        // A client that has read enough can go on with what it has.
        if let Some(Memory { turns, tokenizer, prompt }) = &self.memory {
            let broken_off = self.choices.iter().filter(|choice| !choice.is_over);
            broken_off.for_each(|choice| turns.remember(tokenizer, prompt, &choice.tokens));
        }
    }
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub reasoning_tokens: usize,
    /// Of the prompts, those that were there already.
    pub cached_tokens: usize,
    /// Why there were no more of these.
    pub miss: Option<PrefixMiss>,
}

impl Usage {
    /// As in OpenAI's API, with where and why the prefix that was there already ends.
    pub fn json(&self) -> Value {
        let mut usage = json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens}
        });
        if let Some(miss) = self.miss {
            let (position, reason) = match miss {
                PrefixMiss::New { position } => (position, "new"),
                PrefixMiss::Differs { position } => (position, "differs"),
                PrefixMiss::Evicted { position } => (position, "evicted"),
            };
            usage["prompt_tokens_details"]["cache_miss"] =
                json!({"position": position, "reason": reason});
        }
        usage
    }
}

/// The error for a request that finds no room.
pub fn refuse(app: &App, busy: Busy) -> ApiError {
    app.metrics.refused.add(1);
    let message = format!(
        "{} requests are waiting already; try again in {} seconds",
        busy.waiting, busy.retry_after
    );
    let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, message);
    ApiError { retry_after: Some(busy.retry_after), ..error }.with_code("queue_full")
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.app.settings.log == Log::Off {
            return;
        }
        let milliseconds = |until: Instant| (until - self.begin).as_secs_f64() * 1e3;
        let cached: usize = self.prefixes.iter().flatten().map(|prefix| prefix.cached).sum();
        let fields = json!({
            "event": "answer",
            "endpoint": self.endpoint,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": cached,
            "answers": self.prefixes.len() * self.answers_per_prompt,
            "tokens": self.tokens,
            "finish": self.finish,
            "first_token_ms": self.first_token.map(milliseconds),
            "total_ms": milliseconds(Instant::now()),
        });
        super::log::write(self.app.settings.log, fields);
    }
}
