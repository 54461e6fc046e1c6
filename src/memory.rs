//! What the operating system says about memory; nothing where it says nothing.

use oxgpt_engine::backend::cuda;
use oxgpt_engine::engine::Device;
use std::fs;

/// Bytes that a model can still get on a device: on a GPU what is free but for what loading takes, else what programs can get
/// without anything being swapped out.
pub fn available(device: Device) -> Option<u64> {
    if let Device::Cuda(ordinal) = device {
        return Some(cuda::device(ordinal).ok()?.free.saturating_sub(cuda::CudaPlan::LOADING));
    }
    kibibytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// Starts to measure [`peak_resident`] anew; without effect where the system cannot do that.
pub fn reset_peak_resident() {
    // What Linux calls the 5th way to clear references (proc_pid_clear_refs(5)).
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// The most bytes of this process that were resident, those of mapped files included.
pub fn peak_resident() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// The bytes of a line of `/proc`, which counts in KiB.
fn kibibytes(text: &str, label: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_are_read() {
        let text = "MemTotal:  8000 kB\nMemFree:  10 kB\nMemAvailable:    4000 kB\n";
        assert_eq!(kibibytes(text, "MemAvailable:"), Some(4_096_000));
        assert_eq!(kibibytes("MemTotal:  8000 kB\n", "MemAvailable:"), None);
        assert_eq!(kibibytes("MemAvailable:  much\n", "MemAvailable:"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_is_measured_anew() {
        let touched = vec![1u8; 256 << 20];
        assert!(std::hint::black_box(touched.iter().all(|&byte| byte == 1)));
        assert!(peak_resident().unwrap() >= 256 << 20);
        drop(touched);
        reset_peak_resident();
        assert!(peak_resident().unwrap() < 256 << 20);
    }
}
