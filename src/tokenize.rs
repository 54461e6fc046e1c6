//! `oxgpt tokenize`: text to ids, ids to text.

use crate::args::{ModelArgs, TokenizeArgs};
use crate::open;
use anyhow::{Context, Result};
use std::io::{self, IsTerminal, Write};

/// The top-level entry point for `tokenize`.
pub fn tokenize(model_args: &ModelArgs, args: &TokenizeArgs) -> Result<()> {
    let tokenizer = open::tokenizer(model_args)?;
    let mut out = io::stdout().lock();
    if let Some(ids) = &args.decode {
        // The text is data and printed as it is; only a terminal gets a final newline.
        out.write_all(tokenizer.decode(&ids.0)?.as_bytes())?;
        if out.is_terminal() {
            out.write_all(b"\n")?;
        }
    } else {
        let text = match &args.text {
            Some(text) => text.clone(),
            None => read_stdin()?,
        };
        writeln!(out, "{}", serde_json::to_string(&tokenizer.encode(&text)?)?)?;
    }
    Ok(out.flush()?)
}

/// All of standard input, as it is.
pub fn read_stdin() -> Result<String> {
    io::read_to_string(io::stdin()).context("standard input")
}
