//! Keys and values in blocks: which block of the pool holds which positions of which sequence.
//!
//! The backends own the memory; this file owns the bookkeeping. Layers that keep the same positions share a
//! *group*: all full-attention layers are one group, all layers with the same window another. Every group has its
//! own pool of block numbers, and every sequence one block table per group.

/// Positions in one block. A multiple of every vector width, and small enough that a short sequence wastes little.
pub const BLOCK_SIZE: usize = 32;

/// The entry of a block table for positions that a window has left behind.
pub const NO_BLOCK: u32 = u32::MAX;

/// How one group of layers keeps its positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvGroup {
    /// How many of the latest positions are kept, the current one included; all of them if `None`.
    pub window: Option<usize>,
    /// Blocks in the pool.
    pub blocks: usize,
}

/// Which layers share a block table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// The window of each group.
    pub windows: Vec<Option<usize>>,
    /// The group of each layer.
    pub group_of_layer: Vec<usize>,
}

impl KvLayout {
    /// Groups layers by window, in order of first appearance.
    pub fn new(layer_windows: impl IntoIterator<Item = Option<usize>>) -> Self {
        let mut windows: Vec<Option<usize>> = Vec::new();
        let group_of_layer = layer_windows
            .into_iter()
            .map(|window| {
                windows.iter().position(|known| *known == window).unwrap_or_else(|| {
                    windows.push(window);
                    windows.len() - 1
                })
            })
            .collect();
        KvLayout { windows, group_of_layer }
    }

    /// The groups with room for `sequences` sequences of `context` positions each, computed in chunks of at most
    /// `chunk` rows.
    pub fn groups(&self, sequences: usize, context: usize, chunk: usize) -> Vec<KvGroup> {
        self.windows
            .iter()
            .map(|&window| KvGroup {
                window,
                blocks: sequences.saturating_mul(blocks_needed(window, context, chunk)),
            })
            .collect()
    }
}

/// The most blocks that a sequence of `positions` positions holds at once in a group with this window.
fn blocks_needed(window: Option<usize>, positions: usize, chunk: usize) -> usize {
    let all = positions.div_ceil(BLOCK_SIZE);
    match window {
        None => all,
        // While a chunk is computed, its rows and the window before its first row are held; neither end need lie
        // on a block boundary.
        Some(window) => all.min((window + chunk).div_ceil(BLOCK_SIZE) + 1),
    }
}

/// The block pools of all groups, with what is promised to the sequences that run.
///
/// A sequence reserves the most it can ever hold before it starts, so that it never fails half-way.
#[derive(Debug)]
pub struct KvPools {
    pools: Vec<Pool>,
    chunk: usize,
}

#[derive(Debug)]
struct Pool {
    group: KvGroup,
    free: Vec<u32>,
    unreserved: usize,
}

/// The blocks of one sequence.
#[derive(Debug)]
pub struct KvSequence {
    /// One block table per group: the physical block of every logical block, [`NO_BLOCK`] where it was given back.
    pub tables: Vec<Vec<u32>>,
    reserved: Vec<usize>,
}

impl KvPools {
    /// Pools with every block free, for chunks of at most `chunk` rows.
    pub fn new(groups: Vec<KvGroup>, chunk: usize) -> Self {
        let pools = groups
            .into_iter()
            .map(|group| Pool {
                // Popped from the end: block 0 is used first.
                free: (0..group.blocks as u32).rev().collect(),
                unreserved: group.blocks,
                group,
            })
            .collect();
        KvPools { pools, chunk }
    }

    /// Reserves what a sequence of at most `positions` positions needs, or `None` while others hold it.
    pub fn reserve(&mut self, positions: usize) -> Option<KvSequence> {
        let needs = self.needs(positions);
        if self.pools.iter().zip(&needs).any(|(pool, need)| pool.unreserved < *need) {
            return None;
        }
        for (pool, need) in self.pools.iter_mut().zip(&needs) {
            pool.unreserved -= need;
        }
        Some(KvSequence { tables: vec![Vec::new(); self.pools.len()], reserved: needs })
    }

    fn needs(&self, positions: usize) -> Vec<usize> {
        self.pools
            .iter()
            .map(|pool| blocks_needed(pool.group.window, positions, self.chunk))
            .collect()
    }

    /// Makes the tables of `sequence` cover the rows at positions `start..end`, and gives back blocks that no row
    /// from `start` on can see.
    pub fn extend(&mut self, sequence: &mut KvSequence, start: usize, end: usize) {
        assert!(end - start <= self.chunk, "a chunk is no longer than the pools were planned for");
        for (pool, table) in self.pools.iter_mut().zip(&mut sequence.tables) {
            if let Some(window) = pool.group.window {
                let first_visible = (start + 1).saturating_sub(window);
                let left_behind = (first_visible / BLOCK_SIZE).min(table.len());
                for block in table[..left_behind].iter_mut().rev().take_while(|b| **b != NO_BLOCK) {
                    pool.free.push(*block);
                    *block = NO_BLOCK;
                }
            }
            while table.len() * BLOCK_SIZE < end {
                table.push(pool.free.pop().expect("a sequence stays within what it reserved"));
            }
        }
    }

    /// Gives back every block of a sequence, but not its reservation.
    pub fn clear(&mut self, sequence: &mut KvSequence) {
        for (pool, table) in self.pools.iter_mut().zip(&mut sequence.tables) {
            pool.free.extend(table.drain(..).rev().filter(|block| *block != NO_BLOCK));
        }
    }

    /// Gives back every block and the reservation of a sequence.
    pub fn release(&mut self, mut sequence: KvSequence) {
        self.clear(&mut sequence);
        for (pool, reserved) in self.pools.iter_mut().zip(&sequence.reserved) {
            pool.unreserved += reserved;
        }
    }

    /// Free blocks of each group.
    #[cfg(test)]
    fn free_blocks(&self) -> Vec<usize> {
        self.pools.iter().map(|pool| pool.free.len()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools(windows: &[Option<usize>], sequences: usize, context: usize, chunk: usize) -> KvPools {
        let layout = KvLayout::new(windows.iter().copied());
        KvPools::new(layout.groups(sequences, context, chunk), chunk)
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
        pools.extend(&mut first, 0, 64);
        pools.extend(&mut second, 0, 1);
        pools.extend(&mut first, 64, 100);
        assert_eq!(first.tables[0].len(), 4);
        assert_eq!(second.tables[0].len(), 1);
        assert!(first.tables[0].iter().all(|block| !second.tables[0].contains(block)));
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
                    pools.extend(&mut sequence, start, end);
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
}
