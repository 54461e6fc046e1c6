//! `run` with a schema or a grammar.

mod common;

use common::{error, json, oxgpt, testdata};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let file = folder.path().join(name);
    fs::write(&file, text).unwrap();
    file
}

#[test]
fn answers_are_of_the_schema() {
    let folder = tempfile::tempdir().unwrap();
    let schema = json!({
        "type": "object", "properties": {"days": {"enum": [5, 6, 7]}, "sure": {"type": "boolean"}},
        "required": ["days", "sure"], "additionalProperties": false
    });
    let schema = file(&folder, "schema.json", &schema.to_string());
    for device in ["cpu", "reference"] {
        for seed in ["1", "2", "3"] {
            let mut command = oxgpt();
            command.args(["run", "--json", "--device", device, "--seed", seed, "-n", "200"]);
            let report = json(command.arg("--json-schema").arg(&schema).arg("A week has"));
            assert_eq!(report["finish_reason"], "stop");
            let answer: Value = serde_json::from_str(report["text"].as_str().unwrap()).unwrap();
            assert!((5..=7).contains(&answer["days"].as_u64().unwrap()), "{answer}");
            assert!(answer["sure"].is_boolean());
        }
    }
}

#[test]
fn answers_are_of_the_rules() {
    let folder = tempfile::tempdir().unwrap();
    let rules = file(&folder, "rules.lark", "start: \"Yes\" \", \" NUMBER\nNUMBER: /[1-9][0-9]/\n");
    let mut command = oxgpt();
    command.args(["run", "--json", "-n", "20", "--temperature", "2", "--seed", "5"]);
    let report = json(command.arg("--grammar").arg(&rules).arg("Is it?"));
    let text = report["text"].as_str().unwrap();
    let number: u32 = text.strip_prefix("Yes, ").unwrap().parse().unwrap();
    assert!((10..100).contains(&number));
    assert_eq!(report["finish_reason"], "stop");
}

#[test]
fn what_is_wrong_with_a_grammar_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let no_json = file(&folder, "no.json", "{");
    let unknown = file(&folder, "unknown.json", "{\"type\": \"nonsense\"}");
    let no_rule = file(&folder, "no.lark", "start: missing");
    for (option, file, part) in [
        ("--json-schema", &no_json, "not valid JSON"),
        ("--json-schema", &unknown, "nonsense"),
        ("--grammar", &no_rule, "missing"),
        ("--grammar", &folder.path().join("absent"), "absent"),
    ] {
        let message = error(oxgpt().args(["run", "Hi", "-n", "1", option]).arg(file), 1);
        assert!(message.contains(part), "{message}");
    }
    let schema = file(&folder, "any.json", "{}");
    let mut both = oxgpt();
    both.args(["run", "Hi", "--json-schema"]).arg(&schema).arg("--grammar").arg(&no_rule);
    error(&mut both, 2);
    error(oxgpt().args(["run", "Hi", "--ignore-eos", "--json-schema"]).arg(&schema), 2);
    let mut bare = oxgpt();
    bare.args(["run", "--tokens", "1,2", "-m"]).arg(testdata("golden/gpt2-base-F32.gguf"));
    let message = error(bare.arg("--json-schema").arg(&schema), 1);
    assert!(message.contains("no tokenizer"), "{message}");
}
