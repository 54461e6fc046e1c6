//! A single row of a group, in plain Rust: how rows are read back.
#![allow(unsafe_code)]

use super::rows::RowLanes;
use half::{bf16, f16};

pub(super) struct OneRow;

/// `N` bytes at `at`.
#[inline(always)]
unsafe fn read<const N: usize>(at: *const u8) -> [u8; N] {
    // SAFETY: the caller says that they are there.
    unsafe { at.cast::<[u8; N]>().read() }
}

// SAFETY: reads and writes exactly what the trait names; needs no instruction set.
unsafe impl RowLanes for OneRow {
    const ROWS: usize = 1;
    const WIDE_LESS_128: bool = false;
    type Words = u32;
    type Floats = f32;

    #[inline(always)]
    unsafe fn words(line: *const u8, row: usize) -> u32 {
        // SAFETY: the row's word is there.
        u32::from_le_bytes(unsafe { read(line.add(row * 4)) })
    }

    #[inline(always)]
    unsafe fn and(words: u32, mask: u8) -> u32 {
        words & u32::from_le_bytes([mask; 4])
    }

    #[inline(always)]
    unsafe fn or(a: u32, b: u32) -> u32 {
        a | b
    }

    #[inline(always)]
    unsafe fn shift(words: u32, left: i32) -> u32 {
        if left < 0 { words >> -left } else { words << left }
    }

    #[inline(always)]
    unsafe fn look_up(bytes: u32, table: &[u8; 16]) -> u32 {
        u32::from_le_bytes(bytes.to_le_bytes().map(|byte| table[usize::from(byte)]))
    }

    #[inline(always)]
    unsafe fn splat_word(value: i32) -> u32 {
        value as u32
    }

    #[inline(always)]
    unsafe fn dot(sum: u32, codes: u32, x: i32, _: bool) -> u32 {
        let pairs = codes.to_le_bytes().into_iter().zip(x.to_le_bytes());
        let products = pairs.map(|(code, x)| i32::from(code) * i32::from(x as i8));
        sum.wrapping_add(products.sum::<i32>() as u32)
    }

    #[inline(always)]
    unsafe fn bytes(at: *const u8, row: usize) -> u32 {
        // SAFETY: the row's byte is there.
        u32::from(unsafe { *at.add(row) })
    }

    #[inline(always)]
    unsafe fn signed_bytes(at: *const u8, row: usize) -> u32 {
        // SAFETY: the row's byte is there.
        i32::from(unsafe { *at.add(row) } as i8) as u32
    }

    #[inline(always)]
    unsafe fn floats(integers: u32) -> f32 {
        integers as i32 as f32
    }

    #[inline(always)]
    unsafe fn half_scales(exponents: u32) -> f32 {
        crate::quant::mxfp4_half_scale(exponents as u8)
    }

    #[inline(always)]
    unsafe fn f32s(at: *const u8, row: usize) -> f32 {
        // SAFETY: the row's number is there.
        f32::from_le_bytes(unsafe { read(at.add(row * 4)) })
    }

    #[inline(always)]
    unsafe fn f16s(at: *const u8, row: usize) -> f32 {
        // SAFETY: the row's number is there.
        f16::from_le_bytes(unsafe { read(at.add(row * 2)) }).to_f32()
    }

    #[inline(always)]
    unsafe fn bf16s(at: *const u8, row: usize) -> f32 {
        // SAFETY: the row's number is there.
        bf16::from_le_bytes(unsafe { read(at.add(row * 2)) }).to_f32()
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> f32 {
        value
    }

    #[inline(always)]
    unsafe fn mul(a: f32, b: f32) -> f32 {
        a * b
    }

    #[inline(always)]
    unsafe fn mul_add(sum: f32, a: f32, b: f32) -> f32 {
        sum + a * b
    }

    #[inline(always)]
    unsafe fn store(floats: f32, to: *mut f32) {
        // SAFETY: there is room for a number.
        unsafe { *to = floats }
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}
