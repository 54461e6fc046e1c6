//! Models of a Hugging Face hub: `org/repo`, or `org/repo:file` for a file or a type of a repository with GGUF files.
//!
//! They are kept where `huggingface_hub` and `transformers` keep theirs, in the same layout, so that what one program has
//! downloaded the others find.

mod cache;
mod client;
mod download;
mod id;
mod select;
mod settings;
pub mod tls;

use anyhow::{Context, Result, bail};
use cache::Repository;
use client::{Client, RemoteFile};
use indicatif::{ProgressBar, ProgressStyle};
use select::Choice;
use settings::Settings;
use std::path::PathBuf;

pub use id::HubId;

/// The only branch that is looked at.
const REVISION: &str = "main";

/// The path of a model: from the cache if it is there, else after its download.
pub fn locate(id: &HubId) -> Result<PathBuf> {
    let settings = Settings::from_environment()?;
    match cached(id, &settings) {
        Ok(path) => Ok(path),
        Err(cause) if settings.offline => Err(cause.context("HF_HUB_OFFLINE is set")),
        Err(_) => download(id, &settings),
    }
}

/// The path of a model, after whatever the hub has newer was downloaded. Offline, what is in the cache must do.
pub fn pull(id: &HubId) -> Result<PathBuf> {
    let settings = Settings::from_environment()?;
    if settings.offline {
        return cached(id, &settings).context("HF_HUB_OFFLINE is set");
    }
    download(id, &settings)
}

/// The path of a model that is whole in the cache.
fn cached(id: &HubId, settings: &Settings) -> Result<PathBuf> {
    let repository = Repository::new(&settings.cache, &id.repo);
    let absent = || format!("{id} is not in the cache {}", settings.cache.display());
    let snapshot = repository.snapshot(&repository.commit(REVISION).with_context(absent)?);
    let names = cache::files(&snapshot);
    match select::choose(id, names.iter().map(String::as_str)).with_context(absent)? {
        Choice::Gguf(parts) if select::is_whole(&parts) => Ok(snapshot.join(&parts[0])),
        Choice::Directory(weights) if weights.is_whole(&snapshot) => Ok(snapshot),
        _ => bail!("{id} is only in part in the cache {}", settings.cache.display()),
    }
}

fn download(id: &HubId, settings: &Settings) -> Result<PathBuf> {
    let client = Client::new(settings)?;
    let listing = client.list(&id.repo, REVISION)?;
    let repository = Repository::new(&settings.cache, &id.repo);
    let snapshot = repository.snapshot(&listing.commit);
    let choice = select::choose(id, listing.files.iter().map(|file| file.path.as_str()))?;
    let fetch = |names: &[String]| -> Result<()> {
        let mut files = Vec::new();
        for name in names {
            let file = listing.files.iter().find(|file| &file.path == name);
            files.push(file.with_context(|| format!("{id}: the repository has no {name}"))?);
        }
        fetch(id, &client, &repository, &listing.commit, &files)
    };
    let path = match choice {
        Choice::Gguf(parts) => {
            fetch(&parts)?;
            snapshot.join(&parts[0])
        }
        Choice::Directory(weights) => {
            fetch(&weights.small)?;
            fetch(&weights.weights(&snapshot)?)?;
            snapshot
        }
    };
    // Last, so that a reference never leads to a model of which a part is missing.
    repository.set_commit(REVISION, &listing.commit)?;
    Ok(path)
}

/// Brings files into the cache that are not there yet.
fn fetch(
    id: &HubId,
    client: &Client,
    repository: &Repository,
    commit: &str,
    files: &[&RemoteFile],
) -> Result<()> {
    let missing: Vec<_> =
        files.iter().filter(|file| !repository.has(commit, &file.path, file.size)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let total = missing.iter().map(|file| file.size).sum();
    let number = match missing.as_slice() {
        [only] => only.path.clone(),
        several => format!("{} files", several.len()),
    };
    eprintln!(
        "downloading {} from {}: {number}, {:.1} MB",
        id.repo,
        client.endpoint(),
        total as f64 / 1e6
    );
    let bar = progress_bar(total);
    let mut before = 0;
    for file in missing {
        download::download(client, repository, commit, file, &mut |done| {
            bar.set_position(before + done);
        })
        .with_context(|| format!("{}: {}", id.repo, file.path))?;
        before += file.size;
    }
    bar.finish_and_clear();
    Ok(())
}

/// A progress bar on standard error, hidden where that is no terminal.
fn progress_bar(total: u64) -> ProgressBar {
    let template = "{bar:32} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template);
    ProgressBar::new(total).with_style(style.expect("the template is valid"))
}
