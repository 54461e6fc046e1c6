//! Where products go: some columns of all tokens for each thread.
#![allow(unsafe_code)]

use super::GROUP;
use std::marker::PhantomData;
use std::ops::Range;

/// What becomes of a product.
#[derive(Clone, Copy)]
pub struct Finish<'a> {
    /// Added to it, one number for each row of the matrix.
    pub bias: Option<&'a [f32]>,
    /// Whether it is added to what was there, or takes its place.
    pub add: bool,
}

/// Where a product goes: columns of (tokens, width), from `first_column` on.
pub struct Target<'a> {
    /// (tokens, width)
    pub out: &'a mut [f32],
    /// As many outputs as a token has.
    pub width: usize,
    /// Where the outputs of this product begin.
    pub first_column: usize,
}

/// An output of (tokens, width), to be written by several threads.
pub(super) struct Output<'a> {
    start: *mut f32,
    tokens: usize,
    width: usize,
    _out: PhantomData<&'a mut [f32]>,
}

// SAFETY: what is written through it is divided by the callers of `columns`, as that asks for.
unsafe impl Sync for Output<'_> {}

/// Some columns of an output.
pub(super) struct Columns<'a> {
    start: *mut f32,
    tokens: usize,
    stride: usize,
    /// The rows of the matrix that the columns are.
    pub rows: Range<usize>,
    _out: PhantomData<&'a mut [f32]>,
}

impl<'a> Output<'a> {
    pub fn new(target: Target<'a>) -> Self {
        let Target { out, width, .. } = target;
        let tokens = out.len() / width;
        assert_eq!(out.len(), tokens * width, "the output has whole rows");
        Output { start: out.as_mut_ptr(), tokens, width, _out: PhantomData }
    }

    /// Columns from `first` on, which are these rows of the matrix.
    ///
    /// # Safety
    /// No column may be in two of the results that live at the same time.
    pub unsafe fn columns(&self, first: usize, rows: Range<usize>) -> Columns<'_> {
        assert!(first + rows.len() <= self.width, "the columns exist");
        Columns {
            start: self.start.wrapping_add(first),
            tokens: self.tokens,
            stride: self.width,
            rows,
            _out: PhantomData,
        }
    }
}

impl Columns<'_> {
    /// The columns of one token.
    fn of(&mut self, token: usize) -> &mut [f32] {
        assert!(token < self.tokens, "the token exists");
        // SAFETY: the output has `tokens` rows of `stride` elements, of which these columns are part and ours alone.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.add(token * self.stride), self.rows.len())
        }
    }

    /// Stores the products of a token with the rows of a group, of which some may not be ours.
    #[inline(always)]
    pub fn store(&mut self, token: usize, group: usize, products: &[f32; GROUP], finish: Finish) {
        let first = group * GROUP;
        let rows = self.rows.start.max(first)..self.rows.end.min(first + GROUP);
        let column = rows.start - self.rows.start;
        let products = &products[rows.start - first..rows.end - first];
        let out = &mut self.of(token)[column..][..products.len()];
        match (finish.bias, finish.add) {
            (None, false) => out.copy_from_slice(products),
            (None, true) => out.iter_mut().zip(products).for_each(|(out, product)| *out += product),
            (Some(bias), add) => {
                for ((out, product), bias) in out.iter_mut().zip(products).zip(&bias[rows]) {
                    let product = product + bias;
                    *out = if add { *out + product } else { product };
                }
            }
        }
    }
}
