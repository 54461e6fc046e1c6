//! One ragged batch: what a forward pass computes, as plain arrays.

/// The rows of one forward pass.
///
/// A row is one token of one sequence. The rows of a sequence are consecutive and in the order of their
/// positions; prefill has many rows per sequence, decode one, and the forward pass does not know which is which.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The token of every row.
    pub tokens: Vec<u32>,
    /// Of rows whose token is not known yet which of the choices begun last it is ([`crate::backend::Backend::choose`]); `tokens` has 0
    /// there. Empty, or one for every row.
    pub follows: Vec<Option<u32>>,
    /// The absolute position of every row in its sequence.
    pub positions: Vec<u32>,
    /// Whether each sequence is rotated as the long ones are; see [`crate::model::spec::Longer`].
    pub is_long: Vec<bool>,
    /// How many of the first rows are tokens that were generated, or that may be: drafts. The others are of prompts. A
    /// backend may compute prompts in another way, so a row is one or the other whatever is beside it.
    pub generated: usize,
    /// Where the rows of each sequence start; one entry more than there are sequences.
    pub row_offsets: Vec<u32>,
    /// The block tables of every KV group, in the order of the groups.
    pub block_tables: Vec<BlockTables>,
    /// The rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
    /// Whether of those rows the final hidden states are wanted, as they are before the head, in place of the logits.
    pub wants_hidden: bool,
}

/// The block tables of all sequences of a batch for one KV group.
#[derive(Clone, Debug, Default)]
pub struct BlockTables {
    /// Where the table of each sequence starts in `blocks`; one entry more than there are sequences.
    pub offsets: Vec<u32>,
    /// Physical block of every logical block; [`crate::kv::NO_BLOCK`] for what a window has left behind.
    pub blocks: Vec<u32>,
}

impl BlockTables {
    /// The table of sequence `sequence` of the batch.
    pub fn of(&self, sequence: usize) -> &[u32] {
        &self.blocks[self.offsets[sequence] as usize..self.offsets[sequence + 1] as usize]
    }
}

impl Batch {
    /// An empty batch for a model with `groups` KV groups.
    pub fn new(groups: usize) -> Self {
        let table = BlockTables { offsets: vec![0], blocks: Vec::new() };
        Batch { row_offsets: vec![0], block_tables: vec![table; groups], ..Batch::default() }
    }

    /// Appends `tokens` of one sequence, the first of them at `position`. `is_long`: whether the sequence is rotated as
    /// the long ones are. `tables` has the sequence's block table for each KV group.
    pub fn push(
        &mut self,
        tokens: &[u32],
        position: usize,
        is_long: bool,
        tables: &[Vec<u32>],
        logits: Logits,
    ) {
        assert_eq!(tables.len(), self.block_tables.len(), "one block table for each KV group");
        let first_row = self.tokens.len() as u32;
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((position..position + tokens.len()).map(|position| position as u32));
        let end = self.tokens.len() as u32;
        self.row_offsets.push(end);
        self.is_long.push(is_long);
        for (all, table) in self.block_tables.iter_mut().zip(tables) {
            all.blocks.extend_from_slice(table);
            all.offsets.push(all.blocks.len() as u32);
        }
        match logits {
            Logits::None => {}
            Logits::Last => self.logit_rows.push(end - 1),
            Logits::All => self.logit_rows.extend(first_row..end),
        }
    }

    /// Appends as the next row of a sequence the token that will be chosen as number `pick`, and wants its logits.
    pub fn push_follower(
        &mut self,
        pick: u32,
        position: usize,
        is_long: bool,
        tables: &[Vec<u32>],
    ) {
        self.follows.resize(self.rows(), None);
        self.push(&[0], position, is_long, tables, Logits::Last);
        self.follows.push(Some(pick));
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.row_offsets.len() - 1
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The sequence that each row belongs to, as (row, sequence) in ascending rows.
    pub fn rows_with_sequence(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        (0..self.sequences()).flat_map(|sequence| {
            let rows = self.row_offsets[sequence] as usize..self.row_offsets[sequence + 1] as usize;
            rows.map(move |row| (row, sequence))
        })
    }
}

/// Where the tokens of a batch come from; see [`Batch::generated`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From prompts, or texts that are scored.
    Prompt,
    /// They were generated: one for each sequence.
    Generated,
}

/// Which rows of a sequence want logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// No row: a chunk of a prompt that is not its last.
    None,
    /// The last row, to choose the next token.
    Last,
    /// Every row, to score a text.
    All,
}
