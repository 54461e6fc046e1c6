//! The experts of each row, and the products with them.

use super::present;
use crate::model::spec::{Choice, ChoiceWeights};
use oxgpt_kernels::{
    Buf, CudaError, Ending, Gpu, Grouped, Matrix, Outputs, Packed, Place, Routing, Sorted,
};

/// The experts of each row, their weights, and what the products with them need.
pub struct Routes {
    pub(super) rows: usize,
    /// The first of them, whose products are exact.
    pub(super) exact: usize,
    pub(super) routing: Routing,
    pub(super) memory: Option<RoutesMemory>,
}

pub(super) struct RoutesMemory {
    pub experts: Buf<i32>,
    pub weights: Buf<f32>,
    /// Of the rows whose products are exact.
    pub groups: Buf<i32>,
    /// Of the others.
    pub sorted: Buf<i32>,
    /// Of a launch that counts its blocks.
    pub arrived: Buf<u32>,
    /// What comes back from the experts, (rows * chosen, hidden).
    pub returned: Buf<f32>,
}

impl Routes {
    /// The product of each slot with its expert for each of `weights`, one beside another in rows of `stride`: of the rows that
    /// are exact in f32, of the others on the tensor cores. `x` has a row for each row, or for each slot with `by_slot`.
    #[expect(clippy::too_many_arguments, reason = "what products depend on")]
    pub(super) fn products<'a>(
        &self,
        gpu: &Gpu,
        packed: &mut Packed,
        out: &mut Buf<f32>,
        stride: usize,
        x: &Buf<f32>,
        weights: impl Iterator<Item = (&'a Matrix, Option<&'a Buf<f32>>)>,
        by_slot: bool,
    ) -> Result<(), CudaError> {
        let Routes { rows, exact, routing: Routing { experts, top_k, .. }, .. } = *self;
        let RoutesMemory { groups, sorted, .. } = present(&self.memory);
        let sorted = Sorted { words: sorted, rows: (exact, rows), top_k, experts };
        let mut start = 0;
        for (weight, bias) in weights {
            let place = Place { start, stride };
            if exact > 0 {
                let grouped = Grouped { groups, rows: exact, top_k, experts };
                oxgpt_kernels::product_grouped(gpu, out, place, x, weight, bias, grouped, by_slot)?;
            }
            if rows > exact {
                if start == 0 || !packed.suits(weight) {
                    packed.slots(gpu, x, weight, sorted, by_slot, None)?;
                }
                let outputs = [Outputs { weight, bias }];
                let ending = Ending::Store;
                oxgpt_kernels::gemm_sorted(gpu, out, place, packed, &outputs, ending, sorted)?;
            }
            start += weight.rows() / experts;
        }
        Ok(())
    }
}

/// As the kernels take it.
pub(super) fn routing(experts: usize, choice: Choice) -> Routing {
    let softmax_before = choice.weights == ChoiceWeights::SoftmaxOfAll;
    Routing { experts, top_k: choice.count, softmax_before, renormalize: false }
}
