//! Models whose answers are known.

use crate::client::Server;
use crate::common::{ids, json, oxgpt};
use crate::scripted::write_model;
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

/// Positions of these models.
pub const POSITIONS: usize = 768;

/// A template that knows no tools.
pub const TEMPLATE: &str =
    "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}[assistant: ";

/// Whose request a scripted model answers: it must know how many tokens the prompt of that request has.
#[derive(Clone, Copy)]
pub enum Api {
    Chat,
    Responses,
    Messages,
}

impl Api {
    fn prompt_tokens(self, server: &Server, request: &Value) -> usize {
        let only = |mut asked: Value, fields: &[&str]| {
            for field in fields.iter().filter(|field| !request[**field].is_null()) {
                asked[*field] = request[*field].clone();
            }
            asked
        };
        let count = match self {
            Api::Chat => {
                let fields =
                    ["messages", "tools", "reasoning_effort", "tool_choice", "response_format"];
                server.answer("/tokenize", &only(json!({}), &fields))["count"].clone()
            }
            Api::Responses => {
                let mut asked = request.clone();
                asked["max_output_tokens"] = json!(1);
                asked["model"] = json!("m");
                server.answer("/v1/responses", &asked)["usage"]["input_tokens"].clone()
            }
            Api::Messages => {
                let fields = ["messages", "system", "tools", "tool_choice"];
                let asked = only(json!({"model": "m"}), &fields);
                server.answer("/v1/messages/count_tokens", &asked)["input_tokens"].clone()
            }
        };
        count.as_u64().unwrap() as usize
    }
}

/// A model that answers the conversation in a request to `api` with a text, given with its special tokens.
pub fn scripted(
    api: Api,
    special: &[&str],
    template: Option<&str>,
    request: &Value,
    answer: &str,
) -> TempDir {
    scripted_ids(api, special, template, request, |folder, _| {
        let ids = ids(&json(oxgpt().args(["tokenize", answer, "-m"]).arg(folder)));
        ids.into_iter().map(|id| id as u32).collect()
    })
}

/// A model that answers the conversation in a request to `api` with the tokens that `answer` gives, of its directory and a
/// server that has it.
pub fn scripted_ids(
    api: Api,
    special: &[&str],
    template: Option<&str>,
    request: &Value,
    answer: impl Fn(&Path, &Server) -> Vec<u32>,
) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), special, template, POSITIONS, &[]);
    let server = Server::of(folder.path(), &["--alias", "m"]);
    let prompt = api.prompt_tokens(&server, request);
    let ids = answer(folder.path(), &server);
    let script: Vec<(usize, u32)> =
        ids.iter().enumerate().map(|(index, id)| (prompt - 1 + index, *id)).collect();
    write_model(folder.path(), special, template, POSITIONS, &script);
    folder
}
