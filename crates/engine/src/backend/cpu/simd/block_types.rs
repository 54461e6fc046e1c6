//! The block types as they are kept in memory: groups of sixteen rows, whose codes lie side by side.
//!
//! A group is a sequence of *steps*, each as many columns as a block of the file has. A step is what its blocks have in
//! common (scales of scales), and for each 32 columns the scales and the *lines* of codes. Line `j` of plain bytes has
//! columns `4 * j` to `4 * j + 3` of row 0, then of row 1 and so on: 64 bytes, whose products with four activations one
//! instruction adds up for all sixteen rows. Codes of fewer bits share lines:
//!
//! | plane          | lines | line `j` of codes is                                       |
//! | -------------- | ----: | ---------------------------------------------------------- |
//! | bytes          |     8 | line `j`                                                   |
//! | nibbles        |     4 | line `j % 4`, the low nibbles for `j < 4`, else the high   |
//! | pairs of bits  |     2 | line `j % 2`, bits `2 * (j / 2)` and the next              |
//! | single bits    |     1 | bit `j`                                                    |
//!
//! The layout has every bit of the file's blocks (6-bit scales are unpacked to bytes, which takes up to 4 % more), so a row
//! can be read back exactly. Layouts of the file's blocks are described in the files of `quant`.
#![allow(unsafe_code)]

use super::GROUP;
use super::rows::RowLanes;
use crate::quant::{IQ4_STEPS, MXFP4_DOUBLED, scales_and_mins};

/// Bytes of a line: a word for each row.
pub(super) const LINE: usize = GROUP * 4;

/// A block type. A weight is `scale * (code - ZERO) + minimum`.
pub(super) trait BlockType {
    /// Bytes of a block in the file.
    const FILE_BYTES: usize;
    /// Times 32 columns in a step.
    const BLOCKS: usize;
    /// Bytes at the start of a step.
    const HEADER_BYTES: usize;
    /// Bytes of the scales of 32 columns.
    const SCALE_BYTES: usize;
    /// Lines that the codes of 32 columns take.
    const LINES: usize;
    /// What a code is less than the number it stands for.
    const ZERO: i32;
    /// Whether codes may be above 127.
    const WIDE: bool;
    /// Whether sixteen columns share a scale, not 32.
    const HALVES: bool;
    /// Whether weights have minima.
    const MINIMA: bool;

    /// Whether sixteen activations share a scale, not 32, where the type's products are computed: so for types of 32
    /// columns. On SmolLM2 that takes a third off the KL divergence, for a sixth of the speed of a prompt. Types of 256
    /// columns, which are slower and more often chosen for few bits than for accuracy, have 32.
    const INPUT_HALVES: bool = Self::BLOCKS == 1;

    /// Bytes of a step.
    const STEP_BYTES: usize =
        Self::HEADER_BYTES + Self::BLOCKS * (Self::SCALE_BYTES + Self::LINES * LINE);

    /// Puts a block of the file into its step, as row `row`.
    fn pack(block: &[u8], row: usize, step: &mut [u8]);

    /// What the blocks of the step at `at` have in common: scales of the scales and, negated, of the minima.
    ///
    /// # Safety
    /// `at` must be valid for `STEP_BYTES` bytes, and `V` usable.
    unsafe fn header<V: RowLanes>(at: *const u8, row: usize) -> [V::Floats; 2];

    /// The scales of the halves of the 32 columns at `at`; both are the same without [`BlockType::HALVES`].
    ///
    /// # Safety
    /// As above, for `SCALE_BYTES` bytes.
    unsafe fn scales<V: RowLanes>(
        header: [V::Floats; 2],
        at: *const u8,
        row: usize,
    ) -> [V::Floats; 2];

    /// The minima of the halves of the 32 columns at `at`.
    ///
    /// # Safety
    /// As above.
    unsafe fn minima<V: RowLanes>(
        header: [V::Floats; 2],
        at: *const u8,
        row: usize,
    ) -> [V::Floats; 2];

