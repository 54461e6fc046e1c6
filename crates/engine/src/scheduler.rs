//! Which sequences run, and what the next batch computes. Only this file moves sequences between states.
//!
//! Continuous batching: each step has one row for every sequence that is generating, and the room that is left goes
//! to prompts, in chunks, in the order in which they came. A prompt that begins as one that is being computed waits for
//! it, and takes its blocks over.
//!
//! A sequence starts when there are blocks for what it has now, and takes more as it grows. When they run out, the
//! sequence that came last gives up its blocks for those before it: it waits again, in its old place, and later computes
//! what it had once more, with the same result. So the one that came first always goes on, and each becomes the first.
//!
//! Where nothing but generated tokens is computed, a sequence may have a draft of the tokens after its own, as more rows.

#[cfg(test)]
mod tests;

use crate::batch::{Batch, Logits};
use crate::kv::{BLOCK_SIZE, KvPools, PrefixUse};
use crate::sequence::{Constraint, Sequence, SequenceId};
use crate::speculation::{MOST_ROWS, Speculation};
use std::collections::{BTreeSet, VecDeque};

/// Sequences that wait and sequences that run, both in the order in which they came.
#[derive(Debug)]
pub(crate) struct Scheduler {
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    /// The first sequence that could not start for lack of blocks.
    lacks_room: Option<SequenceId>,
    /// Others than sequences that wait for blocks.
    guests: BTreeSet<SequenceId>,
    preemptions: u64,
    /// The most sequences that run at once.
    max_sequences: usize,
    /// The most rows of one batch.
    max_rows: usize,
    sharing: PrefixSharing,
    speculation: Speculation,
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
    /// The running sequences that get tokens from it, each as often as it has logit rows, in their order.
    pub sampled: Vec<SequenceId>,
    /// The sequences that were waiting until now, and what they took over.
    pub started: Vec<(SequenceId, PrefixUse)>,
}

impl Scheduler {
    pub fn new(max_sequences: usize, max_rows: usize, sharing: PrefixSharing) -> Self {
        Scheduler {
            waiting: VecDeque::new(),
            running: Vec::new(),
            lacks_room: None,
            guests: BTreeSet::new(),
            preemptions: 0,
            max_sequences,
            max_rows,
            sharing,
            speculation: Speculation::Off,
        }
    }

    /// From now on, sequences are speculated about.
    pub fn speculate(&mut self, speculation: Speculation) {
        self.speculation = speculation;
    }

