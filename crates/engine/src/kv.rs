//! Keys and values in blocks: which block of the pool holds which positions of which sequence.
//!
//! The backends own the memory; this file owns the bookkeeping. Layers that keep the same positions share a
//! *group*: all full-attention layers are one group, all layers with the same window another. Every group has its
//! own pool of block numbers, and every sequence one block table per group.
//!
//! A full block never changes again, so sequences that begin with the same tokens share the blocks of that prefix. A
//! block that no sequence uses any more keeps its contents until another needs its room; the one unused longest goes first.

mod prefix;
#[cfg(test)]
mod tests;

pub use prefix::{PrefixMiss, PrefixUse};

use prefix::{NodeId, PrefixTree};
use std::collections::BTreeMap;

/// Positions in one block. A multiple of every vector width, and small enough that a short sequence wastes little.
pub const BLOCK_SIZE: usize = 32;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// As the device keeps them: f64 by the reference, f32 on a CPU, F16 on a GPU.
    #[default]
    Full,
    /// In 8 bits, every 32 elements of a head at a position with a scale in F16.
    Q8,
}

/// Elements of a head that share a scale.
pub const SCALED_TOGETHER: usize = 32;

impl KvType {
    /// Bytes of a key, or of a value, of one head at one position, where a full element has so many.
    pub fn vector_bytes(self, element: usize, head_dim: usize) -> usize {
        match self {
            KvType::Full => element * head_dim,
            KvType::Q8 => head_dim + size_of::<half::f16>() * head_dim.div_ceil(SCALED_TOGETHER),
        }
    }
}

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

/// The first of the blocks before `position`, a multiple of [`BLOCK_SIZE`], that a row there still sees.
fn first_visible_block(window: Option<usize>, position: usize) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window) / BLOCK_SIZE)
}

/// The block pools of all groups.
///
/// A sequence takes blocks as it grows, and is told when there are no more. One that must not stop half-way reserves the
/// most that it can ever hold, which nobody else can take then.
#[derive(Debug)]
pub struct KvPools {
    pools: Vec<Pool>,
    tree: PrefixTree,
    chunk: usize,
}

#[derive(Debug)]
struct Pool {
    group: KvGroup,
    /// Blocks with nothing in them.
    free: Vec<u32>,
    /// Blocks that no sequence uses but whose contents are known, the one unused longest first.
    unused: BTreeMap<u64, u32>,
    blocks: Vec<Block>,
    /// Blocks that are reserved, and those of them that are not taken yet.
    reserved: usize,
    promised: usize,
    /// Grows with every block that becomes unused.
    clock: u64,
}

/// What is known of a block.
#[derive(Clone, Debug, Default)]
struct Block {
    /// Sequences that have it in their tables.
    users: usize,
    /// The tokens whose keys and values it holds, once it is full of such as others may share.
    node: Option<NodeId>,
    /// Its key in [`Pool::unused`], if it is there.
    unused_since: u64,
}

/// The blocks of one sequence.
#[derive(Debug)]
pub struct KvSequence {
    /// One block table per group: the physical block of every logical block, [`NO_BLOCK`] where it was given back.
    pub tables: Vec<Vec<u32>>,
    /// Of each group, the blocks that it can take whatever others do; `None` for a sequence that has no such promise.
    promised: Option<Vec<usize>>,
    /// The last block that others know of, and how many there are; `None` for a sequence that shares nothing.
    shared: Option<(NodeId, usize)>,
}

impl Pool {
    /// Blocks that a sequence without a promise can take.
    fn room(&self) -> usize {
        self.free.len() + self.unused.len() - self.promised
    }

    /// An empty block for a sequence. Forgets what was unused longest if no block is free.
    fn take(&mut self, tree: &mut PrefixTree, group: usize) -> u32 {
        let block = match self.free.pop() {
            Some(block) => block,
            None => {
                let (_, block) =
                    self.unused.pop_first().expect("whoever takes a block asked for room");
                if let Some(node) = self.blocks[block as usize].node.take() {
                    tree.remove_block(node, group);
                }
                block
            }
        };
        self.blocks[block as usize].users = 1;
        block
    }

    /// One more sequence uses a block.
    fn add_user(&mut self, block: u32) {
        let state = &mut self.blocks[block as usize];
        if state.users == 0 {
            self.unused.remove(&state.unused_since);
        }
        state.users += 1;
    }

    /// A sequence has no more use for a block.
    fn remove_user(&mut self, block: u32) {
        let state = &mut self.blocks[block as usize];
        state.users -= 1;
        if state.users > 0 {
            return;
        }
        if state.node.is_none() {
            self.free.push(block);
            return;
        }
        self.clock += 1;
        state.unused_since = self.clock;
        self.unused.insert(self.clock, block);
    }
}

impl KvPools {
    /// Pools with every block free, for chunks of at most `chunk` rows.
    pub fn new(groups: Vec<KvGroup>, chunk: usize) -> Self {
        let tree = PrefixTree::new(groups.len());
        let pools = groups
            .into_iter()
            .map(|group| Pool {
                // Popped from the end: block 0 is used first.
                free: (0..group.blocks as u32).rev().collect(),
                unused: BTreeMap::new(),
                blocks: vec![Block::default(); group.blocks],
                reserved: 0,
                promised: 0,
                clock: 0,
                group,
            })
            .collect();
        KvPools { pools, tree, chunk }
    }