    /// Line `j`, of eight, of the codes whose lines are at `lines`.
    ///
    /// # Safety
    /// As above, for `LINES` lines.
    unsafe fn line<V: RowLanes>(lines: *const u8, row: usize, j: usize) -> V::Words;
}

const MXFP4_ZERO: u8 = 12;
const MXFP4_CODES: [u8; 16] = less_zero(MXFP4_DOUBLED, MXFP4_ZERO);
const IQ4_ZERO: u8 = 127;
const IQ4_CODES: [u8; 16] = less_zero(IQ4_STEPS, IQ4_ZERO);

/// Signed numbers as codes.
const fn less_zero(numbers: [i8; 16], zero: u8) -> [u8; 16] {
    let mut codes = [0; 16];
    let mut i = 0;
    while i < codes.len() {
        codes[i] = (numbers[i] as i16 + zero as i16) as u8;
        i += 1;
    }
    codes
}

/// Word `i` of a block's bytes.
#[inline(always)]
fn word(bytes: &[u8], i: usize) -> u32 {
    u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
}

/// Puts the word of a row into line `line` of some lines.
#[inline(always)]
fn put_word(lines: &mut [u8], line: usize, row: usize, word: u32) {
    lines[line * LINE + row * 4..][..4].copy_from_slice(&word.to_le_bytes());
}

/// Puts a number of two bytes into a row of sixteen of them.
#[inline(always)]
fn put_pair(numbers: &mut [u8], row: usize, bytes: &[u8]) {
    numbers[row * 2..][..2].copy_from_slice(&bytes[..2]);
}

/// The mask of one byte, for a whole word.
#[inline(always)]
const fn splat(byte: u8) -> u32 {
    u32::from_le_bytes([byte; 4])
}

/// Puts 32 codes, given as eight words of them, into the four lines of nibbles.
#[inline(always)]
fn put_nibbles(lines: &mut [u8], row: usize, codes: impl Fn(usize) -> u32) {
    for line in 0..4 {
        let (low, high) = (codes(line) & splat(15), codes(line + 4) & splat(15));
        put_word(lines, line, row, low | high << 4);
    }
}

/// As [`put_nibbles`], of two bits.
#[inline(always)]
fn put_bit_pairs(lines: &mut [u8], row: usize, codes: impl Fn(usize) -> u32) {
    for line in 0..2 {
        let pair = |i: usize| (codes(line + 2 * i) & splat(3)) << (2 * i);
        put_word(lines, line, row, pair(0) | pair(1) | pair(2) | pair(3));
    }
}

/// As [`put_nibbles`], of one bit.
#[inline(always)]
fn put_bits(lines: &mut [u8], row: usize, codes: impl Fn(usize) -> u32) {
    let bits = (0..8).fold(0, |bits, j| bits | (codes(j) & splat(1)) << j);
    put_word(lines, 0, row, bits);
}

/// Bits `4 * j` to `4 * j + 3` of a number, each in a byte of its own.
#[inline(always)]
fn spread_bits(bits: u32, j: usize) -> u32 {
    // The factor puts bit `i` at `7 * i` higher places among others; that is bit 0 of byte `i`.
    (bits >> (4 * j) & 15).wrapping_mul(0x0020_4081) & splat(1)
}

/// The nibbles of the lines of line `j`.
#[inline(always)]
unsafe fn nibbles<V: RowLanes>(lines: *const u8, row: usize, j: usize) -> V::Words {
    // SAFETY: four lines are there.
    unsafe {
        let words = V::words(lines.add(j % 4 * LINE), row);
        V::and(if j < 4 { words } else { V::shift(words, -4) }, 15)
    }
}

/// The pairs of bits of line `j`, moved `up` bits up.
#[inline(always)]
unsafe fn bit_pairs<V: RowLanes>(lines: *const u8, row: usize, j: usize, up: i32) -> V::Words {
    // SAFETY: two lines are there.
    unsafe {
        let words = V::words(lines.add(j % 2 * LINE), row);
        V::and(V::shift(words, up - j as i32 / 2 * 2), 3 << up)
    }
}

