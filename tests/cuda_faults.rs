//! What the program says when a GPU cannot be used: one sentence, exit code 1, and the CPU is still there. The driver is a
//! stand-in that fails as it is told, since a machine with a working GPU cannot show these faults.
#![cfg(target_os = "linux")]

mod common;

use common::{oxgpt, stdout};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The folder with the stand-in, built once.
fn stand_in() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("stand-in");
        std::fs::create_dir_all(&folder).unwrap();
        let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
        let library = folder.join("libcuda.so.1");
        let built = Command::new(rustc)
            .args(["--edition", "2024", "--crate-type", "cdylib", "-C", "opt-level=1", "-o"])
            .arg(&library)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stand_in/libcuda.rs"))
            .status();
        assert!(built.unwrap().success(), "the stand-in builds");
        // The name that is tried first where there is a real driver.
        std::fs::copy(&library, folder.join("libcuda.so")).unwrap();
        folder
    })
}

fn run(fault: &str, device: &str) -> Output {
    oxgpt()
        .env("LD_LIBRARY_PATH", stand_in())
        .env("OXGPT_STAND_IN", fault)
        .args(["run", "--device", device, "-n", "2", "--temperature", "0", "Once upon"])
        .output()
        .unwrap()
}

/// Why this build has no kernels, if it has none.
fn not_built() -> bool {
    stdout(oxgpt().arg("--version")).contains("no CUDA kernels")
}

#[test]
fn every_fault_is_one_sentence() {
    let faults = [
        ("old driver", "the CUDA driver supports CUDA 12.4, but this build needs 13.0 or newer"),
        ("no device", "the CUDA driver finds no device"),
        ("broken driver", "the CUDA driver failed in cuInit: CUDA_ERROR_UNKNOWN: unknown error"),
        ("old device", "Stand-in has compute capability 7.5, but 8.0 or newer is needed"),
        ("other devices", "Stand-in has compute capability 9.0, but this build has kernels for"),
    ];
    for (fault, sentence) in faults {
        let sentence =
            if not_built() { "this build of oxgpt has no CUDA kernels" } else { sentence };
        let output = run(fault, "cuda");
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{fault}: {error}");
        assert!(error.starts_with(&format!("error: cuda:0: {sentence}")), "{fault}: {error}");
        assert_eq!(error.lines().count(), 1, "{fault}: {error}");
        assert!(output.stdout.is_empty());

        // The CPU takes its place where any device will do, and says why.
        let output = run(fault, "auto");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "{fault}: {told}");
        assert!(told.starts_with("device: cpu (") && told.contains(sentence), "{fault}: {told}");
        assert!(run(fault, "cpu").status.success());
    }
}

#[test]
fn a_device_that_is_not_there_is_named() {
    if not_built() {
        return;
    }
    let output = run("", "cuda:7");
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        error,
        "error: cuda:7: there is no device cuda:7: the CUDA driver finds 1, numbered from 0\n"
    );
}

#[test]
fn too_little_memory_is_refused_before_loading() {
    if not_built() {
        return;
    }
    let output = run("little memory", "cuda");
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("cuda:0 has 1048576 bytes free, but"), "{error}");
    assert!(error.contains("for weights") && error.contains("a smaller context"), "{error}");
}

#[test]
fn a_kernel_that_fails_ends_the_program_with_a_sentence() {
    if not_built() {
        return;
    }
    let output = run("", "cuda");
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    let sentence = "cuda:0: the CUDA driver failed in cuLaunchKernelEx: CUDA_ERROR_ILLEGAL_ADDRESS";
    assert!(error.contains(sentence), "{error}");
}
