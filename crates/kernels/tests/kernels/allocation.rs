//! No memory is taken after all is ready.

use crate::common::gpu;
use oxgpt_kernels::Buf;
use std::process::Command;

/// Set where the test runs itself in another process.
const INNER: &str = "OXGPT_TEST_ALLOCATES";

#[test]
fn memory_taken_too_late_ends_the_process() {
    let Some(gpu) = gpu() else { return };
    if std::env::var_os(INNER).is_some() {
        let other = gpu.with_own_stream().unwrap();
        gpu.ready();
        // What belongs to another stream is another's.
        Buf::<f32>::new(&other, 1000).unwrap();
        println!("so far");
        let _ = Buf::<f32>::new(&gpu, 1000);
        return;
    }
    let run = |aborts: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = "allocation::memory_taken_too_late_ends_the_process";
        command.args(["--exact", name, "--nocapture"]).env(INNER, "1");
        command.env("OXGPT_ABORT_ON_ALLOCATION", aborts).output().unwrap()
    };
    assert!(run("0").status.success(), "nothing is looked at where nobody asked");
    let output = run("1");
    let (told, error) = (output.stdout, String::from_utf8(output.stderr).unwrap());
    assert!(!output.status.success(), "{error}");
    assert!(String::from_utf8(told).unwrap().contains("so far"));
    assert!(error.contains("4096 bytes of cuda:0 are taken by "), "{error}");
    assert!(error.contains("allocation.rs:") && error.contains("after all was ready"), "{error}");
}
