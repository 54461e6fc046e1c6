//! Which sequences run, and what the next batch computes. Only this file moves sequences between states.
//!
//! Continuous batching: each step has one row for every sequence that is generating, and the room that is left goes
//! to prompts, in chunks, in the order in which they came.

use crate::batch::{Batch, Logits};
use crate::kv::KvPools;
use crate::sequence::{Sequence, SequenceId};
use std::collections::VecDeque;

/// Sequences that wait and sequences that run.
#[derive(Debug)]
pub(crate) struct Scheduler {
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    /// The most sequences that run at once.
    max_sequences: usize,
    /// The most rows of one batch.
    max_rows: usize,
}

/// The next batch, and which running sequences get a token from it, in the order of its logit rows.
pub(crate) struct Plan {
    pub batch: Batch,
    pub sampled: Vec<SequenceId>,
}

impl Scheduler {
    pub fn new(max_sequences: usize, max_rows: usize) -> Self {
        Scheduler { waiting: VecDeque::new(), running: Vec::new(), max_sequences, max_rows }
    }

    pub fn submit(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Starts what fits and lays out the next batch.
    pub fn plan(&mut self, kv: &mut KvPools, groups: usize) -> Plan {
        self.admit(kv);
        let mut plan = Plan { batch: Batch::new(groups), sampled: Vec::new() };
        // Generating sequences first: their users are reading.
        for prefill in [false, true] {
            for sequence in self.running.iter_mut().filter(|s| s.in_prefill() == prefill) {
                let room = self.max_rows - plan.batch.rows();
                let start = sequence.computed;
                let end = sequence.tokens.len().min(start + room);
                if start == end {
                    continue;
                }
                let blocks = sequence.kv.as_mut().expect("a running sequence has blocks");
                kv.extend(blocks, start, end);
                let last = end == sequence.tokens.len();
                let logits = if last { Logits::Last } else { Logits::None };
                let tokens = &sequence.tokens[start..end];
                plan.batch.push(tokens, start, sequence.is_long, &blocks.tables, logits);
                sequence.computed = end;
                if last {
                    plan.sampled.push(sequence.id);
                }
            }
            if !prefill {
                plan.batch.generated = plan.batch.rows();
            }
        }
        plan
    }

    /// Moves waiting sequences to the running ones, in order, while there is room for them.
    fn admit(&mut self, kv: &mut KvPools) {
        while self.running.len() < self.max_sequences
            && let Some(first) = self.waiting.front()
            && let Some(blocks) = kv.reserve(first.max_positions())
            && let Some(mut sequence) = self.waiting.pop_front()
        {
            sequence.kv = Some(blocks);
            self.running.push(sequence);
        }
    }

    /// Has a sequence computed again from its start, as the long ones are.
    pub fn restart_as_long(&mut self, id: SequenceId, kv: &mut KvPools) {
        if let Some(sequence) = self.running_mut(id)
            && let Some(blocks) = &mut sequence.kv
        {
            kv.clear(blocks);
            (sequence.computed, sequence.is_long) = (0, true);
            // Its answer so far is computed like a prompt.
            sequence.prompt_tokens = sequence.tokens.len();
        }
    }

    /// A running sequence.
    pub fn running_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.running.iter_mut().find(|sequence| sequence.id == id)
    }

    /// The sequences that run.
    pub fn running(&self) -> Vec<SequenceId> {
        self.running.iter().map(|sequence| sequence.id).collect()
    }

    /// Ends a sequence, wherever it is, and frees its blocks.
    pub fn remove(&mut self, id: SequenceId, kv: &mut KvPools) {
        self.waiting.retain(|sequence| sequence.id != id);
        if let Some(index) = self.running.iter().position(|sequence| sequence.id == id)
            && let Some(blocks) = self.running.remove(index).kv
        {
            kv.release(blocks);
        }
    }
}
