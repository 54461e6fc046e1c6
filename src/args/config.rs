//! Options of `serve` from a TOML file. What is typed goes first, then what the environment says, then the file.

use anyhow::{Context, Result, bail};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use std::fs;
use std::path::Path;
use toml::{Table, Value};

/// The options in a file that are given nowhere else, as they would be typed. `matches` are those of `serve`.
pub fn options(file: &Path, serve: &Command, matches: &ArgMatches) -> Result<Vec<String>> {
    let name = file.display();
    let text = fs::read_to_string(file).with_context(|| name.to_string())?;
    let table: Table = toml::from_str(&text).with_context(|| name.to_string())?;
    let mut options = Vec::new();
    for (key, value) in table {
        let known =
            serve.get_arguments().find(|argument| argument.get_long() == Some(key.as_str()));
        let Some(argument) = known.filter(|_| key != "config") else {
            bail!("{name}: serve has no option {key:?}");
        };
        let source = matches.value_source(argument.get_id().as_str());
        if matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
            continue;
        }
        let takes_value = argument.get_action().takes_values();
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            match value {
                Value::Boolean(true) if !takes_value => options.push(format!("--{key}")),
                Value::Boolean(false) if !takes_value => {}
                Value::String(text) if takes_value => options.push(format!("--{key}={text}")),
                Value::Integer(number) if takes_value => options.push(format!("--{key}={number}")),
                Value::Float(number) if takes_value => options.push(format!("--{key}={number}")),
                other => bail!("{name}: {key}: {} is not a value of it", other.type_str()),
            }
        }
    }
    Ok(options)
}
