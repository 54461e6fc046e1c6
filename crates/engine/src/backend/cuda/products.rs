//! Products of rows: which of them are multiplied in f32, and which on the tensor cores.
//!
//! The first rows of a batch were generated, and are exact, unless there are many; prompts follow, on the tensor cores.

use super::{Buffer, Cuda, attempt, present, present_mut, weight_and_bias};
use crate::model::spec::Linear;
use oxgpt_kernels::{Buf, Matrix, Place};

/// More generated tokens than these, each of a sequence of its own, are multiplied on the tensor cores, as prompts are: then every
/// weight is read and unpacked once for all of them, not once for each eight.
pub(super) const MOST_EXACT_ROWS: usize = 8;

/// So few outputs, of a router or of the keys of few heads, are computed sooner in f32 for many generated tokens: on the tensor
/// cores they keep four multiprocessors busy. For the rows of prompts, which are many more, they are not.
const FEW_OUTPUTS: usize = 512;

impl Cuda {
    /// `out = x * weight.transposed() + bias` for each of `linears`, one beside another, or added to `out`.
    pub(super) fn products(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        linears: &[Linear<Option<Matrix>, Option<Buf<f32>>>],
        accumulate: bool,
    ) {
        let Cuda { gpu, failure, packed, generated, exact, .. } = self;
        attempt(failure, || {
            let (stride, rows) = (out.width, x.rows);
            let (out, data) = (present_mut(&mut out.data), present(&x.data));
            let mut start = 0;
            // The first of the rows that are packed.
            let mut packed_from = None;
            for linear in linears {
                let (weight, bias) = weight_and_bias(linear);
                let place = Place { start, stride };
                let is_small = weight.rows() <= FEW_OUTPUTS;
                let exact = rows.min(if is_small { *generated } else { *exact });
                if exact > 0 {
                    oxgpt_kernels::product(gpu, out, place, data, weight, bias, exact, accumulate)?;
                }
                if rows > exact {
                    if packed_from != Some(exact) || !packed.suits(weight) {
                        packed.rows(gpu, data, weight, (exact, rows))?;
                        packed_from = Some(exact);
                    }
                    oxgpt_kernels::gemm(gpu, out, place, packed, weight, bias, accumulate)?;
                }
                start += weight.rows();
            }
            Ok(())
        });
    }

    /// `out = x * weight.transposed()` for rows that are compared: in f32, unless they are beside many generated tokens.
    pub(super) fn logits(&mut self, out: &mut Buffer, x: &Buffer, weight: &Option<Matrix>) {
        let Cuda { gpu, failure, packed, generated, exact, .. } = self;
        attempt(failure, || {
            let place = Place { start: 0, stride: out.width };
            let (out, data) = (present_mut(&mut out.data), present(&x.data));
            let weight = present(weight);
            if *exact == *generated {
                return oxgpt_kernels::product(gpu, out, place, data, weight, None, x.rows, false);
            }
            packed.rows(gpu, data, weight, (0, x.rows))?;
            oxgpt_kernels::gemm(gpu, out, place, packed, weight, None, false)
        });
    }
}
