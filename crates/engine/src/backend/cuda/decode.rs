//! A pass of generated tokens alone in fewer, larger steps than the operations are.
//!
//! A step is one kernel. It norms the rows itself that it multiplies, and ends in what would be the next operation: a bias, an
//! activation, a residual addition, the sum over experts. Weights are on their way before the step before it has ended.
//! Where a model asks for what no step has (a norm of a part's output, say), the operations of [`Backend`] are taken; the bits
//! are the same either way, so a row does not depend on what it is computed with.

use super::routes::{RoutesMemory, routing};
use super::terms::{kernel_activation, kernel_norm, kernel_shape};
use super::{Buffer, Cuda, attempt, present, present_mut, weight_and_bias};
use crate::backend::Backend;
use crate::batch::{Batch, BlockTables};
use crate::kv::KvLayout;
use crate::model::forward::Scratch;
use crate::model::spec::{
    Attention, Decoder, FeedForward, Linear, Nonlinearity, Norm, RopeStyle, Router,
};
use oxgpt_kernels::{
    Buf, Choices, Ending, Gated, Grouped, Inputs, KvPool, Matrix, Outputs, Place, RoutesOut, Turn,
};
use std::slice;

type Weights = Option<Matrix>;
type Vector = Option<Buf<f32>>;

impl Cuda {
    /// See [`Backend::pass`].
    pub(super) fn decode(
        &mut self,
        decoder: &Decoder<Weights, Vector>,
        layout: &KvLayout,
        kv: &mut [Option<KvPool>],
        batch: &Batch,
        s: &mut Scratch<Cuda>,
    ) -> bool {
        if self.exact == 0 {
            return self.wide(decoder, layout, kv, batch, s);
        }
        if batch.rows() != self.exact || batch.wants_hidden {
            return false;
        }
        self.begin_rows(decoder, batch, s);
        for (index, layer) in decoder.layers.iter().enumerate() {
            let tables = &batch.block_tables[layout.group_of_layer[index]];
            self.attention(&layer.attention, decoder, &mut kv[index], batch, tables, s);
            self.feed_forward(&layer.feed_forward, s);
        }
        self.head(decoder, batch, s);
        true
    }

    /// Embeddings of tokens and positions, and the rotations of these positions.
    pub(super) fn begin_rows(
        &mut self,
        decoder: &Decoder<Weights, Vector>,
        batch: &Batch,
        s: &mut Scratch<Cuda>,
    ) {
        let embedding = &decoder.embedding;
        self.embed(&mut s.residual, &embedding.tokens, &batch.tokens, embedding.scale);
        if let Some(positions) = &embedding.positions {
            self.add_rows(&mut s.residual, positions, &batch.positions);
        }
        for (rope, rotations) in decoder.ropes.iter().zip(&mut s.rotations) {
            self.rotations(rotations, rope, batch);
        }
    }

    fn attention(
        &mut self,
        attention: &Attention<Weights, Vector>,
        decoder: &Decoder<Weights, Vector>,
        kv: &mut Option<KvPool>,
        batch: &Batch,
        tables: &BlockTables,
        s: &mut Scratch<Cuda>,
    ) {
        self.normed_matmul(&mut s.qkv, &s.residual, &attention.norm, &attention.qkv, None);
        if let Some(norm) = &attention.query_norm {
            self.norm_heads(&mut s.qkv, attention.shape.query_heads(), norm);
        }
        if let Some(norm) = &attention.key_norm {
            self.norm_heads(&mut s.qkv, attention.shape.key_heads(), norm);
        }
        if batch.rows() == batch.sequences() {
            self.attend_fresh(attention, decoder, kv, batch, tables, s);
        } else {
            // A row sees what is stored for those before it.
            let shape = &attention.shape;
            if let Some(rope) = attention.rope {
                self.rotate(&mut s.qkv, &s.rotations[rope], &decoder.ropes[rope], shape);
            }
            self.append(kv, &s.qkv, batch, tables, shape);
            let sinks = attention.sinks.as_ref();
            self.attend(&mut s.attended, &s.qkv, kv, batch, tables, shape, sinks);
        }
        match &attention.post_norm {
            None => self.matmul_add(&mut s.residual, &s.attended, &attention.output),
            Some(norm) => {
                self.matmul(&mut s.branch, &s.attended, slice::from_ref(&attention.output));
                self.norm(&mut s.normed, &s.branch, norm);
                self.add(&mut s.residual, &s.normed);
            }
        }
    }

