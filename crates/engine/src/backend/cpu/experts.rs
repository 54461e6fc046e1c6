//! Mixtures of experts: each expert computes the rows that are routed to it together, so that its weights are read once.

use super::simd::{Finish, Isa, PackedMatrix};
use super::{Buffer, Cpu};
use crate::model::spec::{Choice, ChoiceWeights, Linear};
use std::ops::Range;

/// The experts of every row.
#[derive(Default)]
pub struct Routes {
    /// How many experts there are to choose from.
    experts: usize,
    /// How many each row has.
    chosen: usize,
    /// (rows, chosen)
    weights: Vec<f32>,
    /// For each expert the places (row * chosen + number of the choice) that it computes, ascending.
    places: Vec<Vec<usize>>,
}

impl Routes {
    /// See [`crate::backend::Backend::route`].
    pub fn choose(&mut self, isa: Isa, router: &Buffer, choice: Choice) {
        (self.experts, self.chosen) = (router.width, choice.count);
        self.weights.clear();
        self.places.iter_mut().for_each(Vec::clear);
        self.places.resize(self.experts, Vec::new());
        let mut order: Vec<usize> = Vec::with_capacity(self.experts);
        let mut exponentials = vec![0.0; self.experts];
        for row in 0..router.rows() {
            let outputs = router.row(row);
            order.clear();
            order.extend(0..self.experts);
            // A stable sort: the lower expert comes first among equals.
            order.sort_by(|a, b| outputs[*b].total_cmp(&outputs[*a]));
            let max = outputs[order[0]];
            let chosen = &order[..choice.count];
            let scores = exponentials.iter_mut().zip(outputs);
            scores.for_each(|(score, output)| *score = output - max);
            isa.exp(&mut exponentials);
            let sum: f32 = match choice.weights {
                ChoiceWeights::SoftmaxOfChosen => chosen.iter().map(|e| exponentials[*e]).sum(),
                ChoiceWeights::SoftmaxOfAll => exponentials.iter().sum(),
            };
            for expert in chosen {
                self.places[*expert].push(self.weights.len());
                self.weights.push(exponentials[*expert] / sum);
            }
        }
    }

    /// The experts that have something to compute, with their places.
    fn busy(&self) -> impl Iterator<Item = (usize, &[usize])> {
        let places = self.places.iter().map(Vec::as_slice).enumerate();
        places.filter(|(_, places)| !places.is_empty())
    }
}

/// The part of one expert in the matrix of all, as a factor of [`Cpu::products`].
fn of_expert<'a>(
    stacked: &'a Linear<PackedMatrix, Vec<f32>>,
    expert: usize,
    experts: usize,
) -> (&'a PackedMatrix, Range<usize>, Finish<'a>) {
    let rows = stacked.weight.rows() / experts;
    let finish = Finish { bias: stacked.bias.as_deref(), add: false };
    (&stacked.weight, expert * rows..(expert + 1) * rows, finish)
}

/// Those rows of `x`.
fn gathered(x: &Buffer, rows: impl Iterator<Item = usize>) -> Buffer {
    let mut gathered = Buffer { width: x.width, data: Vec::new() };
    rows.for_each(|row| gathered.data.extend_from_slice(x.row(row)));
    gathered
}

/// See [`crate::backend::Backend::expert_matmul`].
pub fn matmul(
    cpu: &mut Cpu,
    out: &mut Buffer,
    x: &Buffer,
    linears: &[Linear<PackedMatrix, Vec<f32>>],
    routes: &Routes,
) {
    let outputs = |linear: &Linear<PackedMatrix, _>| linear.weight.rows() / routes.experts;
    out.set_shape(routes.weights.len(), linears.iter().map(outputs).sum());
    let mut products = Buffer::default();
    for (expert, places) in routes.busy() {
        let x = gathered(x, places.iter().map(|place| place / routes.chosen));
        products.set_shape(places.len(), out.width);
        let of_expert = |linear| of_expert(linear, expert, routes.experts);
        cpu.products(&mut products, &x, linears.iter().map(of_expert));
        for (index, place) in places.iter().enumerate() {
            out.row_mut(*place).copy_from_slice(products.row(index));
        }
    }
}

/// See [`crate::backend::Backend::expert_matmul_add`].
pub fn matmul_add(
    cpu: &mut Cpu,
    out: &mut Buffer,
    x: &Buffer,
    linear: &Linear<PackedMatrix, Vec<f32>>,
    routes: &Routes,
) {
    let outputs = linear.weight.rows() / routes.experts;
    let mut all = Buffer::default();
    all.set_shape(routes.weights.len(), outputs);
    let mut products = Buffer::default();
    for (expert, places) in routes.busy() {
        let x = gathered(x, places.iter().copied());
        products.set_shape(places.len(), outputs);
        let factor = of_expert(linear, expert, routes.experts);
        cpu.products(&mut products, &x, std::iter::once(factor));
        for (index, place) in places.iter().enumerate() {
            all.row_mut(*place).copy_from_slice(products.row(index));
        }
    }
    // In the order of each row's choice, whatever was computed beside it.
    for (place, weight) in routes.weights.iter().enumerate() {
        let sums = out.row_mut(place / routes.chosen).iter_mut();
        sums.zip(all.row(place)).for_each(|(sum, product)| *sum += weight * product);
    }
}
