//! Answers held to a grammar: a JSON schema, or rules in Lark's notation, as `llguidance` reads them.

mod rules;

pub use rules::{Callable, Rules, Shape};

use anyhow::{Result, anyhow};
use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{
    ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie,
};
use llguidance::{Matcher, ParserFactory};
use oxgpt_engine::sequence::Constraint;
use oxgpt_engine::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::fmt;
use std::sync::Arc;

/// The space that may stand between two parts of JSON: little, since a model may take to it and never end.
const SPACE: &str = r"[ \n\r\t]{0,16}";

/// What an answer may be.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// A JSON value of this schema.
    Schema(Value),
    /// What these rules derive from `start`.
    Lark(String),
}

/// Makes constraints for the tokens of one model.
pub struct Grammars {
    factory: ParserFactory,
    /// The tokens that end an answer: where one may come, all may.
    end_tokens: Vec<u32>,
}

impl Grammars {
    /// For a model with logits of this width, whose answers end with one of `end_tokens`.
    ///
    /// # Errors
    /// When there is no token that ends an answer.
    pub fn new(tokenizer: &Tokenizer, logit_width: usize, end_tokens: &[u32]) -> Result<Self> {
        let is_known = |id: &&u32| (**id as usize) < logit_width;
        let end_tokens: Vec<u32> = end_tokens.iter().filter(is_known).copied().collect();
        let end = end_tokens
            .first()
            .ok_or_else(|| anyhow!("the model has no token that ends an answer"))?;
        let word = |id: u32| -> Vec<u8> {
            let bytes = tokenizer.token_bytes(id).unwrap_or_default();
            if !tokenizer.is_special(id) {
                return bytes.to_vec();
            }
            // What no text can be taken for.
            [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
        };
        let words: Vec<Vec<u8>> = (0..logit_width as u32).map(word).collect();
        let info = TokRxInfo::new(logit_width as u32, *end);
        let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&tokens, InferenceCapabilities::default(), &slices)?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Grammars { factory, end_tokens })
    }

    /// Reads a grammar.
    ///
    /// # Errors
    /// When it is not valid, asks for what is not supported, or is too large.
    pub fn compile(&self, grammar: &Grammar) -> Result<Held> {
        let grammar = match grammar {
            Grammar::Schema(schema) => TopLevelGrammar::from_json_schema(with_space(schema)),
            Grammar::Lark(rules) => TopLevelGrammar::from_lark(rules.clone()),
        };
        let mut matcher = Matcher::new(self.factory.create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            return Err(anyhow!("{}", first_line(&error)));
        }
        // What cannot be supported in a schema would otherwise be passed over.
        if let Some(warning) = matcher.grammar_warnings().first() {
            return Err(anyhow!("{}", first_line(warning)));
        }
        let held = Held { matcher, mask: None, end_tokens: self.end_tokens.clone() };
        // Such as of a schema that refers to itself and to nothing else.
        held.again().compute().map_err(|error| anyhow!("no answer can begin: {error}"))?;
        Ok(held)
    }
}

/// A schema with what [`SPACE`] says, unless it says so itself.
fn with_space(schema: &Value) -> Value {
    let mut schema = match schema {
        // `true` and `{}` allow everything.
        Value::Bool(true) => json!({}),
        schema => schema.clone(),
    };
    if let Value::Object(fields) = &mut schema {
        fields
            .entry("x-guidance")
            .or_insert_with(|| json!({"whitespace_flexible": true, "whitespace_pattern": SPACE}));
    }
    schema
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// One answer, held to a grammar.
#[derive(Clone)]
pub struct Held {
    matcher: Matcher,
    mask: Option<SimpleVob>,
    end_tokens: Vec<u32>,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("is_complete", &self.is_complete()).finish_non_exhaustive()
    }
}

impl Held {
    /// Another answer that is held to the same grammar from its start.
    pub fn again(&self) -> Self {
        let Held { matcher, end_tokens, .. } = self;
        Held { matcher: matcher.deep_clone(), mask: None, end_tokens: end_tokens.clone() }
    }
}

impl Constraint for Held {
    fn compute(&mut self) -> Result<(), String> {
        let mask = self.matcher.compute_mask_or_eos();
        let mut mask = mask.map_err(|error| first_line(&error.to_string()).to_string())?;
        if self.end_tokens.iter().any(|id| mask.is_allowed(*id)) {
            // Whether the answer may end is the grammar's affair; with which token, the model's.
            let accepts = self.matcher.is_accepting().unwrap_or(false) || self.matcher.is_stopped();
            if accepts {
                self.end_tokens.iter().for_each(|id| mask.allow_token(*id));
            }
        }
        self.mask = Some(mask);
        Ok(())
    }

    fn allowed(&self) -> Option<&[u32]> {
        self.mask.as_ref().map(SimpleVob::as_slice)
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        if self.end_tokens.contains(&token) && self.matcher.is_accepting().unwrap_or(false) {
            // The answer is over.
            return Ok(());
        }
        let taken = self.matcher.consume_token(token);
        taken.map_err(|error| first_line(&error.to_string()).to_string())
    }

    fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }
}

/// The grammar of all JSON objects.
pub fn any_object() -> Value {
    json!({"type": "object"})
}

#[cfg(test)]
mod tests {
    use super::*;
    use oxgpt_engine::model::Model;

    fn demo() -> Model {
        Model::from_static("demo", include_bytes!("../models/demo.gguf")).unwrap()
    }

    /// Whether the answer may be this text, and may end there.
    fn may_be(grammars: &Grammars, tokenizer: &Tokenizer, grammar: &Grammar, text: &str) -> bool {
        let mut held = grammars.compile(grammar).unwrap();
        let allows =
            |held: &Held, id: u32| held.allowed().unwrap()[id as usize / 32] >> (id % 32) & 1 == 1;
        for id in tokenizer.encode(text).unwrap() {
            held.compute().unwrap();
            if !allows(&held, id) {
                return false;
            }
            held.accept(id).unwrap();
        }
        if held.is_complete() {
            return true;
        }
        held.compute().unwrap();
        grammars.end_tokens.iter().all(|id| allows(&held, *id))
    }

    #[test]
    fn texts_are_held_to_schemas_and_rules() {
        let model = demo();
        let tokenizer = model.tokenizer.as_ref().unwrap();
        let width = model.description.decoder.head.rows;
        let grammars = Grammars::new(tokenizer, width, &model.end_tokens()).unwrap();
        let schema = json!({
            "type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
            "required": ["a", "b"], "additionalProperties": false
        });
        let schema = Grammar::Schema(schema);
        for (text, fits) in [
            (r#"{"a": 1, "b": "x"}"#, true),
            (r#"{"a":12,"b":"y"}"#, true),
            (r#"{"a": 1, "b": "z"}"#, false),
            (r#"{"a": 1.5, "b": "x"}"#, false),
            (r#"{"a": 1"#, false),
            ("", false),
        ] {
            assert_eq!(may_be(&grammars, tokenizer, &schema, text), fits, "{text}");
        }
        let rules =
            Grammar::Lark("start: \"yes\" | \"no\" NUMBER?\nNUMBER: /[0-9]{2}/".to_string());
        for (text, fits) in
            [("yes", true), ("no", true), ("no12", true), ("no1", false), ("maybe", false)]
        {
            assert_eq!(may_be(&grammars, tokenizer, &rules, text), fits, "{text}");
        }
        let any = Grammar::Schema(any_object());
        assert!(may_be(&grammars, tokenizer, &any, r#"{"x": [1, {"y": null}]}"#));
        assert!(!may_be(&grammars, tokenizer, &any, "[1]"));
    }

    /// A schema that is small, and large once what it refers to is in its place.
    fn exploding() -> Value {
        let mut definitions = json!({"d0": {"type": "integer"}});
        for depth in 1..40 {
            let last = format!("#/$defs/d{}", depth - 1);
            definitions[format!("d{depth}")] = json!({"allOf": [
                {"anyOf": [{"$ref": last}, {"type": "array", "items": {"$ref": last}, "minItems": depth}]},
                {"anyOf": [{"$ref": last}, {"type": "object", "properties": {"x": {"$ref": last}}}]}
            ]});
        }
        json!({"$defs": definitions, "$ref": "#/$defs/d39"})
    }

    #[test]
    fn grammars_that_are_wrong_or_explode_are_refused() {
        let model = demo();
        let tokenizer = model.tokenizer.as_ref().unwrap();
        let width = model.description.decoder.head.rows;
        let grammars = Grammars::new(tokenizer, width, &model.end_tokens()).unwrap();
        let mut deep = json!({"type": "integer"});
        for _ in 0..60 {
            deep =
                json!({"anyOf": [deep.clone(), {"type": "array", "items": deep}], "minItems": 1});
            if deep.to_string().len() > 3_000_000 {
                break;
            }
        }
        for wrong in [
            Grammar::Schema(json!({"type": "nonsense"})),
            Grammar::Schema(json!({"$ref": "#/nowhere"})),
            Grammar::Schema(json!({"$ref": "#"})),
            Grammar::Schema(json!({"enum": []})),
            Grammar::Schema(json!({"not": {"type": "object"}, "type": "object"})),
            Grammar::Schema(json!({"type": "string", "pattern": "("})),
            Grammar::Schema(json!(7)),
            Grammar::Schema(deep),
            Grammar::Lark("start: nothing".to_string()),
            Grammar::Lark("((((".to_string()),
            Grammar::Lark(String::new()),
        ] {
            let error = grammars.compile(&wrong).err().map(|error| error.to_string());
            assert!(error.is_some_and(|error| !error.is_empty()), "{wrong:?}");
        }
        // Whether it is refused or not, it comes to an end.
        let _ = grammars.compile(&Grammar::Schema(exploding()));
    }
}
