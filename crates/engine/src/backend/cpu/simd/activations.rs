//! Activations as products read them: some tokens side by side, and for block types in 8 bits.
//!
//! Tokens are cut into *tiles* of as many as a register tile has, and what is left into tiles of 4, 2 and 1. In a tile the
//! tokens lie side by side: the four activations that one instruction multiplies, of each token of the tile, then the
//! next four.
//!
//! For block types, each 32 or sixteen activations of a token (see `BlockType::INPUT_HALVES`) become integers from -127 to
//! 127 with one f32 scale, a 127th of the largest magnitude among them. That is the only step of a product that rounds
//! more than f32 does.

use super::{BLOCK, Isa};
use crate::backend::cpu::threads::Threads;

/// Activations in a word.
const WORD: usize = 4;
/// Tiles that a thread prepares at once.
const TILES_AT_ONCE: usize = 4;
/// Blocks whose largest magnitude is below this become zeros: their inverse scale would be infinite.
const TINY: f32 = 1e-30;

/// What a block type needs beside the integers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Needs {
    /// What codes are less than the weights they stand for.
    pub zero: i32,
    /// Whether each sixteen columns have their own sums.
    pub halves: bool,
    /// Whether each sixteen activations have their own scale.
    pub input_halves: bool,
    /// Whether weights have minima.
    pub minima: bool,
}

/// Rows of activations, in the forms that were asked for.
#[derive(Default)]
pub struct Activations {
    tokens: usize,
    cols: usize,
    /// The tiles of these and, behind them, room that larger batches left.
    tiles: Vec<Tile>,
    used: usize,
    has_floats: bool,
    /// Whether the integers are there, and if so [`Needs::input_halves`] of them.
    words: Option<bool>,
    prepared: Option<Needs>,
}

/// Some tokens side by side.
#[derive(Default)]
pub(super) struct Tile {
    /// The first token.
    pub first: usize,
    /// The number of tokens.
    pub width: usize,
    /// As f32: (columns, tokens).
    pub floats: Vec<f32>,
    /// As integers: (columns / 4, tokens) words of four.
    pub words: Vec<i32>,
    /// (columns / 32, 1 or 2 for [`Needs::input_halves`], tokens)
    pub scales: Vec<f32>,
    /// Sums of sixteen integers: (columns / 32, 2, tokens).
    half_sums: Vec<i32>,
    /// What the sums of products begin with, so that codes count less `zero`: (columns / 32, halves, tokens).
    pub starts: Vec<i32>,
    /// Sums of activations, for minima to be multiplied with: (columns / 32, 1 or 2 if weights have minima for each sixteen
    /// columns, tokens).
    pub totals: Vec<f32>,
}

/// The tiles of `tokens` tokens: the first token and the number of them.
fn tiles(tokens: usize, widest: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let left = tokens - first;
        let width = if left >= widest { widest } else { (left + 1).next_power_of_two() / 2 };
        first += width;
        (width > 0).then_some((first - width, width))
    })
}

