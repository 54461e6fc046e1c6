//! A pass whose rows are all multiplied on the tensor cores: prompts, and more generated tokens than are exact.
//!
//! Its steps are larger than the operations of [`Backend`]: rows are normed on their way into a product, a launch has several
//! matrices, and ends in the activation or the addition that would be the next operation. For prompts the bits are those of the
//! operations. Where all rows were generated, K is cut into parts that are summed in order, so that a few rows keep all
//! multiprocessors busy.

use super::decode::{alike, ending, outputs};
use super::products::at_once;
use super::terms::{kernel_norm, kernel_shape};
use super::{Buffer, Cuda, attempt, present, present_mut, routes::RoutesMemory};
use crate::backend::Backend;
use crate::batch::{Batch, BlockTables};
use crate::kv::KvLayout;
use crate::model::forward::Scratch;
use crate::model::spec::{Attention, Decoder, FeedForward, Linear, Norm, RopeStyle, Router};
use oxgpt_kernels::{Buf, Ending, Inputs, KvPool, Matrix, Outputs, Place, Sorted, Sums, Turn};
use std::slice;

type Weights = Option<Matrix>;
type Vector = Option<Buf<f32>>;

impl Cuda {
    /// See [`Backend::pass`].
    pub(super) fn wide(
        &mut self,
        decoder: &Decoder<Weights, Vector>,
        layout: &KvLayout,
        kv: &mut [Option<KvPool>],
        batch: &Batch,
        s: &mut Scratch<Cuda>,
    ) -> bool {
        if batch.wants_hidden {
            return false;
        }
        self.begin_rows(decoder, batch, s);
        for (index, layer) in decoder.layers.iter().enumerate() {
            let tables = &batch.block_tables[layout.group_of_layer[index]];
            self.wide_attention(&layer.attention, decoder, &mut kv[index], batch, tables, s);
            self.wide_feed_forward(&layer.feed_forward, s);
        }
        if self.generated == 0 {
            self.head(decoder, batch, s);
            return true;
        }
        self.gather(&mut s.wanted, &s.residual, &batch.logit_rows);
        s.logits.set(s.wanted.rows, decoder.head.rows);
        let Cuda { gpu, failure, packed, .. } = self;
        attempt(failure, || {
            let place = Place { start: 0, stride: decoder.head.rows };
            let (out, data) = (present_mut(&mut s.logits.data), present(&s.wanted.data));
            let outputs = [Outputs { weight: present(decoder.head_matrix()), bias: None }];
            let norm = Some(kernel_norm(&decoder.final_norm));
            packed.rows(gpu, data, outputs[0].weight, (0, s.wanted.rows), norm)?;
            oxgpt_kernels::gemm(gpu, out, place, packed, &outputs, Ending::Store, Sums::Parts)
        });
        if let Some(cap) = decoder.head.soft_cap {
            self.soft_cap(&mut s.logits, cap);
        }
        true
    }

