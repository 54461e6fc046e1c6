//! How many threads are worth starting: the physical cores that this process may use.

use std::collections::BTreeSet;
use std::fs;
use std::thread::available_parallelism;

/// Physical cores that this process may use: a second thread on a core gains nothing where memory is the limit.
///
/// A process may be bound to some processors (`taskset`, a container's cpuset) or limited to a share of their time (a
/// control group's quota), and both hold here.
pub fn physical_cores() -> usize {
    // Knows of the affinity and of the quota, but counts each hardware thread of a core.
    let processors = available_parallelism().map_or(1, usize::from);
    bound_cores().unwrap_or_else(num_cpus::get_physical).clamp(1, processors)
}

/// The cores that this process is bound to, where Linux tells.
fn bound_cores() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    count_cores(allowed, |processor| {
        let folder = format!("/sys/devices/system/cpu/cpu{processor}/topology");
        fs::read_to_string(format!("{folder}/thread_siblings_list")).ok()
    })
}

/// The cores behind a list of processors such as `0-3,8`, given the list of those that share a core with one.
fn count_cores(allowed: &str, siblings: impl Fn(usize) -> Option<String>) -> Option<usize> {
    let mut cores = BTreeSet::new();
    for range in allowed.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        for processor in first..=last {
            // The list of siblings is the same for each of them, so it names the core.
            cores.insert(siblings(processor)?);
        }
    }
    Some(cores.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four cores with two threads each, numbered as Linux does on most machines.
    fn siblings(processor: usize) -> Option<String> {
        (processor < 8).then(|| format!("{},{}", processor % 4, processor % 4 + 4))
    }

    #[test]
    fn threads_of_one_core_count_once() {
        assert_eq!(count_cores("0-7\n", siblings), Some(4));
        assert_eq!(count_cores("\t0-3", siblings), Some(4), "one thread of each");
        assert_eq!(count_cores("0,4", siblings), Some(1), "both threads of one");
        assert_eq!(count_cores("1-2,5", siblings), Some(2));
        assert_eq!(count_cores("6", siblings), Some(1));
    }

    #[test]
    fn what_is_not_understood_is_no_answer() {
        for allowed in ["", "0-", "a", "0-8", "0;1"] {
            assert_eq!(count_cores(allowed, siblings), None, "{allowed}");
        }
    }

    #[test]
    fn there_is_a_core_and_no_more_than_processors() {
        let processors = available_parallelism().map_or(1, usize::from);
        assert!((1..=processors).contains(&physical_cores()));
    }
}
