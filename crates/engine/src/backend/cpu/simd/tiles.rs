//! The register tiles: a group of rows times a tile of tokens, for all instruction sets.
//!
//! Everything here is inlined into the functions of an instruction set (see [`tile_functions`]), which is what makes the
//! compiler use that set. The sum of one row and one token has one accumulator, which walks along K from start to end: how
//! many rows or tokens are computed at once does not change a bit of it.
#![allow(unsafe_code)]
// The same index leads into registers and behind pointers.
#![allow(clippy::needless_range_loop)]

use super::activations::Tile;
use super::block_types::{BlockType, LINE};
use super::rows::RowLanes;
use super::{BLOCK, GROUP};

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;
/// How far ahead weights are asked for while single tokens are computed, which wait for memory: the processor's own
/// prefetching stops at the end of each 4 KiB.
const AHEAD: usize = 4096;

/// The products of one group with a tile of tokens: for each token one number for each row.
pub(super) type Products<const W: usize> = [[f32; GROUP]; W];

/// `out[t][r] = group[r] . x[t]` for a block type.
///
/// # Safety
/// `V` must be usable; `group` must be a group of `steps` steps, and `x` a tile of `W` tokens of that length.
#[inline(always)]
pub(super) unsafe fn block_tile<V: RowLanes, P: BlockType, const W: usize>(
    out: &mut Products<W>,
    group: &[u8],
    x: &Tile,
) {
    let steps = group.len() / P::STEP_BYTES;
    let blocks = steps * P::BLOCKS;
    const { assert!(!(P::HALVES && P::INPUT_HALVES), "a sum has one scale of each kind") };
    let is_split = P::HALVES || P::INPUT_HALVES;
    let (start_halves, total_halves) = (1 + usize::from(is_split), 1 + usize::from(P::HALVES));
    let scale_halves = 1 + usize::from(P::INPUT_HALVES);
    assert!(x.words.len() >= blocks * (BLOCK / 4) * W);
    assert!(x.scales.len() >= blocks * scale_halves * W);
    assert!(x.starts.len() >= blocks * start_halves * W);
    assert!(!P::MINIMA || x.totals.len() >= blocks * total_halves * W);
    for row in (0..GROUP).step_by(V::ROWS) {
        // SAFETY: `V` is usable. The group has `steps` steps, and the activations of `blocks` blocks were just counted.
        unsafe {
            let mut sums = [V::splat(0.0); W];
            let mut step = group.as_ptr();
            let (mut words, mut scales) = (x.words.as_ptr(), x.scales.as_ptr());
            let (mut starts, mut totals) = (x.starts.as_ptr(), x.totals.as_ptr());
            for _ in 0..steps {
                let header = P::header::<V>(step, row);
                let mut block = step.add(P::HEADER_BYTES);
                for _ in 0..P::BLOCKS {
                    let bytes = P::SCALE_BYTES + P::LINES * LINE;
                    if W == 1 && row == 0 {
                        for line in (0..bytes).step_by(CACHE_LINE) {
                            V::prefetch(block.wrapping_add(AHEAD + line));
                        }
                    }
                    let scale = P::scales::<V>(header, block, row);
                    let lines = block.add(P::SCALE_BYTES);
                    let mut integers = [V::splat_word(0); W];
                    for t in 0..W {
                        integers[t] = V::splat_word(*starts.add(t));
                    }
                    let mut firsts = [V::splat(0.0); W];
                    for j in 0..8 {
                        if is_split && j == 4 {
                            for t in 0..W {
                                let first =
                                    if P::HALVES { scale[0] } else { V::splat(*scales.add(t)) };
                                firsts[t] = V::mul(V::floats(integers[t]), first);
                                integers[t] = V::splat_word(*starts.add(W + t));
                            }
                        }
                        let codes = P::line::<V>(lines, row, j);
                        for t in 0..W {
                            let x = *words.add(j * W + t);
                            integers[t] = V::dot(integers[t], codes, x, P::WIDE);
                        }
                    }
                    for t in 0..W {
                        let integers = V::floats(integers[t]);
                        // The scale that both halves have in common is multiplied last.
                        let last = V::splat(*scales.add((scale_halves - 1) * W + t));
                        let (product, common) = if P::INPUT_HALVES {
                            (V::mul_add(firsts[t], integers, last), scale[0])
                        } else if P::HALVES {
                            (V::mul_add(firsts[t], integers, scale[1]), last)
                        } else {
                            (V::mul(integers, scale[0]), last)
                        };
                        sums[t] = V::mul_add(sums[t], product, common);
                    }
                    if P::MINIMA {
                        let minima = P::minima::<V>(header, block, row);
                        for t in 0..W {
                            sums[t] = V::mul_add(sums[t], minima[0], V::splat(*totals.add(t)));
                            if P::HALVES {
                                let total = V::splat(*totals.add(W + t));
                                sums[t] = V::mul_add(sums[t], minima[1], total);
                            }
                        }
                        totals = totals.add(total_halves * W);
                    }
                    block = block.add(bytes);
                    words = words.add(BLOCK / 4 * W);
                    scales = scales.add(scale_halves * W);
                    starts = starts.add(start_halves * W);
                }
                step = block;
            }
            for t in 0..W {
                V::store(sums[t], out[t][row..].as_mut_ptr());
            }
        }
    }
}

