//! Where the time of a pass goes.
//!
//! A launch begins while the one before it ends, so none has a time of its own. What it adds has: a pass is recorded up to each of its
//! launches, and the times of these passes, each without what follows, are taken from one another.

use super::passes::Rehearsal;
use super::{Cuda, LaunchTime, attempt};
use crate::batch::Batch;

/// Runs of each part of a pass, of which the median counts.
const RUNS: usize = 15;

impl Cuda {
    /// See [`Backend::profile`](crate::backend::Backend::profile).
    pub(super) fn profile_pass(
        &mut self,
        batch: &Batch,
        pass: &mut dyn FnMut(&mut Self, &Batch),
    ) -> Vec<LaunchTime> {
        let gpu = self.gpu.clone();
        let (mut times, mut before) = (Vec::new(), 0.0);
        loop {
            let first = times.len() + 1;
            self.rehearsal = Some(Rehearsal::Recording { begun: false });
            let ((), launches) = gpu.launch_first(first, || pass(self, batch));
            let Some(Rehearsal::Recording { begun: true }) = self.rehearsal.take() else { break };
            let recorded = gpu.finish_recording(&self.arena);
            let seconds = attempt(&mut self.failure, || {
                let graph = recorded?;
                let mut seconds =
                    (0..RUNS)
                        .map(|_| gpu.time(|| graph.launch()))
                        .collect::<Result<Vec<_>, _>>()?;
                seconds.sort_by(f64::total_cmp);
                Ok(seconds[RUNS / 2])
            });
            let (Some(seconds), Some(launch)) = (seconds, launches.get(first - 1)) else { break };
            times.push(LaunchTime {
                kernel: launch.kernel,
                bytes: launch.bytes,
                seconds: seconds - before,
            });
            before = seconds;
            if first == launches.len() {
                break;
            }
        }
        times
    }
}
