//! `oxgpt chat`: a conversation.

mod input;

use crate::args::{ChatArgs, ModelArgs};
use crate::generate::{Answer, Ending, generate};
use crate::open;
use crate::output::Output;
use crate::run::{chat_tokens, end_tokens, reader, sampling};
use anyhow::{Context, Result, anyhow, bail};
use input::{Input, Lines};
use oxgpt_engine::engine::Engine;
use oxgpt_engine::model::Model;
use oxgpt_engine::prompt::{ChatFormat, Conversation, message};
use oxgpt_engine::sampler::SamplingOptions;
use oxgpt_engine::sequence::Request;
use oxgpt_engine::stop::StopMatcher;
use oxgpt_engine::tokenizer::Tokenizer;
use serde_json::{Value, json};
use signal_hook::consts::SIGINT;
use signal_hook::flag;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What `/help` prints.
const HELP: &str = "\
/system TEXT      sets the system message; without TEXT, takes it away
/reset            forgets the conversation, but not the system message
/save FILE        writes the conversation to a JSON file
/load FILE        goes on with the conversation of a file
/reasoning on|off shows or hides what the model thinks
/exit             ends the program, as does the end of the input
//TEXT            sends a message that begins with a slash
A line that ends in \\ goes on in the next one; lines between two \"\"\" are one message.
Ctrl-C stops an answer; pressed again, it ends the program.";

/// The exit code of a program that SIGINT ended, as shells give it.
const INTERRUPTED: i32 = 130;

/// A conversation under way.
struct Chat<'a> {
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    format: ChatFormat,
    engine: Engine,
    args: &'a ChatArgs,
    sampling: SamplingOptions,
    system: Option<String>,
    /// What was said after the system message.
    messages: Vec<Value>,
    shows_reasoning: bool,
    interrupts: Interrupts,
}

/// What Ctrl-C does: while an answer is computed, it asks for its end; otherwise, or when pressed again, it ends the
/// program.
struct Interrupts {
    ends_program: Arc<AtomicBool>,
    is_asked: Arc<AtomicBool>,
}

impl Interrupts {
    fn listen() -> io::Result<Self> {
        let interrupts =
            Interrupts { ends_program: Arc::new(true.into()), is_asked: Arc::new(false.into()) };
        let Interrupts { ends_program, is_asked } = &interrupts;
        // In this order: the first press arms the second.
        flag::register_conditional_shutdown(SIGINT, INTERRUPTED, Arc::clone(ends_program))?;
        flag::register(SIGINT, Arc::clone(ends_program))?;
        flag::register(SIGINT, Arc::clone(is_asked))?;
        Ok(interrupts)
    }

    /// Does work that the first Ctrl-C does not end; it can ask whether there was one.
    fn during<T>(&self, work: impl FnOnce(&dyn Fn() -> bool) -> T) -> T {
        self.is_asked.store(false, Ordering::SeqCst);
        self.ends_program.store(false, Ordering::SeqCst);
        let result = work(&|| self.is_asked.load(Ordering::SeqCst));
        self.ends_program.store(true, Ordering::SeqCst);
        result
    }
}

/// The top-level entry point for `chat`.
pub fn chat(model_args: &ModelArgs, args: &ChatArgs) -> Result<()> {
    let model = open::model(model_args)?;
    let file = model.checkpoint.path().display();
    let (Some(tokenizer), Some(format)) = (&model.tokenizer, ChatFormat::of(&model)?) else {
        bail!(
            "{file}: the model has no chat template, which chat needs (`oxgpt run` continues a text)"
        );
    };
    let (engine, _) = open::answering(&model, model_args, &args.engine, args.speculate)?;
    let interrupts = Interrupts::listen().context("cannot watch for Ctrl-C")?;
    let mut lines = Lines::open()?;
    if lines.is_terminal() {
        eprintln!("{file}, {} positions; /help lists the commands", engine.context());
    }
    let mut chat = Chat {
        model: &model,
        tokenizer,
        format,
        engine,
        args,
        sampling: sampling(&model, &args.sampling),
        system: args.chat_options.system.clone(),
        messages: Vec::new(),
        shows_reasoning: !args.chat_options.hide_reasoning,
        interrupts,
    };
    let mut was_interrupted = false;
    loop {
        let result = match lines.read()? {
            Input::End => return Ok(()),
            Input::Interrupt if was_interrupted => return Ok(()),
            Input::Interrupt => {
                eprintln!("(Ctrl-C again or /exit ends the program)");
                was_interrupted = true;
                continue;
            }
            Input::Command(name, _) if name == "exit" => return Ok(()),
            Input::Command(name, rest) => chat.command(&name, &rest).map(|()| false),
            Input::Message(text) => chat.answer(text),
        };
        was_interrupted = match result {
            Ok(is_interrupted) => is_interrupted,
            // Whoever read our output has gone.
            Err(error) if crate::is_broken_pipe(&error) => return Err(error),
            Err(error) => {
                eprintln!("error: {error:#}");
                false
            }
        };
    }
}