/// The single bits of line `j`, moved `up` bits up.
#[inline(always)]
unsafe fn single_bits<V: RowLanes>(lines: *const u8, row: usize, j: usize, up: i32) -> V::Words {
    // SAFETY: a line is there.
    unsafe { V::and(V::shift(V::words(lines, row), up - j as i32), 1 << up) }
}

/// Defines a block type: its constants in the order of the trait, how a block is packed, and how it is read. The
/// expressions see their arguments under the names that the definition gives them.
macro_rules! block_type {
    (
        $name:ident, file $file:literal, step $blocks:literal x ($scale:literal + $lines:literal lines) + $header:literal,
        zero $zero:expr, wide $wide:literal, halves $halves:literal, minima $minima:literal,
        pack |$block:ident, $row:ident, $step:ident| $pack:expr,
        header <$hv:ident> |$h_at:ident, $h_row:ident| $head:expr,
        scales <$sv:ident> |$s_header:ident, $s_at:ident, $s_row:ident| $scales:expr,
        minima <$mv:ident> |$m_header:ident, $m_at:ident, $m_row:ident| $min:expr,
        line <$lv:ident> |$l_lines:ident, $l_row:ident, $j:ident| $line:expr $(,)?
    ) => {
        pub(super) struct $name;

        impl BlockType for $name {
            const FILE_BYTES: usize = $file;
            const BLOCKS: usize = $blocks;
            const HEADER_BYTES: usize = $header;
            const SCALE_BYTES: usize = $scale;
            const LINES: usize = $lines;
            const ZERO: i32 = $zero;
            const WIDE: bool = $wide;
            const HALVES: bool = $halves;
            const MINIMA: bool = $minima;

            #[inline(always)]
            fn pack($block: &[u8], $row: usize, $step: &mut [u8]) {
                $pack
            }

            #[inline(always)]
            unsafe fn header<$hv: RowLanes>($h_at: *const u8, $h_row: usize) -> [$hv::Floats; 2] {
                // SAFETY: a step is there.
                unsafe { $head }
            }

            #[inline(always)]
            unsafe fn scales<$sv: RowLanes>(
                $s_header: [$sv::Floats; 2],
                $s_at: *const u8,
                $s_row: usize,
            ) -> [$sv::Floats; 2] {
                // SAFETY: the scales of 32 columns are there.
                unsafe { $scales }
            }

            #[inline(always)]
            #[allow(unused_unsafe, reason = "most types have none to read")]
            unsafe fn minima<$mv: RowLanes>(
                $m_header: [$mv::Floats; 2],
                $m_at: *const u8,
                $m_row: usize,
            ) -> [$mv::Floats; 2] {
                // SAFETY: the scales of 32 columns are there.
                unsafe { $min }
            }

            #[inline(always)]
            unsafe fn line<$lv: RowLanes>(
                $l_lines: *const u8,
                $l_row: usize,
                $j: usize,
            ) -> $lv::Words {
                // SAFETY: the lines of 32 columns are there.
                unsafe { $line }
            }
        }
    };
}

/// A type of 32 columns, with an F16 scale and no minimum.
macro_rules! with_f16_scale {
    (
        $name:ident, file $file:literal, $lines:literal lines, zero $zero:expr, wide $wide:literal,
        pack |$block:ident, $row:ident, $lines_out:ident| $pack:expr,
        line <$lv:ident> |$l_lines:ident, $l_row:ident, $j:ident| $line:expr $(,)?
    ) => {
        block_type! {
            $name, file $file, step 1 x (32 + $lines lines) + 0,
            zero $zero, wide $wide, halves false, minima false,
            pack |$block, $row, step| {
                put_pair(step, $row, $block);
                let $lines_out = &mut step[32..];
                $pack
            },
            header <V> |_at, _row| [V::splat(0.0); 2],
            scales <V> |_header, at, row| [V::f16s(at, row); 2],
            minima <V> |header, _at, _row| header,
            line <$lv> |$l_lines, $l_row, $j| $line,
        }
    };
}

