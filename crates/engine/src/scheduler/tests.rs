//! Which batches may be begun before the tokens of the one before are known.

use super::*;
use crate::kv::KvLayout;
use crate::sampler::{Sampler, SamplingOptions};
use crate::speculation::Draft;

const VOCAB_SIZE: usize = 50;

fn sequence(id: u64, prompt: usize, new_tokens: usize) -> Sequence {
    let tokens: Vec<u32> = (0..prompt as u32).collect();
    Sequence {
        id: SequenceId(id),
        sampler: Sampler::new(SamplingOptions::default(), VOCAB_SIZE, &tokens).unwrap(),
        tokens,
        prompt_tokens: prompt,
        computed: 0,
        is_long: false,
        min_length: prompt,
        max_length: prompt + new_tokens,
        choice: 0,
        end_tokens: Vec::new(),
        logprobs: None,
        constraint: None,
        was_started: false,
        kv: None,
        draft: Draft::default(),
    }
}

/// A scheduler of at most three sequences that has planned the prompts of these, and the pools.
fn planned(sequences: Vec<Sequence>) -> (Scheduler, KvPools, Vec<SequenceId>) {
    planned_with(6, sequences)
}

/// With so many blocks.
fn planned_with(blocks: usize, sequences: Vec<Sequence>) -> (Scheduler, KvPools, Vec<SequenceId>) {
    let mut groups = KvLayout::new([None]).groups(3, 64, 64);
    groups[0].blocks = blocks;
    let mut kv = KvPools::new(groups, 64);
    let mut scheduler = Scheduler::new(3, 64, PrefixSharing::Off);
    sequences.into_iter().for_each(|sequence| scheduler.submit(sequence));
    let sampled = scheduler.plan(&mut kv, 1).sampled;
    (scheduler, kv, sampled)
}

#[test]
fn the_next_rows_follow_the_choices() {
    let (mut scheduler, mut kv, sampled) = planned(vec![sequence(3, 5, 9), sequence(4, 33, 9)]);
    assert_eq!(sampled, [SequenceId(3), SequenceId(4)]);
    // The choices were begun in another order.
    let ids = [SequenceId(4), SequenceId(3)];
    let plan = scheduler.plan_ahead(&ids, &mut kv, 1, None).unwrap();
    assert_eq!(plan.sampled, sampled);
    assert_eq!(plan.batch.follows, [Some(1), Some(0)]);
    assert_eq!((plan.batch.tokens, plan.batch.positions), (vec![0, 0], vec![5, 33]));
    assert_eq!((plan.batch.generated, plan.batch.logit_rows), (2, vec![0, 1]));
    // Two blocks hold the 34 positions of the second.
    assert_eq!(plan.batch.block_tables[0].offsets, [0, 1, 3]);

    // The tokens arrive, and a batch that knows them goes on behind.
    for sequence in &mut scheduler.running {
        sequence.accept(7).unwrap();
        sequence.accept(8).unwrap();
    }
    let plan = scheduler.plan(&mut kv, 1);
    assert_eq!((plan.batch.tokens, plan.batch.positions), (vec![8, 8], vec![6, 34]));
    assert!(plan.batch.follows.is_empty());
}

#[test]
fn a_sequence_whose_last_token_is_on_its_way_is_left_out() {
    let (mut scheduler, mut kv, sampled) = planned(vec![sequence(1, 5, 1), sequence(2, 6, 2)]);
    let plan = scheduler.plan_ahead(&sampled, &mut kv, 1, None).unwrap();
    assert_eq!((plan.sampled, plan.batch.follows), (vec![SequenceId(2)], vec![Some(1)]));
    let (mut scheduler, mut kv, sampled) = planned(vec![sequence(1, 5, 1)]);
    assert!(scheduler.plan_ahead(&sampled, &mut kv, 1, None).is_none());
}

#[test]
fn nothing_is_begun_where_something_must_be_known_first() {
    let may_go_on = |others: Vec<Sequence>, short_context| {
        let all = std::iter::once(sequence(1, 5, 9)).chain(others).collect();
        let (mut scheduler, mut kv, sampled) = planned(all);
        scheduler.plan_ahead(&sampled, &mut kv, 1, short_context).is_some()
    };
    assert!(may_go_on(vec![], None) && may_go_on(vec![], Some(6)));
    assert!(!may_go_on(vec![], Some(5)), "with its token it is long");
    let with = |sampling: SamplingOptions| Sequence {
        sampler: Sampler::new(sampling, VOCAB_SIZE, &[]).unwrap(),
        ..sequence(2, 5, 9)
    };
    let plain = SamplingOptions::default;
    assert!(may_go_on(vec![with(SamplingOptions { top_k: 3, ..plain() })], None));
    assert!(!may_go_on(vec![with(SamplingOptions { presence_penalty: 1.0, ..plain() })], None));
    assert!(!may_go_on(vec![Sequence { logprobs: Some(0), ..sequence(2, 5, 9) }], None));
    // A prompt that is not computed to its end, since a batch has 64 rows.
    assert!(!may_go_on(vec![sequence(2, 60, 2)], None));
    // Two sequences of a block each, of which both need one more, where others hold some.
    for (held, has_room) in [(2, true), (3, false)] {
        let sequences = vec![sequence(1, BLOCK_SIZE, 9), sequence(2, BLOCK_SIZE, 9)];
        let (mut scheduler, mut kv, sampled) = planned(sequences);
        kv.reserve(held * BLOCK_SIZE).unwrap();
        let plan = scheduler.plan_ahead(&sampled, &mut kv, 1, None);
        assert_eq!(plan.is_some(), has_room, "{held} blocks are held");
        let computed = if has_room { BLOCK_SIZE + 1 } else { BLOCK_SIZE };
        assert!(scheduler.running.iter().all(|sequence| sequence.computed == computed));
    }
    // One that could start, and one that could not.
    let start_late = |count: u64| {
        let (mut scheduler, mut kv, sampled) =
            planned((0..count).map(|id| sequence(id, 5, 9)).collect());
        scheduler.submit(sequence(9, 5, 9));
        scheduler.plan_ahead(&sampled, &mut kv, 1, None).is_some()
    };
    assert!(!start_late(2) && start_late(3));
}
