//! What the memory can deliver: the limit that decoding is measured against.

use super::threads::Threads;
use std::hint::black_box;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Bytes read by one measurement: beyond every cache that we know.
const BYTES: usize = 512 << 20;
/// Words that a thread takes at once.
const PIECE: usize = 1 << 17;
/// The best of this many counts, since what else runs can only slow one down.
const REPEATS: usize = 5;

/// Bytes that `threads` threads together read from memory in a second, at the best.
///
/// # Errors
/// When the threads cannot be started.
pub fn read_bandwidth(threads: usize) -> io::Result<f64> {
    let mut threads = Threads::new(threads)?;
    let words = vec![1u64; BYTES / size_of::<u64>()];
    let seconds = (0..REPEATS).map(|_| {
        let start = Instant::now();
        let total = AtomicU64::new(0);
        threads.for_each(words.len().div_ceil(PIECE), |piece| {
            let end = words.len().min((piece + 1) * PIECE);
            total.fetch_add(sum(&words[piece * PIECE..end]), Ordering::Relaxed);
        });
        black_box(total.into_inner());
        start.elapsed().as_secs_f64()
    });
    Ok(BYTES as f64 / seconds.fold(f64::INFINITY, f64::min))
}

/// Sums in as many lanes as a cache line has, so that the additions never wait for each other.
fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0u64; 8];
    for line in words.as_chunks().0 {
        for (lane, word) in lanes.iter_mut().zip(line as &[u64; 8]) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().copied().fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        let words: Vec<u64> = (0..800).collect();
        assert_eq!(sum(&words), 800 * 799 / 2);
    }
}