/// A type of 32 columns, with an F16 scale and an F16 minimum.
macro_rules! with_f16_minimum {
    (
        $name:ident, file $file:literal, $lines:literal lines,
        pack |$block:ident, $row:ident, $lines_out:ident| $pack:expr,
        line <$lv:ident> |$l_lines:ident, $l_row:ident, $j:ident| $line:expr $(,)?
    ) => {
        block_type! {
            $name, file $file, step 1 x (64 + $lines lines) + 0,
            zero 0, wide false, halves false, minima true,
            pack |$block, $row, step| {
                put_pair(step, $row, $block);
                put_pair(&mut step[32..], $row, &$block[2..]);
                let $lines_out = &mut step[64..];
                $pack
            },
            header <V> |_at, _row| [V::splat(0.0); 2],
            scales <V> |_header, at, row| [V::f16s(at, row); 2],
            minima <V> |_header, at, row| [V::f16s(at.add(32), row); 2],
            line <$lv> |$l_lines, $l_row, $j| $line,
        }
    };
}

/// A type of 256 columns with an F16 scale (at `$d` of a block) of eight or sixteen signed scales of a byte.
macro_rules! with_signed_scales {
    (
        $name:ident, file $file:literal, $scale:literal + $lines:literal lines, d $d:literal,
        zero $zero:expr, wide $wide:literal, halves $halves:literal,
        scale |$s_block:ident, $s:ident| $scale_of:expr,
        pack |$block:ident, $group:ident, $row:ident, $lines_out:ident| $pack:expr,
        line <$lv:ident> |$l_lines:ident, $l_row:ident, $j:ident| $line:expr $(,)?
    ) => {
        block_type! {
            $name, file $file, step 8 x ($scale + $lines lines) + 32,
            zero $zero, wide $wide, halves $halves, minima false,
            pack |$block, $row, step| {
                let scale_of = |$s_block: &[u8], $s: usize| -> u8 { $scale_of };
                put_pair(step, $row, &$block[$d..]);
                let parts = step[32..].chunks_exact_mut($scale + $lines * LINE);
                for ($group, part) in parts.enumerate() {
                    let (scales, $lines_out) = part.split_at_mut($scale);
                    for half in 0..$scale / GROUP {
                        scales[half * GROUP + $row] =
                            scale_of($block, $group * ($scale / GROUP) + half);
                    }
                    $pack
                }
            },
            header <V> |at, row| [V::f16s(at, row), V::splat(0.0)],
            scales <V> |header, at, row| {
                let first = V::mul(V::floats(V::signed_bytes(at, row)), header[0]);
                if $halves {
                    let second = V::signed_bytes(at.add($scale - GROUP), row);
                    [first, V::mul(V::floats(second), header[0])]
                } else {
                    [first, first]
                }
            },
            minima <V> |header, _at, _row| header,
            line <$lv> |$l_lines, $l_row, $j| $line,
        }
    };
}

/// Q4_K or Q5_K: 256 columns, with F16 scales of eight scales and eight minima of a byte.
macro_rules! with_eighths {
    (
        $name:ident, file $file:literal, $lines:literal lines,
        pack |$block:ident, $group:ident, $row:ident, $lines_out:ident| $pack:expr,
        line <$lv:ident> |$l_lines:ident, $l_row:ident, $j:ident| $line:expr $(,)?
    ) => {
        block_type! {
            $name, file $file, step 8 x (32 + $lines lines) + 64,
            zero 0, wide false, halves false, minima true,
            pack |$block, $row, step| {
                put_pair(step, $row, $block);
                put_pair(&mut step[32..], $row, &$block[2..]);
                let packed: &[u8; 12] = $block[4..].first_chunk().expect("a whole block");
                let (scales, mins) = scales_and_mins(packed);
                let parts = step[64..].chunks_exact_mut(32 + $lines * LINE);
                for ($group, part) in parts.enumerate() {
                    let (bytes, $lines_out) = part.split_at_mut(32);
                    bytes[$row] = scales[$group];
                    bytes[GROUP + $row] = mins[$group];
                    $pack
                }
            },
            header <V> |at, row| {
                [V::f16s(at, row), V::mul(V::f16s(at.add(32), row), V::splat(-1.0))]
            },
            scales <V> |header, at, row| [V::mul(V::floats(V::bytes(at, row)), header[0]); 2],
            minima <V> |header, at, row| {
                [V::mul(V::floats(V::bytes(at.add(GROUP), row)), header[1]); 2]
            },
            line <$lv> |$l_lines, $l_row, $j| $line,
        }
    };
}

