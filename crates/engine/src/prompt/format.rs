//! The chat format of a model: harmony, or its own template.

use super::harmony::{Harmony, HarmonyParser};
use super::template::{ChatTemplate, Conversation, Rendered, TemplateError};
use crate::model::Model;
use crate::tokenizer::Tokenizer;

/// How conversations with a model are written.
#[derive(Debug)]
pub enum ChatFormat {
    /// That of gpt-oss.
    Harmony(Harmony),
    /// The template in the model's files.
    Template(Box<ChatTemplate>),
}

impl ChatFormat {
    /// The format of a model; none if it has neither a template nor the tokens of harmony.
    ///
    /// # Errors
    /// When the model's template is not valid.
    pub fn of(model: &Model) -> Result<Option<Self>, TemplateError> {
        match &model.tokenizer {
            Some(tokenizer) => Self::new(tokenizer, model.description.family),
            None => Ok(None),
        }
    }

    /// The format of a tokenizer and a model family. It is harmony for a tokenizer that has all of harmony's special
    /// tokens, if the family is gpt-oss or the template writes channels as gpt-oss does: another template for the same
    /// tokens is to be followed.
    ///
    /// # Errors
    /// When the tokenizer's template is not valid.
    pub fn new(tokenizer: &Tokenizer, family: &str) -> Result<Option<Self>, TemplateError> {
        let template = tokenizer.metadata().chat_template.as_deref();
        let is_gpt_oss = matches!(family, "gpt_oss" | "gpt-oss")
            || template.is_some_and(|template| template.contains("<|channel|>"));
        if let (true, Some(harmony)) = (is_gpt_oss, Harmony::of(tokenizer)) {
            return Ok(Some(Self::Harmony(harmony)));
        }
        let template = ChatTemplate::from_tokenizer(tokenizer)?;
        Ok(template.map(|template| Self::Template(Box::new(template))))
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// When the template fails or refuses the conversation, or the conversation is not one that the format can say.
    pub fn render(&self, conversation: &Conversation) -> Result<Rendered, TemplateError> {
        match self {
            Self::Harmony(harmony) => harmony.render(conversation),
            Self::Template(template) => template.render(conversation),
        }
    }

    /// The tokens that end an answer, given those that the model's files name.
    pub fn end_tokens(&self, of_files: Vec<u32>) -> Vec<u32> {
        match self {
            Self::Harmony(harmony) => harmony.end_tokens(&of_files),
            Self::Template(_) => of_files,
        }
    }

    /// What reads the parts of an answer, for a format that has parts.
    pub fn parser<'a>(&self, tokenizer: &'a Tokenizer) -> Option<HarmonyParser<'a>> {
        match self {
            Self::Harmony(harmony) => Some(harmony.parser(tokenizer)),
            Self::Template(_) => None,
        }
    }
}
