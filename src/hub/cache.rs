//! The files of a repository on disk, in the layout of `huggingface_hub`:
//!
//! ```text
//! models--ORG--REPO/blobs/HASH                  what files contain; HASH.incomplete while it is downloaded
//! models--ORG--REPO/snapshots/COMMIT/FILE       links to them
//! models--ORG--REPO/refs/BRANCH                 the commit of a branch
//! .locks/models--ORG--REPO/HASH.lock            held by who downloads
//! ```

use anyhow::{Context, Result};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// Folders in folders that a snapshot is searched for files.
const MAX_DEPTH: usize = 8;

/// A repository of the cache.
#[derive(Debug)]
pub struct Repository {
    repo: String,
    folder: PathBuf,
    locks: PathBuf,
}

impl Repository {
    /// That of `org/repo`, which need not be there.
    pub fn new(cache: &Path, repo: &str) -> Self {
        let name = format!("models--{}", repo.replace('/', "--"));
        let (folder, locks) = (cache.join(&name), cache.join(".locks").join(name));
        Self { repo: repo.to_string(), folder, locks }
    }

    /// `org/repo`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// The commit that a branch was at when it was downloaded.
    pub fn commit(&self, branch: &str) -> Option<String> {
        let commit = fs::read_to_string(self.folder.join("refs").join(branch)).ok()?;
        let commit = commit.trim();
        is_hex(commit).then(|| commit.to_string())
    }

    /// Notes the commit of a branch.
    pub fn set_commit(&self, branch: &str, commit: &str) -> Result<()> {
        let file = self.folder.join("refs").join(branch);
        if self.commit(branch).as_deref() != Some(commit) {
            create_parent(&file)?;
            let new = file.with_extension(format!("{}.new", std::process::id()));
            let written = fs::write(&new, commit).and_then(|()| fs::rename(&new, &file));
            written.with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    /// The folder of a commit's files.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Whether a file of that size is there.
    pub fn has(&self, commit: &str, path: &str, size: u64) -> bool {
        has_size(&self.snapshot(commit).join(path), size)
    }

    /// Where a file with this hash is kept, and where it is while it is downloaded.
    pub fn blob(&self, hash: &str) -> (PathBuf, PathBuf) {
        let blobs = self.folder.join("blobs");
        (blobs.join(hash), blobs.join(format!("{hash}.incomplete")))
    }

    /// Waits until no other process downloads the file with this hash. The lock ends with the file that is returned.
    pub fn lock(&self, hash: &str) -> Result<File> {
        let path = self.locks.join(format!("{hash}.lock"));
        create_parent(&path)?;
        let failed = || format!("cannot lock {}", path.display());
        let file = File::options().create(true).append(true).open(&path).with_context(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("waiting for another program that downloads the same file");
                file.lock().with_context(failed)?;
            }
            Err(TryLockError::Error(cause)) => return Err(cause).with_context(failed),
        }
        Ok(file)
    }

    /// Makes the file with this hash the commit's `path`.
    pub fn link(&self, commit: &str, path: &str, hash: &str) -> Result<()> {
        let link = self.snapshot(commit).join(path);
        create_parent(&link)?;
        // From snapshots/COMMIT/ and the folders below it.
        let up = "../".repeat(2 + path.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{hash}"));
        if link.symlink_metadata().is_ok() {
            fs::remove_file(&link).with_context(|| format!("cannot replace {}", link.display()))?;
        }
        if symlink(&target, &link).is_err() {
            // As huggingface_hub does where there are no links.
            fs::rename(self.blob(hash).0, &link)
                .with_context(|| format!("cannot create {}", link.display()))?;
        }
        Ok(())
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

/// Creates the folder of a file.
pub fn create_parent(file: &Path) -> Result<()> {
    let folder = file.parent().unwrap_or(file);
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// Whether there is a file of that size.
pub fn has_size(file: &Path, size: u64) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
}

/// The files below a folder, with `/` between folders, sorted. Links that lead nowhere are left out.
pub fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    collect(folder, "", MAX_DEPTH, &mut found);
    found.sort();
    found
}

fn collect(folder: &Path, prefix: &str, depth: usize, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Some(name) = name.to_str() else { continue };
        if path.is_file() {
            found.push(format!("{prefix}{name}"));
        } else if path.is_dir() && depth > 0 {
            collect(&path, &format!("{prefix}{name}/"), depth - 1, found);
        }
    }
}

/// Whether a text can be a hash, and so the name of a file.
pub fn is_hex(text: &str) -> bool {
    (40..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
