//! The arrays of a batch on the device.

use crate::batch::{Batch, BlockTables};
use oxgpt_kernels::{Arena, Buf, Chooser, CudaError, FOLLOWS_NONE, Gpu, Positions, Staging};

/// What a batch may have at the most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BatchRoom {
    /// Rows, and so sequences.
    pub rows: usize,
    /// Rows that want logits.
    pub logit_rows: usize,
    /// Blocks in the tables of all sequences, for each KV group.
    pub table_blocks: Vec<usize>,
    /// Tokens are below it.
    pub vocab_size: usize,
}

/// Arrays of numbers for each row, copied to the device at once.
const ARRAYS: usize = 6;

impl BatchRoom {
    /// Rows that each array has room for.
    fn array_len(&self) -> usize {
        self.rows.max(self.logit_rows)
    }

    /// The lengths of the buffers of a [`DeviceBatch`].
    pub fn buffers(&self) -> Vec<usize> {
        let offsets = self.rows + 1;
        let tables = self.table_blocks.iter().flat_map(|blocks| [offsets, *blocks]);
        [ARRAYS * self.array_len()].into_iter().chain(tables).collect()
    }
}

/// The arrays of the current batch.
pub(super) struct DeviceBatch {
    array_len: usize,
    /// Tokens, positions, logit rows, sequence of each row, whether it is long, what it follows: room for as many rows each.
    all: Buf<u32>,
    arrays: [Buf<u32>; ARRAYS],
    /// Of each KV group: where the table of each sequence starts, and the tables.
    tables: Vec<(Buf<u32>, Buf<u32>)>,
    vocab_size: usize,
    staging: Staging,
    /// The arrays of the batch, one after another.
    host: Vec<u32>,
    /// The batch that was written, to know which of its arrays is asked for.
    tokens: Vec<u32>,
    positions: Vec<u32>,
    logit_rows: Vec<u32>,
    last: usize,
}

impl DeviceBatch {
    pub fn new(gpu: &Gpu, arena: &mut Arena, room: &BatchRoom) -> Result<Self, CudaError> {
        let lengths = room.buffers();
        let staging = Staging::new(gpu, 4 * lengths.iter().sum::<usize>(), lengths.len())?;
        let mut buffers = lengths.into_iter();
        let mut next = || arena.buffer(buffers.next().unwrap_or(0));
        let array_len = room.array_len();
        let all = next()?;
        let arrays = std::array::from_fn(|i| all.part(i * array_len, array_len));
        let tables: Result<Vec<_>, CudaError> =
            room.table_blocks.iter().map(|_| Ok((next()?, next()?))).collect();
        Ok(DeviceBatch {
            array_len,
            all,
            arrays,
            tables: tables?,
            vocab_size: room.vocab_size,
            staging,
            host: Vec::with_capacity(ARRAYS * array_len),
            tokens: Vec::new(),
            positions: Vec::new(),
            logit_rows: Vec::new(),
            last: 0,
        })
    }

    /// KV groups.
    pub fn groups(&self) -> usize {
        self.tables.len()
    }

    /// Rows that there is room for.
    pub fn rows(&self) -> usize {
        self.tables.first().map_or(self.array_len, |(offsets, _)| offsets.len() - 1)
    }

    /// Copies a batch to the device while the host goes on. Tokens that are not known yet come from `chooser`. Beyond those that it
    /// has, the first `rows` rows repeat the one of the shortest context: they cost least, and store once more what that one does.
    pub fn write(
        &mut self,
        batch: &Batch,
        rows: usize,
        gpu: &Gpu,
        chooser: &Chooser,
    ) -> Result<(), CudaError> {
        let rows = rows.max(batch.logit_rows.len());
        let repeated = (0..batch.rows()).min_by_key(|row| batch.positions[*row]).unwrap_or(0);
        let host = &mut self.host;
        host.clear();
        // Appends an array whose further elements are that of the row that is repeated.
        let mut append = |values: &mut dyn Iterator<Item = u32>| {
            let start = host.len();
            host.extend(values);
            let further = host.get(start + repeated).copied().unwrap_or(0);
            host.resize(start + rows, further);
        };
        append(&mut batch.tokens.iter().copied());
        append(&mut batch.positions.iter().copied());
        append(&mut batch.logit_rows.iter().copied());
        append(&mut batch.rows_with_sequence().map(|(_, sequence)| sequence as u32));
        append(&mut batch.rows_with_sequence().map(|(_, s)| u32::from(batch.is_long[s])));
        append(&mut batch.follows.iter().map(|pick| pick.unwrap_or(FOLLOWS_NONE)));
        let staging = &mut self.staging;
        staging.begin()?;
        staging.write_rows(&mut self.all, self.array_len, &self.host, ARRAYS)?;
        for ((offsets, blocks), tables) in self.tables.iter_mut().zip(&batch.block_tables) {
            staging.write(offsets, &tables.offsets)?;
            staging.write(blocks, &tables.blocks)?;
        }
        staging.end()?;
        if !batch.follows.is_empty() {
            let [tokens, .., follows] = &mut self.arrays;
            chooser.follow(gpu, tokens, follows, rows, self.vocab_size)?;
        }
        self.tokens.clone_from(&batch.tokens);
        self.positions.clone_from(&batch.positions);
        self.logit_rows.clone_from(&batch.logit_rows);
        self.last = batch.positions.iter().max().map_or(0, |last| *last as usize);
        Ok(())
    }

    /// The tokens, which are `rows`.
    pub fn tokens(&mut self, rows: &[u32]) -> Result<&Buf<u32>, CudaError> {
        Self::array(&mut self.arrays[0], &mut self.tokens, rows)
    }

    /// The positions, which are `rows`.
    pub fn positions(&mut self, rows: &[u32]) -> Result<&Buf<u32>, CudaError> {
        Self::array(&mut self.arrays[1], &mut self.positions, rows)
    }

    /// The rows that want logits, which are `rows`.
    pub fn logit_rows(&mut self, rows: &[u32]) -> Result<&Buf<u32>, CudaError> {
        Self::array(&mut self.arrays[2], &mut self.logit_rows, rows)
    }

    /// An array of the batch, written again if it is not what is asked for.
    fn array<'a>(
        array: &'a mut Buf<u32>,
        written: &mut Vec<u32>,
        rows: &[u32],
    ) -> Result<&'a Buf<u32>, CudaError> {
        if written != rows {
            array.write(rows)?;
            written.clear();
            written.extend_from_slice(rows);
        }
        Ok(array)
    }

    /// Of each row its position, and whether its sequence is long.
    pub fn positions_and_lengths(&self) -> (&Buf<u32>, &Buf<u32>) {
        (&self.arrays[1], &self.arrays[4])
    }

    /// Where the rows of the batch lie, by the tables of one KV group.
    pub fn place(&self, batch: &Batch, tables: &BlockTables) -> Result<Positions<'_>, CudaError> {
        let same = |other: &&BlockTables| std::ptr::eq::<BlockTables>(*other, tables);
        let group = batch.block_tables.iter().position(|other| same(&other));
        let (table_offsets, blocks) = &self.tables[group.expect("the tables are the batch's")];
        Ok(Positions {
            positions: &self.arrays[1],
            sequences: &self.arrays[3],
            table_offsets,
            blocks,
            rows: batch.rows(),
            last: self.last,
        })
    }
}
