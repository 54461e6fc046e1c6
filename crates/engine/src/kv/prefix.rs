//! Which tokens lead up to which block: the tree of all prefixes whose keys and values are known.
//!
//! A node is one full block of tokens after those of its parent, and names the block of each KV group that holds its
//! keys and values. Nodes are compared token by token, so no two texts are ever taken for one another.

use super::{BLOCK_SIZE, NO_BLOCK};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// A node of a [`PrefixTree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NodeId(usize);

/// Of the two roots, which stand for no tokens: sequences that are rotated as the long ones are have other keys.
const ROOTS: usize = 2;

#[derive(Debug)]
struct Node {
    parent: NodeId,
    /// Its place among the children of its parent.
    slot: usize,
    tokens: [u32; BLOCK_SIZE],
    children: Vec<NodeId>,
    /// The block of each group, [`NO_BLOCK`] where there is none.
    blocks: Vec<u32>,
    /// Sequences that go on from here.
    pins: usize,
}

/// What a sequence can take over from earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixUse {
    /// Positions whose keys and values were there already, and are not computed again. A multiple of [`BLOCK_SIZE`],
    /// and less than the prompt: its last token is always computed.
    pub cached: usize,
    /// The first position that has to be computed though another prompt of this length could have been shared up to
    /// there, and why.
    pub miss: Option<PrefixMiss>,
}

/// Why a prefix is no longer than it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixMiss {
    /// No earlier sequence that is remembered goes on from this position.
    New {
        /// The position.
        position: usize,
    },
    /// An earlier sequence has another token at this position.
    Differs {
        /// The position.
        position: usize,
    },
    /// The keys and values from this position on were there once; other sequences needed their room.
    Evicted {
        /// The position.
        position: usize,
    },
}

/// Every prefix that is known.
#[derive(Debug)]
pub(super) struct PrefixTree {
    nodes: Vec<Node>,
    /// Nodes that stand for nothing any more.
    vacant: Vec<NodeId>,
    /// Nodes by their parent and tokens. Of two with the same hash only the first is found, and the other never made.
    index: HashMap<u64, NodeId>,
    hasher: RandomState,
    groups: usize,
}

impl PrefixTree {
    pub fn new(groups: usize) -> Self {
        let root = |slot| Node {
            parent: NodeId(slot),
            slot,
            tokens: [0; BLOCK_SIZE],
            children: Vec::new(),
            blocks: vec![NO_BLOCK; groups],
            pins: 0,
        };
        PrefixTree {
            nodes: (0..ROOTS).map(root).collect(),
            vacant: Vec::new(),
            index: HashMap::new(),
            hasher: RandomState::new(),
            groups,
        }
    }

    /// Where sequences begin.
    pub fn root(is_long: bool) -> NodeId {
        NodeId(usize::from(is_long))
    }

    /// The block of a node in a group, or [`NO_BLOCK`].
    pub fn block(&self, node: NodeId, group: usize) -> u32 {
        self.nodes[node.0].blocks[group]
    }

    /// Says which block of a group holds the keys and values of a node.
    pub fn set_block(&mut self, node: NodeId, group: usize, block: u32) {
        self.nodes[node.0].blocks[group] = block;
    }

    /// Forgets the block of a node in a group, and the node if nothing needs it any more.
    pub fn remove_block(&mut self, node: NodeId, group: usize) {
        self.nodes[node.0].blocks[group] = NO_BLOCK;
        self.prune(node);
    }

    /// Keeps a node until it is unpinned as often.
    pub fn pin(&mut self, node: NodeId) {
        self.nodes[node.0].pins += 1;
    }

    /// See [`PrefixTree::pin`].
    pub fn unpin(&mut self, node: NodeId) {
        self.nodes[node.0].pins -= 1;
        self.prune(node);
    }

    /// The nodes of as many blocks of `tokens` as are known, in order.
    pub fn path(&self, root: NodeId, tokens: &[u32]) -> Vec<NodeId> {
        let mut node = root;
        let mut path = Vec::new();
        for block in tokens.as_chunks().0 {
            let Some(child) = self.child(node, block) else { break };
            path.push(child);
            node = child;
        }
        path
    }

    fn hash(&self, parent: NodeId, tokens: &[u32; BLOCK_SIZE]) -> u64 {
        self.hasher.hash_one((parent, tokens))
    }

    fn child(&self, parent: NodeId, tokens: &[u32; BLOCK_SIZE]) -> Option<NodeId> {
        let node = *self.index.get(&self.hash(parent, tokens))?;
        let Node { parent: found, tokens: known, .. } = &self.nodes[node.0];
        (*found == parent && known == tokens).then_some(node)
    }

    /// The child with these tokens, made if there is none; `None` for the rare tokens that cannot be told from others
    /// by their hash.
    pub fn child_or_new(&mut self, parent: NodeId, tokens: &[u32; BLOCK_SIZE]) -> Option<NodeId> {
        if let Some(child) = self.child(parent, tokens) {
            return Some(child);
        }
        let hash = self.hash(parent, tokens);
        if self.index.contains_key(&hash) {
            return None;
        }
        let slot = self.nodes[parent.0].children.len();
        let blocks = vec![NO_BLOCK; self.groups];
        let node = Node { parent, slot, tokens: *tokens, children: Vec::new(), blocks, pins: 0 };
        let id = match self.vacant.pop() {
            Some(id) => {
                self.nodes[id.0] = node;
                id
            }
            None => {
                self.nodes.push(node);
                NodeId(self.nodes.len() - 1)
            }
        };
        self.nodes[parent.0].children.push(id);
        self.index.insert(hash, id);
        Some(id)
    }

    /// The most tokens that those of one child have in common with `tokens`; `None` without children.
    pub fn longest_common(&self, node: NodeId, tokens: &[u32]) -> Option<usize> {
        let common = |child: &NodeId| {
            let known = &self.nodes[child.0].tokens;
            known.iter().zip(tokens).take_while(|(known, token)| known == token).count()
        };
        self.nodes[node.0].children.iter().map(common).max()
    }

    /// Removes a node that nothing needs, and then its parent if that was needed for it alone.
    fn prune(&mut self, mut node: NodeId) {
        while node.0 >= ROOTS {
            let Node { parent, slot, tokens, children, blocks, pins } = &self.nodes[node.0];
            let is_needed =
                *pins > 0 || !children.is_empty() || blocks.iter().any(|block| *block != NO_BLOCK);
            if is_needed {
                return;
            }
            let (parent, slot) = (*parent, *slot);
            let hash = self.hash(parent, tokens);
            self.index.remove(&hash);
            self.nodes[parent.0].children.swap_remove(slot);
            if let Some(moved) = self.nodes[parent.0].children.get(slot).copied() {
                self.nodes[moved.0].slot = slot;
            }
            self.vacant.push(node);
            node = parent;
        }
    }

    /// Nodes that stand for tokens.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.nodes.len() - self.vacant.len() - ROOTS
    }
}
