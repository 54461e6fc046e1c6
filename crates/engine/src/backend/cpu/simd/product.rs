//! Products of activations and packed weights, shared among threads.
#![allow(unsafe_code)]

use super::activations::{Activations, Needs, Tile};
use super::block_types::BlockType;
use super::output::{Columns, Finish, Output, Target};
use super::packed::{PackedMatrix, for_type};
use super::tiles::{PlainType, TileFunctions};
use super::{GROUP, Isa};
use crate::backend::cpu::threads::Threads;
use crate::format::DType;
use std::ops::Range;

/// Bytes of activations that stay in the second-level cache, beside a group of weights, while all groups pass by.
const CACHED_BYTES: usize = 256 << 10;

impl Isa {
    /// `out = x * weights[rows].transposed()`, finished as `finish` says.
    ///
    /// `x` is (tokens, cols), and `out` (tokens, rows.len()) of a target. `activations` is where `x` is kept in the form that the
    /// product needs: for other products of the same `x` it is there already. [`Activations::set`] says that `x`
    /// changed. Rows need not begin with a group, but those that do waste nothing.
    #[expect(clippy::too_many_arguments, reason = "what a product depends on")]
    pub fn product(
        self,
        threads: &mut Threads,
        target: Target<'_>,
        x: &[f32],
        activations: &mut Activations,
        weights: &PackedMatrix,
        rows: Range<usize>,
        finish: Finish<'_>,
    ) {
        assert!(rows.start <= rows.end && rows.end <= weights.rows(), "the rows exist");
        assert_eq!(activations.cols(), weights.cols(), "as many inputs as columns");
        assert_eq!(x.len(), activations.tokens() * weights.cols(), "x is what was announced");
        let room = activations.tokens() * target.width;
        assert_eq!(target.out.len(), room, "there is room for the products");
        if activations.tokens() == 0 || rows.is_empty() {
            return;
        }
        for_type!(weights.dtype(), T =>
            blocks activations.prepare_blocks(self, threads, x, self.needs::<T>()),
            plain activations.prepare_floats(threads, x),
        );
        // A few pieces for each thread even out what the system does beside us; whole groups waste no row.
        let groups = rows.start / GROUP..rows.end.div_ceil(GROUP);
        let pieces = (threads.count() * 4).min(groups.len());
        let border = |piece: usize| {
            let group = groups.start + groups.len() * piece / pieces;
            (group * GROUP).clamp(rows.start, rows.end)
        };
        let first_column = target.first_column;
        let (output, activations) = (Output::new(target), &*activations);
        threads.for_each(pieces, |piece| {
            let piece_rows = border(piece)..border(piece + 1);
            let column = first_column + piece_rows.start - rows.start;
            // SAFETY: each piece has its own columns and is computed once.
            let mut columns = unsafe { output.columns(column, piece_rows) };
            self.piece(&mut columns, activations, weights, finish);
        });
    }

    /// What the activations for a block type need.
    fn needs<T: BlockType>(self) -> Needs {
        let less = if T::WIDE && self.is_wide_less_128() { 128 } else { 0 };
        Needs {
            zero: T::ZERO - less,
            halves: T::HALVES,
            input_halves: T::INPUT_HALVES,
            minima: T::MINIMA,
        }
    }
}

/// All tokens, some rows: [`Isa::product`] for the functions of an instruction set.
///
/// # Safety
/// The instruction set must have been detected.
pub(super) unsafe fn piece<F: TileFunctions>(
    columns: &mut Columns<'_>,
    x: &Activations,
    weights: &PackedMatrix,
    finish: Finish<'_>,
) {
    // SAFETY: passed on.
    unsafe {
        for_type!(weights.dtype(), T =>
            blocks block_piece::<F, T>(columns, x, weights, finish),
            plain plain_piece::<F, T>(columns, x, weights, finish),
        );
    }
}

/// The groups that some rows are in.
fn groups_of(rows: &Range<usize>) -> Range<usize> {
    rows.start / GROUP..rows.end.div_ceil(GROUP)
}

/// Runs of tiles whose activations, `bytes` each, fit into the cache.
fn runs(x: &Activations, widest: usize, bytes: usize) -> impl Iterator<Item = &[Tile]> {
    x.tiles().chunks((CACHED_BYTES / (x.cols() * bytes * widest)).max(1))
}

unsafe fn block_piece<F: TileFunctions, T: BlockType>(
    columns: &mut Columns<'_>,
    x: &Activations,
    weights: &PackedMatrix,
    finish: Finish<'_>,
) {
    for tiles in runs(x, F::WIDEST, 1) {
        for group in groups_of(&columns.rows) {
            let bytes = weights.groups(group, group + 1);
            for tile in tiles {
                // SAFETY: passed on; the group is one of this type.
                unsafe {
                    F::block::<T>(bytes, tile, |token, products| {
                        columns.store(tile.first + token, group, products, finish);
                    });
                }
            }
        }
    }
}

unsafe fn plain_piece<F: TileFunctions, T: PlainType>(
    columns: &mut Columns<'_>,
    x: &Activations,
    weights: &PackedMatrix,
    finish: Finish<'_>,
) {
    /// Groups that are given to a tile at once: a multiple of what any computes together.
    const AT_ONCE: usize = 4;
    for tiles in runs(x, F::WIDEST, size_of::<f32>()) {
        let groups = groups_of(&columns.rows);
        for start in groups.clone().step_by(AT_ONCE) {
            let bytes = weights.groups(start, (start + AT_ONCE).min(groups.end));
            for tile in tiles {
                // SAFETY: passed on; the groups are of this type.
                unsafe {
                    F::plain::<T>(bytes, weights.group_bytes(), tile, |group, token, products| {
                        columns.store(tile.first + token, start + group, products, finish);
                    });
                }
            }
        }
    }
}
