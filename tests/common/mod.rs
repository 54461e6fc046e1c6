//! Running the program, and reading what it says.
// Each test file uses its own part of this.
#![allow(dead_code, reason = "compiled into several test files, each of which uses a part")]

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// The program, without settings of the environment.
pub fn oxgpt() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oxgpt"));
    command.env_remove("OXGPT_MODEL").env_remove("OXGPT_DEVICE");
    command
}

/// A file of the test data.
pub fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(path)
}

/// What a command that works prints.
pub fn stdout(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The one line of JSON that a command prints.
pub fn json(command: &mut Command) -> Value {
    let stdout = stdout(command);
    assert!(stdout.ends_with('\n') && stdout.lines().count() == 1, "one line: {stdout}");
    serde_json::from_str(&stdout).unwrap()
}

/// What a command that fails says; it must be one sentence and nothing on standard output.
pub fn error(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{command:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{command:?} printed something");
    assert!(!stderr.contains("panicked"), "{command:?}: {stderr}");
    let last = stderr.lines().filter(|line| line.starts_with("error:")).collect::<Vec<_>>();
    assert_eq!(last.len(), 1, "{command:?}: {stderr}");
    last[0].to_string()
}

/// A JSON file of the test data.
pub fn read_json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(testdata(path)).unwrap()).unwrap()
}

/// Token ids in JSON.
pub fn ids(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}
