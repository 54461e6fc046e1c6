//! What it costs to share one operation among threads, in the rhythm of decoding: an operation of some microseconds,
//! serial work, the next operation. `cargo bench --bench threads -- [THREADS]`; rayon beside it, from inside its pool.

use oxgpt_engine::backend::cpu::cores::physical_cores;
use oxgpt_engine::backend::cpu::threads::Threads;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// Operations of one count.
const OPERATIONS: usize = 1000;
const REPEATS: usize = 7;
/// Pieces of an operation for each thread.
const PIECES: usize = 4;

fn main() {
    let argument = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let count = argument.unwrap_or_else(physical_cores);
    let mut threads = Threads::new(count).expect("the threads start");
    let rayon = rayon::ThreadPoolBuilder::new().num_threads(count).build().expect("they start");
    let rounds_per_us = rounds_per_us();
    println!(
        "{count} threads; microseconds that an operation takes longer than its share of the work"
    );
    println!("{:>10}{:>10}{:>12}{:>12}", "work", "serial", "rayon", "ours");
    for work in [2.0, 20.0, 200.0] {
        for serial in [0.0, 5.0, 50.0, 500.0] {
            let pieces = PIECES * count;
            let rounds = |us: f64| (us * rounds_per_us) as usize;
            let (piece, between) = (rounds(work / pieces as f64), rounds(serial));
            let ideal = work / count as f64 + serial;
            let with_rayon = median(|| {
                rayon.install(|| {
                    time(|| {
                        (0..pieces).into_par_iter().for_each(|_| spin(piece));
                        spin(between);
                    })
                })
            });
            let with_ours = median(|| {
                time(|| {
                    threads.for_each(pieces, |_| spin(piece));
                    spin(between);
                })
            });
            let (rayon, ours) = (with_rayon - ideal, with_ours - ideal);
            println!("{work:>10}{serial:>10}{rayon:>12.2}{ours:>12.2}");
        }
    }
}

/// Microseconds of one operation.
fn time(mut operation: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..OPERATIONS).for_each(|_| operation());
    start.elapsed().as_secs_f64() * 1e6 / OPERATIONS as f64
}

fn median(mut measure: impl FnMut() -> f64) -> f64 {
    let mut all: Vec<f64> = (0..REPEATS).map(|_| measure()).collect();
    all.sort_by(f64::total_cmp);
    all[REPEATS / 2]
}

/// Work that no other thread can slow down: a chain of multiplications.
fn spin(rounds: usize) {
    black_box((0..rounds).fold(black_box(1u64), |x, _| black_box(x.wrapping_mul(3))));
}

fn rounds_per_us() -> f64 {
    let count = 10_000_000;
    spin(count);
    let start = Instant::now();
    spin(count);
    count as f64 / (start.elapsed().as_secs_f64() * 1e6)
}
