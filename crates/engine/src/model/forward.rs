//! The forward pass, written once for every family and every backend.

use crate::backend::Backend;
use crate::batch::Batch;
use crate::kv::KvLayout;
use crate::model::spec::{Decoder, Layer, Norm};
use std::slice;

/// Activations of one forward pass, allocated once for the largest batch.
pub struct Scratch<B: Backend> {
    pub(crate) residual: B::Buffer,
    pub(crate) normed: B::Buffer,
    /// What a part adds to the residual stream, where it is normed first.
    pub(crate) branch: B::Buffer,
    /// Of each rope.
    pub(crate) rotations: Vec<B::Buffer>,
    pub(crate) qkv: B::Buffer,
    pub(crate) attended: B::Buffer,
    pub(crate) router: B::Buffer,
    pub(crate) routes: B::Routes,
    pub(crate) up: B::Buffer,
    pub(crate) intermediate: B::Buffer,
    pub(crate) wanted: B::Buffer,
    pub(crate) logits: B::Buffer,
}

/// Widths of the buffers of a [`Scratch`], each the widest of all layers.
struct Widths {
    hidden: usize,
    qkv: usize,
    query: usize,
    experts: usize,
    chosen: usize,
    up: usize,
    intermediate: usize,
}

impl Widths {
    fn new<M, V>(decoder: &Decoder<M, V>) -> Self {
        let widest =
            |width: fn(&Layer<M, V>) -> usize| decoder.layers.iter().map(width).max().unwrap_or(0);
        Widths {
            hidden: decoder.hidden,
            qkv: widest(|layer| layer.attention.shape.qkv_width()),
            query: widest(|layer| layer.attention.shape.query_width()),
            experts: widest(|layer| layer.feed_forward.router.as_ref().map_or(0, |r| r.experts)),
            chosen: widest(|layer| layer.feed_forward.chosen()),
            up: widest(|layer| layer.feed_forward.up_width()),
            intermediate: widest(|layer| layer.feed_forward.intermediate),
        }
    }
}

impl<B: Backend> Scratch<B> {
    /// Room for batches of at most `rows` rows, of which at most `logit_rows` want logits.
    pub fn new(
        b: &mut B,
        decoder: &Decoder<B::Matrix, B::Vector>,
        rows: usize,
        logit_rows: usize,
    ) -> Self {
        let w = Widths::new(decoder);
        Scratch {
            residual: b.buffer(rows, w.hidden),
            normed: b.buffer(rows, w.hidden),
            branch: b.buffer(rows, w.hidden),
            rotations: decoder.ropes.iter().map(|rope| b.buffer(rows, 2 * rope.pairs())).collect(),
            qkv: b.buffer(rows, w.qkv),
            attended: b.buffer(rows, w.query),
            router: b.buffer(rows, w.experts),
            routes: b.routes(rows, w.chosen),
            up: b.buffer(rows * w.chosen, w.up),
            intermediate: b.buffer(rows * w.chosen, w.intermediate),
            wanted: b.buffer(logit_rows, w.hidden),
            logits: b.buffer(logit_rows, decoder.head.rows),
        }
    }
}

/// Rows and width of every buffer that [`Scratch::new`] asks for, and of nothing else.
pub fn workspace<M, V>(
    decoder: &Decoder<M, V>,
    rows: usize,
    logit_rows: usize,
) -> Vec<(usize, usize)> {
    let w = Widths::new(decoder);
    let slots = rows.saturating_mul(w.chosen);
    let mut buffers = vec![
        (rows, w.hidden),
        (rows, w.hidden),
        (rows, w.hidden),
        (rows, w.qkv),
        (rows, w.query),
        (rows, w.experts),
        (slots, w.up),
        (slots, w.intermediate),
        (logit_rows, w.hidden),
        (logit_rows, decoder.head.rows),
    ];
    buffers.extend(decoder.ropes.iter().map(|rope| (rows, 2 * rope.pairs())));
    buffers
}

/// Activations that [`Scratch::new`] makes room for.
pub fn workspace_elements<M, V>(decoder: &Decoder<M, V>, rows: usize, logit_rows: usize) -> usize {
    let buffers = workspace(decoder, rows, logit_rows);
    let elements = buffers.into_iter().map(|(rows, width)| rows.saturating_mul(width));
    elements.fold(0, usize::saturating_add)
}

