//! The Gumbel noise: a pure function of (seed, choice, position, token).
//!
//! The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as
//! 1, 2, 3"). One evaluation gives four words, for the four tokens with the same `token / 4`.

use super::math;

/// Philox's multipliers and the steps of its key, from the paper.
const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const KEY_STEPS: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

/// N evaluations of Philox4x32-10 side by side: `counter[word][lane]`.
///
/// The lanes stand in the inner loop so that the compiler can use vector instructions.
#[inline(always)]
fn philox<const N: usize>(mut counter: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
    let [c0, c1, c2, c3] = &mut counter;
    for round in 0..10 {
        if round > 0 {
            key[0] = key[0].wrapping_add(KEY_STEPS[0]);
            key[1] = key[1].wrapping_add(KEY_STEPS[1]);
        }
        for lane in 0..N {
            let first = u64::from(MULTIPLIERS[0]) * u64::from(c0[lane]);
            let second = u64::from(MULTIPLIERS[1]) * u64::from(c2[lane]);
            c0[lane] = (second >> 32) as u32 ^ c1[lane] ^ key[0];
            c1[lane] = second as u32;
            c2[lane] = (first >> 32) as u32 ^ c3[lane] ^ key[1];
            c3[lane] = first as u32;
        }
    }
    counter
}

/// -ln u for u = (word + ½) / 2^32, a standard exponential variate in [2^-33, 22.9].
///
/// An f32 cannot tell u from 1 closer than 2^-25, and those u are the high end of the Gumbel
/// distribution. So for u above √½ the logarithm is taken of 1 - (1 - u), where 1 - u is exact or
/// correctly rounded: it comes from the complement of the word.
#[inline(always)]
fn exponential(word: u32) -> f32 {
    /// √½ in units of 2^-32, rounded up.
    const SQRT_HALF: u32 = 0xb504_f334;
    const UNIT: f32 = 1.0 / 4_294_967_296.0;
    let (exponent, f) = math::reduce((word as f32 + 0.5) * UNIT);
    let complement = (!word as f32 + 0.5) * UNIT;
    let near_one = word >= SQRT_HALF;
    let exponent = if near_one { 0.0 } else { exponent };
    let f = if near_one { -complement } else { f };
    -math::ln_reduced(exponent, f)
}

/// -ln(-ln u) for u = (word + ½) / 2^32: a standard Gumbel variate in [-3.13, 22.88].
#[inline(always)]
pub(super) fn gumbel(word: u32) -> f32 {
    -math::ln(exponential(word))
}

/// No noise is above this (the highest is 33 ln 2 = 22.87).
pub(super) const NOISE_BOUND: f32 = 23.0;

/// No word up to `word` gives noise above this: the exact function is increasing, and the margin is ten times
/// the largest error of the approximation.
#[inline(always)]
pub(super) fn bound(word: u32) -> f32 {
    gumbel(word) + 1e-5
}

/// How many tokens [`Noise::block`] covers.
pub(super) const BLOCK: usize = 32;

/// The noise of all tokens for one choice of one token.
#[derive(Clone, Copy, Debug)]
pub struct Noise {
    key: [u32; 2],
    position: [u32; 2],
    choice: u32,
}

impl Noise {
    /// The noise for the token at `position` of the answer number `choice`.
    pub fn new(seed: u64, choice: u32, position: u64) -> Self {
        let halves = |x: u64| [x as u32, (x >> 32) as u32];
        Self { key: halves(seed), position: halves(position), choice }
    }

    /// Standard Gumbel noise for one token.
    pub fn gumbel(&self, token: u32) -> f32 {
        let words = self.words::<1>(token / 4);
        gumbel(words[(token % 4) as usize][0])
    }

    /// The random words of [`BLOCK`] tokens from `first` on, a multiple of 4.
    #[inline(always)]
    pub(super) fn block(&self, first: u32) -> [u32; BLOCK] {
        let words = self.words::<{ BLOCK / 4 }>(first / 4);
        let mut block = [0; BLOCK];
        for lane in 0..BLOCK / 4 {
            for word in 0..4 {
                block[4 * lane + word] = words[word][lane];
            }
        }
        block
    }

