//! Mixtures of experts: each expert computes the rows that are routed to it together, so that its weights are read once.

use super::simd::Isa;
use super::{Buffer, Cpu};
use crate::backend::HostMatrix;
use crate::model::spec::{Choice, ChoiceWeights, Linear};

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

/// The matrix of one expert.
fn of_expert(stacked: &HostMatrix, expert: usize, experts: usize) -> HostMatrix {
    let rows = stacked.rows / experts;
    let bytes = rows * stacked.row_bytes();
    let range = expert * bytes..(expert + 1) * bytes;
    let bytes = stacked.bytes.slice(range).expect("an expert lies inside the matrix of all");
    HostMatrix { rows, cols: stacked.cols, dtype: stacked.dtype, bytes }
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
    linears: &[Linear<HostMatrix, Vec<f32>>],
    routes: &Routes,
) {
    let outputs = |linear: &Linear<HostMatrix, _>| linear.weight.rows / routes.experts;
    out.set_shape(routes.weights.len(), linears.iter().map(outputs).sum());
    let mut products = Buffer::default();
    for (expert, places) in routes.busy() {
        let x = gathered(x, places.iter().map(|place| place / routes.chosen));
        let mut start = 0;
        for linear in linears {
            let weight = of_expert(&linear.weight, expert, routes.experts);
            let bias =
                linear.bias.as_ref().map(|bias| &bias[expert * weight.rows..][..weight.rows]);
            products.set_shape(places.len(), weight.rows);
            cpu.product(&mut products, &x, &weight, |out, output, product| {
                *out = product + bias.map_or(0.0, |bias| bias[output]);
            });
            for (index, place) in places.iter().enumerate() {
                let columns = start..start + weight.rows;
                out.row_mut(*place)[columns].copy_from_slice(products.row(index));
            }
            start += weight.rows;
        }
    }
}

/// See [`crate::backend::Backend::expert_matmul_add`].
pub fn matmul_add(
    cpu: &mut Cpu,
    out: &mut Buffer,
    x: &Buffer,
    linear: &Linear<HostMatrix, Vec<f32>>,
    routes: &Routes,
) {
    let outputs = linear.weight.rows / routes.experts;
    let mut all = Buffer::default();
    all.set_shape(routes.weights.len(), outputs);
    let mut products = Buffer::default();
    for (expert, places) in routes.busy() {
        let x = gathered(x, places.iter().copied());
        let weight = of_expert(&linear.weight, expert, routes.experts);
        let bias = linear.bias.as_ref().map(|bias| &bias[expert * outputs..][..outputs]);
        products.set_shape(places.len(), outputs);
        cpu.product(&mut products, &x, &weight, |out, output, product| {
            *out = product + bias.map_or(0.0, |bias| bias[output]);
        });
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
