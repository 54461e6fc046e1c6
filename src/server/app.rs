//! What every request needs: the settings, the model once it is loaded, and what is counted.

use super::error::ApiError;
use super::metrics::Metrics;
use super::thoughts::Thoughts;
use super::turns::Turns;
use super::worker::Worker;
use crate::grammar::Grammars;
use axum::http::StatusCode;
use oxgpt_engine::model::Model;
use oxgpt_engine::prompt::ChatFormat;
use oxgpt_engine::sampler::SamplingOptions;
use oxgpt_engine::tokenizer::Tokenizer;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;

/// How to serve.
#[derive(Debug)]
pub struct Settings {
    /// What clients call the model.
    pub name: String,
    /// Any of these opens the server; none are needed if there are none.
    pub api_keys: Vec<String>,
    /// Pages of which origins may use the server from a browser; `*` is any.
    pub origins: Vec<String>,
    /// The most bytes of a request's body.
    pub max_body: usize,
    /// How long a client may take to send a request, or to take in a part of an answer.
    pub client_timeout: Duration,
    /// How long an answer may take.
    pub request_timeout: Option<Duration>,
    /// What shows up in the log.
    pub log: Log,
}

/// The lines of the log, one for each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Log {
    /// None.
    Off,
    /// `name=value` for each field.
    Text,
    /// A JSON object.
    Json,
}

/// The loaded model, and who runs it.
pub struct Served {
    pub model: &'static Model,
    pub format: Option<ChatFormat>,
    pub worker: Worker,
    /// Positions of a sequence.
    pub context: usize,
    /// Tokens that a prompt can have.
    pub vocab_size: usize,
    /// Width of the logits.
    pub logit_width: usize,
    /// The model's own settings.
    pub sampling: SamplingOptions,
    /// Answers as they were generated; none are remembered if there is none.
    pub turns: Option<Turns>,
    /// What led to calls of tools; nothing is remembered if there is none.
    pub thoughts: Option<Thoughts>,
    /// Made when they are first needed.
    pub grammars: OnceLock<Result<Grammars, String>>,
}

impl Served {
    /// The tokenizer, which text needs.
    pub fn tokenizer(&self) -> Result<&'static Tokenizer, ApiError> {
        let missing = "the model has no tokenizer, so prompts must be arrays of token ids";
        self.model.tokenizer.as_ref().ok_or_else(|| ApiError::bad(missing))
    }

    /// The tokens that end an answer of a chat.
    pub fn chat_end_tokens(&self) -> Vec<u32> {
        let of_files = self.model.end_tokens();
        match &self.format {
            Some(format) => format.end_tokens(of_files),
            None => of_files,
        }
    }

    /// What makes grammars for the model's tokens.
    pub fn grammars(&self) -> Result<&Grammars, ApiError> {
        let tokenizer = self.tokenizer()?;
        let make = || {
            let made = Grammars::new(tokenizer, self.logit_width, &self.chat_end_tokens());
            made.map_err(|error| error.to_string())
        };
        self.grammars.get_or_init(make).as_ref().map_err(ApiError::bad)
    }

    /// Whether there is room for the most tokens that were asked for, and how many there can be without that.
    pub fn room(&self, prompt: usize, asked: Option<usize>) -> Result<(), ApiError> {
        let context = self.context;
        let field = |message| Err(ApiError::bad(message).with_code("context_length_exceeded"));
        if prompt > context {
            return field(format!(
                "the prompt has {prompt} tokens, but the context holds {context}"
            ));
        }
        match asked {
            // The token chosen last needs no position.
            Some(asked) if asked > context + 1 - prompt => field(format!(
                "the context holds {context} tokens, but {} were asked for: {prompt} in the prompt and {asked} in the \
                 answer",
                prompt.saturating_add(asked)
            )),
            _ => Ok(()),
        }
    }
}

/// The server's state.
pub struct App {
    pub settings: Settings,
    pub metrics: Arc<Metrics>,
    /// When the program started, in seconds since 1970.
    pub created: u64,
    served: OnceLock<Served>,
    is_draining: AtomicBool,
    answers: AtomicUsize,
    /// Told whenever the last answer that was under way has ended.
    idle: Notify,
}

/// What `/health` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Starting,
    Ready,
    Draining,
}

impl App {
    pub fn new(settings: Settings, metrics: Arc<Metrics>) -> Self {
        App {
            settings,
            metrics,
            created: unix_seconds(),
            served: OnceLock::new(),
            is_draining: AtomicBool::new(false),
            answers: AtomicUsize::new(0),
            idle: Notify::new(),
        }
    }

    pub fn phase(&self) -> Phase {
        match self.served.get() {
            _ if self.is_draining.load(Ordering::SeqCst) => Phase::Draining,
            Some(_) => Phase::Ready,
            None => Phase::Starting,
        }
    }

    /// The model is loaded.
    pub fn set_ready(&self, served: Served) {
        // It is loaded once.
        let _ = self.served.set(served);
    }

    /// Takes no more requests; those under way are answered.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::SeqCst);
    }

    /// The model, for a request that may begin now.
    pub fn served(&self) -> Result<&Served, ApiError> {
        match (self.phase(), self.served.get()) {
            (Phase::Ready, Some(served)) => Ok(served),
            (Phase::Draining, _) => {
                Err(ApiError::unavailable("the server is shutting down", "draining"))
            }
            _ => Err(ApiError::unavailable("the model is being loaded", "starting")),
        }
    }

    /// Checks the name of a model that a request wants.
    pub fn check_model(&self, name: &str) -> Result<(), ApiError> {
        if name == self.settings.name {
            return Ok(());
        }
        let shown = super::fields::short(&serde_json::Value::from(name));
        let message =
            format!("the model {shown} does not exist (there is {:?})", self.settings.name);
        let error = ApiError::new(StatusCode::NOT_FOUND, message);
        Err(ApiError { param: Some("model".to_string()), ..error }.with_code("model_not_found"))
    }

    /// An answer is under way until what this returns is dropped.
    pub fn begin_answer(&'static self) -> Answering {
        self.answers.fetch_add(1, Ordering::SeqCst);
        Answering(self)
    }

    /// Waits until no answer is under way.
    pub async fn until_idle(&self) {
        loop {
            let notified = self.idle.notified();
            if self.answers.load(Ordering::SeqCst) == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// See [`App::begin_answer`].
pub struct Answering(&'static App);

impl Drop for Answering {
    fn drop(&mut self) {
        if self.0.answers.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
