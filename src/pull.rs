//! `oxgpt pull`: a model from the hub into the cache.

use crate::args::PullArgs;
use crate::hub;
use anyhow::Result;
use std::io::{self, Write};

/// The top-level entry point for `pull`. Prints the path of the model.
pub fn pull(args: &PullArgs) -> Result<()> {
    let path = hub::pull(&args.id)?;
    Ok(writeln!(io::stdout(), "{}", path.display())?)
}
