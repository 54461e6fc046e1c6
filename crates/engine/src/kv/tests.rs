use super::*;

fn pools(windows: &[Option<usize>], sequences: usize, context: usize, chunk: usize) -> KvPools {
    let layout = KvLayout::new(windows.iter().copied());
    KvPools::new(layout.groups(sequences, context, chunk), chunk)
}

impl KvPools {
    /// Blocks of each group with nothing in them.
    fn free_blocks(&self) -> Vec<usize> {
        self.pools.iter().map(|pool| pool.free.len()).collect()
    }

    /// Checks that every block is in one place, and that the tree names only blocks that know it.
    fn check(&self, sequences: &[&KvSequence]) {
        for (group, pool) in self.pools.iter().enumerate() {
            let mut users = vec![0; pool.blocks.len()];
            for sequence in sequences {
                for block in sequence.tables[group].iter().filter(|block| **block != NO_BLOCK) {
                    users[*block as usize] += 1;
                }
            }
            for (block, state) in pool.blocks.iter().enumerate() {
                assert_eq!(state.users, users[block], "users of block {block} of group {group}");
                let is_free = pool.free.contains(&(block as u32));
                let is_unused = pool.unused.get(&state.unused_since) == Some(&(block as u32));
                assert_eq!(is_free, state.users == 0 && state.node.is_none());
                assert_eq!(is_unused, state.users == 0 && state.node.is_some());
                if let Some(node) = state.node {
                    assert_eq!(self.tree.block(node, group), block as u32);
                }
            }
        }
    }
}

#[test]
fn layers_with_the_same_window_share_a_group() {
    let layout = KvLayout::new([Some(128), None, Some(128), None]);
    assert_eq!(layout.windows, [Some(128), None]);
    assert_eq!(layout.group_of_layer, [0, 1, 0, 1]);
}

#[test]
fn a_sequence_holds_its_blocks_and_gives_them_back() {
    let mut pools = pools(&[None], 2, 100, 64);
    assert_eq!(pools.free_blocks(), [8]);
    let mut first = pools.reserve(100).unwrap();
    let mut second = pools.reserve(100).unwrap();
    assert!(pools.reserve(1).is_none());
    assert_eq!(pools.extend(&mut first, 0, 64), 64);
    assert_eq!(pools.extend(&mut second, 0, 1), 1);
    assert_eq!(pools.extend(&mut first, 64, 100), 100);
    assert_eq!(first.tables[0].len(), 4);
    assert_eq!(second.tables[0].len(), 1);
    assert!(first.tables[0].iter().all(|block| !second.tables[0].contains(block)));
    assert_eq!(pools.usage(), 5.0 / 8.0);
    pools.release(first);
    assert!(pools.reserve(100).is_some());
    pools.release(second);
    assert_eq!(pools.free_blocks(), [8]);
}

#[test]
fn a_window_never_needs_more_than_it_reserved_and_keeps_what_is_visible() {
    for window in [1, 5, 31, 32, 33, 64, 100] {
        for chunk in [1, 7, 32, 33, 64] {
            let mut pools = pools(&[Some(window)], 1, 1000, chunk);
            let mut sequence = pools.reserve(1000).unwrap();
            let mut start = 0;
            while start < 1000 {
                let end = (start + chunk).min(1000);
                assert_eq!(pools.extend(&mut sequence, start, end), end);
                for position in (start + 1).saturating_sub(window)..end {
                    assert_ne!(sequence.tables[0][position / BLOCK_SIZE], NO_BLOCK);
                }
                start = end;
            }
            pools.release(sequence);
            assert_eq!(pools.free_blocks()[0], blocks_needed(Some(window), 1000, chunk));
        }
    }
}

