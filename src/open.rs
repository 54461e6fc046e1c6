//! Opening the model that the command line names, and the engine that runs it.

use crate::args::{DeviceArg, EngineArgs, ModelArgs};
use crate::hub::{self, HubId};
use crate::memory;
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use oxgpt_engine::backend::cpu::simd::Isa;
use oxgpt_engine::backend::cuda;
use oxgpt_engine::engine::{Device, Engine, EngineOptions, MemoryPlan, PrefixSharing};
use oxgpt_engine::model::Model;
use oxgpt_engine::speculation::Speculation;
use oxgpt_engine::tokenizer::Tokenizer;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The model that answers where none is named.
static DEMO: &[u8] = include_bytes!("../models/demo.gguf");

/// What errors call the built-in model.
const DEMO_NAME: &str = "the built-in demo model";

/// Work shorter than this shows no progress.
const QUIET: Duration = Duration::from_millis(500);

/// Where the model of the command line is, or `None` for the built-in one. A model of the hub is downloaded if it is not
/// in the cache.
fn path(args: &ModelArgs) -> Result<Option<PathBuf>> {
    // An empty variable in the environment is as good as none.
    let path = args.model.as_deref().filter(|path| !path.as_os_str().is_empty());
    path.map(locate).transpose()
}

/// The path that names a model, or that of a model of the hub. What is here goes first.
fn locate(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        return Ok(path.to_owned());
    }
    let name = path.display();
    let Some(id) = path.to_str().and_then(HubId::of_model) else {
        bail!("{name}: no such file or directory (expected a .gguf file or a model directory)");
    };
    let missing = "no such file or directory, and as a model of the hub it cannot be had";
    hub::locate(&id).with_context(|| format!("{name}: {missing}"))
}

/// Opens the model of the command line, without loading its weights.
pub fn model(args: &ModelArgs) -> Result<Model> {
    match path(args)? {
        None => Ok(Model::from_static(DEMO_NAME, DEMO)?),
        Some(path) => Ok(Model::open(&path)?),
    }
}

/// Opens the model that is at a path or at the hub.
pub fn model_at(path: &Path) -> Result<Model> {
    Ok(Model::open(&locate(path)?)?)
}

/// Opens the tokenizer of the command line's model; its weights may be missing.
pub fn tokenizer(args: &ModelArgs) -> Result<Tokenizer> {
    let path = path(args)?;
    let (name, tokenizer) = match &path {
        None => (DEMO_NAME.to_string(), Model::from_static(DEMO_NAME, DEMO)?.tokenizer),
        Some(path) if path.is_dir() => {
            (path.display().to_string(), Tokenizer::from_directory(path)?)
        }
        Some(path) => (path.display().to_string(), Model::open(path)?.tokenizer),
    };
    tokenizer.with_context(|| format!("{name}: the model has no tokenizer"))
}

/// The device that was asked for; `auto` is the first GPU that can be used, else the CPU, and says so.
pub fn device(device: DeviceArg) -> Result<Device> {
    match device {
        DeviceArg::Cpu => Ok(Device::Cpu),
        DeviceArg::Reference => Ok(Device::Reference),
        DeviceArg::Cuda(ordinal) => {
            cuda::device(ordinal)?;
            Ok(Device::Cuda(ordinal))
        }
        DeviceArg::Auto => match cuda::device(0) {
            Ok(gpu) => {
                eprintln!("device: cuda:0 ({})", gpu.name);
                Ok(Device::Cuda(0))
            }
            Err(error) => {
                eprintln!("device: cpu ({}), since {error}", Isa::best().name());
                Ok(Device::Cpu)
            }
        },
    }
}

/// As [`device`], but a GPU that is asked for by its number need not be there: it is planned for one like any other.
pub fn planned_device(arg: DeviceArg) -> Result<Device> {
    let DeviceArg::Cuda(ordinal) = arg else { return device(arg) };
    if let Err(error) = cuda::device(ordinal) {
        eprintln!("planned for a GPU that is not here: {error}");
    }
    Ok(Device::Cuda(ordinal))
}

/// Loads the weights, with a progress bar where that takes a while.
pub fn engine(model: &Model, args: &ModelArgs, engine: &EngineArgs) -> Result<(Engine, Device)> {
    let options = options(args, engine)?;
    Ok((load(model, &options)?, options.device))
}

