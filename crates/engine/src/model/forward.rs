//! The forward pass, written once for every family and every backend.

use crate::backend::Backend;
use crate::batch::Batch;
use crate::kv::KvLayout;
use crate::model::spec::Decoder;

/// Activations of one forward pass, allocated once for the largest batch.
pub struct Scratch<B: Backend> {
    residual: B::Buffer,
    normed: B::Buffer,
    qkv: B::Buffer,
    attended: B::Buffer,
    intermediate: B::Buffer,
    wanted: B::Buffer,
    logits: B::Buffer,
}

impl<B: Backend> Scratch<B> {
    /// Room for batches of at most `rows` rows, of which at most `logit_rows` want logits.
    pub fn new(
        backend: &mut B,
        decoder: &Decoder<B::Matrix, B::Vector>,
        rows: usize,
        logit_rows: usize,
    ) -> Self {
        Scratch {
            residual: backend.buffer(rows, decoder.hidden),
            normed: backend.buffer(rows, decoder.hidden),
            qkv: backend.buffer(rows, decoder.qkv_width()),
            attended: backend.buffer(rows, decoder.query_width()),
            intermediate: backend.buffer(rows, decoder.intermediate()),
            wanted: backend.buffer(logit_rows, decoder.hidden),
            logits: backend.buffer(logit_rows, decoder.head.rows),
        }
    }
}

/// Activations that [`Scratch::new`] makes room for.
pub fn workspace_elements<M, V>(decoder: &Decoder<M, V>, rows: usize, logit_rows: usize) -> usize {
    let per_row =
        2 * decoder.hidden + decoder.qkv_width() + decoder.query_width() + decoder.intermediate();
    rows.saturating_mul(per_row)
        .saturating_add(logit_rows.saturating_mul(decoder.hidden + decoder.head.rows))
}

/// Computes `batch`, appends its keys and values to `kv` (one per layer), and leaves in the returned buffer the logits
/// of the wanted rows, in their order: (logit_rows, head rows).
pub fn forward<'s, B: Backend>(
    b: &mut B,
    decoder: &Decoder<B::Matrix, B::Vector>,
    layout: &KvLayout,
    kv: &mut [B::Kv],
    batch: &Batch,
    s: &'s mut Scratch<B>,
) -> &'s B::Buffer {
    b.embed(&mut s.residual, &decoder.embedding.tokens, &batch.tokens);
    if let Some(positions) = &decoder.embedding.positions {
        b.add_rows(&mut s.residual, positions, &batch.positions);
    }

    for (index, layer) in decoder.layers.iter().enumerate() {
        let (kv, tables) = (&mut kv[index], &batch.block_tables[layout.group_of_layer[index]]);

        // residual += output(attend(qkv(norm(residual))))
        let attention = &layer.attention;
        b.norm(&mut s.normed, &s.residual, &attention.norm);
        b.matmul(&mut s.qkv, &s.normed, &attention.qkv);
        b.append(kv, &s.qkv, batch, tables, &attention.shape);
        b.attend(&mut s.attended, &s.qkv, kv, batch, tables, &attention.shape);
        b.matmul_add(&mut s.residual, &s.attended, &attention.output);

        // residual += down(activation(up(norm(residual))))
        let feed_forward = &layer.feed_forward;
        b.norm(&mut s.normed, &s.residual, &feed_forward.norm);
        b.matmul(&mut s.intermediate, &s.normed, &feed_forward.up);
        b.activate(&mut s.intermediate, feed_forward.activation);
        b.matmul_add(&mut s.residual, &s.intermediate, &feed_forward.down);
    }

    b.gather(&mut s.wanted, &s.residual, &batch.logit_rows);
    b.norm(&mut s.normed, &s.wanted, &decoder.final_norm);
    b.project(&mut s.logits, &s.normed, decoder.head_matrix());
    &s.logits
}
