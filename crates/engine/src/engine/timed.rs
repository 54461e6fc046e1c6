//! How long calls of the device take, so that what is left of a step is known: planning, looking for prefixes, handing out tokens.

use crate::backend::{DeviceError, LaunchTime};
use crate::batch::Batch;
use crate::model::executor::Executor;
use crate::sampler::{Pick, Picked};
use std::time::Instant;

/// An executor whose calls are timed.
pub(super) struct Timed {
    executor: Box<dyn Executor>,
    /// Seconds of all calls so far.
    pub seconds: f64,
}

impl Timed {
    pub fn new(executor: Box<dyn Executor>) -> Self {
        Timed { executor, seconds: 0.0 }
    }

    fn time<T>(&mut self, call: impl FnOnce(&mut dyn Executor) -> T) -> T {
        let start = Instant::now();
        let result = call(&mut *self.executor);
        self.seconds += start.elapsed().as_secs_f64();
        result
    }
}

impl Executor for Timed {
    fn forward(&mut self, batch: &Batch) -> Result<(), DeviceError> {
        self.time(|executor| executor.forward(batch))
    }

    fn read(&mut self, out: &mut Vec<f32>) -> Result<(), DeviceError> {
        self.time(|executor| executor.read(out))
    }

    fn choose(&mut self, picks: &mut [Pick<'_>]) -> Result<(), DeviceError> {
        self.time(|executor| executor.choose(picks))
    }

    fn chosen(&mut self) -> Result<Vec<Picked>, DeviceError> {
        self.time(|executor| executor.chosen())
    }

    fn profile(&mut self, batch: &Batch) -> Result<Vec<LaunchTime>, DeviceError> {
        self.time(|executor| executor.profile(batch))
    }

    fn runs_ahead(&self) -> bool {
        self.executor.runs_ahead()
    }
}