/// As [`engine`], for answers; with `speculate`, what may follow is computed ahead where that pays.
pub fn answering(
    model: &Model,
    args: &ModelArgs,
    engine: &EngineArgs,
    speculate: bool,
) -> Result<(Engine, Device)> {
    let options = EngineOptions { speculation: speculation(speculate), ..options(args, engine)? };
    Ok((load(model, &options)?, options.device))
}

/// What `--speculate` asks for.
pub fn speculation(speculate: bool) -> Speculation {
    if speculate { Speculation::WhereItPays } else { Speculation::Off }
}

/// What the command line says about how to run a model.
pub fn options(args: &ModelArgs, engine: &EngineArgs) -> Result<EngineOptions> {
    let device = device(args.device)?;
    Ok(EngineOptions {
        device,
        context: engine.ctx,
        threads: engine.threads,
        memory_limit: args.memory_limit,
        kv: args.kv.into(),
        chunk: device.chunk(),
        sharing: if engine.deterministic { device.sharing() } else { PrefixSharing::All },
        deterministic: engine.deterministic,
        ..EngineOptions::default()
    })
}

/// Loads the weights with given options.
pub fn load(model: &Model, options: &EngineOptions) -> Result<Engine> {
    let options = &EngineOptions { context: context(model, options)?, ..options.clone() };
    let mut progress = Progress::new("loading");
    let engine = Engine::new(model, options, &mut |done, total| progress.update(done, total))?;
    progress.finish();
    Ok(engine)
}

/// The context that was asked for; without that, the model's own, or less where memory would not suffice for it.
fn context(model: &Model, options: &EngineOptions) -> Result<Option<usize>> {
    let available = || memory::available(options.device);
    if options.context.is_some() {
        return Ok(options.context);
    }
    let budget = options.memory_limit.or_else(available).unwrap_or(u64::MAX);
    let limit = model.description.decoder.context_length;
    // One sequence can have all the room there is for keys and values, and no more.
    let limit = options.kv_tokens.map_or(limit, |tokens| limit.min(tokens));
    let total = |context| {
        let options = EngineOptions { context: Some(context), ..options.clone() };
        MemoryPlan::new(model, &options).map(|plan| plan.total())
    };
    let context = fitting_context(limit, budget, total)?;
    let limit = model.description.decoder.context_length;
    if context < limit {
        eprintln!(
            "context: {context} positions, for which memory suffices, of the model's {limit} (--ctx sets it)"
        );
    }
    Ok(Some(context))
}

/// Short enough for any machine that holds the weights; who has even less memory asks for less.
const LEAST_CONTEXT: usize = 4096;

/// The context of a model with `limit` positions, halved until its plan fits.
fn fitting_context<E>(
    limit: usize,
    budget: u64,
    total: impl Fn(usize) -> Result<u64, E>,
) -> Result<usize, E> {
    let mut context = limit;
    while context > LEAST_CONTEXT && total(context)? > budget {
        context = (context / 2).max(LEAST_CONTEXT);
    }
    Ok(context)
}

/// A progress bar for bytes that shows itself only where the work takes a while.
pub struct Progress {
    what: &'static str,
    start: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// The start of the work, and what it is called.
    pub fn new(what: &'static str) -> Self {
        Progress { what, start: Instant::now(), bar: None }
    }

    /// How far it is.
    pub fn update(&mut self, done: u64, total: u64) {
        if self.start.elapsed() > QUIET {
            self.bar.get_or_insert_with(|| progress_bar(self.what, total)).set_position(done);
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A progress bar for bytes on standard error, hidden where that is no terminal.
fn progress_bar(what: &'static str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {bar:32} {bytes}/{total_bytes} {eta}");
    ProgressBar::new(total).with_message(what).with_style(style.expect("the template is valid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_halved_until_its_plan_fits() {
        let total = |context| Ok::<_, ()>(1000 + 10 * context as u64);
        assert_eq!(fitting_context(131_072, 2_000_000, total), Ok(131_072));
        assert_eq!(fitting_context(131_072, 1_000_000, total), Ok(65_536));
        assert_eq!(fitting_context(131_072, 1, total), Ok(LEAST_CONTEXT));
        assert_eq!(fitting_context(1024, 1, total), Ok(1024));
        assert_eq!(fitting_context(10_000, 1, total), Ok(LEAST_CONTEXT));
    }
}
