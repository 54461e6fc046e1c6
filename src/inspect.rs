//! `oxgpt inspect`: what a model is made of.

use crate::args::{InspectArgs, ModelArgs};
use crate::fit::{self, DeviceFit};
use crate::open;
use anyhow::Result;
use oxgpt_engine::backend::cuda;
use oxgpt_engine::engine::EngineOptions;
use oxgpt_engine::format::{Source, TensorInfo};
use oxgpt_engine::model::spec::Nonlinearity;
use oxgpt_engine::model::{DecoderSource, Model};
use oxgpt_engine::tokenizer::TokenizerMetadata;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Everything that is shown, and what `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    path: String,
    format: &'static str,
    family: &'a str,
    name: Option<&'a str>,
    parameters: usize,
    file_bytes: u64,
    context_length: usize,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// How many of the latest positions a layer sees, with the number of such layers; null: all positions.
    windows: Vec<(Option<usize>, usize)>,
    positions: String,
    intermediate: usize,
    experts: Option<Experts>,
    activation: String,
    vocab_size: usize,
    head: Head,
    types: BTreeMap<&'static str, TypeUse>,
    end_tokens: Vec<u32>,
    generation: Generation,
    tokenizer: Option<TokenizerReport<'a>>,
    /// What the program was built with.
    build: String,
    /// The devices of this machine, and what fits there of one sequence as long as the model's context.
    devices: Vec<DeviceFit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Vec<(String, String)>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<TensorReport<'a>>>,
}

#[derive(Serialize)]
struct Head {
    rows: usize,
    tied: bool,
}

#[derive(Serialize)]
struct Experts {
    count: usize,
    chosen: usize,
}

/// How much of a model has one type.
#[derive(Default, Serialize)]
struct TypeUse {
    tensors: usize,
    bytes: usize,
}

#[derive(Serialize)]
struct Generation {
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repeat_penalty: Option<f32>,
}

#[derive(Serialize)]
struct TokenizerReport<'a> {
    kind: &'a str,
    vocabulary_size: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unknown: Option<u32>,
    adds_bos: bool,
    adds_eos: bool,
    context_length: Option<usize>,
    special_tokens: &'a [(u32, String)],
    chat_template: Option<&'a str>,
}

#[derive(Serialize)]
struct TensorReport<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    dtype: &'static str,
    shape: &'a [usize],
    bytes: usize,
}

/// The top-level entry point for `inspect`.
pub fn inspect(model_args: &ModelArgs, args: &InspectArgs) -> Result<()> {
    let model = open::model(model_args)?;
    let devices = fit::devices(&model, &EngineOptions::default())?;
    let report = report(&model, args.tensors, devices);
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        print(&mut out, &report)?;
    }
    Ok(out.flush()?)
}

fn report(model: &Model, list_tensors: bool, devices: Vec<DeviceFit>) -> Report<'_> {
    let description = &model.description;
    let decoder = &description.decoder;
    let layer = &decoder.layers[0];
    let shape = layer.attention.shape;
    let tensors = model.checkpoint.tensors();
    let mut types: BTreeMap<&'static str, TypeUse> = BTreeMap::new();
    for tensor in tensors {
        let entry = types.entry(tensor.dtype.name()).or_default();
        entry.tensors += 1;
        entry.bytes += tensor.byte_len();
    }
    let generation = &description.generation;
    let (format, metadata) = match model.checkpoint.source() {
        Source::Gguf(metadata) => {
            let pairs = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string()));
            ("GGUF", Some(pairs.collect()))
        }
        Source::HuggingFace(_) => ("Hugging Face", None),
    };
    Report {
        path: model.checkpoint.path().display().to_string(),
        format,
        family: description.family,
        name: description.name.as_deref(),
        parameters: tensors.iter().map(TensorInfo::elements).sum(),
        file_bytes: model.checkpoint.file_bytes(),
        context_length: decoder.context_length,
        hidden: decoder.hidden,
        layers: decoder.layers.len(),
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        windows: windows(decoder),
        positions: positions(decoder),
        experts: decoder.layers.iter().find_map(|layer| {
            let router = layer.feed_forward.router.as_ref()?;
            Some(Experts { count: router.experts, chosen: router.choice.count })
        }),
        intermediate: layer.feed_forward.intermediate,
        activation: activation(layer.feed_forward.nonlinearity),
        vocab_size: decoder.embedding.vocab_size,
        head: Head { rows: decoder.head.rows, tied: decoder.head.weight.is_none() },
        types,
        end_tokens: model.end_tokens(),
        generation: Generation {
            temperature: generation.temperature,
            top_k: generation.top_k,
            top_p: generation.top_p,
            min_p: generation.min_p,
            repeat_penalty: generation.repeat_penalty,
        },
        tokenizer: model.tokenizer.as_ref().map(|t| tokenizer_report(t.metadata())),
        build: cuda::kernels(),
        devices,
        metadata,
        tensors: list_tensors.then(|| tensors.iter().map(tensor_report).collect()),
    }
}

/// The windows of the layers, in the order of their first use.
fn windows(decoder: &DecoderSource) -> Vec<(Option<usize>, usize)> {
    let mut windows: Vec<(Option<usize>, usize)> = Vec::new();
    for layer in &decoder.layers {
        let window = layer.attention.shape.window;
        match windows.iter_mut().find(|(known, _)| *known == window) {
            Some((_, layers)) => *layers += 1,
            None => windows.push((window, 1)),
        }
    }
    windows
}

/// What a feed-forward part has between its products.
fn activation(nonlinearity: Nonlinearity) -> String {
    match nonlinearity {
        Nonlinearity::Plain(activation) => format!("{activation:?}"),
        Nonlinearity::Gated(activation) => format!("{activation:?}, gated"),
        Nonlinearity::ClampedSwiglu { alpha, limit } => {
            format!("SwiGLU of steepness {alpha}, clamped at {limit}")
        }
    }
}

/// How the model tells positions apart.
fn positions(decoder: &DecoderSource) -> String {
    if decoder.embedding.positions.is_some() {
        return "learned".to_string();
    }
    let ropes = decoder.ropes.iter().map(|rope| {
        let mut text = format!("rotary, {} pairs of {:?}", rope.pairs(), rope.style);
        if rope.magnitude != 1.0 {
            text += &format!(", times {}", rope.magnitude);
        }
        if let Some(longer) = &rope.longer {
            text += &format!(", otherwise beyond {} positions", longer.than);
        }
        text
    });
    ropes.collect::<Vec<_>>().join("; ")
}

fn tokenizer_report(metadata: &TokenizerMetadata) -> TokenizerReport<'_> {
    TokenizerReport {
        kind: metadata.kind.name(),
        vocabulary_size: metadata.vocabulary_size,
        bos: metadata.bos,
        eos: metadata.eos,
        pad: metadata.pad,
        unknown: metadata.unknown,
        adds_bos: metadata.adds_bos,
        adds_eos: metadata.adds_eos,
        context_length: metadata.context_length,
        special_tokens: &metadata.special_tokens,
        chat_template: metadata.chat_template.as_deref(),
    }
}

fn tensor_report(tensor: &TensorInfo) -> TensorReport<'_> {
    TensorReport {
        name: &tensor.name,
        dtype: tensor.dtype.name(),
        shape: &tensor.shape,
        bytes: tensor.byte_len(),
    }
}

fn print(out: &mut impl Write, report: &Report<'_>) -> io::Result<()> {
    let mut line = |label: &str, value: String| writeln!(out, "{label:<16}{value}");
    line("model", report.path.clone())?;
    if let Some(name) = report.name {
        line("name", name.to_string())?;
    }
    line("family", format!("{} ({})", report.family, report.format))?;
    line("parameters", format!("{:.1} M", report.parameters as f64 / 1e6))?;
    line("size", format!("{:.1} MB", report.file_bytes as f64 / 1e6))?;
    line("context", format!("{} positions", report.context_length))?;
    line("layers", format!("{} of width {}", report.layers, report.hidden))?;
    let heads = format!(
        "{} heads of width {}, {} of keys and values",
        report.heads, report.head_dim, report.kv_heads
    );
    line("attention", heads)?;
    for (window, layers) in &report.windows {
        if let Some(window) = window {
            line("window", format!("the latest {window} positions, in {layers} layers"))?;
        }
    }
    line("positions", report.positions.clone())?;
    line("feed-forward", format!("width {}, {}", report.intermediate, report.activation))?;
    if let Some(Experts { count, chosen }) = report.experts {
        line("experts", format!("{count}, of which {chosen} compute a token"))?;
    }
    line("vocabulary", format!("{} tokens", report.vocab_size))?;
    let tied = if report.head.tied { ", the token embedding" } else { "" };
    line("head", format!("{} rows{tied}", report.head.rows))?;
    for (dtype, used) in &report.types {
        let megabytes = used.bytes as f64 / 1e6;
        line("type", format!("{dtype}: {} tensors, {megabytes:.1} MB", used.tensors))?;
    }
    match &report.tokenizer {
        None => line("tokenizer", "none".to_string())?,
        Some(tokenizer) => {
            let ids = [
                ("bos", tokenizer.bos),
                ("eos", tokenizer.eos),
                ("pad", tokenizer.pad),
                ("unknown", tokenizer.unknown),
            ];
            let ids: Vec<String> =
                ids.iter().filter_map(|(name, id)| id.map(|id| format!("{name} {id}"))).collect();
            let size = tokenizer.vocabulary_size;
            line("tokenizer", format!("{}, {size} tokens; {}", tokenizer.kind, ids.join(", ")))?;
            for (id, text) in tokenizer.special_tokens.iter().take(16) {
                line("special token", format!("{id} {text:?}"))?;
            }
            if tokenizer.special_tokens.len() > 16 {
                line("special token", format!("and {} more", tokenizer.special_tokens.len() - 16))?;
            }
            line(
                "chat template",
                tokenizer.chat_template.map_or("none".to_string(), |template| {
                    format!("{} characters", template.chars().count())
                }),
            )?;
        }
    }
    line("build", report.build.clone())?;
    for device in &report.devices {
        line(&format!("on {}", device.device), device.in_words())?;
    }
    for (key, value) in report.metadata.iter().flatten() {
        writeln!(out, "{key} = {value}")?;
    }
    for tensor in report.tensors.iter().flatten() {
        writeln!(
            out,
            "{}  {} {:?}  {} bytes",
            tensor.name, tensor.dtype, tensor.shape, tensor.bytes
        )?;
    }
    Ok(())
}
