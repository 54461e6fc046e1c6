//! Where the time of a step goes: its launches, those alike together.

use oxgpt_engine::backend::LaunchTime;
use serde::Serialize;
use std::io::{self, Write};

/// Launches of one kernel that read as much.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Step {
    kernel: &'static str,
    launches: usize,
    /// Bytes of weights that one of them reads.
    bytes: u64,
    /// What reading them takes at least, each.
    least_seconds: f64,
    /// What all of them take together.
    seconds: f64,
}

/// Sums launches that are alike, in the order of the first of each.
pub(super) fn steps(launches: &[LaunchTime], read_bandwidth: f64) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for LaunchTime { kernel, bytes, seconds } in launches {
        let alike = |step: &&mut Step| step.kernel == *kernel && step.bytes == *bytes;
        match steps.iter_mut().find(alike) {
            Some(step) => {
                step.launches += 1;
                step.seconds += seconds;
            }
            None => steps.push(Step {
                kernel,
                launches: 1,
                bytes: *bytes,
                least_seconds: *bytes as f64 / read_bandwidth,
                seconds: *seconds,
            }),
        }
    }
    steps
}

/// A line for each, and one for all.
pub(super) fn print(out: &mut impl Write, steps: &[Step]) -> io::Result<()> {
    writeln!(
        out,
        "{:<28}{:>9}{:>10}{:>10}{:>10}{:>10}{:>8}",
        "kernel", "launches", "MB each", "least us", "us each", "us in all", "share"
    )?;
    let all: f64 = steps.iter().map(|step| step.seconds).sum();
    for step in steps {
        writeln!(
            out,
            "{:<28}{:>9}{:>10.2}{:>10.2}{:>10.2}{:>10.1}{:>7.1}%",
            step.kernel,
            step.launches,
            step.bytes as f64 / 1e6,
            step.least_seconds * 1e6,
            step.seconds / step.launches as f64 * 1e6,
            step.seconds * 1e6,
            step.seconds / all * 100.0
        )?;
    }
    let launches: usize = steps.iter().map(|step| step.launches).sum();
    let least: f64 = steps.iter().map(|step| step.least_seconds * step.launches as f64).sum();
    writeln!(
        out,
        "{:<28}{launches:>9}{:>10}{:>10.1}{:>10}{:>10.1}",
        "all",
        "",
        least * 1e6,
        "",
        all * 1e6
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_that_are_alike_are_one_step() {
        let launch = |kernel, bytes, seconds| LaunchTime { kernel, bytes, seconds };
        let launches =
            [launch("a", 4, 1.0), launch("b", 4, 2.0), launch("a", 4, 3.0), launch("a", 8, 5.0)];
        let step = |kernel, launches, bytes, least_seconds, seconds| Step {
            kernel,
            launches,
            bytes,
            least_seconds,
            seconds,
        };
        let expected =
            [step("a", 2, 4, 2.0, 4.0), step("b", 1, 4, 2.0, 2.0), step("a", 1, 8, 4.0, 5.0)];
        assert_eq!(steps(&launches, 2.0), expected);
    }
}
