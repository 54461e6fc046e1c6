//! Rendering a model's own chat template.

use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value as Jinja,
};
use serde_json::{Map, Value, json};

use super::bound;
use super::date::strftime;
use super::json::tojson;
use super::mark::Marks;
use crate::tokenizer::{Segment, Tokenizer};

const NAME: &str = "chat template";
/// Real templates have up to 20 kilobytes.
const MAX_SOURCE: usize = 1 << 18;
/// What rendering may cost: one per instruction and per 64 bytes written or copied, so at most 128 MiB.
const FUEL: u64 = 2 << 20;
/// How deep loops and macros may nest. The stack of a thread of 2 MiB holds several times this.
const RECURSION: usize = 200;
/// The longest prompt; ten times what the longest context takes.
pub(super) const MAX_OUTPUT: usize = 64 << 20;

/// Why a template could not be read or rendered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template is not valid Jinja, or uses what is not supported.
    #[error("the chat template is not valid: {message}")]
    Syntax {
        /// What the parser found, with its line.
        message: String,
    },
    /// The template is too long to be one.
    #[error("the chat template has {size} bytes, more than the limit of {limit}")]
    TooLong {
        /// Its length.
        size: usize,
        /// The longest accepted.
        limit: usize,
    },
    /// The template refused the conversation with `raise_exception`.
    #[error("the chat template refuses the conversation: {message}")]
    Raised {
        /// The template's own words.
        message: String,
    },
    /// Rendering failed.
    #[error("the chat template fails: {message}")]
    Render {
        /// What failed, with its line.
        message: String,
    },
    /// A message is not one that the format can say.
    #[error("message {number} of the conversation: {message}")]
    Message {
        /// Its place, from 1.
        number: usize,
        /// What is wrong with it.
        message: String,
    },
    /// The template loops, or repeats too much.
    #[error("the chat template takes too long or writes too much")]
    Endless,
    /// A thread with a large stack could not be started.
    #[error("the system has no room for a thread to render the chat template in")]
    NoStack,
    /// The text has every private-use character of Unicode, and so none is left to mark special tokens.
    #[error("the conversation uses every private-use character")]
    NoMarks,
}

/// The tokens that a template can write and those that a message cannot.
#[derive(Clone, Debug, Default)]
pub struct TemplateTokens {
    /// The variables `bos_token`, `eos_token`, `pad_token` and `unk_token`; one that is absent is undefined
    /// in the template.
    pub bos: Option<String>,
    /// See `bos`.
    pub eos: Option<String>,
    /// See `bos`.
    pub pad: Option<String>,
    /// See `bos`.
    pub unknown: Option<String>,
    /// The strings of all special tokens.
    pub special: Vec<String>,
}

/// What a template is given.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    /// Objects with `role`, `content` and whatever else the template reads.
    pub messages: Vec<Value>,
    /// Tool schemas; none is `none` in the template.
    pub tools: Option<Vec<Value>>,
    /// Documents to answer from; none is `none` in the template.
    pub documents: Option<Vec<Value>>,
    /// Whether to end with the start of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Other variables, such as `enable_thinking`. They come before all others of the same name.
    pub variables: Map<String, Value>,
    /// The time that `strftime_now` shows, in UTC; none is the present.
    pub now: Option<SystemTime>,
}

/// A message with text.
pub fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

/// A rendered prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text in order. Special tokens are parsed except in the strings that came from outside; those are
    /// segments of their own. For [`Tokenizer::encode_segments`].
    pub segments: Vec<Segment<'static>>,
}

impl Rendered {
    /// The whole text.
    pub fn text(&self) -> String {
        self.segments.iter().map(|segment| segment.text.as_ref()).collect()
    }
}

