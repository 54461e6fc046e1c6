//! From the merges of a `tokenizer.json` to the scores of SentencePiece, which GGUF files of the model `llama` have.
//!
//! SentencePiece merges any two neighbours that make a token, the one with the best score first; a `tokenizer.json` lists
//! pairs. Conversion from SentencePiece lists every pair that makes a token, those of a token together, in the order of
//! the scores. Then, and only then, the order of the tokens in the list says the same as their scores did.

use std::collections::HashSet;

use super::TokenizerError;
use super::bpe::{Bpe, Scratch, Unknown};
use super::decoder::SPACE;
use super::vocabulary::{Merge, Vocabulary};

/// No tokenizer converted from SentencePiece has longer tokens; it bounds what is checked of each.
const MAX_BYTES: usize = 512;

/// What merges there are, and which tokens they are for.
pub(super) struct Merges<'a> {
    pub file: &'a str,
    pub vocabulary: &'a Vocabulary,
    pub merges: &'a [Merge],
    /// Whether a token is one that merges make: not a special, user-defined or byte token.
    pub is_text: &'a dyn Fn(u32) -> bool,
    /// The user-defined tokens that are found in text with spaces as `▁`.
    pub runs: &'a [u32],
}

impl Merges<'_> {
    /// The score of each token by its id, 0 of those that merges do not make.
    ///
    /// # Errors
    /// When the merges are not those that scores give.
    pub(super) fn scores(&self, size: usize) -> Result<Vec<f32>, TokenizerError> {
        self.check_runs()?;
        let mut scores: Vec<Option<f32>> = vec![None; size];
        let mut place = 0.0;
        for group in self.groups(size) {
            place -= 1.0;
            for &id in &group {
                scores[id as usize] = Some(place);
            }
            // SentencePiece has one score for all runs of spaces, which the leftmost rule makes the longest first.
            let is_run = |id: u32| self.run_length(id).is_some();
            if let Some(&id) = group.iter().find(|id| group.len() > 1 && !is_run(**id)) {
                return Err(self.refused("those of each token together", id));
            }
        }
        self.check_pairs()?;
        for (_, id) in self.vocabulary.tokens().filter(|(_, id)| (self.is_text)(*id)) {
            scores[id as usize].get_or_insert_with(|| {
                place -= 1.0;
                place
            });
        }
        self.check_equal_runs(&scores)?;
        Ok(scores.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// The tokens in the order of their merges; those whose merges are among each other's share a place.
    fn groups(&self, size: usize) -> Vec<Vec<u32>> {
        let made = || self.merges.iter().map(|merge| merge[2]).filter(|id| (self.is_text)(*id));
        let mut last = vec![0; size];
        for (at, id) in made().enumerate() {
            last[id as usize] = at;
        }
        let mut seen = vec![false; size];
        let mut groups: Vec<Vec<u32>> = Vec::new();
        let mut end = None;
        for (at, id) in made().enumerate() {
            if end.is_none_or(|end| at > end) {
                groups.push(Vec::new());
            }
            if !std::mem::replace(&mut seen[id as usize], true) {
                groups.last_mut().into_iter().for_each(|group| group.push(id));
            }
            end = end.max(Some(last[id as usize]));
        }
        groups
    }

    /// How many spaces a token is that is nothing else.
    fn run_length(&self, id: u32) -> Option<usize> {
        let text = self.vocabulary.text(id)?;
        text.chars().all(|character| character == SPACE).then(|| text.chars().count())
    }

    /// Runs of spaces must come out the same by merges and by scores that are equal.
    fn check_equal_runs(&self, scores: &[Option<f32>]) -> Result<(), TokenizerError> {
        let ranked = Bpe::ranked(self.merges, Unknown::default(), false, HashSet::default());
        let unknown = Unknown::default();
        let scored = Bpe::scored(self.vocabulary, scores, unknown, HashSet::default());
        let texts = self.vocabulary.tokens().filter(|(_, id)| (self.is_text)(*id));
        let longest = texts.filter_map(|(_, id)| self.run_length(id)).max().unwrap_or(0);
        let Some(space) = self.vocabulary.id(&SPACE.to_string()).filter(|_| longest > 1) else {
            return Ok(());
        };
        let mut scratch = Scratch::default();
        for count in 1..=2 * longest + 1 {
            let run = SPACE.to_string().repeat(count);
            let (mut by_ranks, mut by_scores) = (Vec::new(), Vec::new());
            ranked.tokenize(self.vocabulary, &run, &mut scratch, &mut by_ranks)?;
            scored.tokenize(self.vocabulary, &run, &mut scratch, &mut by_scores)?;
            if by_ranks != by_scores {
                return Err(self.refused("the longest run of spaces first", space));
            }
        }
        Ok(())
    }

    /// Every two tokens that make a token must be a merge, and every character of a token a token.
    fn check_pairs(&self) -> Result<(), TokenizerError> {
        let mut texts = self.vocabulary.tokens().filter(|(_, id)| (self.is_text)(*id));
        if let Some((_, id)) = texts.find(|(token, _)| token.len() > MAX_BYTES) {
            return Err(self.refused(&format!("tokens of at most {MAX_BYTES} bytes"), id));
        }
        let pairs: HashSet<(u32, u32)> = self.merges.iter().map(|&[l, r, _]| (l, r)).collect();
        for (token, id) in self.vocabulary.tokens().filter(|(_, id)| (self.is_text)(*id)) {
            let symbol = |text: &str| self.vocabulary.id(text).filter(|id| (self.is_text)(*id));
            for (start, character) in token.char_indices() {
                if symbol(&token[start..start + character.len_utf8()]).is_none() {
                    return Err(self.refused("a token for every character of a token", id));
                }
                if start == 0 {
                    continue;
                }
                let (left, right) = token.split_at(start);
                if let (Some(left), Some(right)) = (symbol(left), symbol(right))
                    && !pairs.contains(&(left, right))
                {
                    return Err(self.refused("every way to make a token of two", id));
                }
            }
        }
        Ok(())
    }

    /// Runs of spaces that are user-defined tokens are found before merging in GGUF files and made by merges in a
    /// `tokenizer.json`: merges must come to the same, the longest run first.
    fn check_runs(&self) -> Result<(), TokenizerError> {
        let mut lengths = Vec::new();
        for &id in self.runs {
            let text = self.vocabulary.text(id).unwrap_or_default();
            if text.chars().any(|character| character != SPACE) {
                return Err(
                    self.refused("user-defined tokens with spaces that are only spaces", id)
                );
            }
            if text.len() > MAX_BYTES {
                return Err(self.refused(&format!("tokens of at most {MAX_BYTES} bytes"), id));
            }
            lengths.push(text.chars().count());
        }
        let Some(longest) = lengths.iter().copied().max() else { return Ok(()) };
        let first_text = self.merges.iter().position(|merge| (self.is_text)(merge[2]));
        let runs: HashSet<u32> = self.runs.iter().copied().collect();
        let last_run = self.merges.iter().rposition(|merge| runs.contains(&merge[2]));
        if last_run > first_text {
            return Err(self.refused("those for runs of spaces first", self.runs[0]));
        }
        let model = Bpe::ranked(self.merges, Unknown::default(), false, HashSet::default());
        let mut scratch = Scratch::default();
        for count in 1..=2 * longest + 1 {
            let mut ids = Vec::new();
            let run = SPACE.to_string().repeat(count);
            model.tokenize(self.vocabulary, &run, &mut scratch, &mut ids)?;
            let mut left = count;
            for id in ids {
                let taken = self.vocabulary.text(id).map_or(0, |text| text.chars().count());
                let best = lengths.iter().copied().filter(|length| *length <= left).max();
                if taken != best.unwrap_or(1) {
                    return Err(self.refused("the longest run of spaces first", id));
                }
                left -= taken;
            }
        }
        Ok(())
    }

    fn refused(&self, expected: &str, id: u32) -> TokenizerError {
        TokenizerError::NotInGguf {
            file: self.file.to_owned(),
            part: "the list of merges".to_owned(),
            expected: expected.to_owned(),
            found: format!("others for {:?}", self.vocabulary.text(id).unwrap_or_default()),
        }
    }
}
