//! One file from the hub into the cache: as often as it takes, from where it stopped, and checked.

use super::cache::{Repository, create_parent, has_size};
use super::client::{Client, Failure, Hash, RemoteFile};
use anyhow::{Context, Error, Result, anyhow, bail};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

/// Attempts in a row that bring no byte before the download is given up.
const ATTEMPTS: u32 = 5;

/// The pause before the second attempt; each later one is twice as long.
const PAUSE: Duration = Duration::from_millis(250);

/// Bytes read at once.
const BUFFER: usize = 1 << 18;

/// Brings `file` into the cache. `progress` is told the bytes that are there.
///
/// What was downloaded stays when the download ends early, and the next one goes on from there.
///
/// # Errors
/// When the hub cannot be reached or refuses, the disk is full, or what came is not what the hub said.
pub fn download(
    client: &Client,
    repository: &Repository,
    commit: &str,
    file: &RemoteFile,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let hash = file.hash.digits();
    let (blob, partial) = repository.blob(hash);
    let _lock = repository.lock(hash)?;
    if !has_size(&blob, file.size) {
        create_parent(&partial)?;
        let repo = repository.repo();
        let mut request = |first| client.file(repo, commit, &file.path, first);
        receive(file, &partial, &mut request, progress)?;
        fs::rename(&partial, &blob).with_context(|| format!("cannot create {}", blob.display()))?;
    }
    repository.link(commit, &file.path, hash)
}

/// What is there of a file.
struct Partial<'a> {
    file: File,
    path: &'a Path,
    digest: Checksum,
    bytes: u64,
}

type Request<'a> = dyn FnMut(Option<u64>) -> Result<ureq::http::Response<ureq::Body>, Failure> + 'a;

/// Completes the file at `partial`.
fn receive(
    file: &RemoteFile,
    path: &Path,
    request: &mut Request,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let mut partial = Partial::open(file, path, progress)?;
    let mut failures = 0;
    while partial.bytes < file.size {
        let before = partial.bytes;
        match attempt(file, &mut partial, request, progress) {
            Ok(()) => {}
            Err(Failure { passing: false, cause }) => return Err(cause),
            Err(Failure { passing: true, cause }) => {
                failures = if partial.bytes > before { 1 } else { failures + 1 };
                if failures == ATTEMPTS {
                    return Err(cause);
                }
                sleep(PAUSE * 2u32.pow(failures - 1));
            }
        }
    }
    partial.finish(file)
}

/// One request, as far as it goes.
fn attempt(
    file: &RemoteFile,
    partial: &mut Partial,
    request: &mut Request,
    progress: &mut dyn FnMut(u64),
) -> Result<(), Failure> {
    let first = (partial.bytes > 0).then_some(partial.bytes);
    let response = request(first)?;
    let lasting = |cause: Error| Failure { passing: false, cause };
    let passing = |cause: Error| Failure { passing: true, cause };
    if response.status() == 206 {
        let range = response.headers().get("content-range").and_then(|range| range.to_str().ok());
        let wanted = format!("bytes {}-", partial.bytes);
        if !range.is_some_and(|range| range.starts_with(&wanted)) {
            return Err(lasting(anyhow!("expected the range {wanted}, found {range:?}")));
        }
    } else if partial.bytes > 0 {
        // A server that knows no ranges.
        partial.restart(file).map_err(lasting)?;
    }
    let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = body.read(&mut buffer);
        match read.map_err(|cause| passing(anyhow!("the download broke off: {cause}")))? {
            0 if partial.bytes < file.size => {
                let (found, expected) = (partial.bytes, file.size);
                return Err(passing(anyhow!(
                    "the download broke off after {found} of {expected} bytes"
                )));
            }
            0 => return Ok(()),
            count => partial.append(&buffer[..count]).map_err(lasting)?,
        }
        if partial.bytes > file.size {
            let _ = fs::remove_file(partial.path);
            return Err(lasting(anyhow!("expected {} bytes, found more", file.size)));
        }
        progress(partial.bytes);
    }
}

impl<'a> Partial<'a> {
    /// What an earlier download left, or an empty file.
    fn open(file: &RemoteFile, path: &'a Path, progress: &mut dyn FnMut(u64)) -> Result<Self> {
        let failed = || format!("cannot open {}", path.display());
        let opened = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let opened = opened.with_context(failed)?;
        let digest = Checksum::new(file);
        let mut partial = Partial { file: opened, path, digest, bytes: 0 };
        if partial.file.metadata().with_context(failed)?.len() > file.size {
            partial.restart(file)?;
        }
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = partial.file.read(&mut buffer).with_context(failed)?;
            if count == 0 {
                return Ok(partial);
            }
            partial.digest.update(&buffer[..count]);
            partial.bytes += count as u64;
            progress(partial.bytes);
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let path = self.path;
        self.file.write_all(bytes).with_context(|| format!("cannot write {}", path.display()))?;
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self, file: &RemoteFile) -> Result<()> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.with_context(|| format!("cannot write {}", self.path.display()))?;
        (self.digest, self.bytes) = (Checksum::new(file), 0);
        Ok(())
    }

    /// Checks what came.
    fn finish(self, file: &RemoteFile) -> Result<()> {
        // Some file systems only say now that the disk is full.
        self.file.sync_all().with_context(|| format!("cannot write {}", self.path.display()))?;
        let (expected, found) = (file.hash.digits(), self.digest.digits());
        if found != expected.to_ascii_lowercase() {
            let _ = fs::remove_file(self.path);
            bail!(
                "the file is damaged: expected the checksum {expected}, found {found}; what came \
                 was removed, so the next download starts anew"
            );
        }
        Ok(())
    }
}

/// The hash of a file of which some bytes are still to come.
enum Checksum {
    Sha256(Sha256),
    Git(Sha1),
}

impl Checksum {
    fn new(file: &RemoteFile) -> Self {
        match file.hash {
            Hash::Sha256(_) => Checksum::Sha256(Sha256::new()),
            Hash::Git(_) => Checksum::Git(Sha1::new_with_prefix(format!("blob {}\0", file.size))),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Checksum::Sha256(digest) => digest.update(bytes),
            Checksum::Git(digest) => digest.update(bytes),
        }
    }

    fn digits(self) -> String {
        let digits = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Checksum::Sha256(digest) => digits(&digest.finalize()),
            Checksum::Git(digest) => digits(&digest.finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_sha256sum_and_git() {
        let digits = |hash| {
            let mut checksum = Checksum::new(&RemoteFile { path: "a".into(), size: 6, hash });
            checksum.update(b"hel");
            checksum.update(b"lo\n");
            checksum.digits()
        };
        // `printf 'hello\n' | sha256sum` and `printf 'hello\n' | git hash-object --stdin`.
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(digits(Hash::Sha256(String::new())), sha256);
        assert_eq!(digits(Hash::Git(String::new())), "ce013625030ba8dba906f756967f9e9ca394464a");
    }
}