/// A chat template.
///
/// It renders as in `transformers`, with the same functions, filters and block rules, with these differences:
///
/// - `strftime_now` gives UTC, as the local time zone is not known here.
/// - Floats from 1e16 and below 1e-4 are printed in full, not with an exponent; `tojson` has it.
/// - The string of a special token inside a message, a tool, a document or a variable is one unknown
///   character to the template, so that it cannot become that token. A template that looks for such a
///   string in a message does not find it. Added tokens that are not special, such as `<think>` in many
///   models, are left alone.
///
/// - A loop over `none` has no rounds; it is an error there.
/// - A macro cannot be the value of a variable, and `sum` adds numbers alone.
///
/// What a template can cost is bounded: in time, memory, and depth.
///
/// Only whole strings are protected: a token that the template itself puts together from a message's parts,
/// as in `'<|' + message.role + '|>'`, is the template's doing, so roles should be checked by the caller.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    tokens: TemplateTokens,
}

impl ChatTemplate {
    /// Reads a template.
    pub fn new(source: &str, tokens: TemplateTokens) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE {
            return Err(TemplateError::TooLong { size: source.len(), limit: MAX_SOURCE });
        }
        let syntax = |error: Error| TemplateError::Syntax { message: sentence(&error) };
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .map_err(syntax)?,
        );
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(super::method::call);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        environment.add_filter("tojson", |state: &State, value: &Jinja, options: Kwargs| {
            tojson(state, value, options)
        });
        // As in Jinja2: whatever has a length and can be indexed.
        environment.add_test("sequence", |value: &Jinja| {
            matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
        });
        environment.add_function("raise_exception", |message: &Jinja| -> Result<Jinja, Error> {
            let raised = Raised(message.to_string());
            Err(Error::new(ErrorKind::InvalidOperation, raised.0.clone()).with_source(raised))
        });
        // In `minijinja`, `none` is iterable too.
        environment.add_test("iterable", |value: &Jinja| {
            value.is_undefined() || (!value.is_none() && value.try_iter().is_ok())
        });
        bound::install(&mut environment);
        let bounded = bound::bounded(&without_generation_tags(source))
            .map_err(|message| TemplateError::Syntax { message })?;
        let added = bound::with_stack(|| environment.add_template_owned(NAME, bounded));
        added.ok_or(TemplateError::NoStack)?.map_err(syntax)?;
        Ok(Self { environment, source: source.to_owned(), tokens })
    }

    /// The template of a tokenizer's files, if they have one.
    pub fn from_tokenizer(tokenizer: &Tokenizer) -> Result<Option<Self>, TemplateError> {
        let source = &tokenizer.metadata().chat_template;
        source.as_deref().map(|source| Self::for_tokenizer(source, tokenizer)).transpose()
    }

    /// A template that writes the tokens of a tokenizer.
    pub fn for_tokenizer(source: &str, tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        let metadata = tokenizer.metadata();
        let text = |id: Option<u32>| {
            let (_, text) =
                metadata.special_tokens.iter().find(|(special, _)| Some(*special) == id)?;
            Some(text.clone())
        };
        let tokens = TemplateTokens {
            bos: text(metadata.bos),
            eos: text(metadata.eos),
            pad: text(metadata.pad),
            unknown: text(metadata.unknown),
            special: metadata.special_tokens.iter().map(|(_, text)| text.clone()).collect(),
        };
        Self::new(source, tokens)
    }

    /// The template as it was read.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation.
    pub fn render(&self, conversation: &Conversation) -> Result<Rendered, TemplateError> {
        bound::with_stack(|| self.render_here(conversation)).ok_or(TemplateError::NoStack)?
    }

    fn render_here(&self, conversation: &Conversation) -> Result<Rendered, TemplateError> {
        let Conversation { messages, tools, documents, variables, .. } = conversation;
        let lists = [Some(messages), tools.as_ref(), documents.as_ref()];
        let values = lists.into_iter().flatten().flatten().chain(variables.values());
        let mut marks = Marks::new(&self.tokens.special, &self.source, values);
        let mut hide = |values: &[Value]| -> Result<Value, TemplateError> {
            Ok(Value::Array(
                values.iter().map(|value| marks.hide(value)).collect::<Result<_, _>>()?,
            ))
        };

        let mut context: Vec<(String, Jinja)> = Vec::new();
        let mut set = |name: &str, value: Jinja| context.push((name.to_owned(), value));
        for (name, token) in [
            ("bos_token", &self.tokens.bos),
            ("eos_token", &self.tokens.eos),
            ("pad_token", &self.tokens.pad),
            ("unk_token", &self.tokens.unknown),
        ] {
            if let Some(token) = token {
                set(name, Jinja::from(token.as_str()));
            }
        }
        let messages: Vec<Value> = messages.iter().map(with_reasoning).collect();
        set("messages", to_jinja(&hide(&messages)?));
        for (name, values) in [("tools", tools), ("documents", documents)] {
            let values = values.as_deref().map(&mut hide).transpose()?;
            set(name, to_jinja(&values.unwrap_or(Value::Null)));
        }
        set("add_generation_prompt", Jinja::from(conversation.add_generation_prompt));
        let now = conversation.now.unwrap_or_else(SystemTime::now);
        let date = move |format: &str| -> Result<String, Error> {
            strftime(now, format)
                .map_err(|message| Error::new(ErrorKind::InvalidOperation, message))
        };
        set("strftime_now", Jinja::from_function(date));
        for (name, value) in variables {
            set(name, to_jinja(&marks.hide(value)?));
        }

        let template = self.environment.get_template(NAME).map_err(failure)?;
        let context: std::collections::BTreeMap<String, Jinja> = context.into_iter().collect();
        let text = template.render(Jinja::from(context)).map_err(failure)?;
        if text.len() > MAX_OUTPUT {
            return Err(TemplateError::Endless);
        }
        Ok(marks.show(&text))
    }
}

