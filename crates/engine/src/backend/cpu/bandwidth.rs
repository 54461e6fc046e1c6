//! What the memory can deliver: the limit that decoding is measured against.

use super::simd::Arena;
use super::threads::Threads;
use std::hint::black_box;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Bytes read by one measurement: beyond every cache that we know.
const BYTES: usize = 512 << 20;
/// Bytes that a thread takes at once.
const PIECE: usize = 1 << 20;
/// The best of this many counts, since what else runs can only slow one down.
const REPEATS: usize = 5;

/// Bytes that `threads` threads together read from memory in a second, at the best. The memory is such as weights are kept
/// in, in huge pages where the system has them.
///
/// # Errors
/// When the threads cannot be started.
pub fn read_bandwidth(threads: usize) -> io::Result<f64> {
    let mut threads = Threads::new(threads)?;
    let mut bytes = Arena::default().allocate(BYTES);
    // Memory that was never written to is none.
    bytes.fill(1);
    let seconds = (0..REPEATS).map(|_| {
        let start = Instant::now();
        let total = AtomicU64::new(0);
        threads.for_each(BYTES / PIECE, |piece| {
            total.fetch_add(sum(&bytes[piece * PIECE..][..PIECE]), Ordering::Relaxed);
        });
        black_box(total.into_inner());
        start.elapsed().as_secs_f64()
    });
    Ok(BYTES as f64 / seconds.fold(f64::INFINITY, f64::min))
}

/// Sums words in as many lanes as a cache line has, so that the additions never wait for each other.
fn sum(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; 8];
    for line in bytes.as_chunks::<64>().0 {
        for (lane, word) in lanes.iter_mut().zip(line.as_chunks().0) {
            *lane = lane.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    lanes.iter().copied().fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        let bytes: Vec<u8> = (0..800u64).flat_map(u64::to_le_bytes).collect();
        assert_eq!(sum(&bytes), 800 * 799 / 2);
    }
}