impl Activations {
    /// Takes other activations, (tokens, cols).
    pub fn set(&mut self, isa: Isa, tokens: usize, cols: usize) {
        (self.tokens, self.cols) = (tokens, cols);
        (self.has_floats, self.words, self.prepared) = (false, None, None);
        self.used = 0;
        for (first, width) in tiles(tokens, isa.widest_tile()) {
            if self.used == self.tiles.len() {
                self.tiles.push(Tile::default());
            }
            (self.tiles[self.used].first, self.tiles[self.used].width) = (first, width);
            self.used += 1;
        }
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Number of activations of a token.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The tiles, in the form that was prepared last, or before.
    pub(super) fn tiles(&self) -> &[Tile] {
        &self.tiles[..self.used]
    }

    /// Brings the activations into the form for types that are not in blocks. `x` is what [`Activations::set`] spoke of.
    pub(super) fn prepare_floats(&mut self, threads: &mut Threads, x: &[f32]) {
        if self.has_floats {
            return;
        }
        let cols = self.cols;
        threads.for_each_chunk(&mut self.tiles[..self.used], TILES_AT_ONCE, |_, tiles| {
            for tile in tiles {
                let x = &x[tile.first * cols..][..tile.width * cols];
                tile.floats.resize(x.len(), 0.0);
                for (token, x) in x.chunks_exact(cols).enumerate() {
                    let floats = tile.floats[token..].iter_mut().step_by(tile.width);
                    floats.zip(x).for_each(|(float, x)| *float = *x);
                }
            }
        });
        self.has_floats = true;
    }

    /// Brings the activations into the form for a block type.
    pub(super) fn prepare_blocks(
        &mut self,
        isa: Isa,
        threads: &mut Threads,
        x: &[f32],
        needs: Needs,
    ) {
        if self.prepared == Some(needs) {
            return;
        }
        let (cols, has_words) = (self.cols, self.words == Some(needs.input_halves));
        threads.for_each_chunk(&mut self.tiles[..self.used], TILES_AT_ONCE, |_, tiles| {
            for tile in tiles {
                if !has_words {
                    let x = &x[tile.first * cols..][..tile.width * cols];
                    isa.quantize_tile(tile, x, needs.input_halves);
                }
                tile.prepare(needs);
            }
        });
        (self.words, self.prepared) = (Some(needs.input_halves), Some(needs));
    }
}

impl Tile {
    /// Computes what a block type needs beside the integers.
    fn prepare(&mut self, needs: Needs) {
        let width = self.width;
        let blocks = self.half_sums.len() / (2 * width);
        let times = |is_split| if is_split { 2 } else { 1 };
        let (start_halves, total_halves) =
            (times(needs.halves || needs.input_halves), times(needs.halves));
        let scale_halves = times(needs.input_halves);
        self.starts.resize(blocks * start_halves * width, 0);
        self.totals.resize(if needs.minima { blocks * total_halves * width } else { 0 }, 0.0);
        let sums = self.half_sums.chunks_exact(width * 2).map(|sums| sums.split_at(width));
        let starts = self.starts.chunks_exact_mut(width * start_halves);
        for (starts, (low, high)) in starts.zip(sums.clone()) {
            for token in 0..width {
                if start_halves == 2 {
                    starts[token] = -needs.zero * low[token];
                    starts[width + token] = -needs.zero * high[token];
                } else {
                    starts[token] = -needs.zero * (low[token] + high[token]);
                }
            }
        }
        let totals = self.totals.chunks_exact_mut(width * total_halves);
        let scales = self.scales.chunks_exact(width * scale_halves);
        for ((totals, (low, high)), scales) in totals.zip(sums).zip(scales) {
            for token in 0..width {
                let (low, high) = (low[token] as f32, high[token] as f32);
                let (low_scale, high_scale) =
                    (scales[token], scales[(scale_halves - 1) * width + token]);
                if needs.halves {
                    totals[token] = low_scale * low;
                    totals[width + token] = high_scale * high;
                } else {
                    totals[token] = low_scale * low + high_scale * high;
                }
            }
        }
    }
}

/// Quantizes a tile of (tokens, columns), each sixteen columns with their own scale if `halves`. Plain code, which an
/// instruction set compiles with its own features; each step rounds as IEEE says on its own, so that all sets give the
/// same bits.
#[inline(always)]
pub(super) fn quantize_tile(tile: &mut Tile, x: &[f32], halves: bool) {
    let blocks = x.len() / BLOCK;
    tile.words.resize(x.len() / WORD, 0);
    tile.scales.resize(if halves { 2 * blocks } else { blocks }, 0.0);
    tile.half_sums.resize(2 * blocks, 0);
    if halves {
        quantize_parts::<{ BLOCK / 2 }>(tile, x);
    } else {
        quantize_parts::<BLOCK>(tile, x);
    }
}

/// Quantizes a tile with a scale for each `PART` columns: sixteen or 32.
#[inline(always)]
fn quantize_parts<const PART: usize>(tile: &mut Tile, x: &[f32]) {
    const HALF: usize = BLOCK / 2;
    let width = tile.width;
    let (words, scales) = (&mut tile.words[..], &mut tile.scales[..]);
    let half_sums = &mut tile.half_sums[..];
    for (token, x) in x.chunks_exact(x.len() / width).enumerate() {
        for (part, x) in x.as_chunks::<PART>().0.iter().enumerate() {
            let (scale, integers) = quantize(x);
            scales[part * width + token] = scale;
            for (half, integers) in integers.as_chunks::<HALF>().0.iter().enumerate() {
                half_sums[(part * PART / HALF + half) * width + token] = integers.iter().sum();
            }
            let words = words[part * PART / WORD * width + token..].iter_mut().step_by(width);
            for (word, integers) in words.zip(integers.as_chunks::<WORD>().0) {
                *word = i32::from_le_bytes(integers.map(|integer| integer as u8));
            }
        }
    }
}

/// The scale and the integers of what shares a scale. An infinity or NaN gives a scale that is none either.
#[inline(always)]
fn quantize<const N: usize>(x: &[f32; N]) -> (f32, [i32; N]) {
    // Adding 1.5 * 2^23 rounds to the nearest integer, even among two, which is then in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // As integers, magnitudes are in the same order, NaN the largest.
    let largest = x.iter().fold(0, |largest, x| (x.to_bits() & 0x7FFF_FFFF).max(largest));
    let largest = f32::from_bits(largest);
    let (scale, inverse) =
        if largest < TINY { (0.0, 0.0) } else { (largest / 127.0, 127.0 / largest) };
    // As `i8`, also what an infinity or NaN made, so that no sum overflows.
    let integers =
        x.map(|x| i32::from((x * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i8));
    (scale, integers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_all_tokens_once() {
        for widest in [2, 4, 8] {
            for tokens in 0..70 {
                let mut next = 0;
                for (first, width) in tiles(tokens, widest) {
                    assert!(first == next && width.is_power_of_two() && width <= widest);
                    next += width;
                }
                assert_eq!(next, tokens);
            }
        }
    }

    #[test]
    fn integers_are_the_nearest_multiples_of_the_scale() {
        let mut x = [0.0f32; BLOCK];
        for (i, x) in x.iter_mut().enumerate() {
            *x = ((i * 37 % 64) as f32 - 31.7) * 0.013;
        }
        let (scale, integers) = quantize(&x);
        let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        assert_eq!(scale, largest / 127.0);
        for (x, integer) in x.iter().zip(integers) {
            let exact = f64::from(*x) / f64::from(scale);
            assert!((exact - f64::from(integer)).abs() < 0.5001, "{x} {integer}");
            assert!((-127..=127).contains(&integer));
        }
        assert!(integers.iter().any(|integer| integer.abs() == 127));
    }

    #[test]
    fn special_activations_are_not_lost() {
        assert_eq!(quantize(&[0.0; BLOCK]), (0.0, [0; BLOCK]));
        assert_eq!(quantize(&[1e-40; BLOCK]), (0.0, [0; BLOCK]));
        let mut x = [1.0; BLOCK];
        x[7] = f32::NAN;
        assert!(quantize(&x).0.is_nan());
        x[7] = f32::NEG_INFINITY;
        assert_eq!(quantize(&x).0, f32::INFINITY);
        x[7] = -f32::MAX;
        let (scale, integers) = quantize(&x);
        assert_eq!((scale, integers[7], integers[8]), (f32::MAX / 127.0, -127, 0));
    }
}
