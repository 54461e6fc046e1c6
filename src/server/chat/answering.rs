//! A conversation, from its messages to an answer under way: the same for every endpoint that has conversations.

use crate::grammar::{Callable, Grammar, Grammars, Held, Rules, Shape, any_object};
use crate::server::answer::AnswerReader;
use crate::server::app::{App, Served};
use crate::server::conversation::{self, Abilities, Effort, Format};
use crate::server::error::ApiError;
use crate::server::fields::short;
use crate::server::generation::{Generation, Task};
use crate::server::sampling::Sampling;
use crate::server::tags::TagReader;
use crate::server::tools::{self, Tool, ToolChoice};
use oxgpt_engine::prompt::Conversation;
use oxgpt_engine::sequence::Constraint;
use serde_json::{Map, Value, json};

/// A conversation to go on with.
pub struct Chat {
    messages: Vec<Value>,
    tools: Vec<Tool>,
    choice: ToolChoice,
    can: Abilities,
    /// Whether an answer ends after one call of a tool.
    pub one_call: bool,
    pub format: Format,
    /// Of the template.
    pub variables: Map<String, Value>,
}

/// How to answer.
pub struct Wish {
    pub endpoint: &'static str,
    pub sampling: Sampling,
    pub max_tokens: Option<usize>,
    pub logprobs: Option<usize>,
}

impl Chat {
    pub fn new(
        can: Abilities,
        messages: Vec<Value>,
        mut tools: Vec<Tool>,
        choice: ToolChoice,
    ) -> Self {
        if choice == ToolChoice::None {
            tools.clear();
        }
        let (format, variables) = (Format::Text, Map::new());
        Chat { messages, tools, choice, can, one_call: false, format, variables }
    }

    /// Tells the format how much to reason; `field` is where that was said.
    pub fn set_effort(&mut self, field: &str, effort: &str) -> Result<(), ApiError> {
        let is_level = ["low", "medium", "high"].contains(&effort);
        let (name, value) = match self.can.effort {
            Effort::Level if is_level => ("reasoning_effort", json!(effort)),
            Effort::Switch if effort == "none" => ("enable_thinking", json!(false)),
            Effort::Switch if is_level => ("enable_thinking", json!(true)),
            by => {
                let supported = match by {
                    Effort::None => "the model's format has no such setting",
                    Effort::Level => "supported: low, medium, high",
                    Effort::Switch => {
                        "supported: none, and low, medium and high, which are the same"
                    }
                };
                let effort = short(&json!(effort));
                let message = format!("`{field}`: {effort} is not supported ({supported})");
                return Err(ApiError::unsupported(field, message));
            }
        };
        self.variables.entry(name).or_insert(value);
        Ok(())
    }

    /// The ids of the prompt, and whether it ends within the model's reasoning.
    pub fn prompt(&self, served: &Served) -> Result<(Vec<u32>, bool), ApiError> {
        let format = conversation::format(served)?;
        let mut conversation = Conversation {
            messages: self.messages.clone(),
            add_generation_prompt: true,
            variables: self.variables.clone(),
            ..Conversation::default()
        };
        if let Some(thoughts) = &served.thoughts {
            thoughts.recall(&mut conversation.messages);
        }
        if let Format::Schema { schema, told } = &self.format {
            if self.can.is_harmony {
                conversation.variables.insert("response_format".to_string(), told.clone());
            } else {
                conversation::tell_schema(&mut conversation.messages, schema);
            }
        }
        if !self.tools.is_empty() {
            if self.can.shows_tools {
                let tools = self.tools.iter().map(|tool| tool.whole.clone());
                conversation.tools = Some(tools.collect());
            } else {
                tools::tell_tools(&mut conversation.messages, &self.tools);
            }
        }
        let rendered = format.render(&conversation)?;
        let text = rendered.text();
        let starts_in_reasoning = self.can.has_tags && text.trim_end().ends_with("<think>");
        Ok((served.tokenizer()?.encode_segments(&rendered.segments)?, starts_in_reasoning))
    }

