//! `oxgpt quantize`: a GGUF file whose matrices have another type.

use crate::args::QuantizeArgs;
use crate::interrupt;
use crate::open::Progress;
use anyhow::Result;
use oxgpt_engine::format::gguf::partial_path;
use oxgpt_engine::quantize;

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
    for tensor in quantized.fallbacks {
        let cols = tensor.shape.last().copied().unwrap_or(1);
        eprintln!(
            "warning: {} is {}, since its rows of {cols} are no whole blocks of the type chosen",
            tensor.name, tensor.dtype
        );
    }
    Ok(())
}
