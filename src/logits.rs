//! `oxgpt logits`: the logits of every token, in a file.

use crate::args::{LogitsArgs, ModelArgs};
use crate::open;
use anyhow::{Context, Result};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::fs;
use std::path::{Path, PathBuf};

/// The top-level entry point for `logits`.
pub fn logits(model_args: &ModelArgs, args: &LogitsArgs) -> Result<()> {
    let model = open::model(model_args)?;
    let (mut engine, _) = open::engine(&model, model_args, &args.engine)?;
    let tokens = &args.tokens.0;
    let mut bytes = Vec::new();
    engine.score(tokens, &mut |_, row| {
        bytes.extend(row.iter().flat_map(|logit| logit.to_le_bytes()));
    })?;
    let shape = vec![tokens.len(), bytes.len() / size_of::<f32>() / tokens.len()];
    let view = TensorView::new(Dtype::F32, shape, &bytes)?;
    let file = safetensors::serialize([("logits", view)], None)?;
    write_whole(&args.out, &file).with_context(|| args.out.display().to_string())
}

/// Writes a file beside its place first, so that no half of it is ever seen there. What is no ordinary file (a pipe,
/// `/dev/stdout`) is written to, not replaced.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    if path.exists() && !path.is_file() {
        return Ok(fs::write(path, bytes)?);
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // The error that matters is the first one; there may be no file to remove.
        let _ = fs::remove_file(&partial);
    }
    Ok(written?)
}
