//! Compiles every `cuda/*.cu` to a compressed fatbin and lists them for `src/images.rs`.
//!
//! nvcc is looked for in `OXGPT_NVCC` (the program), `CUDA_HOME`, `PATH`, `/usr/local/cuda` and where `tools/install-nvcc`
//! puts it. Without it the build succeeds and the program runs on the CPU, unless `OXGPT_CUDA=required`; with
//! `OXGPT_CUDA=off` it is not looked for. `OXGPT_CUDA_ARCHS` narrows the list of architectures (`90a`, or `80,90a`).
//!
//! Cargo runs this once for each profile and set of features, with a folder of its own each time. What nvcc made is therefore kept
//! beside those folders, or in `OXGPT_KERNEL_CACHE`, under a hash of all that it was made from.

use std::collections::VecDeque;
use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// What GPUs of the last years need. The first without a letter also goes in as PTX, which the driver compiles for all
/// that are not named here.
const ARCHITECTURES: &str = "80,86,89,90a,100,120";

fn main() {
    println!("cargo::rerun-if-changed=cuda");
    for variable in
        ["OXGPT_NVCC", "OXGPT_CUDA", "OXGPT_CUDA_ARCHS", "OXGPT_KERNEL_CACHE", "CUDA_HOME", "PATH"]
    {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let cuda = env::var("OXGPT_CUDA").unwrap_or_default();
    let built = match cuda.as_str() {
        "off" => Err("OXGPT_CUDA=off".to_string()),
        "" | "auto" | "required" => find_nvcc(),
        _ => fail(&format!("OXGPT_CUDA is `{cuda}`, expected auto, required or off")),
    }
    .map(|nvcc| compile(&nvcc, &out));
    let list = match built {
        Ok(list) => list,
        Err(reason) if cuda == "required" => fail(&format!("OXGPT_CUDA=required, but {reason}")),
        Err(reason) => {
            println!("cargo::warning=built without CUDA kernels: {reason}");
            format!(
                "/// What the kernels were built with, or why there are none.\n\
                 pub const BUILT: Result<Built, &str> = Err({reason:?});\n\
                 pub(crate) const IMAGES: &[(&str, &[u8])] = &[];\n"
            )
        }
    };
    fs::write(out.join("images.rs"), list).expect("OUT_DIR can be written");
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    std::process::exit(1);
}

fn find_nvcc() -> Result<PathBuf, String> {
    if let Some(nvcc) = env::var_os("OXGPT_NVCC").filter(|nvcc| !nvcc.is_empty()) {
        let nvcc = PathBuf::from(nvcc);
        return match nvcc.is_file() {
            true => Ok(nvcc),
            false => Err(format!("OXGPT_NVCC names {}, which is not a file", nvcc.display())),
        };
    }
    let home = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .map(|cache| cache.join("oxgpt/nvcc/bin"));
    home.into_iter()
        .chain(env::split_paths(&path))
        .chain([PathBuf::from("/usr/local/cuda/bin")])
        .chain(cache)
        .map(|folder| folder.join("nvcc"))
        .find(|nvcc| nvcc.is_file())
        .ok_or_else(|| "nvcc was not found (tools/install-nvcc gets it)".to_string())
}

/// Compiles all files, and returns the source that embeds them.
fn compile(nvcc: &Path, out: &Path) -> String {
    let version_text = output(nvcc, "--version");
    let (major, minor) = version(nvcc, &version_text);
    let architectures = architectures(nvcc);
    let mut flags: Vec<String> =
        ["-O3", "-std=c++17", "--fatbin", "--compress-mode=size"].map(String::from).into();
    for architecture in &architectures {
        flags.push(format!("-gencode=arch=compute_{architecture},code=sm_{architecture}"));
    }
    if let Some(plain) = architectures.iter().find(|arch| !arch.ends_with(char::is_alphabetic)) {
        flags.push(format!("-gencode=arch=compute_{plain},code=compute_{plain}"));
    }

    let mut files: Vec<PathBuf> = fs::read_dir("cuda")
        .expect("the package has a folder cuda")
        .map(|entry| entry.expect("the folder can be read").path())
        .collect();
    files.sort();
    let sources: Vec<&PathBuf> =
        files.iter().filter(|file| file.extension().is_some_and(|e| e == "cu")).collect();
    let name = |source: &Path| source.file_stem().expect("a file").to_string_lossy().into_owned();

    // The largest first, so that the last ones to finish are short.
    let mut largest_first = sources.clone();
    largest_first.sort_by_key(|source| !name(source).starts_with("matvec"));
    let queue = Mutex::new(VecDeque::from(largest_first));
    let next = || queue.lock().expect("no thread panics while it takes a file").pop_front();
    let compiler = Compiler { nvcc, version: &version_text, flags: &flags, cache: &cache(out) };
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(source) = next() {
                    let image = compiler.image(source, &name(source), out);
                    let path = out.join(name(source)).with_extension("fatbin");
                    fs::write(path, image).expect("OUT_DIR can be written");
                }
            });
        }
    });

    let images = sources.iter().map(|source| {
        let name = name(source);
        format!("    ({name:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}.fatbin\"))),\n")
    });
    let images: String = images.collect();
    let architectures = architectures.join(",");
    format!(
        "/// What the kernels were built with, or why there are none.\n\
         pub const BUILT: Result<Built, &str> = Ok(Built {{ nvcc: ({major}, {minor}), architectures: {architectures:?} }});\n\
         pub(crate) const IMAGES: &[(&str, &[u8])] = &[\n{images}];\n"
    )
}