    fn wide_attention(
        &mut self,
        attention: &Attention<Weights, Vector>,
        decoder: &Decoder<Weights, Vector>,
        kv: &mut Option<KvPool>,
        batch: &Batch,
        tables: &BlockTables,
        s: &mut Scratch<Cuda>,
    ) {
        let norm = Some(&attention.norm);
        self.wide_products(&mut s.qkv, &s.residual, norm, &attention.qkv, Ending::Store);
        if let Some(norm) = &attention.query_norm {
            self.norm_heads(&mut s.qkv, attention.shape.query_heads(), norm);
        }
        if let Some(norm) = &attention.key_norm {
            self.norm_heads(&mut s.qkv, attention.shape.key_heads(), norm);
        }
        if batch.rows() == batch.generated {
            s.attended.set(batch.rows(), attention.shape.query_width());
            let Cuda { gpu, failure, batch: device_batch, partials, .. } = self;
            attempt(failure, || {
                let (out, qkv) = (present_mut(&mut s.attended.data), present(&s.qkv.data));
                let at = device_batch.place(batch, tables)?;
                let shape = kernel_shape(&attention.shape);
                let sinks = attention.sinks.as_ref().map(present);
                let turn = attention.rope.map(|rope| Turn {
                    rotations: present(&s.rotations[rope].data),
                    pairs: decoder.ropes[rope].pairs(),
                    interleaved: decoder.ropes[rope].style == RopeStyle::Pairs,
                });
                let kv = present_mut(kv);
                oxgpt_kernels::attend_fresh(gpu, out, qkv, kv, at, &shape, sinks, partials, turn)
            });
        } else {
            if let Some(rope) = attention.rope {
                let shape = &attention.shape;
                self.rotate(&mut s.qkv, &s.rotations[rope], &decoder.ropes[rope], shape);
            }
            self.append(kv, &s.qkv, batch, tables, &attention.shape);
            let sinks = attention.sinks.as_ref();
            self.attend(&mut s.attended, &s.qkv, kv, batch, tables, &attention.shape, sinks);
        }
        let output = slice::from_ref(&attention.output);
        match &attention.post_norm {
            None => self.wide_products(&mut s.residual, &s.attended, None, output, Ending::Add),
            Some(norm) => {
                self.wide_products(&mut s.branch, &s.attended, None, output, Ending::Store);
                self.norm(&mut s.normed, &s.branch, norm);
                self.add(&mut s.residual, &s.normed);
            }
        }
    }

    fn wide_feed_forward(&mut self, ffn: &FeedForward<Weights, Vector>, s: &mut Scratch<Cuda>) {
        match &ffn.router {
            None => {
                let (rows, norm) = (s.residual.rows, Some(&ffn.norm));
                let gated = ffn.nonlinearity.is_gated();
                if !gated || (alike(&ffn.up) && oxgpt_kernels::can_gate(rows)) {
                    let ending = ending(ffn.nonlinearity);
                    self.wide_products(&mut s.intermediate, &s.residual, norm, &ffn.up, ending);
                } else {
                    self.wide_products(&mut s.up, &s.residual, norm, &ffn.up, Ending::Store);
                    self.activate(&mut s.intermediate, &s.up, ffn.nonlinearity);
                }
            }
            Some(router) => self.wide_experts(ffn, router, s),
        }
        if ffn.post_norm.is_some() {
            self.zero_like(&mut s.branch, &s.residual);
        }
        let sum = if ffn.post_norm.is_some() { &mut s.branch } else { &mut s.residual };
        match &ffn.router {
            None => {
                let down = slice::from_ref(&ffn.down);
                self.wide_products(sum, &s.intermediate, None, down, Ending::Add);
            }
            Some(_) => self.expert_matmul_add(sum, &s.intermediate, &ffn.down, &s.routes),
        }
        if let Some(norm) = &ffn.post_norm {
            self.norm(&mut s.normed, &s.branch, norm);
            self.add(&mut s.residual, &s.normed);
        }
    }

