//! A loaded model on a backend, behind one call that does not name the backend.

use super::Model;
use super::forward::{Scratch, forward};
use super::spec::Decoder;
use super::weights::Load;
use crate::backend::{Backend, DeviceError, LaunchTime};
use crate::batch::Batch;
use crate::engine::EngineError;
use crate::kv::{KvGroup, KvLayout};
use crate::sampler::{Pick, Picked};
use std::collections::VecDeque;

/// Runs batches through a loaded model.
pub trait Executor: Send {
    /// Computes `batch`. On a device of its own that may go on after the call.
    ///
    /// # Errors
    /// When the device failed.
    fn forward(&mut self, batch: &Batch) -> Result<(), DeviceError>;

    /// Brings what the last batch gave to the host: the logits of its wanted rows, (logit_rows, head rows), or their hidden states.
    ///
    /// # Errors
    /// When the device failed.
    fn read(&mut self, out: &mut Vec<f32>) -> Result<(), DeviceError>;

    /// Begins to choose by the logits of the last batch, once and in place of [`Executor::read`]: they may be changed by it.
    ///
    /// # Errors
    /// When the device failed.
    fn choose(&mut self, picks: &mut [Pick<'_>]) -> Result<(), DeviceError>;

    /// What was chosen, of the choices that were begun first and not asked for yet.
    ///
    /// # Errors
    /// When the device failed.
    fn chosen(&mut self) -> Result<Vec<Picked>, DeviceError>;

    /// What each launch of a batch of generated tokens takes, whose keys and values are stored anew: see [`Backend::profile`].
    ///
    /// # Errors
    /// When the device failed.
    fn profile(&mut self, batch: &Batch) -> Result<Vec<LaunchTime>, DeviceError>;

    /// Whether a batch may follow choices that were only begun ([`Batch::follows`]). Two may be on their way.
    fn runs_ahead(&self) -> bool;
}

/// The largest batch that an executor has room for.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Rows of one batch.
    pub rows: usize,
    /// Rows that want logits.
    pub logit_rows: usize,
}

struct Loaded<B: Backend> {
    backend: B,
    decoder: Decoder<B::Matrix, B::Vector>,
    layout: KvLayout,
    kv: Vec<B::Kv>,
    scratch: Scratch<B>,
    /// Whether the last batch gave hidden states.
    gave_hidden: bool,
    /// Room for logits on the host.
    host: Vec<f32>,
    /// What was chosen and not asked for; `None` where the backend has it.
    chosen: VecDeque<Option<Vec<Picked>>>,
}

/// Loads the weights of `model` into `backend`, with room for the KV blocks of `groups`. `loaded` is told the bytes
/// of each tensor.
///
/// # Errors
/// When a tensor is missing, though [`Model::open`] has checked all, or when the device failed.
pub fn load<B: Backend + 'static>(
    mut backend: B,
    model: &Model,
    layout: KvLayout,
    groups: &[KvGroup],
    limits: BatchLimits,
    loaded: &mut dyn FnMut(usize),
) -> Result<Box<dyn Executor>, EngineError> {
    let mut load = Load { checkpoint: &model.checkpoint, backend: &mut backend, loaded };
    let decoder = model.description.decoder.map(&mut load)?;
    let mut kv: Vec<B::Kv> = decoder
        .layers
        .iter()
        .zip(&layout.group_of_layer)
        .map(|(layer, group)| backend.kv(groups[*group].blocks, &layer.attention.shape))
        .collect();
    let mut scratch = Scratch::new(&mut backend, &decoder, limits.rows, limits.logit_rows);
    backend.status()?;
    backend.rehearse(&mut |backend, batch| {
        forward(backend, &decoder, &layout, &mut kv, batch, &mut scratch);
    });
    backend.status()?;
    let (gave_hidden, host, chosen) = (false, Vec::new(), VecDeque::new());
    Ok(Box::new(Loaded { backend, decoder, layout, kv, scratch, gave_hidden, host, chosen }))
}

impl<B: Backend> Executor for Loaded<B> {
    fn forward(&mut self, batch: &Batch) -> Result<(), DeviceError> {
        let Loaded { backend, decoder, layout, kv, scratch, .. } = self;
        forward(backend, decoder, layout, kv, batch, scratch);
        self.gave_hidden = batch.wants_hidden;
        self.backend.status()
    }

    fn read(&mut self, out: &mut Vec<f32>) -> Result<(), DeviceError> {
        let Scratch { logits, normed, .. } = &self.scratch;
        self.backend.read(out, if self.gave_hidden { normed } else { logits });
        self.backend.status()
    }

    fn choose(&mut self, picks: &mut [Pick<'_>]) -> Result<(), DeviceError> {
        let Loaded { backend, decoder, scratch, host, chosen, .. } = self;
        chosen.push_back(backend.choose(&mut scratch.logits, decoder.head.rows, picks, host));
        backend.status()
    }

    fn chosen(&mut self) -> Result<Vec<Picked>, DeviceError> {
        let picked = match self.chosen.pop_front().flatten() {
            Some(picked) => picked,
            None => self.backend.chosen(),
        };
        self.backend.status()?;
        Ok(picked)
    }

    fn profile(&mut self, batch: &Batch) -> Result<Vec<LaunchTime>, DeviceError> {
        let Loaded { backend, decoder, layout, kv, scratch, .. } = self;
        let times = backend.profile(batch, &mut |backend, batch| {
            forward(backend, decoder, layout, kv, batch, scratch);
        });
        backend.status()?;
        Ok(times)
    }

    fn runs_ahead(&self) -> bool {
        self.backend.runs_ahead()
    }
}