    /// A sequence that has no block yet, and no promise of any.
    pub fn start(&self) -> KvSequence {
        KvSequence { tables: vec![Vec::new(); self.pools.len()], promised: None, shared: None }
    }

    /// Reserves what a sequence of at most `positions` positions needs, or `None` while others hold it.
    pub fn reserve(&mut self, positions: usize) -> Option<KvSequence> {
        let needs = self.needs(positions);
        if self.pools.iter().zip(&needs).any(|(pool, need)| pool.room() < *need) {
            return None;
        }
        for (pool, need) in self.pools.iter_mut().zip(&needs) {
            pool.reserved += need;
            pool.promised += need;
        }
        Some(KvSequence { promised: Some(needs), ..self.start() })
    }

    fn needs(&self, positions: usize) -> Vec<usize> {
        self.pools
            .iter()
            .map(|pool| blocks_needed(pool.group.window, positions, self.chunk))
            .collect()
    }

    /// Whether sequences that have reserved nothing can all grow to so many `positions` each beside those that have.
    pub fn holds_all(&self, positions: impl Iterator<Item = usize> + Clone) -> bool {
        self.pools.iter().all(|pool| {
            let needs =
                positions.clone().map(|count| blocks_needed(pool.group.window, count, self.chunk));
            needs.sum::<usize>() <= pool.group.blocks - pool.reserved
        })
    }

    /// Whether there is room for all of `tokens`, beside what can be shared, for what the sequences `others` lack of the
    /// positions that they have, and for `spare` more blocks of each group.
    pub fn has_room<'a>(
        &self,
        tokens: &[u32],
        is_long: bool,
        others: impl Iterator<Item = (&'a KvSequence, usize)> + Clone,
        spare: usize,
    ) -> bool {
        let path = self.tree.path(PrefixTree::root(is_long), shareable(tokens));
        let count = self.usable(&path);
        let needs = self.needs(tokens.len());
        self.pools.iter().zip(needs).enumerate().all(|(group, (pool, need))| {
            let first = first_visible_block(pool.group.window, count * BLOCK_SIZE);
            // Blocks that nobody uses are part of the room that is counted.
            let is_used = |node: &&NodeId| {
                let block = self.tree.block(**node, group);
                pool.blocks[block as usize].users > 0
            };
            let there = path[first..count].iter().filter(is_used).count();
            let lacks = others.clone().map(|(sequence, positions)| {
                let has = sequence.tables[group].iter().filter(|block| **block != NO_BLOCK).count();
                blocks_needed(pool.group.window, positions, self.chunk).saturating_sub(has)
            });
            need.saturating_sub(there) + lacks.sum::<usize>() + spare <= pool.room()
        })
    }

    /// Whether some sequence has a promise of blocks.
    pub fn has_promises(&self) -> bool {
        self.pools.iter().any(|pool| pool.promised > 0)
    }

    /// Lets a new sequence share blocks: it takes over those that hold the start of `tokens`, and others can take over
    /// its own. `is_long`: whether it is rotated as the long ones are.
    pub fn share(&mut self, sequence: &mut KvSequence, tokens: &[u32], is_long: bool) -> PrefixUse {
        assert!(sequence.promised.is_none(), "what is reserved is for blocks of one's own");
        let root = PrefixTree::root(is_long);
        let path = self.tree.path(root, shareable(tokens));
        let count = self.usable(&path);
        for (group, (pool, table)) in self.pools.iter_mut().zip(&mut sequence.tables).enumerate() {
            let first = first_visible_block(pool.group.window, count * BLOCK_SIZE);
            table.resize(first, NO_BLOCK);
            for node in &path[first..count] {
                let block = self.tree.block(*node, group);
                pool.add_user(block);
                table.push(block);
            }
        }
        let node = if count == 0 { root } else { path[count - 1] };
        self.tree.pin(node);
        sequence.shared = Some((node, count));
        PrefixUse { cached: count * BLOCK_SIZE, miss: self.miss(tokens, root, &path, count) }
    }

    /// How many positions at the start of `tokens` could be shared now.
    pub fn cached(&self, tokens: &[u32], is_long: bool) -> usize {
        let path = self.tree.path(PrefixTree::root(is_long), shareable(tokens));
        self.usable(&path) * BLOCK_SIZE
    }

    /// The most blocks of a path after which a sequence can go on: full groups have all of them, and groups with a
    /// window those that the next row sees.
    fn usable(&self, path: &[NodeId]) -> usize {
        let (mut usable, mut first_of_run) = (0, vec![0; self.pools.len()]);
        for (index, node) in path.iter().enumerate() {
            let count = index + 1;
            let mut is_usable = true;
            for (group, pool) in self.pools.iter().enumerate() {
                if self.tree.block(*node, group) == NO_BLOCK {
                    first_of_run[group] = count;
                }
                let first = first_visible_block(pool.group.window, count * BLOCK_SIZE);
                is_usable &= first_of_run[group] <= first;
            }
            if is_usable {
                usable = count;
            }
        }
        usable
    }

