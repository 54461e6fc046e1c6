//! `oxgpt plan`: the memory that a model takes, and whether it is there.

use crate::args::{ModelArgs, PlanArgs};
use crate::fit::{self, DeviceFit, Fit, size};
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
    /// What fits into the memory limit, or without one into what is free.
    fit: Option<Fit>,
    /// The devices of this machine, and what fits there.
    devices: Vec<DeviceFit>,
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
    let device = open::planned_device(model_args.device)?;
    let options = EngineOptions {
        device,
        context: args.ctx,
        sequences: args.sequences,
        kv_tokens: args.kv_tokens,
        kv: model_args.kv.into(),
        chunk: device.chunk(),
        ..EngineOptions::default()
    };
    let plan = MemoryPlan::new(&model, &options)?;
    let per_token = KvPerToken::new(&model, device, options.kv);
    let available = memory::available(device);
    let fits_in = |bytes: u64| plan.total() <= bytes;
    let by_type = model.weight_bytes_by_type();
    let budget = model_args.memory_limit.or(available);
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
        fit: budget.map(|bytes| Fit::new(&model, &options, bytes)).transpose()?,
        devices: fit::devices(&model, &options)?,
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
    let asked = (report.sequences, report.context);
    let verdict = fit::verdict;
    match (report.available, report.fits) {
        (Some(available), Some(fits)) => {
            line("available", format!("{}: {}", size(available), verdict(fits)))?;
        }
        _ => line("available", "unknown on this system".to_string())?,
    }
    if let (Some(limit), Some(fits)) = (report.memory_limit, report.fits_memory_limit) {
        line("memory limit", format!("{}: {}", size(limit), verdict(fits)))?;
    }
    if let Some(fit) = &report.fit {
        line("", fit.in_words(report.total, asked))?;
        if !fit.fits && report.memory_limit.is_some() {
            line("", format!("as asked for, it takes --memory-limit {}", report.total))?;
        }
    }
    for device in &report.devices {
        line(&format!("on {}", device.device), device.in_words())?;
    }
    Ok(())
}
