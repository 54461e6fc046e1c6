//! Passes of generated tokens alone, recorded while a model is loaded: one for each of a few numbers of rows and lengths of
//! contexts. A batch takes the next larger one, whose further rows repeat one of its own.

use super::{Cuda, attempt, products::MOST_EXACT_ROWS};
use crate::batch::{Batch, Logits};
use crate::speculation;
use oxgpt_kernels::Graph;

/// What the launches of a pass depend on, beside the arrays of its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PassShape {
    pub rows: usize,
    /// The last position that a row may have.
    pub last: usize,
    /// Whether each row is of a sequence of its own. Else what is stored for a row is seen by others.
    pub is_separate: bool,
}

// Drafts must not change how tokens are multiplied.
const _: () = assert!(speculation::MOST_ROWS <= MOST_EXACT_ROWS);

/// Rows of the largest pass that is recorded: with more, the launches take less time than what is launched.
const MOST_RECORDED_ROWS: usize = 64;

/// With more rows than are computed exactly, as many share the reading of weights, or more, so that further rows cost little.
const ROWS_STEP: usize = 8;

/// The numbers of rows of recorded passes, for up to `sequences` sequences. Exact products take longer with each row, so each number
/// of them has a pass of its own.
fn recorded_rows(sequences: usize) -> impl Iterator<Item = usize> {
    let most = sequences.min(MOST_RECORDED_ROWS);
    let more = (MOST_EXACT_ROWS + ROWS_STEP..).step_by(ROWS_STEP).map(move |rows| rows.min(most));
    let more = more.take(most.saturating_sub(MOST_EXACT_ROWS).div_ceil(ROWS_STEP));
    (1..=MOST_EXACT_ROWS.min(most)).chain(more)
}

/// The recorded passes.
pub(super) struct Passes {
    /// Those of each kind by ascending rows, then last positions. There is no graph before it is recorded.
    passes: Vec<(PassShape, Option<Graph>)>,
}

impl Passes {
    /// The passes to record for up to `sequences` sequences, and with drafts for up to `drafted` rows, where `lasts` has the last
    /// positions for a number of rows.
    pub fn new(sequences: usize, drafted: usize, lasts: impl Fn(usize) -> Vec<usize>) -> Self {
        let separate = recorded_rows(sequences).map(|rows| (rows, true));
        let shapes = separate.chain((2..=drafted).map(|rows| (rows, false)));
        let shapes = shapes.flat_map(|(rows, is_separate)| {
            lasts(rows).into_iter().map(move |last| PassShape { rows, last, is_separate })
        });
        Passes { passes: shapes.map(|shape| (shape, None)).collect() }
    }

    /// The least pass that has room for a batch, if one was recorded.
    pub fn fitting(&self, batch: &Batch) -> Option<(PassShape, &Graph)> {
        let last = batch.positions.iter().max().map_or(0, |last| *last as usize);
        let (rows, is_separate) = (batch.rows(), batch.rows() == batch.sequences());
        let fits = |(shape, _): &&(PassShape, _)| {
            shape.rows >= rows && shape.last >= last && shape.is_separate == is_separate
        };
        let (shape, graph) = self.passes.iter().find(fits)?;
        Some((*shape, graph.as_ref()?))
    }
}

/// How passes are gone through while nothing is computed.
pub(super) enum Rehearsal {
    /// What they launch is loaded.
    Loading,
    /// What they launch is recorded.
    Recording {
        /// Whether that has begun.
        begun: bool,
    },
}

impl Cuda {
    /// See [`Backend::rehearse`](crate::backend::Backend::rehearse).
    pub(super) fn rehearse_passes(&mut self, pass: &mut dyn FnMut(&mut Self, &Batch)) {
        let gpu = self.gpu.clone();
        let shapes: Vec<PassShape> = self.passes.passes.iter().map(|(shape, _)| *shape).collect();
        let generated: Vec<Batch> = shapes.iter().map(|shape| self.generated(*shape)).collect();
        self.rehearsal = Some(Rehearsal::Loading);
        gpu.load_only(|| {
            for batch in generated.iter().chain(&self.prompts()) {
                pass(self, batch);
            }
            let Cuda { failure, chooser, .. } = self;
            attempt(failure, || chooser.load(&gpu));
        });
        for (index, batch) in generated.iter().enumerate() {
            self.rehearsal = Some(Rehearsal::Recording { begun: false });
            pass(self, batch);
            let Some(Rehearsal::Recording { begun: true }) = self.rehearsal else { break };
            // Also after a failure: the stream must not stay as it is.
            let recorded = gpu.finish_recording(&self.arena);
            let Cuda { failure, passes, .. } = self;
            attempt(failure, || {
                passes.passes[index].1 = Some(recorded?);
                Ok(())
            });
        }
        self.rehearsal = None;
        attempt(&mut self.failure, || gpu.synchronize());
    }

    /// A batch of generated tokens, of which nothing but the shape is looked at.
    fn generated(&self, PassShape { rows, last, is_separate }: PassShape) -> Batch {
        let mut batch = Batch::new(self.batch.groups());
        let tables = vec![Vec::new(); self.batch.groups()];
        let (sequences, each) = if is_separate { (rows, 1) } else { (1, rows) };
        (0..sequences).for_each(|_| batch.push(&vec![0; each], last, false, &tables, Logits::All));
        batch.positions.fill(last as u32);
        batch.generated = rows;
        batch
    }

    /// Batches with prompts, beside generated tokens or not, which between them launch what such batches do.
    fn prompts(&self) -> Vec<Batch> {
        let most = self.batch.rows();
        let tables = vec![Vec::new(); self.batch.groups()];
        let batch = |generated: usize, prompt: usize| {
            let shape = PassShape { rows: generated, last: 0, is_separate: true };
            let mut batch = self.generated(shape);
            batch.push(&vec![0; prompt], 0, false, &tables, Logits::Last);
            batch
        };
        [(0, most), (0, 1), (2, 1), (MOST_EXACT_ROWS + 1, 1)]
            .into_iter()
            .filter(|(generated, prompt)| generated + prompt <= most)
            .map(|(generated, prompt)| batch(generated, prompt))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_exact_number_of_rows_has_a_pass_and_then_each_eighth() {
        let rows = |sequences| recorded_rows(sequences).collect::<Vec<_>>();
        assert_eq!(rows(1), [1]);
        assert_eq!(rows(5), [1, 2, 3, 4, 5]);
        assert_eq!(rows(8), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(rows(9), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(rows(20)[7..], [8, 16, 20]);
        assert_eq!(rows(64)[7..], [8, 16, 24, 32, 40, 48, 56, 64]);
        assert_eq!(rows(1000), rows(64));
    }

    #[test]
    fn as_few_last_positions_as_needed() {
        let shape = |window| oxgpt_kernels::AttentionShape {
            heads: 64,
            kv_heads: 8,
            head_dim: 64,
            scale: 1.0,
            window,
            soft_cap: None,
        };
        let lasts = |rows, context| oxgpt_kernels::last_positions(132, &shape(None), rows, context);
        assert_eq!(lasts(1, 1), [0]);
        assert_eq!(lasts(1, 512), [511]);
        assert_eq!(lasts(1, 513), [511, 512]);
        assert_eq!(lasts(33, 8192), [511, 1023, 2047, 4095, 8191]);
        // There are blocks enough without splits.
        assert_eq!(lasts(34, 8192), [8191]);
    }
}