    /// Begins to answer.
    pub fn begin(
        self,
        app: &'static App,
        served: &'static Served,
        wish: Wish,
    ) -> Result<Generation, ApiError> {
        let (mut tokens, starts_in_reasoning) = self.prompt(served)?;
        if let (Some(turns), Some(tokenizer)) = (&served.turns, &served.model.tokenizer) {
            tokens = turns.recall(tokenizer, tokens);
        }
        let Wish { endpoint, sampling, max_tokens, logprobs } = wish;
        let held = self.held(served, starts_in_reasoning, &sampling)?;
        let has_tools = !self.tools.is_empty();
        let tags = TagReader::new(self.can.has_tags, starts_in_reasoning, has_tools);
        let stop = sampling.stop.clone();
        let reader = || AnswerReader::chat(served, stop.clone(), has_tools, tags.clone());
        let constraint = || held.as_ref().map(|held| Box::new(held.again()) as Box<dyn Constraint>);
        let end_tokens = if sampling.ignore_eos { Vec::new() } else { served.chat_end_tokens() };
        let task = Task {
            endpoint,
            prompts: vec![tokens],
            end_tokens,
            sampling,
            max_tokens,
            default_max_tokens: None,
            logprobs,
            one_call: self.one_call,
            is_turn: true,
        };
        Generation::begin(app, served, task, &reader, &constraint)
    }

    /// What the answer is held to: what was asked for, and the headers of harmony in any case.
    fn held(
        &self,
        served: &'static Served,
        starts_in_reasoning: bool,
        sampling: &Sampling,
    ) -> Result<Option<Held>, ApiError> {
        let must_call = matches!(self.choice, ToolChoice::Required | ToolChoice::Named(_));
        let is_strict = self.tools.iter().any(|tool| tool.is_strict);
        let is_asked = must_call || is_strict || self.format != Format::Text;
        if sampling.ignore_eos {
            if is_asked {
                let message = "`ignore_eos` is not supported for answers that are held to a schema";
                return Err(ApiError::unsupported("ignore_eos", message));
            }
            return Ok(None);
        }
        if !is_asked && !self.can.is_harmony {
            return Ok(None);
        }
        let shape = if self.can.is_harmony {
            Shape::Harmony
        } else if self.can.has_tags {
            Shape::think(served.tokenizer()?, starts_in_reasoning)
        } else {
            Shape::Bare
        };
        let body = match &self.format {
            Format::Text => None,
            Format::Object => Some(Grammar::Schema(any_object())),
            Format::Schema { schema, .. } => Some(Grammar::Schema(schema.clone())),
        };
        let may_be_called = |tool: &&Tool| match &self.choice {
            ToolChoice::Named(name) => tool.name == *name,
            _ => true,
        };
        let may_be_called: Vec<&Tool> = self.tools.iter().filter(may_be_called).collect();
        let calls = may_be_called.iter().map(|tool| Callable {
            name: tool.name.clone(),
            schema: tool.parameters.clone().unwrap_or_else(any_object),
        });
        let calls = calls.collect();
        let grammars = served.grammars()?;
        let mut rules = Rules { shape, body, calls, must_call, many_calls: !self.one_call };
        if let Ok(held) = grammars.compile(&rules.grammar()) {
            return Ok(Some(held));
        }
        // Which part it is that cannot be held to.
        if let Some(body) = &rules.body {
            check(grammars, body, "response_format")?;
        }
        for (tool, call) in may_be_called.into_iter().zip(&mut rules.calls) {
            match check(grammars, &Grammar::Schema(call.schema.clone()), "tools") {
                Ok(()) => {}
                Err(error) if tool.is_strict => return Err(error),
                // Nobody promised that the arguments are of it.
                Err(_) => call.schema = any_object(),
            }
        }
        let held = grammars.compile(&rules.grammar());
        held.map(Some).map_err(|error| ApiError::bad(format!("the answer's grammar: {error}")))
    }
}

fn check(grammars: &Grammars, grammar: &Grammar, field: &str) -> Result<(), ApiError> {
    let compiled = grammars.compile(grammar);
    compiled.map(|_| ()).map_err(|error| ApiError::field(field, format!("`{field}`: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effort_is_told_as_the_format_wants_it() {
        let set = |effort_by, effort: &str| {
            let can = Abilities {
                is_harmony: false,
                shows_tools: false,
                has_developer: false,
                has_tags: false,
                effort: effort_by,
            };
            let mut chat = Chat::new(can, Vec::new(), Vec::new(), ToolChoice::Auto);
            chat.set_effort("effort", effort).map(|()| Value::Object(chat.variables))
        };
        assert_eq!(set(Effort::Level, "low").unwrap(), json!({"reasoning_effort": "low"}));
        assert_eq!(set(Effort::Switch, "none").unwrap(), json!({"enable_thinking": false}));
        assert_eq!(set(Effort::Switch, "high").unwrap(), json!({"enable_thinking": true}));
        for (by, effort) in [(Effort::Level, "none"), (Effort::None, "low"), (Effort::Level, "x")] {
            assert!(set(by, effort).unwrap_err().message.contains("is not supported"));
        }
    }
}