/// A type whose elements are numbers on their own. In a group, the elements of a column lie side by side.
pub(super) trait PlainType {
    /// Bytes of an element.
    const BYTES: usize;

    /// Reads an element of each row.
    ///
    /// # Safety
    /// `V` must be usable, and a column be at `at`.
    unsafe fn load<V: RowLanes>(at: *const u8, row: usize) -> V::Floats;
}

macro_rules! plain_type {
    ($name:ident, $bytes:literal, $load:ident) => {
        pub(super) struct $name;

        impl PlainType for $name {
            const BYTES: usize = $bytes;

            #[inline(always)]
            unsafe fn load<V: RowLanes>(at: *const u8, row: usize) -> V::Floats {
                // SAFETY: a column is there.
                unsafe { V::$load(at, row) }
            }
        }
    };
}

plain_type!(F32, 4, f32s);
plain_type!(F16, 2, f16s);
plain_type!(BF16, 2, bf16s);

/// `out[g][t][r] = groups[g][r] . x[t]` for a type without blocks, for `G` groups one after another.
///
/// # Safety
/// `V` must be usable, and `x` a tile of `W` tokens.
#[inline(always)]
pub(super) unsafe fn plain_tile<V: RowLanes, E: PlainType, const G: usize, const W: usize>(
    out: &mut [Products<W>; G],
    groups: &[u8],
    x: &[f32],
) {
    /// Columns between two prefetches: a whole number of cache lines.
    const STEP: usize = 4;
    let cols = x.len() / W;
    let column = E::BYTES * GROUP;
    let group = cols * column;
    assert_eq!(groups.len(), G * group, "the groups have the length of the activations");
    for row in (0..GROUP).step_by(V::ROWS) {
        // SAFETY: `V` is usable; groups and tile have `cols` columns.
        unsafe {
            let mut sums = [[V::splat(0.0); W]; G];
            let (mut at, mut x) = (groups.as_ptr(), x.as_ptr());
            for step in 0..cols / STEP {
                if W == 1 && row == 0 {
                    // Behind the last column of these groups are the first ones of the next.
                    let is_behind = step * STEP * column + AHEAD >= group;
                    let ahead = AHEAD + if is_behind { (G - 1) * group } else { 0 };
                    for g in 0..G {
                        for line in (0..STEP * column).step_by(CACHE_LINE) {
                            V::prefetch(at.wrapping_add(g * group + ahead + line));
                        }
                    }
                }
                for _ in 0..STEP {
                    plain_column::<V, E, G, W>(&mut sums, at, group, row, x);
                    (at, x) = (at.add(column), x.add(W));
                }
            }
            for _ in 0..cols % STEP {
                plain_column::<V, E, G, W>(&mut sums, at, group, row, x);
                (at, x) = (at.add(column), x.add(W));
            }
            for g in 0..G {
                for t in 0..W {
                    V::store(sums[g][t], out[g][t][row..].as_mut_ptr());
                }
            }
        }
    }
}

/// Adds the products of one column to the sums of a tile.
///
/// # Safety
/// `V` must be usable; a column must be at `at` and, for the other groups, each `group` bytes further, and its
/// activations at `x`.
#[inline(always)]
unsafe fn plain_column<V: RowLanes, E: PlainType, const G: usize, const W: usize>(
    sums: &mut [[V::Floats; W]; G],
    at: *const u8,
    group: usize,
    row: usize,
    x: *const f32,
) {
    for g in 0..G {
        // SAFETY: the columns and `W` activations are there.
        unsafe {
            let weights = E::load::<V>(at.add(g * group), row);
            for t in 0..W {
                sums[g][t] = V::mul_add(sums[g][t], weights, V::splat(*x.add(t)));
            }
        }
    }
}

