//! Products for each instruction set, weight type and number of tokens: `cargo bench --bench products [SET [TYPE ...]]`,
//! with as many threads as `THREADS` says, else one.
//!
//! The matrix is beyond the caches, as the weights of a model are; prompts take a part of it as large as a layer.

use oxgpt_engine::backend::HostMatrix;
use oxgpt_engine::backend::cpu::simd::{Activations, Arena, Finish, Isa, PackedMatrix, Target};
use oxgpt_engine::backend::cpu::threads::Threads;
use oxgpt_engine::format::{Bytes, DType};
use oxgpt_engine::quant;
use std::hint::black_box;
use std::time::Instant;

const ROWS: usize = 65536;
const LAYER_ROWS: usize = 4096;
const COLS: usize = 1024;
const TOKENS: [usize; 3] = [1, 4, 64];
const REPEATS: usize = 7;

fn main() {
    let filters: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let threads = std::env::var("THREADS").map_or(1, |threads| threads.parse().expect("a number"));
    let mut threads = Threads::new(threads).expect("threads");
    {
        println!(
            "{:<10}{:<8}{:>7}{:>12}{:>12}{:>12}",
            "set", "type", "tokens", "GFLOP/s", "GB/s", "packing GB/s"
        );
        for isa in Isa::all() {
            if filters.first().is_some_and(|set| set != isa.name()) {
                continue;
            }
            for dtype in quant::SUPPORTED {
                if filters.len() < 2 || filters[1..].iter().any(|name| name == dtype.name()) {
                    measure(isa, *dtype, &mut threads);
                }
            }
        }
    }
}

fn measure(isa: Isa, dtype: DType, threads: &mut Threads) {
    let row_bytes = dtype.bytes_for(COLS).expect("1024 is a multiple of every block");
    // Small numbers in every type: what is computed does not matter, but denormals would.
    let bytes = Bytes::from(vec![0x11; ROWS * row_bytes]);
    let weights = HostMatrix { rows: ROWS, cols: COLS, dtype, bytes };
    let start = Instant::now();
    let packed = PackedMatrix::new(&weights, &mut Arena::default(), threads);
    let packing = weights.bytes.len() as f64 / start.elapsed().as_secs_f64();
    for tokens in TOKENS {
        let x = vec![0.5; tokens * COLS];
        let rows = if tokens > 4 { LAYER_ROWS } else { ROWS };
        let mut out = vec![0.0; rows * tokens];
        let mut activations = Activations::default();
        let seconds = (0..REPEATS).map(|_| {
            let start = Instant::now();
            activations.set(isa, tokens, COLS);
            let out = black_box(&mut out[..]);
            let target = Target { out, width: rows, first_column: 0 };
            let finish = Finish { bias: None, add: false };
            isa.product(threads, target, &x, &mut activations, &packed, 0..rows, finish);
            start.elapsed().as_secs_f64()
        });
        let mut seconds: Vec<f64> = seconds.collect();
        seconds.sort_by(f64::total_cmp);
        let median = seconds[REPEATS / 2];
        let flop = 2.0 * (rows * COLS * tokens) as f64;
        let read = (packed.byte_len() / ROWS * rows) as f64;
        let (flops, bandwidth) = (flop / median / 1e9, read / median / 1e9);
        let (name, dtype, packing) = (isa.name(), dtype.name(), packing / 1e9);
        println!("{name:<10}{dtype:<8}{tokens:>7}{flops:>12.1}{bandwidth:>12.1}{packing:>12.1}");
    }
}