with_f16_scale! {
    Q8_0, file 34, 8 lines, zero 128, wide true,
    pack |block, row, lines| (0..8).for_each(|line| {
        put_word(lines, line, row, word(&block[2..], line) ^ splat(0x80));
    }),
    line <V> |lines, row, j| V::words(lines.add(j * LINE), row),
}

// The words of nibbles are those of the file.
with_f16_scale! {
    Q4_0, file 18, 4 lines, zero 8, wide false,
    pack |block, row, lines| {
        (0..4).for_each(|line| put_word(lines, line, row, word(&block[2..], line)));
    },
    line <V> |lines, row, j| nibbles::<V>(lines, row, j),
}

with_f16_scale! {
    Iq4Nl, file 18, 4 lines, zero IQ4_ZERO as i32, wide true,
    pack |block, row, lines| {
        (0..4).for_each(|line| put_word(lines, line, row, word(&block[2..], line)));
    },
    line <V> |lines, row, j| V::look_up(nibbles::<V>(lines, row, j), &IQ4_CODES),
}

with_f16_minimum! {
    Q4_1, file 20, 4 lines,
    pack |block, row, lines| {
        (0..4).for_each(|line| put_word(lines, line, row, word(&block[4..], line)));
    },
    line <V> |lines, row, j| nibbles::<V>(lines, row, j),
}

with_f16_scale! {
    Q5_0, file 22, 5 lines, zero 16, wide false,
    pack |block, row, lines| {
        (0..4).for_each(|line| put_word(lines, line, row, word(&block[6..], line)));
        put_bits(&mut lines[4 * LINE..], row, |j| spread_bits(word(&block[2..], 0), j));
    },
    line <V> |lines, row, j| V::or(
        nibbles::<V>(lines, row, j),
        single_bits::<V>(lines.add(4 * LINE), row, j, 4),
    ),
}

with_f16_minimum! {
    Q5_1, file 24, 5 lines,
    pack |block, row, lines| {
        (0..4).for_each(|line| put_word(lines, line, row, word(&block[8..], line)));
        put_bits(&mut lines[4 * LINE..], row, |j| spread_bits(word(&block[4..], 0), j));
    },
    line <V> |lines, row, j| V::or(
        nibbles::<V>(lines, row, j),
        single_bits::<V>(lines.add(4 * LINE), row, j, 4),
    ),
}

block_type! {
    Mxfp4, file 17, step 1 x (16 + 4 lines) + 0,
    zero MXFP4_ZERO as i32, wide false, halves false, minima false,
    pack |block, row, step| {
        step[row] = block[0];
        (0..4).for_each(|line| put_word(&mut step[16..], line, row, word(&block[1..], line)));
    },
    header <V> |_at, _row| [V::splat(0.0); 2],
    scales <V> |_header, at, row| [V::half_scales(V::bytes(at, row)); 2],
    minima <V> |header, _at, _row| header,
    line <V> |lines, row, j| V::look_up(nibbles::<V>(lines, row, j), &MXFP4_CODES),
}

with_eighths! {
    Q4K, file 144, 4 lines,
    pack |block, group, row, lines| {
        let q = &block[16 + group / 2 * 32..];
        put_nibbles(lines, row, |j| word(q, j) >> (group % 2 * 4));
    },
    line <V> |lines, row, j| nibbles::<V>(lines, row, j),
}

with_eighths! {
    Q5K, file 176, 5 lines,
    pack |block, group, row, lines| {
        let q = &block[48 + group / 2 * 32..];
        put_nibbles(lines, row, |j| word(q, j) >> (group % 2 * 4));
        put_bits(&mut lines[4 * LINE..], row, |j| word(&block[16..], j) >> group);
    },
    line <V> |lines, row, j| V::or(
        nibbles::<V>(lines, row, j),
        single_bits::<V>(lines.add(4 * LINE), row, j, 4),
    ),
}