/// The value in the template's terms, the order of keys kept.
fn to_jinja(value: &Value) -> Jinja {
    match value {
        Value::Null => Jinja::from(()),
        Value::Bool(value) => Jinja::from(*value),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Jinja::from(number),
            (None, Some(number)) => Jinja::from(number),
            // A number that is no integer is a float.
            (None, None) => Jinja::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => Jinja::from(text.as_str()),
        Value::Array(values) => values.iter().map(to_jinja).collect(),
        Value::Object(object) => {
            Jinja::from_pairs(object.iter().map(|(key, value)| (key.as_str(), to_jinja(value))))
        }
    }
}

/// What `raise_exception` was called with, to be told from other failures.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn failure(error: Error) -> TemplateError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return TemplateError::Raised { message: message.clone() };
        }
        if cause.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::Endless;
        }
        source = cause.source();
    }
    TemplateError::Render { message: sentence(&error) }
}

/// The error and where it is, in one line.
fn sentence(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

/// The reasoning of an assistant's message, under any of the names that are in use.
pub(super) fn reasoning_of(fields: &Map<String, Value>) -> Option<&Value> {
    const NAMES: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
    NAMES.iter().find_map(|name| fields.get(*name).filter(|value| !value.is_null()))
}

/// The message with its reasoning under the names that templates read: `reasoning_content`, and `thinking`
/// in those of gpt-oss. Callers name it in either way, or `reasoning`.
fn with_reasoning(message: &Value) -> Value {
    let mut message = message.clone();
    if let Value::Object(fields) = &mut message
        && let Some(reasoning) = reasoning_of(fields).cloned()
    {
        fields.entry("thinking").or_insert_with(|| reasoning.clone());
        fields.insert("reasoning_content".to_owned(), reasoning);
    }
    message
}

/// The template with `{% generation %}` blocks, which mark the assistant's text for training, as `{% with %}`:
/// like it they have a scope and show their content.
fn without_generation_tags(source: &str) -> String {
    let mut output = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        output.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else { break };
        let inside = &tag[..end];
        let trims: &[char] = &['-', '+'];
        let name = inside.trim_start_matches(trims).trim_end_matches(trims).trim();
        let replacement = match name {
            "generation" => "with",
            "endgeneration" => "endwith",
            _ => continue,
        };
        output.push_str(&inside.replacen(name, replacement, 1));
        rest = &tag[end..];
    }
    output.push_str(rest);
    output
}
