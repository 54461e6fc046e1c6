//! Which sequences run, and what the next batch computes. Only this file moves sequences between states.
//!
//! Continuous batching: each step has one row for every sequence that is generating, and the room that is left goes
//! to prompts, in chunks, in the order in which they came. A prompt that begins as one that is being computed waits for
//! it, and takes its blocks over.

use crate::batch::{Batch, Logits};
use crate::kv::{BLOCK_SIZE, KvPools, PrefixUse};
use crate::sequence::{Constraint, Sequence, SequenceId};
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
    sharing: PrefixSharing,
}

/// Which keys and values later sequences may take over, where they begin with the same tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixSharing {
    /// None.
    Off,
    /// Those of prompts. On a device that computes generated tokens in another way than prompts, only these are what a
    /// later prompt would be computed to.
    Prompts,
    /// Those of prompts and answers.
    All,
}

/// The next batch, and what it is for.
pub(crate) struct Plan {
    pub batch: Batch,
    /// The running sequences that get a token from it, in the order of its logit rows.
    pub sampled: Vec<SequenceId>,
    /// The sequences that were waiting until now, and what they took over.
    pub started: Vec<(SequenceId, PrefixUse)>,
}

impl Scheduler {
    pub fn new(max_sequences: usize, max_rows: usize, sharing: PrefixSharing) -> Self {
        let (waiting, running) = (VecDeque::new(), Vec::new());
        Scheduler { waiting, running, max_sequences, max_rows, sharing }
    }

    pub fn submit(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Starts what fits and lays out the next batch.
    pub fn plan(&mut self, kv: &mut KvPools, groups: usize) -> Plan {
        let started = self.admit(kv);
        let mut plan = Plan { batch: Batch::new(groups), sampled: Vec::new(), started };
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
    fn admit(&mut self, kv: &mut KvPools) -> Vec<(SequenceId, PrefixUse)> {
        let mut started = Vec::new();
        let mut index = 0;
        while self.running.len() < self.max_sequences
            && let Some(next) = self.waiting.get(index)
        {
            if self.gains_by_waiting(next, kv) {
                index += 1;
                continue;
            }
            let Some(mut blocks) = kv.reserve(next.max_positions()) else { break };
            let Some(mut sequence) = self.waiting.remove(index) else { break };
            let mut prefix = PrefixUse { cached: 0, miss: None };
            if self.sharing != PrefixSharing::Off {
                prefix = kv.share(&mut blocks, &sequence.tokens, sequence.is_long);
            }
            sequence.computed = prefix.cached;
            sequence.kv = Some(blocks);
            started.push((sequence.id, prefix));
            self.running.push(sequence);
        }
        started
    }

    /// Whether a prompt that is being computed begins with more blocks of `next` than there are already.
    fn gains_by_waiting(&self, next: &Sequence, kv: &KvPools) -> bool {
        if self.sharing == PrefixSharing::Off {
            return false;
        }
        let common = |sequence: &Sequence| {
            let pairs = sequence.tokens.iter().zip(&next.tokens[..next.tokens.len() - 1]);
            pairs.take_while(|(one, other)| one == other).count() / BLOCK_SIZE * BLOCK_SIZE
        };
        let under_way = self.running.iter();
        let under_way = under_way.filter(|s| s.in_prefill() && s.is_long == next.is_long);
        let most = under_way.map(common).max().unwrap_or(0);
        most > 0 && most > kv.cached(&next.tokens, next.is_long)
    }

    /// Lets others take over what the last batch has stored.
    pub fn stored(&mut self, kv: &mut KvPools) {
        for sequence in &mut self.running {
            let end = match self.sharing {
                PrefixSharing::Off => continue,
                PrefixSharing::Prompts => sequence.computed.min(sequence.prompt_tokens),
                PrefixSharing::All => sequence.computed,
            };
            if let Some(blocks) = &mut sequence.kv {
                kv.publish(blocks, &sequence.tokens[..end]);
            }
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

    /// Those of `ids` that run, each with its place there.
    pub fn sampled(&mut self, ids: &[SequenceId]) -> impl Iterator<Item = (&mut Sequence, usize)> {
        let place = |sequence: &Sequence| ids.iter().position(|id| *id == sequence.id);
        self.running.iter_mut().filter_map(move |sequence| {
            let place = place(sequence)?;
            Some((sequence, place))
        })
    }

    /// The constraints of those among `ids` that have one.
    pub fn constraints(
        &mut self,
        ids: &[SequenceId],
    ) -> Vec<(SequenceId, &mut Box<dyn Constraint>)> {
        let sampled = self.running.iter_mut().filter(|sequence| ids.contains(&sequence.id));
        sampled.filter_map(|sequence| Some((sequence.id, sequence.constraint.as_mut()?))).collect()
    }

    /// The sequences that run.
    pub fn running(&self) -> Vec<SequenceId> {
        self.running.iter().map(|sequence| sequence.id).collect()
    }

    /// How many sequences wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
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
