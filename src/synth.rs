//! `oxgpt synth`: a model of exact shapes and types with random weights.

use crate::args::SynthArgs;
use crate::interrupt;
use crate::open::Progress;
use anyhow::Result;
use oxgpt_engine::format::gguf::partial_path;
use oxgpt_engine::synth;
use std::collections::BTreeMap;

/// The top-level entry point for `synth`.
pub fn synth(args: &SynthArgs) -> Result<()> {
    interrupt::removes(partial_path(&args.output.destination))?;
    let mut progress = Progress::new("writing");
    let fallbacks = synth::synth(
        &args.shape,
        &args.options(),
        &args.output.destination,
        args.output.existing(),
        &mut |done, total| progress.update(done, total),
    )?;
    progress.finish();
    let mut by_type: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for fallback in &fallbacks {
        by_type.entry(fallback.dtype.name()).or_default().push(&fallback.tensor);
    }
    for (dtype, tensors) in by_type {
        eprintln!(
            "warning: {} tensors, {} the first, are {dtype}: their rows are no whole blocks of the type",
            tensors.len(),
            tensors[0]
        );
    }
    Ok(())
}
