//! The unigram model of SentencePiece: of all ways to cut a text into tokens, the one with the highest sum of scores.
//!
//! T. Kudo, "Subword Regularization" (2018), section 3; found by Viterbi's algorithm, a character at a time, with the
//! sums, ties and the score of the unknown token as in the `tokenizers` crate: ten below the lowest score there is.

use std::collections::HashMap;

use ahash::RandomState;

use super::TokenizerError;
use super::bpe::ByteTokens;
use super::vocabulary::Vocabulary;

/// How far below the lowest score an unknown character is.
const UNKNOWN_PENALTY: f64 = 10.0;
const ROOT: u32 = 0;

/// A unigram encoder.
pub(super) struct Unigram {
    /// The tokens as a tree of bytes: the node after a node and a byte.
    next: HashMap<(u32, u8), u32, RandomState>,
    /// The token that ends at each node, with its score.
    tokens: Vec<Option<(u32, f64)>>,
    unknown: Option<u32>,
    unknown_score: f64,
    bytes: ByteTokens,
}

/// The best way to cut the text up to a place: what its last token is and where that begins.
#[derive(Clone, Copy)]
struct Best {
    score: f64,
    start: usize,
    id: Option<u32>,
}

impl Unigram {
    /// `scores` by id, none for tokens that text does not become; `lowest` is the lowest of all.
    pub(super) fn new(
        vocabulary: &Vocabulary,
        scores: &[Option<f64>],
        lowest: f64,
        unknown: Option<u32>,
        bytes: ByteTokens,
    ) -> Self {
        let mut model = Self {
            next: HashMap::default(),
            tokens: vec![None],
            unknown,
            unknown_score: lowest - UNKNOWN_PENALTY,
            bytes,
        };
        for (token, id) in vocabulary.tokens() {
            if let Some(score) = scores.get(id as usize).copied().flatten() {
                model.insert(token, id, score);
            }
        }
        model
    }

    fn insert(&mut self, token: &str, id: u32, score: f64) {
        let mut node = ROOT;
        for byte in token.bytes() {
            // Fewer nodes than bytes in the file, which is far below 2^32.
            let new = self.tokens.len() as u32;
            node = *self.next.entry((node, byte)).or_insert(new);
            if node == new {
                self.tokens.push(None);
            }
        }
        if node != ROOT {
            self.tokens[node as usize] = Some((id, score));
        }
    }

    /// Appends the ids of a word.
    pub(super) fn tokenize(&self, word: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let best = self.best(word);
        let mut cuts: Vec<(usize, usize, Option<u32>)> = Vec::new();
        let mut end = word.len();
        while end > 0 {
            // Every character is a token or unknown, so there is always a way.
            let Best { start, id, .. } =
                best[end].unwrap_or(Best { score: 0.0, start: 0, id: None });
            match cuts.last_mut() {
                // Neighbouring unknown characters are one.
                Some((first, _, None)) if id.is_none() => *first = start,
                _ => cuts.push((start, end, id)),
            }
            end = start;
        }
        for (start, end, id) in cuts.into_iter().rev() {
            match id {
                Some(id) => ids.push(id),
                None => self.push_unknown(&word[start..end], ids)?,
            }
        }
        Ok(())
    }

    /// The best way to cut the word up to each of its bytes; none in the middle of a character.
    fn best(&self, word: &str) -> Vec<Option<Best>> {
        let mut best: Vec<Option<Best>> = vec![None; word.len() + 1];
        let better = |place: &mut Option<Best>, challenger: Best| {
            if place.is_none_or(|champion| challenger.score > champion.score) {
                *place = Some(challenger);
            }
        };
        for (start, character) in word.char_indices() {
            let before = best[start].map_or(0.0, |best| best.score);
            let end = start + character.len_utf8();
            let mut whole = false;
            let mut node = ROOT;
            for (at, byte) in (start + 1..).zip(word[start..].bytes()) {
                let Some(&next) = self.next.get(&(node, byte)) else { break };
                node = next;
                if let Some((id, score)) = self.tokens[node as usize] {
                    whole |= at == end;
                    better(&mut best[at], Best { score: score + before, start, id: Some(id) });
                }
            }
            if !whole {
                let score = self.unknown_score + before;
                better(&mut best[end], Best { score, start, id: None });
            }
        }
        best
    }

    /// The tokens of the text's bytes if there are such, else the unknown token.
    fn push_unknown(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        if let Some(bytes) = self.bytes.bytes_of(text) {
            ids.extend(bytes);
        } else if let Some(unknown) = self.unknown {
            ids.push(unknown);
        } else {
            let message = format!("{text:?} is no token, and there is no unknown token");
            return Err(TokenizerError::Encode { message });
        }
        Ok(())
    }
}
