//! A text as one vector: the hidden states of its tokens, before the head, made into one.

use super::{Engine, EngineError, HeldSequence, SCORE_ROWS};
use crate::batch::{Batch, Logits};
use crate::model::executor::Executor;
use crate::sequence::SequenceId;

/// How the hidden states of a text's tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the last token, which alone has seen all others.
    Last,
}

/// A text on its way to a vector; see [`Engine::embed`].
#[derive(Debug)]
pub struct Embedding {
    tokens: Vec<u32>,
    pooling: Pooling,
    held: Option<HeldSequence>,
    /// Its place among the sequences, once it was seen.
    place: Option<SequenceId>,
    sum: Vec<f64>,
}

impl Embedding {
    /// The start of the work on a text.
    pub fn new(tokens: Vec<u32>, pooling: Pooling) -> Self {
        Embedding { tokens, pooling, held: None, place: None, sum: Vec::new() }
    }
}

impl Engine {
    /// Computes the next chunk of a text, and returns its vector when that was the last one. Also `None` while other
    /// sequences hold the room that it needs; those that come later do not start before it then. A text that is not finished has to be given up with
    /// [`Engine::give_up`].
    ///
    /// # Errors
    /// When the text is empty, too long for the context or has unknown tokens, or when the device failed.
    pub fn embed(&mut self, embedding: &mut Embedding) -> Result<Option<Vec<f32>>, EngineError> {
        let Embedding { tokens, pooling, held, place, sum } = embedding;
        if held.is_none() {
            self.check_tokens(tokens)?;
            let place = *place.get_or_insert_with(|| self.new_id());
            if self.scheduler.may_take_blocks(place) {
                *held = self.hold(tokens.len());
            }
            match held {
                Some(_) => self.scheduler.forget_guest(place),
                None => self.scheduler.hold_back_after(place),
            }
        }
        let Some(mut sequence) = held.take() else { return Ok(None) };
        let start = sequence.positions;
        let rows = match pooling {
            Pooling::Mean => self.chunk.min(SCORE_ROWS),
            Pooling::Last => self.chunk,
        };
        let end = tokens.len().min(start + rows);
        let is_last = end == tokens.len();
        let wanted = match pooling {
            Pooling::Mean => Logits::All,
            Pooling::Last if is_last => Logits::Last,
            Pooling::Last => Logits::None,
        };
        let hidden = match self.hidden(&mut sequence, &tokens[start..end], wanted) {
            Ok(hidden) => hidden,
            Err(error) => {
                self.release(sequence);
                return Err(error);
            }
        };
        sum.resize(hidden.width, 0.0);
        for row in hidden.values.chunks_exact(hidden.width) {
            sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        if !is_last {
            *held = Some(sequence);
            return Ok(None);
        }
        self.release(sequence);
        let count = if *pooling == Pooling::Mean { tokens.len() as f64 } else { 1.0 };
        Ok(Some(sum.iter().map(|sum| (sum / count) as f32).collect()))
    }

    /// Gives back what a text holds that is not wanted any more.
    pub fn give_up(&mut self, embedding: Embedding) {
        if let Some(place) = embedding.place {
            self.scheduler.forget_guest(place);
        }
        if let Some(sequence) = embedding.held {
            self.release(sequence);
        }
    }

    /// The final hidden states of the wanted ones among the next tokens of a sequence.
    fn hidden(
        &mut self,
        sequence: &mut HeldSequence,
        tokens: &[u32],
        wanted: Logits,
    ) -> Result<Hidden<'_>, EngineError> {
        let mut batch = Batch::new(self.groups);
        batch.wants_hidden = true;
        let end = sequence.positions + tokens.len();
        let reached = self.kv.extend(&mut sequence.kv, sequence.positions, end);
        assert_eq!(reached, end, "a sequence stays within the positions that it holds");
        let HeldSequence { kv, is_long, positions } = sequence;
        batch.push(tokens, *positions, *is_long, &kv.tables, wanted);
        *positions = end;
        self.executor.forward(&batch)?;
        self.executor.read(&mut self.logits)?;
        Ok(Hidden { values: &self.logits, width: self.hidden_width })
    }
}

/// Hidden states, row by row.
struct Hidden<'a> {
    values: &'a [f32],
    width: usize,
}
