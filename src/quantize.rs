//! `oxgpt quantize`: a GGUF file whose matrices have another type.

use crate::args::QuantizeArgs;
use crate::interrupt;
use crate::open::Progress;
use anyhow::Result;
use oxgpt_engine::format::gguf::partial_path;
use oxgpt_engine::quantize;
use std::collections::BTreeMap;

/// Names that are listed of tensors that got another type.
const SHOWN: usize = 4;

/// The top-level entry point for `quantize`.
pub fn quantize(args: &QuantizeArgs) -> Result<()> {
    interrupt::removes(partial_path(&args.output.destination))?;
    let mut progress = Progress::new("quantizing");
    let quantized = quantize::quantize(
        &args.source,
        &args.output.destination,
        args.target,
        args.output.existing(),
        &mut |done, total| progress.update(done, total),
    )?;
    progress.finish();
    for (from, to) in quantized.requantized {
        eprintln!(
            "warning: {from} tensors were turned into {to}, which loses more than {from} has lost"
        );
    }
    let mut by_type: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for tensor in &quantized.fallbacks {
        by_type.entry(tensor.dtype.name()).or_default().push(&tensor.name);
    }
    for (dtype, tensors) in by_type {
        let names = tensors.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
        let more = if tensors.len() > SHOWN { ", ..." } else { "" };
        eprintln!(
            "warning: {} tensors are {dtype}, since their rows are no whole blocks of the type chosen: {names}{more}",
            tensors.len()
        );
    }
    Ok(())
}