/// Adds a file to `seen` and, before it, the headers of ours that it includes.
fn with_headers(file: &Path, seen: &mut Vec<(PathBuf, String)>) {
    if seen.iter().any(|(known, _)| known == file) {
        return;
    }
    let text = fs::read_to_string(file).expect("sources can be read");
    for line in text.lines() {
        if let Some(header) =
            line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'))
        {
            with_headers(&file.with_file_name(header), seen);
        }
    }
    seen.push((file.to_path_buf(), text));
}

/// Where images are kept that others may use too: the folder that was asked for, or one in cargo's target directory.
fn cache(out: &Path) -> PathBuf {
    if let Some(asked) = env::var_os("OXGPT_KERNEL_CACHE").filter(|asked| !asked.is_empty()) {
        let asked = PathBuf::from(asked);
        return match asked.is_absolute() {
            true => asked,
            false => fail(&format!(
                "OXGPT_KERNEL_CACHE is {}, expected an absolute path",
                asked.display()
            )),
        };
    }
    // TARGET/PROFILE/build/PACKAGE/out. (Cargo marks the target directory by a file only where it made the directory itself.)
    let build = out.ancestors().find(|folder| folder.ends_with("build"));
    let target = build.and_then(|build| build.parent()?.parent());
    target.unwrap_or(out).join("oxgpt-kernels")
}

/// Makes images of files, unless they are in the cache.
struct Compiler<'a> {
    nvcc: &'a Path,
    version: &'a str,
    flags: &'a [String],
    cache: &'a Path,
}

impl Compiler<'_> {
    /// What nvcc makes of `source`. `out` is room for files on the way.
    fn image(&self, source: &Path, name: &str, out: &Path) -> Vec<u8> {
        let mut texts = Vec::new();
        with_headers(source, &mut texts);
        let key = hash(&(self.version, self.flags, texts));
        let kept = self.cache.join(format!("{name}-{key:016x}"));
        if let Some(image) = fs::read(&kept).ok().and_then(unsealed) {
            return image;
        }
        let image = self.compile(source, &out.join(name).with_extension("compiled"));
        if let Err(error) = self.keep(&image, &kept) {
            println!("cargo::warning={} could not be written: {error}", kept.display());
        }
        image
    }

    fn compile(&self, source: &Path, to: &Path) -> Vec<u8> {
        let nvcc = self.nvcc;
        let result = Command::new(nvcc).args(self.flags).arg("-o").arg(to).arg(source).output();
        match result {
            Ok(output) if output.status.success() => {
                let image = fs::read(to).expect("nvcc wrote what it was asked for");
                fs::remove_file(to).expect("OUT_DIR can be written");
                image
            }
            Ok(output) => {
                // One directive for each line: cargo reads no further than the end of a line.
                for text in [output.stderr, output.stdout] {
                    for line in String::from_utf8_lossy(&text).lines() {
                        println!("cargo::warning={line}");
                    }
                }
                fail(&format!("{} could not compile {}", nvcc.display(), source.display()));
            }
            Err(error) => fail(&format!("{} could not be started: {error}", nvcc.display())),
        }
    }

    /// Puts an image into the cache in one step, so that other builds, now or later, find the whole of it or nothing.
    fn keep(&self, image: &[u8], kept: &Path) -> std::io::Result<()> {
        fs::create_dir_all(self.cache)?;
        let on_its_way = kept.with_extension(std::process::id().to_string());
        fs::write(&on_its_way, [image, &hash(&image).to_le_bytes()].concat())?;
        fs::rename(on_its_way, kept)
    }
}

/// The image in a file of the cache, unless it is not what was written there.
fn unsealed(mut file: Vec<u8>) -> Option<Vec<u8>> {
    let seal = file.split_off(file.len().checked_sub(size_of::<u64>())?);
    (hash(&file.as_slice()).to_le_bytes() == *seal).then_some(file)
}

/// The same in every process.
fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// The version of nvcc, on which the oldest driver depends that takes what it makes.
fn version(nvcc: &Path, text: &str) -> (u32, u32) {
    let parsed = text.split_once("release ").and_then(|(_, rest)| {
        let (version, _) = rest.split_once(',')?;
        let (major, minor) = version.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    match parsed {
        Some(version) if version >= (12, 8) => version,
        _ => fail(&format!("{} is not nvcc 12.8 or newer: {}", nvcc.display(), text.trim())),
    }
}

/// The architectures that were asked for, or all of ours that this nvcc knows.
fn architectures(nvcc: &Path) -> Vec<String> {
    let known = output(nvcc, "--list-gpu-code");
    let knows = |architecture: &str| {
        let plain = architecture.trim_end_matches(char::is_alphabetic);
        known.lines().any(|line| line.trim() == format!("sm_{plain}"))
    };
    let asked = env::var("OXGPT_CUDA_ARCHS").ok().filter(|asked| !asked.trim().is_empty());
    let list = |text: &str| -> Vec<String> { text.split(',').map(|a| a.trim().into()).collect() };
    match asked {
        Some(asked) => {
            let asked = list(&asked);
            match asked.iter().find(|architecture| !knows(architecture)) {
                None => asked,
                Some(unknown) => {
                    fail(&format!("OXGPT_CUDA_ARCHS: {} does not know {unknown}", nvcc.display()))
                }
            }
        }
        None => list(ARCHITECTURES).into_iter().filter(|arch| knows(arch)).collect(),
    }
}

fn output(nvcc: &Path, argument: &str) -> String {
    match Command::new(nvcc).arg(argument).output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => fail(&format!("{} could not be started: {error}", nvcc.display())),
    }
}
