//! From a conversation to the text of a prompt.
//!
//! A [`ChatTemplate`] is the Jinja template that a model was trained with; it renders a [`Conversation`] as
//! `apply_chat_template` of `transformers` does, and keeps apart what the template wrote and what came from
//! outside, so that nobody can write a special token into a message. [`harmony`] does the same for gpt-oss without a
//! template. [`ChatFormat`] is whichever of them a model has.

mod bound;
mod date;
mod format;
pub mod harmony;
mod json;
mod mark;
mod method;
mod template;
#[cfg(test)]
mod tests;

pub use self::format::ChatFormat;
pub use self::template::{
    ChatTemplate, Conversation, Rendered, TemplateError, TemplateTokens, message,
};