    /// Turns queries and keys, stores keys and values, and attends, at once.
    fn attend_fresh(
        &mut self,
        attention: &Attention<Weights, Vector>,
        decoder: &Decoder<Weights, Vector>,
        kv: &mut Option<KvPool>,
        batch: &Batch,
        tables: &BlockTables,
        s: &mut Scratch<Cuda>,
    ) {
        s.attended.set(batch.rows(), attention.shape.query_width());
        let Cuda { gpu, failure, batch: device_batch, partials, .. } = self;
        attempt(failure, || {
            let (out, qkv) = (present_mut(&mut s.attended.data), present(&s.qkv.data));
            let (at, shape) = (device_batch.place(batch, tables)?, kernel_shape(&attention.shape));
            let sinks = attention.sinks.as_ref().map(present);
            let turn = attention.rope.map(|rope| Turn {
                rotations: present(&s.rotations[rope].data),
                pairs: decoder.ropes[rope].pairs(),
                interleaved: decoder.ropes[rope].style == RopeStyle::Pairs,
            });
            let kv = present_mut(kv);
            oxgpt_kernels::attend_fresh(gpu, out, qkv, kv, at, &shape, sinks, partials, turn)
        });
    }

    fn feed_forward(&mut self, ffn: &FeedForward<Weights, Vector>, s: &mut Scratch<Cuda>) {
        match &ffn.router {
            None => {
                let ending = Some(ffn.nonlinearity);
                let (out, x) = (&mut s.intermediate, &s.residual);
                if !self.normed_matmul(out, x, &ffn.norm, &ffn.up, ending) {
                    self.normed_matmul(&mut s.up, &s.residual, &ffn.norm, &ffn.up, None);
                    self.activate(&mut s.intermediate, &s.up, ffn.nonlinearity);
                }
            }
            Some(router) => self.routed_up(ffn, router, s),
        }
        if ffn.post_norm.is_some() {
            self.zero_like(&mut s.branch, &s.residual);
        }
        let sum = if ffn.post_norm.is_some() { &mut s.branch } else { &mut s.residual };
        match &ffn.router {
            None => self.matmul_add(sum, &s.intermediate, &ffn.down),
            Some(router) => {
                if !self.combined(sum, &s.intermediate, &ffn.down, router, &s.routes) {
                    self.expert_matmul_add(sum, &s.intermediate, &ffn.down, &s.routes);
                }
            }
        }
        if let Some(norm) = &ffn.post_norm {
            self.norm(&mut s.normed, &s.branch, norm);
            self.add(&mut s.residual, &s.normed);
        }
    }

    /// Chooses experts, and computes what goes into their last product.
    fn routed_up(
        &mut self,
        ffn: &FeedForward<Weights, Vector>,
        router: &Router<Weights, Vector>,
        s: &mut Scratch<Cuda>,
    ) {
        if !self.routed(ffn, router, s) {
            let router_linear = slice::from_ref(&router.linear);
            self.normed_matmul(&mut s.router, &s.residual, &ffn.norm, router_linear, None);
            self.route(&mut s.routes, &s.router, router.choice);
        }
        if !alike(&ffn.up) {
            self.norm(&mut s.normed, &s.residual, &ffn.norm);
            self.expert_matmul(&mut s.up, &s.normed, &ffn.up, &s.routes);
            self.activate(&mut s.intermediate, &s.up, ffn.nonlinearity);
            return;
        }
        let (rows, top_k) = (s.residual.rows, router.choice.count);
        let stride = ffn.intermediate;
        s.intermediate.set(rows * top_k, stride);
        let Cuda { gpu, failure, .. } = self;
        attempt(failure, || {
            let inputs = Inputs {
                x: present(&s.residual.data),
                x_rows: None,
                norm: Some(kernel_norm(&ffn.norm)),
            };
            let outputs: Vec<Outputs<'_>> = ffn.up.iter().map(outputs).collect();
            let RoutesMemory { groups, .. } = present(&s.routes.memory);
            let grouped = Grouped { groups, rows, top_k, experts: router.experts };
            let (out, place) = (present_mut(&mut s.intermediate.data), Place { start: 0, stride });
            let ending = ending(ffn.nonlinearity);
            oxgpt_kernels::product_grouped_of(
                gpu, out, place, inputs, &outputs, ending, grouped, false,
            )
        });
    }

    /// Chooses experts in one launch, if it can be done at once.
    fn routed(
        &mut self,
        ffn: &FeedForward<Weights, Vector>,
        router: &Router<Weights, Vector>,
        s: &mut Scratch<Cuda>,
    ) -> bool {
        let rows = s.residual.rows;
        let routing = routing(router.experts, router.choice);
        let gpu = &self.gpu;
        let fits = |weight: &Matrix| oxgpt_kernels::can_route(gpu, weight, rows, &routing);
        if !router.linear.weight.as_ref().is_some_and(fits) {
            return false;
        }
        s.routes.rows = rows;
        s.routes.exact = rows;
        s.routes.routing = routing;
        s.router.set(rows, router.experts);
        let Cuda { gpu, failure, .. } = self;
        attempt(failure, || {
            let inputs = Inputs {
                x: present(&s.residual.data),
                x_rows: None,
                norm: Some(kernel_norm(&ffn.norm)),
            };
            let RoutesMemory { experts, weights, groups, arrived, .. } =
                present_mut(&mut s.routes.memory);
            let routes = RoutesOut { experts, weights, groups, arrived };
            let (logits, outputs) = (present_mut(&mut s.router.data), outputs(&router.linear));
            oxgpt_kernels::router(gpu, logits, inputs, outputs, routes, rows, routing)
        });
        true
    }

