//! `oxgpt serve`: the model over HTTP.

use crate::args::{ModelArgs, ServeArgs};
use crate::hub::HubId;
use crate::open;
use crate::server::app::{App, Served, Settings};
use crate::server::metrics::Metrics;
use crate::server::thoughts::Thoughts;
use crate::server::turns::Turns;
use crate::server::worker::Worker;
use crate::server::{connection, router, tls};
use anyhow::{Context, Result, anyhow};
use oxgpt_engine::engine::EngineOptions;
use oxgpt_engine::model::Model;
use oxgpt_engine::prompt::{ChatFormat, ChatTemplate};
use oxgpt_engine::sampler::SamplingOptions;
use std::fs;
use std::path::Path;
use std::process::exit;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Threads that read requests and write answers; the engine has its own.
const HTTP_THREADS: usize = 2;

/// How long clients may take to hear of a failure that ends the program.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What shells report of a program that SIGINT ended.
const INTERRUPTED: i32 = 130;

/// The top-level entry point for `serve`.
pub fn serve(model_args: &'static ModelArgs, args: &'static ServeArgs) -> Result<()> {
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(certificates), Some(key)) => Some(tls::acceptor(certificates, key)?),
        _ => None,
    };
    let settings = Settings {
        name: args.alias.clone().unwrap_or_else(|| name(model_args)),
        api_keys: args.api_key.clone(),
        origins: args.cors.clone(),
        max_body: usize::try_from(args.max_body).unwrap_or(usize::MAX),
        client_timeout: args.client_timeout,
        request_timeout: args.request_timeout,
        log: args.log,
    };
    // One server runs until the program ends, so what it shares need not be counted.
    let app: &'static App = Box::leak(Box::new(App::new(settings, Arc::new(Metrics::default()))));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .enable_all()
        .build()
        .context("cannot start threads")?;
    runtime.block_on(async {
        let address = (args.host.as_str(), args.port);
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen at {}:{}", args.host, args.port))?;
        let address = listener.local_addr().context("cannot listen")?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        eprintln!("listening on {scheme}://{address}");
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;

        let (failed, engine) = oneshot::channel();
        let run = move || {
            // Nobody listens any more once the server ends.
            let _ = failed.send(run(app, model_args, args));
        };
        thread::Builder::new().name("engine".to_string()).spawn(run)?;

        let (stop, stopped) = oneshot::channel();
        let server = connection::serve(listener, router(app), tls, args.client_timeout, stopped);
        let server = tokio::spawn(server);
        tokio::select! {
            ended = engine => {
                // Those whose answers ended with it are told so.
                app.drain();
                let _ = tokio::time::timeout(LAST_WORDS, app.until_idle()).await;
                let panicked = || anyhow!("the engine's thread ended unexpectedly");
                return ended.unwrap_or_else(|_| Err(panicked()));
            }
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        app.drain();
        eprintln!(
            "draining: answers under way are finished; another signal ends the program at once"
        );
        tokio::select! {
            () = app.until_idle() => {}
            _ = terminate.recv() => exit(INTERRUPTED),
            _ = interrupt.recv() => exit(INTERRUPTED),
        }
        // The server listens until now, so that /health can say what goes on.
        let _ = stop.send(());
        server.await.context("the server ended unexpectedly")
    })
}

/// Loads the model and runs it; the engine's thread.
fn run(app: &'static App, model_args: &ModelArgs, args: &ServeArgs) -> Result<()> {
    let begin = Instant::now();
    let model: &'static Model = Box::leak(Box::new(open::model(model_args)?));
    let format = match (&args.chat_template, &model.tokenizer) {
        (None, _) => ChatFormat::of(model)?,
        (Some(file), Some(tokenizer)) => {
            let source = fs::read_to_string(file).with_context(|| file.display().to_string())?;
            let template = ChatTemplate::for_tokenizer(&source, tokenizer)?;
            Some(ChatFormat::Template(Box::new(template)))
        }
        (Some(_), None) => {
            return Err(anyhow!("the model has no tokenizer, which --chat-template needs"));
        }
    };
    let options = open::options(model_args, &args.engine)?;
    let options = EngineOptions {
        sequences: args.sequences,
        kv_tokens: args.kv_tokens,
        speculation: open::speculation(args.speculate),
        ..options
    };
    let engine = open::load(model, &options)?;
    let (worker, thread) = Worker::new(args.sequences, args.queue, Arc::clone(&app.metrics));
    let served = Served {
        model,
        format,
        worker,
        context: engine.context(),
        vocab_size: engine.vocab_size(),
        logit_width: engine.logit_width(),
        sampling: model.description.generation.over(SamplingOptions::default()),
        thoughts: (!args.engine.deterministic).then(Thoughts::default),
        turns: (!args.engine.deterministic).then(Turns::default),
        grammars: OnceLock::new(),
    };
    if matches!(served.format, Some(ChatFormat::Harmony(_))) {
        // Every answer is held to its headers, so the first one need not wait for this.
        served.grammars().map_err(|error| anyhow!(error.message))?;
    }
    app.set_ready(served);
    let together = args.kv_tokens.map(|tokens| format!(", {tokens} of them together"));
    eprintln!(
        "ready after {:.1} s: {} on {}, {} sequences of {} positions{}",
        begin.elapsed().as_secs_f64(),
        app.settings.name,
        options.device,
        args.sequences,
        engine.context(),
        together.unwrap_or_default()
    );
    Ok(thread.run(engine)?)
}

/// What the model is called without `--alias`.
fn name(model_args: &ModelArgs) -> String {
    let Some(path) = model_args.model.as_deref().filter(|path| !path.as_os_str().is_empty()) else {
        return "demo".to_string();
    };
    if !path.exists()
        && let Some(id) = path.to_str().and_then(HubId::of_model)
    {
        return id.to_string();
    }
    stem(path)
}

/// The name of a file without `.gguf`, or that of a directory.
fn stem(path: &Path) -> String {
    let absolute = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    // A link is called what the user calls it.
    let name = path.file_name().or_else(|| absolute.file_name()).unwrap_or_default();
    let name = name.to_string_lossy();
    name.strip_suffix(".gguf").unwrap_or(&name).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_called_by_their_files() {
        assert_eq!(stem(Path::new("/a/b/Some-1.5.Q8_0.gguf")), "Some-1.5.Q8_0");
        assert_eq!(stem(Path::new("models/Llama-3.2-1B/")), "Llama-3.2-1B");
        assert_eq!(stem(Path::new("x")), "x");
    }
}
