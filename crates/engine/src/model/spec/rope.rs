//! Rotary positions: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021).

/// The rotation of queries and keys by their position. Pair `i` of a head turns by `position * inverse_frequencies[i]`.
///
/// Angles are the product of two f32, rounded to f32, as in the models' own code: at a position of 100,000 that rounding
/// moves an angle by up to 0.004.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Which two elements are a pair.
    pub style: RopeStyle,
    /// One for each pair. Elements of a head beyond the pairs are not rotated.
    pub inverse_frequencies: Vec<f32>,
    /// What sine and cosine are multiplied with.
    pub magnitude: f32,
    /// Other frequencies for long sequences.
    pub longer: Option<Longer>,
}

/// The frequencies of sequences that are longer than some length, all their positions included.
#[derive(Clone, Debug, PartialEq)]
pub struct Longer {
    /// The last length that is not long.
    pub than: usize,
    /// In the place of [`Rope::inverse_frequencies`].
    pub inverse_frequencies: Vec<f32>,
}

/// Which two elements of the rotated part of a head are a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// `i` and `i + pairs`: GPT-NeoX, and `transformers` for all families.
    Halves,
    /// `2 i` and `2 i + 1`: the paper, and the `llama` family in GGUF, whose rows are in that order.
    Pairs,
}

impl RopeStyle {
    /// The two elements of pair `pair` of `pairs`.
    pub fn elements(self, pair: usize, pairs: usize) -> (usize, usize) {
        match self {
            RopeStyle::Halves => (pair, pair + pairs),
            RopeStyle::Pairs => (2 * pair, 2 * pair + 1),
        }
    }
}

impl Rope {
    /// Pairs of a head that are rotated.
    pub fn pairs(&self) -> usize {
        self.inverse_frequencies.len()
    }

    /// Cosine and sine, times the magnitude, of pair `pair` at `position` of a sequence that is long or not.
    pub fn rotation(&self, pair: usize, position: u32, is_long: bool) -> (f64, f64) {
        let frequencies = match &self.longer {
            Some(longer) if is_long => &longer.inverse_frequencies,
            _ => &self.inverse_frequencies,
        };
        let angle = f64::from(position as f32 * frequencies[pair]);
        let magnitude = f64::from(self.magnitude);
        (angle.cos() * magnitude, angle.sin() * magnitude)
    }
}