/// What an instruction set offers to [`super::product`].
///
/// # Safety
/// Methods may only be called where the instruction set was detected.
pub(super) unsafe trait TileFunctions {
    /// Tokens of the widest tile.
    const WIDEST: usize;
    /// See [`RowLanes::WIDE_LESS_128`].
    const WIDE_LESS_128: bool;

    /// [`block_tile`], with its tokens given to `store` one by one.
    ///
    /// # Safety
    /// As there.
    unsafe fn block<P: BlockType>(group: &[u8], x: &Tile, store: impl FnMut(usize, &[f32; GROUP]));

    /// [`plain_tile`] for any number of groups, which are each of `group` bytes. `store` gets the index of the group, that
    /// of the token, and their products.
    ///
    /// # Safety
    /// As there.
    unsafe fn plain<E: PlainType>(
        groups: &[u8],
        group: usize,
        x: &Tile,
        store: impl FnMut(usize, usize, &[f32; GROUP]),
    );
}

/// Implements [`TileFunctions`] and `quantize_tile` with the lanes of an instruction set, its features, the widths of its
/// tiles, and for each the number of groups of plain types that are computed at once.
macro_rules! tile_functions {
    ($name:ident, $lanes:ty, widest $widest:literal, tiles $($width:literal x $groups:literal),+ $(, features $feature:literal)?) => {
        pub(super) struct $name;

        $(#[target_feature(enable = $feature)])?
        unsafe fn block_tile<P: BlockType, const W: usize>(
            group: &[u8],
            x: &Tile,
        ) -> tiles::Products<W> {
            let mut out = [[0.0; GROUP]; W];
            // SAFETY: passed on.
            unsafe { tiles::block_tile::<$lanes, P, W>(&mut out, group, x) };
            out
        }

        $(#[target_feature(enable = $feature)])?
        unsafe fn plain_tile<E: tiles::PlainType, const G: usize, const W: usize>(
            groups: &[u8],
            x: &[f32],
        ) -> [tiles::Products<W>; G] {
            let mut out = [[[0.0; GROUP]; W]; G];
            // SAFETY: passed on.
            unsafe { tiles::plain_tile::<$lanes, E, G, W>(&mut out, groups, x) };
            out
        }

        /// See [`crate::backend::cpu::simd::activations::quantize_tile`].
        ///
        /// # Safety
        /// The instruction set must have been detected.
        $(#[target_feature(enable = $feature)])?
        pub(super) unsafe fn quantize_tile(tile: &mut Tile, x: &[f32], halves: bool) {
            crate::backend::cpu::simd::activations::quantize_tile(tile, x, halves);
        }

        // SAFETY: the instructions are those of the lanes.
        unsafe impl tiles::TileFunctions for $name {
            const WIDEST: usize = $widest;
            const WIDE_LESS_128: bool = <$lanes as RowLanes>::WIDE_LESS_128;

            unsafe fn block<P: BlockType>(
                group: &[u8],
                x: &Tile,
                mut store: impl FnMut(usize, &[f32; GROUP]),
            ) {
                match x.width {
                    $($width => {
                        // SAFETY: passed on.
                        let products = unsafe { block_tile::<P, $width>(group, x) };
                        for (token, products) in products.iter().enumerate() {
                            store(token, products);
                        }
                    })+
                    _ => unreachable!("tiles are 1, 2, 4 or 8 wide, and at most the widest"),
                }
            }

            unsafe fn plain<E: tiles::PlainType>(
                groups: &[u8],
                group: usize,
                x: &Tile,
                mut store: impl FnMut(usize, usize, &[f32; GROUP]),
            ) {
                match x.width {
                    $($width => {
                        let whole = groups.len() / group / $groups * $groups;
                        let (whole_groups, rest) = groups.split_at(whole * group);
                        for (index, groups) in whole_groups.chunks_exact($groups * group).enumerate() {
                            // SAFETY: passed on.
                            let products = unsafe { plain_tile::<E, $groups, $width>(groups, &x.floats) };
                            for (offset, products) in products.iter().enumerate() {
                                for (token, products) in products.iter().enumerate() {
                                    store(index * $groups + offset, token, products);
                                }
                            }
                        }
                        for (index, groups) in rest.chunks_exact(group).enumerate() {
                            // SAFETY: passed on.
                            let [products] = unsafe { plain_tile::<E, 1, $width>(groups, &x.floats) };
                            for (token, products) in products.iter().enumerate() {
                                store(whole + index, token, products);
                            }
                        }
                    })+
                    _ => unreachable!("tiles are 1, 2, 4 or 8 wide, and at most the widest"),
                }
            }
        }
    };
}
pub(super) use tile_functions;