impl Chat<'_> {
    fn command(&mut self, name: &str, rest: &str) -> Result<()> {
        let takes = |what: &str| {
            if rest.is_empty() { Err(anyhow!("/{name} needs {what}")) } else { Ok(()) }
        };
        if matches!(name, "help" | "reset" | "exit") && !rest.is_empty() {
            bail!("/{name} takes nothing after it, found `{rest}`");
        }
        match name {
            "help" => eprintln!("{HELP}"),
            "reset" => self.messages.clear(),
            "system" => self.system = (!rest.is_empty()).then(|| rest.to_string()),
            "save" => {
                takes("the name of a file")?;
                self.save(rest.as_ref())?;
            }
            "load" => {
                takes("the name of a file")?;
                self.load(rest.as_ref())?;
            }
            "reasoning" => match rest {
                "on" => self.shows_reasoning = true,
                "off" => self.shows_reasoning = false,
                _ => bail!("/reasoning takes on or off, found `{rest}`"),
            },
            _ => {
                bail!("unknown command /{name} (/help lists them; //{name} sends it as a message)")
            }
        }
        Ok(())
    }

    /// The system message and everything that was said.
    fn conversation(&self) -> Vec<Value> {
        let system = self.system.as_deref().map(|text| message("system", text));
        system.into_iter().chain(self.messages.iter().cloned()).collect()
    }

    /// Answers a message, and says whether the user stopped that.
    fn answer(&mut self, text: String) -> Result<bool> {
        let before = self.messages.len();
        self.messages.push(message("user", &text));
        let answer = self.generate();
        let (said, ending) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.messages.truncate(before);
                return Err(error);
            }
        };
        let is_empty = said["content"] == "" && said["tool_calls"].is_null();
        if is_empty && ending != Ending::Stop {
            // Many templates want every message answered.
            self.messages.truncate(before);
            eprintln!("[nothing was answered; the message is taken back]");
        } else {
            self.messages.push(said);
        }
        Ok(ending == Ending::Interrupted)
    }

    /// The assistant's message that follows the conversation.
    fn generate(&mut self) -> Result<(Value, Ending)> {
        let options = &self.args.chat_options;
        let prompt = chat_tokens(self.tokenizer, &self.format, self.conversation(), options)?;
        let (prompt_tokens, context) = (prompt.len(), self.engine.context());
        if prompt_tokens > context {
            bail!(
                "the conversation has {prompt_tokens} tokens, but the context holds {context} \
                 (/reset begins a new one)"
            );
        }
        let request = Request {
            tokens: prompt,
            max_tokens: self.args.max_tokens,
            sampling: self.sampling.clone(),
            choice: 0,
            end_tokens: end_tokens(self.model, Some(&self.format), &self.args.sampling),
            logprobs: self.args.sampling.logprobs,
            ..Request::default()
        };
        let stop = StopMatcher::new(self.args.sampling.stop.clone())?;
        let reader = reader(Some(self.tokenizer), Some(&self.format));
        let out = Output::new(reader, stop, true, self.shows_reasoning);
        let engine = &mut self.engine;
        let answer = self.interrupts.during(|is_asked| generate(engine, request, out, is_asked));
        let answer = answer?;
        writeln!(io::stdout())?;
        if self.args.sampling.logprobs.is_some() {
            answer.token_reports(Some(self.tokenizer)).iter().for_each(|token| token.print());
        }
        match answer.ending {
            Ending::Stop => {}
            Ending::Interrupted => eprintln!("[stopped]"),
            Ending::Length if prompt_tokens + answer.tokens.len() > context => {
                eprintln!("[cut: the context of {context} positions is full]");
            }
            Ending::Length => {
                eprintln!("[cut after {} tokens, as --max-tokens says]", answer.tokens.len())
            }
        }
        Ok((said(&answer), answer.ending))
    }

    fn save(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.conversation())?;
        fs::write(file, text + "\n").with_context(|| file.display().to_string())
    }

    /// Takes over the conversation of a file, if there is one in it that the model can go on with.
    fn load(&mut self, file: &Path) -> Result<()> {
        let name = || file.display().to_string();
        let text = fs::read_to_string(file).with_context(name)?;
        let messages: Vec<Value> = serde_json::from_str(&text)
            .with_context(|| format!("{}: not a JSON list of messages", file.display()))?;
        for (index, message) in messages.iter().enumerate() {
            check(message)
                .map_err(|error| anyhow!("{}: message {}: {error}", file.display(), index + 1))?;
        }
        let conversation = Conversation { messages: messages.clone(), ..Conversation::default() };
        if !messages.is_empty() {
            self.format.render(&conversation).with_context(name)?;
        }
        let mut messages = messages;
        let has_system = messages.first().is_some_and(|first| first["role"] == "system");
        self.system = if has_system {
            messages.remove(0)["content"].as_str().map(str::to_string)
        } else {
            None
        };
        self.messages = messages;
        Ok(())
    }
}

/// What was answered, for the conversation: the answer and the calls of tools, but not the reasoning.
fn said(answer: &Answer) -> Value {
    let text = answer.spoken.text.as_deref().unwrap_or_default();
    let Some(parts) = answer.spoken.parts.as_ref().filter(|parts| !parts.tool_calls.is_empty())
    else {
        return message("assistant", text);
    };
    let content = if text.is_empty() { &parts.commentary } else { text };
    let calls = parts.tool_calls.iter().map(|call| {
        json!({"type": "function", "function": {"name": call.name, "arguments": call.arguments}})
    });
    json!({"role": "assistant", "content": content, "tool_calls": calls.collect::<Vec<_>>()})
}

/// Checks a message of a file.
fn check(message: &Value) -> Result<(), String> {
    let Some(fields) = message.as_object() else {
        return Err(format!("expected an object, found {message}"));
    };
    let role = fields.get("role").and_then(Value::as_str).unwrap_or_default();
    if !["system", "developer", "user", "assistant", "tool"].contains(&role) {
        let found = fields.get("role").unwrap_or(&Value::Null);
        return Err(format!(
            "expected the role system, developer, user, assistant or tool, found {found}"
        ));
    }
    let content = fields.get("content").unwrap_or(&Value::Null);
    let has_calls = fields.get("tool_calls").is_some_and(Value::is_array);
    let is_absent = content.is_null() && role == "assistant" && has_calls;
    if !content.is_string() && !is_absent {
        return Err(format!("expected a text as content, found {content}"));
    }
    Ok(())
}