    #[inline(always)]
    fn words<const N: usize>(&self, quad: u32) -> [[u32; N]; 4] {
        let quads = std::array::from_fn(|lane| quad.wrapping_add(lane as u32));
        let counter = [quads, [self.position[0]; N], [self.position[1]; N], [self.choice; N]];
        philox(counter, self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with the authors' library Random123.
    #[test]
    fn philox_gives_the_published_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
            ([!0; 4], [!0; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
            (
                [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
                [0xa4093822, 0x299f31d0],
                [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox(counter.map(|word: u32| [word]), key).map(|word| word[0]), expected);
            assert_eq!(
                philox(counter.map(|word: u32| [word; 8]), key).map(|word| word[7]),
                expected
            );
        }
    }

    fn words() -> impl Iterator<Item = u32> {
        let around = |middle: u32| middle.saturating_sub(1 << 19)..=middle.saturating_add(1 << 19);
        (0..=u32::MAX)
            .step_by(2003)
            .chain(around(0))
            .chain(around(u32::MAX))
            .chain(around(0xb504_f334))
    }

    #[test]
    fn noise_is_close_to_the_formula_over_all_words() {
        let (mut exponential_error, mut gumbel_error): (f64, f64) = (0.0, 0.0);
        for word in words() {
            // 1 - u is exact in f64, and so is ln_1p of it where u is close to 1.
            let complement = (f64::from(!word) + 0.5) / 4_294_967_296.0;
            let exact = -(-complement).ln_1p();
            exponential_error =
                exponential_error.max((f64::from(exponential(word)) - exact).abs() / exact);
            let exact = -exact.ln();
            gumbel_error =
                gumbel_error.max((f64::from(gumbel(word)) - exact).abs() / exact.abs().max(1.0));
        }
        assert!(exponential_error < 2e-7, "relative error of -ln u {exponential_error:e}");
        assert!(gumbel_error < 2.6e-7, "error of the noise {gumbel_error:e}");
    }

    #[test]
    fn noise_stays_within_its_bounds() {
        for word in words() {
            assert!((-3.131..NOISE_BOUND).contains(&gumbel(word)), "word {word:#x}");
        }
        assert_eq!(gumbel(u32::MAX), 33.0 * std::f32::consts::LN_2);
    }

    #[test]
    fn a_block_is_the_noise_of_its_tokens() {
        let noise = Noise::new(0x0123_4567_89ab_cdef, 7, 0xfedc_ba98_7654_3210);
        for first in [0, 4, 32, 200_000] {
            let single: Vec<_> = (first..first + BLOCK as u32).map(|t| noise.gumbel(t)).collect();
            assert_eq!(noise.block(first).map(gumbel).to_vec(), single);
        }
    }

    /// Pins the definition: another device, or a later version, must give these bits.
    #[test]
    fn noise_has_known_bits() {
        let noise = Noise::new(0x2a_0000_0001, 3, 0x5_0000_0007);
        let bits: Vec<_> = (0..6).map(|token| noise.gumbel(token).to_bits()).collect();
        assert_eq!(bits, [1041546491, 1070479703, 1068590899, 1038682134, 1070720074, 1059389061]);
    }

    #[test]
    fn every_part_of_the_key_matters() {
        let draw = |seed, choice, position| Noise::new(seed, choice, position).gumbel(5);
        let draws = [
            draw(0, 0, 0),
            draw(1, 0, 0),
            draw(1 << 32, 0, 0),
            draw(0, 1, 0),
            draw(0, 0, 1),
            draw(0, 0, 1 << 32),
        ];
        for (i, a) in draws.iter().enumerate() {
            assert!(draws[..i].iter().all(|b| a != b), "draw {i} repeats: {draws:?}");
        }
    }
}
