//! `oxgpt convert`: a Hugging Face directory as a GGUF file.

use crate::args::ConvertArgs;
use crate::interrupt;
use crate::open::Progress;
use anyhow::Result;
use oxgpt_engine::convert;
use oxgpt_engine::format::gguf::partial_path;

/// Names that are listed of what was left out.
const SHOWN: usize = 4;

/// The top-level entry point for `convert`.
pub fn convert(args: &ConvertArgs) -> Result<()> {
    interrupt::removes(partial_path(&args.output.destination))?;
    let mut progress = Progress::new("converting");
    let converted = convert::convert(
        &args.source,
        &args.output.destination,
        args.output.existing(),
        &mut |done, total| {
            progress.update(done, total);
        },
    )?;
    progress.finish();
    let unused = &converted.unused;
    if !unused.is_empty() {
        let names = unused.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if unused.len() > SHOWN { ", ..." } else { "" };
        eprintln!(
            "note: {} tensors that the model does not compute with are left out: {names}{more}",
            unused.len()
        );
    }
    Ok(())
}