    pub fn submit(&mut self, sequence: Sequence) {
        let place = self.waiting.partition_point(|other| other.id < sequence.id);
        self.waiting.insert(place, sequence);
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Starts what fits and lays out the next batch.
    pub fn plan(&mut self, kv: &mut KvPools, groups: usize) -> Plan {
        let started = self.admit(kv);
        self.draft();
        let ends = self.take_blocks(kv);
        let mut plan = Plan { batch: Batch::new(groups), sampled: Vec::new(), started };
        // Generating sequences first: their users are reading.
        for prefill in [false, true] {
            let rows = self.running.iter_mut().zip(&ends);
            for (sequence, &end) in rows.filter(|(s, _)| s.in_prefill() == prefill) {
                let start = sequence.computed;
                if start == end {
                    continue;
                }
                let blocks = sequence.kv.as_ref().expect("a running sequence has blocks");
                let tables = &blocks.tables;
                let known = end.min(sequence.tokens.len());
                let last = known == sequence.tokens.len();
                let tokens = &sequence.tokens[start..known];
                let drafted = &sequence.draft.tokens;
                if drafted.is_empty() {
                    let logits = if last { Logits::Last } else { Logits::None };
                    plan.batch.push(tokens, start, sequence.is_long, tables, logits);
                } else {
                    let tokens = [tokens, drafted].concat();
                    plan.batch.push(&tokens, start, sequence.is_long, tables, Logits::All);
                }
                sequence.computed = known;
                if last {
                    plan.sampled.extend(std::iter::repeat_n(sequence.id, 1 + drafted.len()));
                }
            }
            if !prefill {
                plan.batch.generated = plan.batch.rows();
            }
        }
        plan
    }

    /// Drafts that each sequence may have in a batch of nothing but generated tokens.
    fn room_for_drafts(&self) -> usize {
        let rows = MOST_ROWS.min(self.max_rows).checked_div(self.running.len());
        rows.unwrap_or(0).saturating_sub(1)
    }

    /// Drafts what running sequences may go on with.
    fn draft(&mut self) {
        let are_generating = self.running.iter().all(|sequence| !sequence.in_prefill());
        let room = if are_generating { self.room_for_drafts() } else { 0 };
        for sequence in &mut self.running {
            let length = sequence.tokens.len();
            let is_free = sequence.can_run_ahead() && sequence.computed + 1 == length;
            // The token chosen last needs no row.
            let most =
                if is_free { room.min(sequence.max_length.saturating_sub(length + 1)) } else { 0 };
            sequence.draft.propose(&sequence.tokens, most, self.speculation);
        }
    }

    /// Takes the blocks for the next rows of each running sequence, in the order in which they came, and says where these
    /// rows end. Those that came last are preempted where others need their blocks.
    fn take_blocks(&mut self, kv: &mut KvPools) -> Vec<usize> {
        let generating = self.running.iter().filter(|sequence| !sequence.in_prefill()).count();
        let mut rows_of_prompts = self.max_rows - generating;
        let mut ends = Vec::with_capacity(self.running.len());
        while let Some(sequence) = self.running.get_mut(ends.len()) {
            let start = sequence.computed;
            let in_prefill = sequence.in_prefill();
            let wanted = match in_prefill {
                true => sequence.prompt_tokens.min(start + rows_of_prompts),
                false => start + 1 + sequence.draft.tokens.len(),
            };
            let blocks = sequence.kv.as_mut().expect("a running sequence has blocks");
            let end = kv.extend(blocks, start, wanted);
            sequence.draft.tokens.truncate(end.saturating_sub(start + 1));
            if end == start && start < wanted && self.running.len() > ends.len() + 1 {
                self.preempt_last(kv);
                continue;
            }
            // The last one keeps its blocks until others need them, though it may not go on now.
            if in_prefill {
                rows_of_prompts -= end - start;
            }
            ends.push(end);
        }
        ends
    }

    /// Has the running sequence that came last wait again, without its blocks.
    fn preempt_last(&mut self, kv: &mut KvPools) {
        let Some(mut sequence) = self.running.pop() else { return };
        kv.release(sequence.kv.take().expect("a running sequence has blocks"));
        sequence.computed = 0;
        if self.sharing == PrefixSharing::All {
            // Its answer so far can be computed like a prompt; elsewhere it is computed as it was, a token in each step.
            sequence.prompt_tokens = sequence.tokens.len();
        }
        self.preemptions += 1;
        self.submit(sequence);
    }

    /// Lays out the batch after one whose tokens, those of the `sampled` sequences, are not known yet: the next row of each that
    /// goes on unless its token ends it. `None` where something else may have to come first, or a sequence has to know its token.
    pub fn plan_ahead(
        &mut self,
        sampled: &[SequenceId],
        kv: &mut KvPools,
        groups: usize,
        short_context: Option<usize>,
    ) -> Option<Plan> {
        let may_start = !self.waiting.is_empty() && self.running.len() < self.max_sequences;
        let drafts = self.speculation != Speculation::Off && self.room_for_drafts() > 0;
        let always = self.speculation == Speculation::Always;
        let place = |sequence: &Sequence| sampled.iter().position(|id| *id == sequence.id);
        let goes_on = |sequence: &Sequence| {
            // With the token that is on its way, it is as long as this.
            let length = sequence.tokens.len() + 1;
            let becomes_long = short_context.is_some_and(|short| length > short);
            let may_draft = drafts && (always || sequence.draft.is_awake());
            place(sequence).is_some()
                && !may_draft
                && sequence.can_run_ahead()
                && sequence.is_long == becomes_long
        };
        if may_start || !self.running.iter().all(goes_on) {
            return None;
        }
        let mut plan = Plan { batch: Batch::new(groups), sampled: Vec::new(), started: Vec::new() };
        // The token of one that is not among them is its last.
        let goes_on = |s: &&mut Sequence| s.tokens.len() + 1 < s.max_length;
        for sequence in self.running.iter_mut().filter(goes_on) {
            let position = sequence.tokens.len();
            let blocks = sequence.kv.as_mut().expect("a running sequence has blocks");
            if kv.extend(blocks, position, position + 1) == position {
                // Somebody has to give up blocks first.
                return None;
            }
        }
        for sequence in self.running.iter_mut().filter(goes_on) {
            let position = sequence.tokens.len();
            let pick = place(sequence)? as u32;
            let blocks = sequence.kv.as_ref().expect("a running sequence has blocks");
            plan.batch.push_follower(pick, position, sequence.is_long, &blocks.tables);
            sequence.computed = position + 1;
            sequence.draft.rest();
            plan.sampled.push(sequence.id);
        }
        plan.batch.generated = plan.batch.rows();
        (!plan.batch.is_empty()).then_some(plan)
    }

    /// Moves waiting sequences to the running ones, in order, while there is room for them.
    fn admit(&mut self, kv: &mut KvPools) -> Vec<(SequenceId, PrefixUse)> {
        let mut started = Vec::new();
        let mut index = 0;
        self.lacks_room = None;
        while self.running.len() < self.max_sequences
            && let Some(next) = self.waiting.get(index)
        {
            if self.guests.first().is_some_and(|guest| *guest < next.id) {
                break;
            }
            if self.gains_by_waiting(next, kv) {
                index += 1;
                continue;
            }
            if !self.has_room(next, kv) {
                self.lacks_room = Some(next.id);
                break;
            }
            let Some(mut sequence) = self.waiting.remove(index) else { break };
            let mut blocks = kv.start();
            let mut prefix = PrefixUse { cached: 0, miss: None };
            if self.sharing != PrefixSharing::Off {
                prefix = kv.share(&mut blocks, &sequence.tokens, sequence.is_long);
            }
            sequence.computed = prefix.cached;
            sequence.kv = Some(blocks);
            if !sequence.was_started {
                sequence.was_started = true;
                started.push((sequence.id, prefix));
            }
            let place = self.running.partition_point(|other| other.id < sequence.id);
            self.running.insert(place, sequence);
        }
        started
    }

    /// Whether there are blocks for all that everyone may need with `next`, or else for what they have now and one more for
    /// each, so that nobody has to give up its own at once.
    fn has_room(&self, next: &Sequence, kv: &KvPools) -> bool {
        let all = self.running.iter().chain([next]).map(Sequence::max_positions);
        if self.running.is_empty() && !kv.has_promises() || kv.holds_all(all) {
            return true;
        }
        let others = self.running.iter();
        let others = others.filter_map(|other| Some((other.kv.as_ref()?, other.tokens.len())));
        kv.has_room(&next.tokens, next.is_long, others, self.running.len() + 1)
    }

    /// Whether something else than a sequence, which came as `guest`, may take blocks: not before a sequence that came
    /// earlier and waits for them.
    pub fn may_take_blocks(&self, guest: SequenceId) -> bool {
        self.lacks_room.is_none_or(|first| guest < first)
    }

    /// Starts no sequence that came later than `guest`, so that it finds blocks.
    pub fn hold_back_after(&mut self, guest: SequenceId) {
        self.guests.insert(guest);
    }

    /// Ends [`Scheduler::hold_back_after`].
    pub fn forget_guest(&mut self, guest: SequenceId) {
        self.guests.remove(&guest);
    }

    /// How many times a sequence was preempted.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
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

    /// Those of `ids` that run, each with its first place there.
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