    /// `out += the sum over the experts of the one row there is`, if it can be done at once.
    fn combined(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        down: &Linear<Weights, Vector>,
        router: &Router<Weights, Vector>,
        routes: &super::Routes,
    ) -> bool {
        let top_k = router.choice.count;
        let gpu = &self.gpu;
        let fits = |weight: &Matrix| oxgpt_kernels::can_combine(gpu, weight, top_k, router.experts);
        if routes.rows != 1 || !down.weight.as_ref().is_some_and(fits) {
            return false;
        }
        let Cuda { gpu, failure, .. } = self;
        attempt(failure, || {
            let RoutesMemory { experts, weights, .. } = present(&routes.memory);
            let choices =
                Choices { experts, shares: weights, top_k, experts_in_all: router.experts };
            let (out, x) = (present_mut(&mut out.data), present(&x.data));
            oxgpt_kernels::product_combined(gpu, out, x, outputs(down), choices)
        });
        true
    }

    pub(super) fn head(
        &mut self,
        decoder: &Decoder<Weights, Vector>,
        batch: &Batch,
        s: &mut Scratch<Cuda>,
    ) {
        let (count, stride) = (batch.logit_rows.len(), decoder.head.rows);
        s.logits.set(count, stride);
        if count == 0 {
            // Tokens that are computed once more.
            return;
        }
        let Cuda { gpu, failure, batch: device_batch, .. } = self;
        attempt(failure, || {
            let inputs = Inputs {
                x: present(&s.residual.data),
                x_rows: Some(device_batch.logit_rows(&batch.logit_rows)?),
                norm: Some(kernel_norm(&decoder.final_norm)),
            };
            let outputs = [Outputs { weight: present(decoder.head_matrix()), bias: None }];
            let (out, place) = (present_mut(&mut s.logits.data), Place { start: 0, stride });
            oxgpt_kernels::product_of(gpu, out, place, inputs, &outputs, Ending::Store, count)
        });
        if let Some(cap) = decoder.head.soft_cap {
            self.soft_cap(&mut s.logits, cap);
        }
    }

    /// `out = nonlinearity(norm(x) * weights.transposed() + biases)`, the outputs of several one after another, if there is a way
    /// to do it at once; without a nonlinearity there always is.
    fn normed_matmul(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        norm: &Norm<Vector>,
        linears: &[Linear<Weights, Vector>],
        nonlinearity: Option<Nonlinearity>,
    ) -> bool {
        if nonlinearity.is_some_and(Nonlinearity::is_gated) && !alike(linears) {
            return false;
        }
        let outputs_of =
            |linear: &Linear<Weights, Vector>| linear.weight.as_ref().map_or(0, Matrix::rows);
        let all: usize = linears.iter().map(outputs_of).sum();
        let gated = nonlinearity.is_some_and(Nonlinearity::is_gated);
        out.set(x.rows, if gated { all / 2 } else { all });
        let Cuda { gpu, failure, .. } = self;
        attempt(failure, || {
            let inputs =
                Inputs { x: present(&x.data), x_rows: None, norm: Some(kernel_norm(norm)) };
            let (stride, ending) = (out.width, nonlinearity.map_or(Ending::Store, ending));
            let out = present_mut(&mut out.data);
            let mut start = 0;
            // A launch takes up to three matrices of one type.
            for linears in linears.chunk_by(same_kind) {
                for linears in linears.chunks(3) {
                    let outputs: Vec<Outputs<'_>> = linears.iter().map(outputs).collect();
                    let place = Place { start, stride };
                    let rows = x.rows;
                    oxgpt_kernels::product_of(gpu, out, place, inputs, &outputs, ending, rows)?;
                    start += linears.iter().map(outputs_of).sum::<usize>();
                }
            }
            Ok(())
        });
        true
    }
}

pub(super) fn outputs(linear: &Linear<Weights, Vector>) -> Outputs<'_> {
    let (weight, bias) = weight_and_bias(linear);
    Outputs { weight, bias }
}

pub(super) fn same_kind(a: &Linear<Weights, Vector>, b: &Linear<Weights, Vector>) -> bool {
    let kind = |linear: &Linear<Weights, Vector>| linear.weight.as_ref().map(Matrix::kind);
    kind(a) == kind(b)
}

/// Whether the weights are there and of one type.
pub(super) fn alike(linears: &[Linear<Weights, Vector>]) -> bool {
    linears.iter().all(|linear| linear.weight.is_some() && same_kind(linear, &linears[0]))
}

pub(super) fn ending(nonlinearity: Nonlinearity) -> Ending {
    match nonlinearity {
        Nonlinearity::Plain(activation) => Ending::Activate(kernel_activation(activation)),
        Nonlinearity::Gated(activation) => {
            Ending::Gated(Gated::Plain(kernel_activation(activation)))
        }
        Nonlinearity::ClampedSwiglu { alpha, limit } => {
            Ending::Gated(Gated::ClampedSwiglu { limit, alpha })
        }
    }
}
