//! Rows in plain Rust, for machines without a set of our own.
#![allow(unsafe_code)]

use super::GROUP;
use super::activations::Tile;
use super::block_types::BlockType;
use super::one_row::OneRow;
use super::rows::RowLanes;
use super::tiles::{self, tile_functions};
use std::array::from_fn;

/// Rows computed at once: what the compiler puts into two registers of most machines.
const ROWS: usize = 8;

struct PortableRows;

// SAFETY: reads and writes exactly what the trait names; needs no instruction set.
unsafe impl RowLanes for PortableRows {
    const ROWS: usize = ROWS;
    const WIDE_LESS_128: bool = false;
    type Words = [u32; ROWS];
    type Floats = [f32; ROWS];

    #[inline(always)]
    unsafe fn words(line: *const u8, row: usize) -> [u32; ROWS] {
        // SAFETY: the words of the rows are there.
        from_fn(|i| unsafe { OneRow::words(line, row + i) })
    }

    #[inline(always)]
    unsafe fn and(words: [u32; ROWS], mask: u8) -> [u32; ROWS] {
        words.map(|word| word & u32::from_le_bytes([mask; 4]))
    }

    #[inline(always)]
    unsafe fn or(a: [u32; ROWS], b: [u32; ROWS]) -> [u32; ROWS] {
        from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    unsafe fn shift(words: [u32; ROWS], left: i32) -> [u32; ROWS] {
        if left < 0 { words.map(|word| word >> -left) } else { words.map(|word| word << left) }
    }

    #[inline(always)]
    unsafe fn look_up(bytes: [u32; ROWS], table: &[u8; 16]) -> [u32; ROWS] {
        // SAFETY: needs no instruction set.
        bytes.map(|bytes| unsafe { OneRow::look_up(bytes, table) })
    }

    #[inline(always)]
    unsafe fn splat_word(value: i32) -> [u32; ROWS] {
        [value as u32; ROWS]
    }

    #[inline(always)]
    unsafe fn dot(sum: [u32; ROWS], codes: [u32; ROWS], x: i32, wide: bool) -> [u32; ROWS] {
        // SAFETY: needs no instruction set.
        from_fn(|i| unsafe { OneRow::dot(sum[i], codes[i], x, wide) })
    }

    #[inline(always)]
    unsafe fn bytes(at: *const u8, row: usize) -> [u32; ROWS] {
        // SAFETY: the bytes of the rows are there.
        from_fn(|i| unsafe { OneRow::bytes(at, row + i) })
    }

    #[inline(always)]
    unsafe fn signed_bytes(at: *const u8, row: usize) -> [u32; ROWS] {
        // SAFETY: the bytes of the rows are there.
        from_fn(|i| unsafe { OneRow::signed_bytes(at, row + i) })
    }

    #[inline(always)]
    unsafe fn floats(integers: [u32; ROWS]) -> [f32; ROWS] {
        integers.map(|integer| integer as i32 as f32)
    }

    #[inline(always)]
    unsafe fn half_scales(exponents: [u32; ROWS]) -> [f32; ROWS] {
        // SAFETY: needs no instruction set.
        exponents.map(|exponent| unsafe { OneRow::half_scales(exponent) })
    }

    #[inline(always)]
    unsafe fn f32s(at: *const u8, row: usize) -> [f32; ROWS] {
        // SAFETY: the numbers of the rows are there.
        from_fn(|i| unsafe { OneRow::f32s(at, row + i) })
    }

    #[inline(always)]
    unsafe fn f16s(at: *const u8, row: usize) -> [f32; ROWS] {
        // SAFETY: the numbers of the rows are there. The conversion in constants is plain arithmetic, which the compiler
        // can do for all rows at once; the other looks for instructions each time.
        from_fn(|i| unsafe {
            half::f16::from_bits(u16::from_le_bytes([
                *at.add(2 * (row + i)),
                *at.add(2 * (row + i) + 1),
            ]))
            .to_f32_const()
        })
    }

    #[inline(always)]
    unsafe fn bf16s(at: *const u8, row: usize) -> [f32; ROWS] {
        // SAFETY: the numbers of the rows are there.
        from_fn(|i| unsafe { OneRow::bf16s(at, row + i) })
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; ROWS] {
        [value; ROWS]
    }

    #[inline(always)]
    unsafe fn mul(a: [f32; ROWS], b: [f32; ROWS]) -> [f32; ROWS] {
        from_fn(|i| a[i] * b[i])
    }

    // Not `f32::mul_add`: without the instruction that is a call for each row.
    #[inline(always)]
    unsafe fn mul_add(sum: [f32; ROWS], a: [f32; ROWS], b: [f32; ROWS]) -> [f32; ROWS] {
        from_fn(|i| sum[i] + a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn store(floats: [f32; ROWS], to: *mut f32) {
        // SAFETY: there is room for the numbers.
        unsafe { to.cast::<[f32; ROWS]>().write_unaligned(floats) }
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}

tile_functions!(Portable, PortableRows, widest 2, tiles 1 x 1, 2 x 1);
