//! `oxgpt plan`: the memory that a model takes, and whether it is there.

use crate::args::{ModelArgs, PlanArgs};
use crate::memory;
use crate::open;
use anyhow::Result;
use oxgpt_engine::engine::{EngineOptions, KvPerToken, MemoryPlan};
use serde::Serialize;
use serde_json::{Map, Value};
use std::io::{self, Write};

/// Everything that is shown, and what `--json` prints. Sizes are in bytes.
#[derive(Serialize)]
struct Report {
    path: String,
    device: String,
    context: usize,
    sequences: usize,
    /// Tokens of all sequences together, if that is less than whole contexts.
    kv_tokens: Option<usize>,
    weights: u64,
    weights_by_type: Map<String, Value>,
    kv_per_token: PerToken,
    kv: u64,
    workspace: u64,
    total: u64,
    /// What the machine, or the GPU, has free; null where it does not say.
    available: Option<u64>,
    fits: Option<bool>,
    memory_limit: Option<u64>,
    fits_memory_limit: Option<bool>,
}

/// Keys and values of one position.
#[derive(Serialize)]
struct PerToken {
    /// If every query head had its own.
    multi_head: u64,
    /// As the model has them.
    actual: u64,
}

/// The top-level entry point for `plan`.
pub fn plan(model_args: &ModelArgs, args: &PlanArgs) -> Result<()> {
    let model = open::model(model_args)?;
    let device = open::device(model_args.device)?;
    let options = EngineOptions {
        device,
        context: args.ctx,
        sequences: args.sequences,
        kv_tokens: args.kv_tokens,
        chunk: device.chunk(),
        ..EngineOptions::default()
    };
    let plan = MemoryPlan::new(&model, &options)?;
    let per_token = KvPerToken::new(&model, device);
    let available = memory::available(device);
    let fits_in = |bytes: u64| plan.total() <= bytes;
    let by_type = model.weight_bytes_by_type();
    let report = Report {
        path: model.checkpoint.path().display().to_string(),
        device: device.to_string(),
        context: args.ctx.unwrap_or(model.description.decoder.context_length),
        sequences: args.sequences,
        kv_tokens: args.kv_tokens,
        weights: plan.weights,
        weights_by_type: by_type
            .into_iter()
            .map(|(dtype, bytes)| (dtype.name().to_string(), bytes.into()))
            .collect(),
        kv_per_token: PerToken { multi_head: per_token.multi_head, actual: per_token.actual },
        kv: plan.kv,
        workspace: plan.workspace,
        total: plan.total(),
        available,
        fits: available.map(fits_in),
        memory_limit: model_args.memory_limit,
        fits_memory_limit: model_args.memory_limit.map(fits_in),
    };
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        print(&mut out, &report)?;
    }
    Ok(out.flush()?)
}

fn print(out: &mut impl Write, report: &Report) -> io::Result<()> {
    let mut line = |label: &str, value: String| writeln!(out, "{label:<18}{value}");
    line("model", report.path.clone())?;
    line("device", report.device.clone())?;
    let together = report.kv_tokens.map(|tokens| format!(", {tokens} of them together"));
    let together = together.unwrap_or_default();
    let Report { sequences, context, .. } = report;
    line("for", format!("{sequences} sequences of {context} positions{together}"))?;
    let types = report.weights_by_type.iter();
    let types: Vec<String> = types
        .map(|(dtype, bytes)| format!("{dtype} {}", size(bytes.as_u64().unwrap_or(0))))
        .collect();
    line("weights", format!("{} ({})", size(report.weights), types.join(", ")))?;
    let PerToken { multi_head, actual } = report.kv_per_token;
    let grouped = if actual == multi_head {
        "multi-head attention".to_string()
    } else {
        format!("{} with multi-head attention", size(multi_head))
    };
    line("kv per token", format!("{} ({grouped})", size(actual)))?;
    line("kv", size(report.kv))?;
    line("workspace", size(report.workspace))?;
    line("total", size(report.total))?;
    let verdict = |fits| if fits { "fits" } else { "does not fit" };
    match (report.available, report.fits) {
        (Some(available), Some(fits)) => {
            line("available", format!("{}: {}", size(available), verdict(fits)))?;
        }
        _ => line("available", "unknown on this system".to_string())?,
    }
    if let (Some(limit), Some(fits)) = (report.memory_limit, report.fits_memory_limit) {
        line("memory limit", format!("{}: {}", size(limit), verdict(fits)))?;
    }
    Ok(())
}

/// Bytes as people read them, in the decimal units of the other commands.
fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        _ if bytes < 1e6 => format!("{:.1} kB", bytes / 1e3),
        _ if bytes < 1e9 => format!("{:.1} MB", bytes / 1e6),
        _ => format!("{:.2} GB", bytes / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!(size(36_864), "36.9 kB");
        assert_eq!(size(12_345_678), "12.3 MB");
        assert_eq!(size(80_000_000_000), "80.00 GB");
    }
}
