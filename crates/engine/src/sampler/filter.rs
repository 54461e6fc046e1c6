//! Top-k, top-p and min-p, and the draw among what they leave.
//!
//! All three keep a prefix of one order, "higher scaled logit first, then lower id", so the order is
//! established only as far as needed and the vocabulary is never sorted.

use super::noise::{self, BLOCK, NOISE_BOUND, Noise};
use super::{SamplingOptions, Scale, math};

/// A token in the order of the filters: the ascending order of `|scaled| bits, token`.
///
/// Scaled logits are at most 0, and the bits of non-negative floats order as the floats do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate(u64);

impl Candidate {
    fn new(scaled: f32, token: u32) -> Self {
        Self(u64::from(scaled.abs().to_bits()) << 32 | u64::from(token))
    }

    fn scaled(self) -> f32 {
        -f32::from_bits((self.0 >> 32) as u32)
    }

    fn token(self) -> u32 {
        self.0 as u32
    }

    fn weight(self) -> u64 {
        math::weight(self.scaled())
    }
}

/// The filters of one sequence and their scratch space.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    top_k: usize,
    /// top-p in units of 2^-32, rounded up; `None` is off.
    top_p: Option<u64>,
    /// ln(min-p): the lowest scaled logit that min-p keeps.
    floor: f32,
    candidates: Vec<Candidate>,
}

impl Filter {
    pub(super) fn new(options: &SamplingOptions) -> Self {
        let top_k = if options.top_k == 0 { usize::MAX } else { options.top_k as usize };
        let top_p = (options.top_p < 1.0)
            .then(|| (f64::from(options.top_p) * 4_294_967_296.0).ceil() as u64);
        let floor = if options.min_p == 0.0 {
            f32::NEG_INFINITY
        } else {
            math::ln(options.min_p.max(f32::MIN_POSITIVE))
        };
        Self { top_k, top_p, floor, candidates: Vec::new() }
    }

    /// top-p and min-p as they are compared with.
    pub(super) fn bounds(&self) -> (Option<u64>, f32) {
        (self.top_p, self.floor)
    }

    /// Filters and draws. `best` is the token with the highest logit: every filter keeps it.
    pub(super) fn draw(&mut self, logits: &[f32], scale: Scale, best: u32, noise: &Noise) -> u32 {
        let cuts_top_k = self.top_k < logits.len();
        if !cuts_top_k && self.top_p.is_none() {
            return draw_from_all(logits, scale, self.floor, best, noise);
        }
        if cuts_top_k {
            self.collect_top_k(logits, scale);
        } else {
            self.collect_weighty(logits, scale);
        }
        if let Some(top_p) = self.top_p {
            keep_top_p(&mut self.candidates, top_p);
        }
        let mut winner = Winner::new(best, noise);
        for candidate in &self.candidates {
            let (token, scaled) = (candidate.token(), candidate.scaled());
            if scaled >= self.floor && scaled + NOISE_BOUND >= winner.score {
                winner.offer(token, scaled + noise.gumbel(token));
            }
        }
        winner.token
    }

    fn collect_top_k(&mut self, logits: &[f32], scale: Scale) {
        // Room beyond k, so that one selection pays for many tokens.
        let room = self.top_k.saturating_mul(2).saturating_add(1024).min(logits.len());
        self.candidates.clear();
        self.candidates.reserve(room);
        let mut last = Candidate(u64::MAX);
        for (token, &logit) in logits.iter().enumerate() {
            let candidate = Candidate::new(scale.apply(logit), token as u32);
            if candidate >= last {
                continue;
            }
            if self.candidates.len() == room {
                keep_first(&mut self.candidates, self.top_k);
                last = self.candidates[self.top_k - 1];
            }
            self.candidates.push(candidate);
        }
        keep_first(&mut self.candidates, self.top_k);
    }

