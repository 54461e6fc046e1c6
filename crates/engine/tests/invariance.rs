//! A row's logits are the same bits whatever is computed beside it: any chunking of a prompt, any other sequences in
//! the batch, any number of threads, whichever blocks its keys and values lie in.

mod common;

use common::gguf::write_gpt2;
use common::{Golden, case, engine, relative_l2, score_with_8_bit_inputs};
use oxgpt_engine::backend::cpu::Cpu;
use oxgpt_engine::backend::reference::Reference;
use oxgpt_engine::batch::{Batch, Logits};
use oxgpt_engine::engine::Device;
use oxgpt_engine::kv::{KvLayout, KvPools, KvSequence};
use oxgpt_engine::model::Model;
use oxgpt_engine::model::executor::{BatchLimits, Executor, load};
use oxgpt_engine::quant;

const DEVICES: [Device; 2] = [Device::Reference, Device::Cpu];

/// One checkpoint for each way that a product reads weights, and with grouped queries, rotations, windows, caps,
/// sinks, norms of heads and experts.
const MODELS: &[&str] = &[
    "gpt2-base",
    "gpt2-float16",
    "gpt2-blocks-BF16.gguf",
    "gpt2-blocks-Q8_0.gguf",
    "gpt2-one-head-F32-split.gguf",
    "llama-base-F32.gguf",
    "mistral-window",
    "phi3-long",
    "gemma3-capped",
    "gpt-oss-mxfp4",
    "gpt-oss-many-Q8_0.gguf",
    "qwen3moe-mixed",
];

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

fn score(model: &Model, device: Device, chunk: usize, tokens: &[u32]) -> Vec<f32> {
    let mut logits = Vec::new();
    let mut engine = engine(model, device, chunk, 1);
    engine.score(tokens, &mut |_, row| logits.extend_from_slice(row)).unwrap();
    logits
}

#[test]
fn chunking_does_not_change_a_bit() {
    for name in MODELS {
        let case = case(name);
        let model = Model::open(&case.model_path()).unwrap();
        let tokens = Golden::read(&case.golden_path()).ids("tokens", 0);
        for device in DEVICES {
            let one_by_one = bits(&score(&model, device, 1, &tokens));
            for chunk in [2, 3, 4, 5, 7, 31, 32, 33, 64] {
                let chunked = bits(&score(&model, device, chunk, &tokens));
                assert_eq!(chunked, one_by_one, "{name} on {device} in chunks of {chunk}");
            }
        }
    }
}

/// An executor with its block pools, below the scheduler, so that a test decides what is in a batch.
struct Bench {
    executor: Box<dyn Executor>,
    pools: KvPools,
    groups: usize,
    width: usize,
    /// Sequences beyond it are rotated in another way.
    short_context: usize,
}

impl Bench {
    fn new(model: &Model, device: Device, threads: usize) -> Self {
        let decoder = &model.description.decoder;
        let layout = KvLayout::new(decoder.layers.iter().map(|l| l.attention.shape.window));
        let groups = layout.groups(6, decoder.context_length.min(256), 256);
        let limits = BatchLimits { rows: 600, logit_rows: 600 };
        let mut ignore = |_| {};
        let executor = match device {
            Device::Reference => {
                load(Reference::default(), model, layout, &groups, limits, &mut ignore).unwrap()
            }
            Device::Cpu => {
                let cpu = Cpu::new(threads).unwrap();
                load(cpu, model, layout, &groups, limits, &mut ignore).unwrap()
            }
            Device::Cuda(_) => unreachable!("cuda.rs tests GPUs"),
        };
        let (width, count) = (decoder.head.rows, groups.len());
        let short_context = decoder.short_context().unwrap_or(usize::MAX);
        Bench { executor, pools: KvPools::new(groups, 256), groups: count, width, short_context }
    }

    /// Computes the next `count` tokens of each sequence in one batch, and appends their logits.
    fn advance(&mut self, sequences: &mut [Row<'_>], counts: &[usize]) {
        let mut batch = Batch::new(self.groups);
        for (row, count) in sequences.iter_mut().zip(counts) {
            let end = (row.computed + count).min(row.tokens.len());
            if end == row.computed {
                continue;
            }
            assert_eq!(self.pools.extend(&mut row.kv, row.computed, end), end);
            let tokens = &row.tokens[row.computed..end];
            let is_long = row.tokens.len() > self.short_context;
            batch.push(tokens, row.computed, is_long, &row.kv.tables, Logits::All);
        }
        let mut logits = Vec::new();
        self.executor.forward(&batch).unwrap();
        self.executor.read(&mut logits).unwrap();
        let mut logits = logits.chunks_exact(self.width);
        for (row, count) in sequences.iter_mut().zip(counts) {
            let end = (row.computed + count).min(row.tokens.len());
            for _ in row.computed..end {
                row.logits.extend_from_slice(logits.next().unwrap());
            }
            row.computed = end;
        }
    }

    fn row<'t>(&mut self, tokens: &'t [u32]) -> Row<'t> {
        let kv = self.pools.reserve(tokens.len()).unwrap();
        Row { tokens, kv, computed: 0, logits: Vec::new() }
    }
}

