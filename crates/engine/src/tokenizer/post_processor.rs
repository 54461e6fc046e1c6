//! What a `tokenizer.json` puts around a text.
//!
//! Read here and not by the `tokenizers` crate: applied to one text, a post-processor is a list of ids
//! before and one after, and the crate panics on a template that names a token it does not define.

use serde::Deserialize;
use serde_json::Value;

use super::TokenizerError;

const SUPPORTED: &str =
    "ByteLevel, TemplateProcessing, BertProcessing, RobertaProcessing, Sequence";

/// The ids before and after a text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Around {
    pub prefix: Vec<u32>,
    pub suffix: Vec<u32>,
}

#[derive(Deserialize)]
struct Template {
    single: Vec<Piece>,
    special_tokens: std::collections::HashMap<String, SpecialToken>,
}

#[derive(Deserialize)]
enum Piece {
    Sequence { id: String },
    SpecialToken { id: String },
}

#[derive(Deserialize)]
struct SpecialToken {
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Ends {
    cls: (String, u32),
    sep: (String, u32),
}

#[derive(Deserialize)]
struct Steps {
    processors: Vec<Value>,
}

/// Reads the `post_processor` of a `tokenizer.json`.
pub(super) fn read(file: &str, value: &Value) -> Result<Around, TokenizerError> {
    match value.get("type").and_then(Value::as_str) {
        None if value.is_null() => Ok(Around::default()),
        // It moves offsets and adds nothing.
        Some("ByteLevel") => Ok(Around::default()),
        Some("TemplateProcessing") => template(file, parse(file, value)?),
        Some("BertProcessing" | "RobertaProcessing") => {
            let Ends { cls, sep } = parse(file, value)?;
            Ok(Around { prefix: vec![cls.1], suffix: vec![sep.1] })
        }
        Some("Sequence") => {
            let Steps { processors } = parse(file, value)?;
            let mut around = Around::default();
            for step in &processors {
                let mut outer = read(file, step)?;
                outer.prefix.append(&mut around.prefix);
                around.suffix.append(&mut outer.suffix);
                around.prefix = outer.prefix;
            }
            Ok(around)
        }
        found => Err(TokenizerError::Unsupported {
            file: file.to_owned(),
            part: "post-processor",
            found: found.unwrap_or("without a type").to_owned(),
            supported: SUPPORTED.to_owned(),
        }),
    }
}

fn parse<T: for<'de> Deserialize<'de>>(file: &str, value: &Value) -> Result<T, TokenizerError> {
    T::deserialize(value).map_err(|error| problem(file, &format!("is not valid: {error}")))
}

fn problem(file: &str, problem: &str) -> TokenizerError {
    TokenizerError::Field {
        file: file.to_owned(),
        field: "post_processor".to_owned(),
        problem: problem.to_owned(),
    }
}

fn template(file: &str, template: Template) -> Result<Around, TokenizerError> {
    let mut around = Around::default();
    let mut texts = 0;
    for piece in &template.single {
        match piece {
            Piece::Sequence { id } if id == "A" => texts += 1,
            Piece::Sequence { id } => {
                return Err(problem(
                    file,
                    &format!("has sequence {id:?} in its template for one text"),
                ));
            }
            Piece::SpecialToken { id } => {
                let token = template.special_tokens.get(id).ok_or_else(|| {
                    problem(
                        file,
                        &format!("uses the special token {id:?}, which it does not define"),
                    )
                })?;
                let side = if texts == 0 { &mut around.prefix } else { &mut around.suffix };
                side.extend_from_slice(&token.ids);
            }
        }
    }
    if texts != 1 {
        return Err(problem(
            file,
            &format!("has the text {texts} times in its template for one text"),
        ));
    }
    Ok(around)
}
