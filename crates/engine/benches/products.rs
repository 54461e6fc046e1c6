//! Products of one thread, for each instruction set, weight type and number of tokens: `cargo bench --bench products`.
//!
//! The matrix is beyond the caches, as the weights of a model are.

use oxgpt_engine::backend::HostMatrix;
use oxgpt_engine::backend::cpu::simd::Isa;
use oxgpt_engine::format::Bytes;
use oxgpt_engine::quant;
use std::hint::black_box;
use std::time::Instant;

const ROWS: usize = 16384;
const COLS: usize = 1024;
const REPEATS: usize = 7;

fn main() {
    println!("{:<10}{:<8}{:>7}{:>12}{:>12}", "set", "type", "tokens", "GFLOP/s", "GB/s");
    for isa in Isa::all() {
        for dtype in quant::SUPPORTED {
            let row_bytes = dtype.bytes_for(COLS).expect("1024 is a multiple of every block");
            // Small numbers in every type: what is computed does not matter, but denormals would.
            let bytes = Bytes::from(vec![0x11; ROWS * row_bytes]);
            let weights = HostMatrix { rows: ROWS, cols: COLS, dtype: *dtype, bytes };
            for tokens in [1, 32] {
                let x = vec![0.5; tokens * COLS];
                let mut out = vec![0.0; ROWS * tokens];
                let seconds = (0..REPEATS).map(|_| {
                    let start = Instant::now();
                    isa.matmul_rows(black_box(&mut out), &weights, 0, &x);
                    start.elapsed().as_secs_f64()
                });
                let mut seconds: Vec<f64> = seconds.collect();
                seconds.sort_by(f64::total_cmp);
                let median = seconds[REPEATS / 2];
                let flop = 2.0 * (ROWS * COLS * tokens) as f64;
                let read = (ROWS * row_bytes) as f64;
                let (name, dtype) = (isa.name(), dtype.name());
                let (flops, bandwidth) = (flop / median / 1e9, read / median / 1e9);
                println!("{name:<10}{dtype:<8}{tokens:>7}{flops:>12.1}{bandwidth:>12.1}");
            }
        }
    }
}
