//! Choosing tokens where the logits are.

use super::{Buffer, Cuda, attempt, present, present_mut};
use crate::sampler::{Adjustment, Pick, Picked, SamplingError};
use oxgpt_kernels::{Choice, ChoiceOptions, LogitEdit};

impl Cuda {
    /// See [`Backend::choose`](super::Backend::choose). Only rows whose log-probabilities are asked for come to the host, and they are
    /// waited for.
    pub(super) fn choose_on_device(
        &mut self,
        logits: &mut Buffer,
        width: usize,
        picks: &mut [Pick<'_>],
        host: &mut Vec<f32>,
    ) -> Option<Vec<Picked>> {
        let options: Vec<ChoiceOptions> = picks.iter().map(options).collect();
        let edits: Vec<LogitEdit> = picks.iter().zip(0..).flat_map(edits).collect();
        let masks = picks.iter().filter_map(|pick| Some((pick.row as u32, pick.allowed.mask?)));
        let masks: Vec<(u32, &[u32])> = masks.collect();
        let reported = picks.iter().filter(|pick| pick.logprobs.is_some());
        let reported: Vec<usize> = reported.map(|pick| pick.row).collect();

        let Cuda { gpu, failure, landing, chooser, .. } = self;
        attempt(failure, || {
            // As the model has them: what follows changes them.
            host.resize(reported.len() * width, 0.0);
            for (to, row) in host.chunks_mut(width).zip(&reported) {
                landing.read(&present(&logits.data).part(row * width, width), to)?;
            }
            chooser.choose(gpu, present_mut(&mut logits.data), &options, &edits, &masks)
        });
        if reported.is_empty() {
            return None;
        }
        let mut reported = host.chunks(width);
        let picked = picks.iter().zip(self.chosen_on_device()).map(|(pick, picked)| {
            let logits = pick.logprobs.and_then(|_| reported.next()).unwrap_or_default();
            pick.with_logprobs(picked?.0, logits)
        });
        Some(picked.collect())
    }

    /// See [`Backend::chosen`](super::Backend::chosen).
    pub(super) fn chosen_on_device(&mut self) -> Vec<Picked> {
        let Cuda { failure, chooser, .. } = self;
        let chosen = attempt(failure, || chooser.read()).unwrap_or_default();
        let picked = chosen.into_iter().map(|chosen| match chosen {
            Choice::Token(token) => Ok((token, None)),
            Choice::NotANumber(token) => Err(SamplingError::NotANumber { token }),
            Choice::NoCandidate => Err(SamplingError::NoCandidate),
        });
        picked.collect()
    }
}

fn options(pick: &Pick<'_>) -> ChoiceOptions {
    let options = pick.sampler.options();
    let (top_p, floor) = pick.sampler.bounds();
    ChoiceOptions {
        seed: options.seed,
        position: pick.position,
        top_p: top_p.unwrap_or(1 << 32),
        temperature: options.temperature,
        floor,
        repeat_penalty: options.repeat_penalty,
        frequency_penalty: options.frequency_penalty,
        presence_penalty: options.presence_penalty,
        top_k: options.top_k,
        choice: pick.choice,
        row: pick.row as u32,
    }
}

fn edits((pick, choice): (&Pick<'_>, u32)) -> impl Iterator<Item = LogitEdit> {
    let adjustments = pick.sampler.adjustments(pick.allowed.except);
    adjustments.into_iter().map(move |Adjustment { token, bias, generated, forbidden }| {
        let what = [
            (bias.is_some(), LogitEdit::BIAS),
            (generated.is_some(), LogitEdit::OCCURRED),
            (forbidden, LogitEdit::FORBIDDEN),
        ];
        LogitEdit {
            choice,
            token,
            bias: bias.unwrap_or(0.0),
            generated: generated.unwrap_or(0),
            what: what.iter().filter(|(applies, _)| *applies).map(|(_, bit)| bit).sum(),
        }
    })
}