/// Computes `batch`, appends its keys and values to `kv` (one per layer), and leaves in the returned buffer the logits
/// of the wanted rows, in their order: (logit_rows, head rows), or their hidden states: (logit_rows, hidden).
pub fn forward<'s, B: Backend>(
    b: &mut B,
    decoder: &Decoder<B::Matrix, B::Vector>,
    layout: &KvLayout,
    kv: &mut [B::Kv],
    batch: &Batch,
    s: &'s mut Scratch<B>,
) -> &'s B::Buffer {
    if b.begin(batch, &mut s.logits) {
        return &s.logits;
    }
    if b.pass(decoder, layout, kv, batch, s) {
        return &s.logits;
    }
    b.embed(&mut s.residual, &decoder.embedding.tokens, &batch.tokens, decoder.embedding.scale);
    if let Some(positions) = &decoder.embedding.positions {
        b.add_rows(&mut s.residual, positions, &batch.positions);
    }
    for (rope, rotations) in decoder.ropes.iter().zip(&mut s.rotations) {
        b.rotations(rotations, rope, batch);
    }

    for (index, layer) in decoder.layers.iter().enumerate() {
        let (kv, tables) = (&mut kv[index], &batch.block_tables[layout.group_of_layer[index]]);

        // residual += output(attend(rope(qkv(norm(residual)))))
        let attention = &layer.attention;
        b.norm(&mut s.normed, &s.residual, &attention.norm);
        b.matmul(&mut s.qkv, &s.normed, &attention.qkv);
        if let Some(norm) = &attention.query_norm {
            b.norm_heads(&mut s.qkv, attention.shape.query_heads(), norm);
        }
        if let Some(norm) = &attention.key_norm {
            b.norm_heads(&mut s.qkv, attention.shape.key_heads(), norm);
        }
        if let Some(rope) = attention.rope {
            b.rotate(&mut s.qkv, &s.rotations[rope], &decoder.ropes[rope], &attention.shape);
        }
        b.append(kv, &s.qkv, batch, tables, &attention.shape);
        let sinks = attention.sinks.as_ref();
        b.attend(&mut s.attended, &s.qkv, kv, batch, tables, &attention.shape, sinks);
        let sum = part_sum(b, &mut s.residual, &mut s.branch, &attention.post_norm);
        b.matmul_add(sum, &s.attended, &attention.output);
        if let Some(norm) = &attention.post_norm {
            b.norm(&mut s.normed, &s.branch, norm);
            b.add(&mut s.residual, &s.normed);
        }

        // residual += down(nonlinearity(up(norm(residual))))
        let ffn = &layer.feed_forward;
        b.norm(&mut s.normed, &s.residual, &ffn.norm);
        match &ffn.router {
            None => b.matmul(&mut s.up, &s.normed, &ffn.up),
            Some(router) => {
                b.matmul(&mut s.router, &s.normed, slice::from_ref(&router.linear));
                b.route(&mut s.routes, &s.router, router.choice);
                b.expert_matmul(&mut s.up, &s.normed, &ffn.up, &s.routes);
            }
        }
        b.activate(&mut s.intermediate, &s.up, ffn.nonlinearity);
        let sum = part_sum(b, &mut s.residual, &mut s.branch, &ffn.post_norm);
        match &ffn.router {
            None => b.matmul_add(sum, &s.intermediate, &ffn.down),
            Some(_) => b.expert_matmul_add(sum, &s.intermediate, &ffn.down, &s.routes),
        }
        if let Some(norm) = &ffn.post_norm {
            b.norm(&mut s.normed, &s.branch, norm);
            b.add(&mut s.residual, &s.normed);
        }
    }

    b.gather(&mut s.wanted, &s.residual, &batch.logit_rows);
    b.norm(&mut s.normed, &s.wanted, &decoder.final_norm);
    if batch.wants_hidden {
        return &s.normed;
    }
    b.project(&mut s.logits, &s.normed, decoder.head_matrix());
    if let Some(cap) = decoder.head.soft_cap {
        b.soft_cap(&mut s.logits, cap);
    }
    &s.logits
}

/// Where a part adds its output: the residual stream, or zeros if the output is normed first.
fn part_sum<'s, B: Backend>(
    b: &mut B,
    residual: &'s mut B::Buffer,
    branch: &'s mut B::Buffer,
    post_norm: &Option<Norm<B::Vector>>,
) -> &'s mut B::Buffer {
    if post_norm.is_none() {
        return residual;
    }
    b.zero_like(branch, residual);
    branch
}