    /// All tokens that count in a sum of weights.
    fn collect_weighty(&mut self, logits: &[f32], scale: Scale) {
        self.candidates.clear();
        self.candidates.reserve(logits.len());
        for (token, &logit) in logits.iter().enumerate() {
            let scaled = scale.apply(logit);
            if scaled >= math::WEIGHT_FLOOR {
                self.candidates.push(Candidate::new(scaled, token as u32));
            }
        }
    }
}

/// Keeps the first `count` of the order; the last of them stands last.
fn keep_first(candidates: &mut Vec<Candidate>, count: usize) {
    if candidates.len() > count {
        candidates.select_nth_unstable(count - 1);
        candidates.truncate(count);
    }
}

/// Keeps the shortest prefix of the order whose weights sum to at least `top_p / 2^32` of the whole.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: u64) {
    let total: u64 = candidates.iter().map(|candidate| candidate.weight()).sum();
    let needed = (u128::from(total) * u128::from(top_p)).div_ceil(1 << 32).max(1) as u64;
    // Halves the stretch in which the prefix ends, sorting neither half.
    let (mut start, mut end, mut before) = (0, candidates.len(), 0);
    while end - start > 64 {
        let half = (end - start) / 2;
        candidates[start..end].select_nth_unstable(half);
        let sum: u64 =
            candidates[start..start + half].iter().map(|candidate| candidate.weight()).sum();
        if before + sum >= needed {
            end = start + half;
        } else {
            before += sum;
            start += half;
        }
    }
    candidates[start..end].sort_unstable();
    while before < needed && start < end {
        before += candidates[start].weight();
        start += 1;
    }
    candidates.truncate(start);
}

/// The highest score so far, the lowest id among ties.
struct Winner {
    token: u32,
    score: f32,
}

impl Winner {
    /// Starts with the most likely token: its score lets most of the others be passed over.
    fn new(best: u32, noise: &Noise) -> Self {
        Self { token: best, score: noise.gumbel(best) }
    }

    fn offer(&mut self, token: u32, score: f32) {
        if score > self.score || (score == self.score && token < self.token) {
            *self = Self { token, score };
        }
    }
}

/// One pass over the logits, in blocks.
///
/// Nearly all blocks are passed over: at once where the best scaled logit cannot win with the highest noise
/// there is, else before most logarithms where it cannot win with the block's highest random word. Rounded
/// addition is monotonic, so no token of such a block could have won: no choice changes.
fn draw_from_all(logits: &[f32], scale: Scale, floor: f32, best: u32, noise: &Noise) -> u32 {
    let mut winner = Winner::new(best, noise);
    for (index, chunk) in logits.chunks(BLOCK).enumerate() {
        let first = (index * BLOCK) as u32;
        let mut scaled = [f32::NEG_INFINITY; BLOCK];
        for (scaled, &logit) in scaled.iter_mut().zip(chunk) {
            let value = scale.apply(logit);
            *scaled = if value >= floor { value } else { f32::NEG_INFINITY };
        }
        let highest_scaled = highest(scaled);
        if highest_scaled + NOISE_BOUND < winner.score {
            continue;
        }
        let words = noise.block(first);
        if highest_scaled + noise::bound(highest(words)) < winner.score {
            continue;
        }
        for (token, (scaled, word)) in (first..).zip(scaled.into_iter().zip(words)) {
            winner.offer(token, scaled + noise::gumbel(word));
        }
    }
    winner.token
}

#[inline(always)]
fn highest<T: Copy + PartialOrd>(mut values: [T; BLOCK]) -> T {
    // A tree of pairs instead of a chain, so that the compiler can use vector instructions.
    let mut width = BLOCK / 2;
    while width > 0 {
        for lane in 0..width {
            let (a, b) = (values[lane], values[lane + width]);
            values[lane] = if a > b { a } else { b };
        }
        width /= 2;
    }
    values[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_id_wins_among_equal_scores() {
        let mut winner = Winner { token: 5, score: 1.0 };
        winner.offer(7, 1.0);
        assert_eq!(winner.token, 5);
        winner.offer(3, 1.0);
        assert_eq!(winner.token, 3);
        winner.offer(9, 1.5);
        assert_eq!(winner.token, 9);
    }
}