    fn miss(
        &self,
        tokens: &[u32],
        root: NodeId,
        path: &[NodeId],
        count: usize,
    ) -> Option<PrefixMiss> {
        if count == shareable(tokens).len() / BLOCK_SIZE {
            return None;
        }
        let position = count * BLOCK_SIZE;
        if count < path.len() {
            return Some(PrefixMiss::Evicted { position });
        }
        let last = path.last().copied().unwrap_or(root);
        Some(match self.tree.longest_common(last, &tokens[position..]) {
            // Everything differs from something in its first token.
            Some(common) if position + common > 0 => {
                PrefixMiss::Differs { position: position + common }
            }
            _ => PrefixMiss::New { position },
        })
    }

    /// Lets others share the blocks of a sequence that are full: `tokens` are those whose keys and values are stored.
    pub fn publish(&mut self, sequence: &mut KvSequence, tokens: &[u32]) {
        let Some((node, count)) = &mut sequence.shared else { return };
        for block in tokens.as_chunks().0.iter().skip(*count) {
            let Some(child) = self.tree.child_or_new(*node, block) else { return };
            self.tree.pin(child);
            for (group, (pool, table)) in self.pools.iter_mut().zip(&sequence.tables).enumerate() {
                let block = table[*count];
                // Of two sequences that computed the same, the first has its block shared.
                if block != NO_BLOCK && self.tree.block(child, group) == NO_BLOCK {
                    self.tree.set_block(child, group, block);
                    pool.blocks[block as usize].node = Some(child);
                }
            }
            self.tree.unpin(*node);
            (*node, *count) = (child, *count + 1);
        }
    }

    /// Makes the tables of `sequence` cover the rows at positions `start..end`, and gives back blocks that no row
    /// from `start` on can see. Returns the end of the rows that there is room for: `end`, unless blocks ran out for a
    /// sequence that has not reserved them.
    #[must_use]
    pub fn extend(&mut self, sequence: &mut KvSequence, start: usize, end: usize) -> usize {
        assert!(end - start <= self.chunk, "a chunk is no longer than the pools were planned for");
        let KvSequence { tables, promised, .. } = sequence;
        let mut reached = end;
        for (group, (pool, table)) in self.pools.iter_mut().zip(&mut *tables).enumerate() {
            if let Some(window) = pool.group.window {
                let first_visible = (start + 1).saturating_sub(window);
                let left_behind = (first_visible / BLOCK_SIZE).min(table.len());
                for block in table[..left_behind].iter_mut().rev().take_while(|b| **b != NO_BLOCK) {
                    pool.remove_user(*block);
                    *block = NO_BLOCK;
                    if let Some(promised) = promised {
                        promised[group] += 1;
                        pool.promised += 1;
                    }
                }
            }
            let room = promised.as_ref().map_or(pool.room(), |promised| promised[group]);
            reached = reached.min((table.len() + room) * BLOCK_SIZE);
        }
        let reached = reached.max(start);
        for (group, (pool, table)) in self.pools.iter_mut().zip(tables).enumerate() {
            while table.len() * BLOCK_SIZE < reached && reached > start {
                if let Some(promised) = promised {
                    promised[group] -= 1;
                    pool.promised -= 1;
                }
                table.push(pool.take(&mut self.tree, group));
            }
        }
        reached
    }

    /// Gives back every block of a sequence, but not what is promised to it. It shares nothing from then on.
    pub fn clear(&mut self, sequence: &mut KvSequence) {
        let KvSequence { tables, promised, shared } = sequence;
        for (group, (pool, table)) in self.pools.iter_mut().zip(tables).enumerate() {
            // The end first: without the start of a text its end is of no use.
            for block in table.drain(..).rev().filter(|block| *block != NO_BLOCK) {
                pool.remove_user(block);
                if let Some(promised) = promised {
                    promised[group] += 1;
                    pool.promised += 1;
                }
            }
        }
        if let Some((node, _)) = shared.take() {
            self.tree.unpin(node);
        }
    }

    /// Gives back everything that a sequence has.
    pub fn release(&mut self, mut sequence: KvSequence) {
        self.clear(&mut sequence);
        for (pool, promised) in self.pools.iter_mut().zip(sequence.promised.unwrap_or_default()) {
            pool.reserved -= promised;
            pool.promised -= promised;
        }
    }

    /// The share of each group's blocks that sequences use, the largest of all groups.
    pub fn usage(&self) -> f64 {
        let used = self.pools.iter().map(|pool| {
            let idle = pool.free.len() + pool.unused.len();
            1.0 - idle as f64 / pool.group.blocks.max(1) as f64
        });
        used.fold(0.0, f64::max)
    }
}

/// The blocks of a prompt that can be shared: whole ones, and not the last token, whose logits are wanted.
fn shareable(tokens: &[u32]) -> &[u32] {
    let count = tokens.len().saturating_sub(1) / BLOCK_SIZE;
    &tokens[..count * BLOCK_SIZE]
}