    /// Chooses experts, and computes what goes into their last product.
    fn wide_experts(
        &mut self,
        ffn: &FeedForward<Weights, Vector>,
        router: &Router<Weights, Vector>,
        s: &mut Scratch<Cuda>,
    ) {
        self.wide_router(&mut s.router, &s.residual, &ffn.norm, router);
        self.route(&mut s.routes, &s.router, router.choice);
        let (rows, routing) = (s.residual.rows, s.routes.routing);
        let (top_k, experts) = (routing.top_k, routing.experts);
        let gated = alike(&ffn.up) && oxgpt_kernels::can_gate_sorted(rows, routing);
        let gated = gated && ffn.nonlinearity.is_gated();
        let width = |linear: &Linear<Weights, Vector>| outputs(linear).weight.rows() / experts;
        let out = if gated { &mut s.intermediate } else { &mut s.up };
        let Cuda { gpu, failure, packed, .. } = self;
        attempt(failure, || {
            let width: usize = ffn.up.iter().map(width).sum();
            out.set(rows * top_k, if gated { width / 2 } else { width });
            let stride = out.width;
            let RoutesMemory { sorted, .. } = present(&s.routes.memory);
            let sorted = Sorted { words: sorted, rows: (0, rows), top_k, experts };
            let (out, x) = (present_mut(&mut out.data), present(&s.residual.data));
            let norm = Some(kernel_norm(&ffn.norm));
            let ending = if gated { ending(ffn.nonlinearity) } else { Ending::Store };
            let mut start = 0;
            for linears in at_once(&ffn.up) {
                let outputs: Vec<Outputs<'_>> = linears.iter().map(outputs).collect();
                if start == 0 || !packed.suits(outputs[0].weight) {
                    packed.slots(gpu, x, outputs[0].weight, sorted, false, norm)?;
                }
                let place = Place { start, stride };
                oxgpt_kernels::gemm_sorted(gpu, out, place, packed, &outputs, ending, sorted)?;
                start += outputs.iter().map(|one| one.weight.rows() / experts).sum::<usize>();
            }
            Ok(())
        });
        if !gated {
            self.activate(&mut s.intermediate, &s.up, ffn.nonlinearity);
        }
    }

    /// What experts are chosen by: in f32 for generated tokens, on the tensor cores for prompts.
    fn wide_router(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        norm: &Norm<Vector>,
        router: &Router<Weights, Vector>,
    ) {
        out.set(x.rows, router.experts);
        let Cuda { gpu, failure, packed, generated, .. } = self;
        attempt(failure, || {
            let place = Place { start: 0, stride: out.width };
            let (out, data) = (present_mut(&mut out.data), present(&x.data));
            let outputs = [outputs(&router.linear)];
            let norm = Some(kernel_norm(norm));
            if *generated > 0 {
                let inputs = Inputs { x: data, x_rows: None, norm };
                let (ending, rows) = (Ending::Store, *generated);
                oxgpt_kernels::product_of(gpu, out, place, inputs, &outputs, ending, rows)?;
            }
            if x.rows > *generated {
                packed.rows(gpu, data, outputs[0].weight, (*generated, x.rows), norm)?;
                let ending = Ending::Store;
                oxgpt_kernels::gemm(gpu, out, place, packed, &outputs, ending, Sums::OfShape)?;
            }
            Ok(())
        });
    }

    /// `out = ending(norm(x) * weights.transposed() + biases)`, the outputs of several one after another.
    fn wide_products(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        norm: Option<&Norm<Vector>>,
        linears: &[Linear<Weights, Vector>],
        ending: Ending,
    ) {
        let Cuda { gpu, failure, packed, generated, .. } = self;
        attempt(failure, || {
            let all: usize = linears.iter().map(|linear| outputs(linear).weight.rows()).sum();
            let gated = matches!(ending, Ending::Gated(_));
            out.set(x.rows, if gated { all / 2 } else { all });
            let sums = if x.rows <= *generated { Sums::Parts } else { Sums::OfShape };
            let stride = out.width;
            let (out, data) = (present_mut(&mut out.data), present(&x.data));
            let mut start = 0;
            for linears in at_once(linears) {
                let outputs: Vec<Outputs<'_>> = linears.iter().map(outputs).collect();
                if start == 0 || !packed.suits(outputs[0].weight) {
                    let norm = norm.map(kernel_norm);
                    packed.rows(gpu, data, outputs[0].weight, (0, x.rows), norm)?;
                }
                let place = Place { start, stride };
                oxgpt_kernels::gemm(gpu, out, place, packed, &outputs, ending, sums)?;
                start += outputs.iter().map(|one| one.weight.rows()).sum::<usize>();
            }
            Ok(())
        });
    }
}