#[test]
fn a_sequence_without_a_promise_grows_until_the_blocks_run_out() {
    // Six blocks, and five for the window.
    let mut pools = pools(&[None, Some(40)], 1, 192, 64);
    let mut reserved = pools.reserve(64).unwrap();
    let mut one = pools.start();
    assert_eq!(pools.extend(&mut one, 0, 64), 64);
    assert_eq!(pools.extend(&mut one, 64, 100), 96, "a block, of the four that are not promised");
    let mut two = pools.start();
    assert_eq!(pools.extend(&mut two, 0, 32), 0, "the window has none left");
    pools.check(&[&reserved, &one, &two]);
    assert_eq!(pools.extend(&mut reserved, 0, 64), 64, "what is promised is kept");
    assert!(!pools.has_promises());
    pools.release(reserved);
    assert_eq!(pools.extend(&mut two, 0, 32), 32);
    assert_eq!(pools.extend(&mut one, 96, 128), 128);
    pools.check(&[&one, &two]);
    pools.release(one);
    pools.release(two);
    assert_eq!(pools.free_blocks(), [6, 5]);
}

#[test]
fn room_is_counted_without_what_others_share_already() {
    let mut pools = pools(&[None], 1, 256, 256);
    let tokens = text(160);
    let (_, one) = compute(&mut pools, &tokens, 256);
    assert!(
        !pools.has_room(&text(31 * 5), true, [].into_iter(), 0),
        "five blocks, and there are three"
    );
    assert!(pools.has_room(&tokens, false, [].into_iter(), 2), "one block, since four are shared");
    assert!(!pools.has_room(&tokens, false, [].into_iter(), 3));
    let half = [(&one, 200)].into_iter();
    assert!(!pools.has_room(&tokens, false, half.clone(), 1), "one, and two that the other lacks");
    assert!(pools.has_room(&tokens, false, half, 0));
    pools.release(one);
    assert!(
        pools.has_room(&tokens, false, [].into_iter(), 3),
        "those that nobody uses count as room"
    );
    assert!(!pools.has_room(&tokens, false, [].into_iter(), 4));
}

/// A sequence of these tokens from its start to its end, in chunks; what it took over, and its blocks.
fn compute(pools: &mut KvPools, tokens: &[u32], chunk: usize) -> (PrefixUse, KvSequence) {
    let mut sequence = pools.start();
    let prefix = pools.share(&mut sequence, tokens, false);
    let mut start = prefix.cached;
    while start < tokens.len() {
        let end = (start + chunk).min(tokens.len());
        assert_eq!(pools.extend(&mut sequence, start, end), end);
        for (pool, table) in pools.pools.iter().zip(&sequence.tables) {
            let first = pool.group.window.map_or(0, |window| (start + 1).saturating_sub(window));
            for position in first..end {
                assert_ne!(table[position / BLOCK_SIZE], NO_BLOCK, "position {position} is seen");
            }
        }
        pools.publish(&mut sequence, &tokens[..end]);
        start = end;
    }
    (prefix, sequence)
}

fn text(length: u32) -> Vec<u32> {
    (0..length).map(|position| position * 7 % 31).collect()
}

#[test]
fn equal_starts_share_blocks_until_they_differ() {
    let mut pools = pools(&[None, Some(40)], 3, 300, 64);
    let first = text(200);
    let (prefix, one) = compute(&mut pools, &first, 64);
    assert_eq!(prefix, PrefixUse { cached: 0, miss: Some(PrefixMiss::New { position: 0 }) });

    // All but the block with the last token.
    let (prefix, two) = compute(&mut pools, &first, 64);
    assert_eq!(prefix, PrefixUse { cached: 192, miss: None });
    assert_eq!(one.tables[0][..6], two.tables[0][..6]);
    assert_ne!(one.tables[0][6], two.tables[0][6]);
    assert_eq!(two.tables[1][..4], [NO_BLOCK; 4], "these are before the window");
    pools.check(&[&one, &two]);
    pools.release(one);
    pools.check(&[&two]);

    let mut other = first.clone();
    other[150] = 1000;
    let (prefix, three) = compute(&mut pools, &other, 64);
    let miss = Some(PrefixMiss::Differs { position: 150 });
    assert_eq!(prefix, PrefixUse { cached: 128, miss });
    let mut longer = first.clone();
    longer.extend(text(80));
    pools.release(two);
    let (prefix, four) = compute(&mut pools, &longer, 64);
    let miss = Some(PrefixMiss::New { position: 192 });
    assert_eq!(prefix, PrefixUse { cached: 192, miss });
    pools.check(&[&three, &four]);
    pools.release(three);
    pools.release(four);
    pools.check(&[]);
}