struct Row<'t> {
    tokens: &'t [u32],
    kv: KvSequence,
    computed: usize,
    logits: Vec<f32>,
}

/// Several sequences advance together, at different speeds, in blocks that others have used before.
fn assert_batches_change_nothing(model: &Model, device: Device, prompts: &[Vec<u32>]) {
    let alone: Vec<Vec<u32>> =
        prompts.iter().map(|tokens| bits(&score(model, device, 1, tokens))).collect();
    for threads in [1, 2, 3] {
        let mut bench = Bench::new(model, device, threads);
        let mut leftover = bench.row(&prompts[0]);
        bench.advance(std::slice::from_mut(&mut leftover), &[usize::MAX / 2]);
        bench.pools.release(leftover.kv);
        let mut rows: Vec<Row> = prompts.iter().map(|tokens| bench.row(tokens)).collect();
        for counts in [[7, 1, 33], [1, 40, 1], [0, 1, 5]].iter().cycle().take(60) {
            bench.advance(&mut rows, counts);
        }
        for (index, (row, alone)) in rows.iter().zip(&alone).enumerate() {
            assert_eq!(row.computed, row.tokens.len());
            let equal = bits(&row.logits) == *alone;
            assert!(equal, "sequence {index} on {device}, {threads} threads");
        }
    }
}

#[test]
fn other_sequences_do_not_change_a_bit() {
    for name in MODELS {
        let case = case(name);
        let model = Model::open(&case.model_path()).unwrap();
        let golden = Golden::read(&case.golden_path());
        let first = golden.ids("tokens", 0);
        let prompts = [first.clone(), first[3..].to_vec(), golden.ids("tokens", 1)];
        for device in DEVICES {
            assert_batches_change_nothing(&model, device, &prompts);
        }
    }
}

#[test]
fn no_weight_type_lets_neighbours_change_a_bit() {
    let folder = tempfile::tempdir().unwrap();
    for dtype in quant::SUPPORTED {
        let path = folder.path().join(format!("{dtype}.gguf"));
        write_gpt2(&path, *dtype);
        let model = Model::open(&path).unwrap();
        let tokens: Vec<u32> = (0..40).map(|i| i * 29 % 64).collect();
        let one_by_one = score(&model, Device::Cpu, 1, &tokens);
        assert!(one_by_one.iter().all(|logit| logit.is_finite()), "{dtype}");
        for chunk in [3, 33, 64] {
            let chunked = score(&model, Device::Cpu, chunk, &tokens);
            assert_eq!(bits(&chunked), bits(&one_by_one), "{dtype} in chunks of {chunk}");
        }
        let prompts = [tokens.clone(), tokens[3..].to_vec(), tokens[20..].to_vec()];
        assert_batches_change_nothing(&model, Device::Cpu, &prompts);
        let error = relative_l2(&one_by_one, &score_with_8_bit_inputs(&model, &tokens));
        // An activation halfway between two integers may become the other one in f64.
        assert!(error < 3e-4, "{dtype}: {error} from the reference");
    }
}

/// No GPT-2 has windows; the blocks that they leave behind are tested on one that is given some.
#[test]
fn windows_and_shared_kv_groups_change_no_bit_and_agree_with_the_reference() {
    let case = case("gpt2-base");
    let mut model = Model::open(&case.model_path()).unwrap();
    let full =
        score(&model, Device::Reference, 64, &Golden::read(&case.golden_path()).ids("tokens", 0));
    for (index, layer) in model.description.decoder.layers.iter_mut().enumerate() {
        layer.attention.shape.window = [Some(9), None, Some(40)][index % 3];
    }
    let tokens = Golden::read(&case.golden_path()).ids("tokens", 0);
    let reference = score(&model, Device::Reference, 64, &tokens);
    assert!(relative_l2(&reference, &full) > 1e-2, "the windows matter");
    let width = full.len() / tokens.len();
    assert_eq!(bits(&reference[..9 * width]), bits(&full[..9 * width]), "nothing is hidden yet");
    let cpu = score(&model, Device::Cpu, 1, &tokens);
    assert!(relative_l2(&cpu, &reference) < 1e-5);
    for device in DEVICES {
        assert_batches_change_nothing(
            &model,
            device,
            &[tokens.clone(), tokens[5..].to_vec(), tokens[9..].to_vec()],
        );
    }
}
