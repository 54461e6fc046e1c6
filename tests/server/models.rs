//! Models whose answers are known.

use crate::client::Server;
use crate::common::{ids, json, oxgpt};
use crate::scripted::write_model;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Positions of these models.
pub const POSITIONS: usize = 512;

/// A template that knows no tools.
pub const TEMPLATE: &str =
    "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}[assistant: ";

/// A model that answers the conversation in `request` with a text, given with its special tokens.
pub fn scripted(
    special: &[&str],
    template: Option<&str>,
    request: &Value,
    answer: &str,
) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), special, template, POSITIONS, &[]);
    let prompt = {
        let server = Server::of(folder.path(), &[]);
        let mut asked = json!({});
        for field in ["messages", "tools", "reasoning_effort", "tool_choice"] {
            if let Some(value) = request.get(field) {
                asked[field] = value.clone();
            }
        }
        server.answer("/tokenize", &asked)["count"].as_u64().unwrap() as usize
    };
    let ids = ids(&json(oxgpt().args(["tokenize", answer, "-m"]).arg(folder.path())));
    let script: Vec<(usize, u32)> =
        ids.iter().enumerate().map(|(index, id)| (prompt - 1 + index, *id as u32)).collect();
    write_model(folder.path(), special, template, POSITIONS, &script);
    folder
}