#[test]
fn a_prompt_that_is_a_whole_number_of_blocks_leaves_one_to_compute() {
    let mut pools = pools(&[None], 2, 128, 128);
    let tokens = text(64);
    let (_, one) = compute(&mut pools, &tokens, 128);
    pools.release(one);
    let (prefix, two) = compute(&mut pools, &tokens, 128);
    assert_eq!(prefix, PrefixUse { cached: 32, miss: None });
    pools.release(two);
}

#[test]
fn sequences_that_are_rotated_otherwise_share_nothing() {
    let mut pools = pools(&[None], 2, 128, 128);
    let tokens = text(100);
    let (_, one) = compute(&mut pools, &tokens, 128);
    pools.release(one);
    assert_eq!(pools.cached(&tokens, false), 96);
    assert_eq!(pools.cached(&tokens, true), 0);
}

#[test]
fn what_was_unused_longest_is_evicted_and_named() {
    // Room for one sequence of eight blocks.
    let mut pools = pools(&[None], 1, 256, 256);
    let first = text(200);
    let (_, one) = compute(&mut pools, &first, 256);
    pools.release(one);
    let second: Vec<u32> = (0..100).map(|position| position * 5 % 29 + 40).collect();
    let (_, two) = compute(&mut pools, &second, 256);
    // Four blocks: two that were free, and the ends of the first.
    pools.check(&[&two]);
    pools.release(two);
    let (prefix, one) = compute(&mut pools, &first, 256);
    assert_eq!(prefix.cached, 4 * BLOCK_SIZE);
    assert_eq!(
        prefix.miss,
        Some(PrefixMiss::New { position: 128 }),
        "it is forgotten with its end"
    );
    pools.release(one);
    pools.check(&[]);
}

#[test]
fn blocks_behind_a_window_are_evicted_alone() {
    let mut pools = pools(&[None, Some(32)], 1, 512, 32);
    let tokens = text(500);
    let (_, one) = compute(&mut pools, &tokens, 32);
    pools.release(one);
    // The pool of the window has three blocks, and these hold the end of the text.
    assert_eq!(pools.cached(&tokens, false), 480);
    let mut other = tokens[..300].to_vec();
    other[290] = 1000;
    let (prefix, two) = compute(&mut pools, &other, 32);
    assert_eq!(prefix, PrefixUse { cached: 0, miss: Some(PrefixMiss::Evicted { position: 0 }) });
    pools.check(&[&two]);
    pools.release(two);
}

#[test]
fn nothing_is_lost_or_used_twice_however_sequences_come_and_go() {
    let mut state = 1u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % below
    };
    for windows in [&[None][..], &[None, Some(40)], &[Some(1)], &[Some(33), None, Some(64)]] {
        let mut pools = pools(windows, 4, 256, 48);
        let mut held: Vec<KvSequence> = Vec::new();
        for _ in 0..400 {
            if held.len() == 4 || random(3) == 0 && !held.is_empty() {
                let index = random(held.len() as u64) as usize;
                pools.release(held.swap_remove(index));
            } else {
                let mut tokens = text(1 + random(256) as u32);
                let place = random(tokens.len() as u64 * 2) as usize;
                if let Some(token) = tokens.get_mut(place) {
                    *token = 100 + random(2) as u32;
                }
                held.push(compute(&mut pools, &tokens, 1 + random(48) as usize).1);
            }
            pools.check(&held.iter().collect::<Vec<_>>());
        }
        held.drain(..).for_each(|sequence| pools.release(sequence));
        for (group, pool) in pools.pools.iter_mut().enumerate() {
            pool.free.clear();
            while !pool.unused.is_empty() {
                pool.take(&mut pools.tree, group);
            }
        }
        assert_eq!(pools.tree.len(), 0, "only what is stored is remembered");
    }
}
