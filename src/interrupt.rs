//! Ctrl-C, and other ways of being told to end.

use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::process::exit;

/// What shells report of a program that Ctrl-C ended: 128 and the number of the signal.
const EXIT_CODE: i32 = 130;

/// When the program is interrupted from now on, it removes `file` and ends. To be called once.
pub fn removes(file: PathBuf) -> Result<()> {
    let end = move || {
        // There may be none yet, or it has just got its name.
        let _ = fs::remove_file(&file);
        eprintln!("interrupted");
        exit(EXIT_CODE);
    };
    ctrlc::set_handler(end).context("cannot listen to signals")
}