with_signed_scales! {
    Q6K, file 210, 32 + 6 lines, d 208, zero 32, wide false, halves true,
    scale |block, i| block[192 + i],
    pack |block, group, row, lines| {
        // Two halves of 128: nibbles in two planes of 64 columns, pairs of bits in four of 32.
        let (half, quarter) = (group / 4, group % 4);
        let low = &block[half * 64 + quarter % 2 * 32..];
        let high = &block[128 + half * 32..];
        put_nibbles(lines, row, |j| word(low, j) >> (quarter / 2 * 4));
        put_bit_pairs(&mut lines[4 * LINE..], row, |j| word(high, j) >> (quarter * 2));
    },
    line <V> |lines, row, j| V::or(
        nibbles::<V>(lines, row, j),
        bit_pairs::<V>(lines.add(4 * LINE), row, j, 4),
    ),
}

with_signed_scales! {
    Q3K, file 110, 32 + 3 lines, d 108, zero 4, wide false, halves true,
    scale |block, i| {
        let (low, high) = (block[96 + i % 8] >> (i / 8 * 4) & 15, block[104 + i % 4] >> (i / 4 * 2));
        (low | (high & 3) << 4).wrapping_sub(32)
    },
    pack |block, group, row, lines| {
        let low = &block[32 + group / 4 * 32..];
        put_bit_pairs(lines, row, |j| word(low, j) >> (group % 4 * 2));
        put_bits(&mut lines[2 * LINE..], row, |j| word(block, j) >> group);
    },
    line <V> |lines, row, j| V::or(
        bit_pairs::<V>(lines, row, j, 0),
        single_bits::<V>(lines.add(2 * LINE), row, j, 2),
    ),
}

with_signed_scales! {
    Iq4Xs, file 136, 16 + 4 lines, d 0, zero IQ4_ZERO as i32, wide true, halves false,
    scale |block, i| {
        let (low, high) = (block[4 + i / 2] >> (i % 2 * 4) & 15, block[2 + i / 4] >> (i % 4 * 2));
        (low | (high & 3) << 4).wrapping_sub(32)
    },
    pack |block, group, row, lines| {
        let q = &block[8 + group * 16..];
        (0..4).for_each(|line| put_word(lines, line, row, word(q, line)));
    },
    line <V> |lines, row, j| V::look_up(nibbles::<V>(lines, row, j), &IQ4_CODES),
}

// A byte has the scale of sixteen columns in its low nibble and their minimum above.
block_type! {
    Q2K, file 84, step 8 x (32 + 2 lines) + 64,
    zero 0, wide false, halves true, minima true,
    pack |block, row, step| {
        put_pair(step, row, &block[80..]);
        put_pair(&mut step[32..], row, &block[82..]);
        for (group, part) in step[64..].chunks_exact_mut(32 + 2 * LINE).enumerate() {
            part[row] = block[2 * group];
            part[GROUP + row] = block[2 * group + 1];
            let q = &block[16 + group / 4 * 32..];
            put_bit_pairs(&mut part[32..], row, |j| word(q, j) >> (group % 4 * 2));
        }
    },
    header <V> |at, row| [V::f16s(at, row), V::mul(V::f16s(at.add(32), row), V::splat(-1.0))],
    scales <V> |header, at, row| {
        let (first, second) = (V::bytes(at, row), V::bytes(at.add(GROUP), row));
        [
            V::mul(V::floats(V::and(first, 15)), header[0]),
            V::mul(V::floats(V::and(second, 15)), header[0]),
        ]
    },
    minima <V> |header, at, row| {
        let (first, second) = (V::bytes(at, row), V::bytes(at.add(GROUP), row));
        [
            V::mul(V::floats(V::shift(first, -4)), header[1]),
            V::mul(V::floats(V::shift(second, -4)), header[1]),
        ]
    },
    line <V> |lines, row, j| bit_pairs::<V>(lines, row, j, 0),
}
