//! Products of rows: which of them are multiplied in f32, and which on the tensor cores.
//!
//! The first rows of a batch were generated, and are exact, unless there are many; prompts follow, on the tensor cores.

use super::decode::{outputs, same_kind};
use super::{Buffer, Cuda, attempt, present, present_mut};
use crate::model::spec::Linear;
use oxgpt_kernels::{Buf, Ending, Matrix, Outputs, Place, Sums};

/// More generated tokens than these are multiplied on the tensor cores, as prompts are: then every
/// weight is read and unpacked once for all of them, not once for each eight.
pub(super) const MOST_EXACT_ROWS: usize = 8;

/// Matrices that one launch takes.
const MOST_AT_ONCE: usize = 3;

/// Neighbours that one launch takes.
pub(super) fn at_once(
    linears: &[Linear<Option<Matrix>, Option<Buf<f32>>>],
) -> impl Iterator<Item = &[Linear<Option<Matrix>, Option<Buf<f32>>>]> {
    linears.chunk_by(same_kind).flat_map(|alike| alike.chunks(MOST_AT_ONCE))
}

impl Cuda {
    /// `out = x * weight.transposed() + bias` for each of `linears`, one beside another, or added to `out`.
    pub(super) fn products(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        linears: &[Linear<Option<Matrix>, Option<Buf<f32>>>],
        accumulate: bool,
    ) {
        let Cuda { gpu, failure, packed, exact, .. } = self;
        attempt(failure, || {
            let (stride, rows) = (out.width, x.rows);
            let (out, data) = (present_mut(&mut out.data), present(&x.data));
            let ending = if accumulate { Ending::Add } else { Ending::Store };
            let exact = rows.min(*exact);
            let mut start = 0;
            for linears in at_once(linears) {
                let outputs: Vec<Outputs<'_>> = linears.iter().map(outputs).collect();
                if rows > exact {
                    let weight = outputs[0].weight;
                    if start == 0 || !packed.suits(weight) {
                        packed.rows(gpu, data, weight, (exact, rows), None)?;
                    }
                    let place = Place { start, stride };
                    let sums = Sums::OfShape;
                    oxgpt_kernels::gemm(gpu, out, place, packed, &outputs, ending, sums)?;
                }
                for Outputs { weight, bias } in outputs {
                    let place = Place { start, stride };
                    if exact > 0 {
                        oxgpt_kernels::product(
                            gpu, out, place, data, weight, bias, exact, accumulate,
                        )?;
                    }
                    start += weight.rows();
                }
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
            packed.rows(gpu, data, weight, (0, x.rows), None)?;
            let outputs = [Outputs { weight, bias: None }];
            oxgpt_kernels::gemm(gpu, out, place, packed, &outputs, Ending::Store, Sums::OfShape)
        });
    }
}
