//! Models whose answers are known.

use crate::client::Server;
use crate::common::{ids, json, oxgpt};
use crate::scripted::write_model;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Positions of these models.
pub const POSITIONS: usize = 768;

/// A template that knows no tools.
pub const TEMPLATE: &str =
    "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}[assistant: ";

/// A model that answers the conversation in the request of a chat with a text, given with its special tokens.
pub fn scripted(
    special: &[&str],
    template: Option<&str>,
    request: &Value,
    answer: &str,
) -> TempDir {
    write(special, template, answer, |server| {
        let fields = ["messages", "tools", "reasoning_effort", "tool_choice", "response_format"];
        let mut asked = json!({});
        for field in fields.into_iter().filter(|field| !request[*field].is_null()) {
            asked[field] = request[field].clone();
        }
        server.answer("/tokenize", &asked)["count"].as_u64().unwrap() as usize
    })
}

/// The same for a request to `/v1/responses`.
pub fn scripted_responses(
    special: &[&str],
    template: Option<&str>,
    request: &Value,
    answer: &str,
) -> TempDir {
    write(special, template, answer, |server| {
        let mut asked = request.clone();
        asked["max_output_tokens"] = json!(1);
        asked["model"] = json!("m");
        server.answer("/v1/responses", &asked)["usage"]["input_tokens"].as_u64().unwrap() as usize
    })
}

/// The same for a request to `/v1/messages`.
pub fn scripted_messages(
    special: &[&str],
    template: Option<&str>,
    request: &Value,
    answer: &str,
) -> TempDir {
    write(special, template, answer, |server| {
        let mut asked = json!({"model": "m"});
        for field in ["messages", "system", "tools", "tool_choice"] {
            if !request[field].is_null() {
                asked[field] = request[field].clone();
            }
        }
        let count = server.answer("/v1/messages/count_tokens", &asked);
        count["input_tokens"].as_u64().unwrap() as usize
    })
}

/// Writes a model that says `answer` after as many tokens as `count` says that the prompt has.
fn write(
    special: &[&str],
    template: Option<&str>,
    answer: &str,
    count: impl FnOnce(&Server) -> usize,
) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), special, template, POSITIONS, &[]);
    let prompt = count(&Server::of(folder.path(), &["--alias", "m"]));
    let ids = ids(&json(oxgpt().args(["tokenize", answer, "-m"]).arg(folder.path())));
    let script: Vec<(usize, u32)> =
        ids.iter().enumerate().map(|(index, id)| (prompt - 1 + index, *id as u32)).collect();
    write_model(folder.path(), special, template, POSITIONS, &script);
    folder
}
