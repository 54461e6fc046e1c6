//! Byte-pair encoding: the best pair of neighbours becomes one token, until no pair makes one.
//!
//! "Best" is the lowest rank in a list of merges (`tokenizer.json`, byte-level GGUF files), or the highest score
//! of the token a pair makes (SentencePiece; GGUF files of kind `llama`). Of equals the leftmost goes first. A heap
//! holds the candidates, so a text of n characters takes O(n log n) however long its words are.
//!
//! The rules, down to what happens to a character that is no token, are those of the `tokenizers` crate for ranks
//! and of SentencePiece for scores. One is stricter: no merge makes a special token, so that text that is not
//! parsed for special tokens never yields one.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use ahash::RandomState;

use super::TokenizerError;
use super::vocabulary::{Merge, Vocabulary};

/// Stands for no symbol, and for a symbol that is no token.
const NONE: u32 = u32::MAX;

/// Which pairs of neighbours become a token, and which of them first.
enum Pairs {
    /// By the ids of both: the rank of the merge and the id it makes.
    Ranked(HashMap<(u32, u32), (u32, u32), RandomState>),
    /// By the string of both: any token that has a place in this list, by id; `NONE` is none.
    Scored { order: Vec<u32>, longest: usize },
}

/// A byte-pair encoder.
pub(super) struct Bpe {
    pairs: Pairs,
    unknown: Unknown,
    /// Whether a word that is a token is that token, whatever the merges say.
    whole_words: bool,
    special: HashSet<u32, RandomState>,
}

/// What becomes of a character that is no token.
#[derive(Default)]
pub(super) struct Unknown {
    /// For characters all of whose bytes have a token.
    pub bytes: ByteTokens,
    /// The token for others; without one they are dropped.
    pub token: Option<UnknownToken>,
    /// Whether neighbours of this kind share one token.
    pub fuse: bool,
}

/// The token for what is unknown.
pub(super) enum UnknownToken {
    Id(u32),
    /// Named in a file, but no token: an error as soon as it is needed, as in the `tokenizers` crate.
    Missing(String),
}

impl Unknown {
    fn id(&self) -> Result<Option<u32>, TokenizerError> {
        match &self.token {
            None => Ok(None),
            Some(UnknownToken::Id(id)) => Ok(Some(*id)),
            Some(UnknownToken::Missing(token)) => Err(TokenizerError::Encode {
                message: format!(
                    "it has a character that needs the unknown token {token:?}, which the vocabulary lacks"
                ),
            }),
        }
    }
}

/// The ids of the tokens `<0x00>` to `<0xFF>`; empty where bytes have no tokens.
#[derive(Default)]
pub(super) struct ByteTokens(Vec<Option<u32>>);

impl ByteTokens {
    /// Those that the vocabulary has by these names.
    pub(super) fn of(vocabulary: &Vocabulary) -> Self {
        Self((0..=255u8).map(|byte| vocabulary.id(&format!("<0x{byte:02X}>"))).collect())
    }

    /// The tokens of a text's bytes, if each has one.
    pub(super) fn bytes_of(&self, text: &str) -> Option<Vec<u32>> {
        text.bytes().map(|byte| *self.0.get(usize::from(byte))?).collect()
    }
}

/// A part of the word: a character at first, then what was merged.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    /// Where it is in the word, in bytes.
    start: u32,
    end: u32,
    previous: u32,
    next: u32,
}

/// A pair that may be merged, the best first. It is out of date as soon as either side has changed, which the
/// place where its right side ends shows: sides only ever grow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: u32,
    end: u32,
    id: u32,
}

/// What is allocated once for many words.
#[derive(Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

impl Bpe {
    /// An encoder by ranks: each merge's rank is its place in the list.
    pub(super) fn ranked(
        merges: &[Merge],
        unknown: Unknown,
        whole_words: bool,
        special: HashSet<u32, RandomState>,
    ) -> Self {
        let mut ranks = HashMap::with_capacity_and_hasher(merges.len(), RandomState::new());
        for (rank, &[left, right, id]) in (0..).zip(merges) {
            if special.contains(&id) {
                ranks.remove(&(left, right));
            } else {
                ranks.insert((left, right), (rank, id));
            }
        }
        Self { pairs: Pairs::Ranked(ranks), unknown, whole_words, special }
    }

    /// An encoder by scores: `scores` gives each token's by its id, none for those that no merge makes.
    pub(super) fn scored(
        vocabulary: &Vocabulary,
        scores: &[Option<f32>],
        unknown: Unknown,
        special: HashSet<u32, RandomState>,
    ) -> Self {
        let mergeable = |id: &u32| !special.contains(id) && scores[*id as usize].is_some();
        let mut ids: Vec<u32> = (0..scores.len() as u32).filter(mergeable).collect();
        let score = |id: u32| scores[id as usize].unwrap_or(f32::NEG_INFINITY);
        ids.sort_unstable_by(|a, b| score(*b).total_cmp(&score(*a)));
        let mut order = vec![NONE; scores.len()];
        let (mut place, mut last) = (0, None);
        for id in ids {
            // Equal scores are equal places: the leftmost pair goes first.
            if last.is_some_and(|last| last != score(id)) {
                place += 1;
            }
            last = Some(score(id));
            order[id as usize] = place;
        }
        let longest = vocabulary.tokens().map(|(token, _)| token.len()).max().unwrap_or(0);
        Self { pairs: Pairs::Scored { order, longest }, unknown, whole_words: false, special }
    }

    /// Appends the ids of a word.
    pub(super) fn tokenize(
        &self,
        vocabulary: &Vocabulary,
        word: &str,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        if self.whole_words
            && let Some(id) = vocabulary.id(word).filter(|id| !self.special.contains(id))
        {
            ids.push(id);
            return Ok(());
        }
        if u32::try_from(word.len()).is_err() {
            let message = format!("it has a word of {} bytes", word.len());
            return Err(TokenizerError::Encode { message });
        }
        scratch.symbols.clear();
        match &self.pairs {
            Pairs::Ranked(ranks) => {
                self.tokens_of_characters(vocabulary, word, &mut scratch.symbols)?;
                merge(scratch, |left, right| ranks.get(&(left.id, right.id)).copied());
                ids.extend(survivors(&scratch.symbols).map(|symbol| symbol.id));
                Ok(())
            }
            Pairs::Scored { order, longest } => {
                let place = |id: u32| order.get(id as usize).copied().filter(|p| *p != NONE);
                for (start, character) in word.char_indices() {
                    let end = start + character.len_utf8();
                    let id = vocabulary.id(&word[start..end]).filter(|id| place(*id).is_some());
                    push(&mut scratch.symbols, id.unwrap_or(NONE), start, end);
                }
                merge(scratch, |left, right| {
                    let text = &word[left.start as usize..right.end as usize];
                    let id = (text.len() <= *longest).then(|| vocabulary.id(text))??;
                    Some((place(id)?, id))
                });
                self.known_or_not(word, &scratch.symbols, ids)
            }
        }
    }

    /// The tokens of every character of the word, as the `tokenizers` crate begins with them.
    fn tokens_of_characters(
        &self,
        vocabulary: &Vocabulary,
        word: &str,
        symbols: &mut Vec<Symbol>,
    ) -> Result<(), TokenizerError> {
        // The unknown characters before this one, as one token that is not a symbol yet.
        let mut pending: Option<(u32, usize, usize)> = None;
        for (start, character) in word.char_indices() {
            let end = start + character.len_utf8();
            let text = &word[start..end];
            if let Some(id) = vocabulary.id(text) {
                if let Some((unknown, start, end)) = pending.take() {
                    push(symbols, unknown, start, end);
                }
                push(symbols, id, start, end);
            } else if let Some(bytes) = self.unknown.bytes.bytes_of(text) {
                for (at, id) in (start..).zip(bytes) {
                    push(symbols, id, at, at + 1);
                }
            } else if let Some(unknown) = self.unknown.id()? {
                match &mut pending {
                    Some((_, _, last)) if self.unknown.fuse => *last = end,
                    pending => {
                        if let Some((id, start, end)) = pending.replace((unknown, start, end)) {
                            push(symbols, id, start, end);
                        }
                    }
                }
            }
        }
        if let Some((unknown, start, end)) = pending {
            push(symbols, unknown, start, end);
        }
        Ok(())
    }

    /// Appends the symbols' ids: those of tokens, and what stands for characters that are none.
    fn known_or_not(
        &self,
        word: &str,
        symbols: &[Symbol],
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let mut after_unknown = false;
        for symbol in survivors(symbols) {
            let mut is_unknown = false;
            if symbol.id != NONE {
                ids.push(symbol.id);
            } else if let Some(bytes) =
                self.unknown.bytes.bytes_of(&word[symbol.start as usize..symbol.end as usize])
            {
                ids.extend(bytes);
            } else if let Some(unknown) = self.unknown.id()? {
                is_unknown = true;
                if !(after_unknown && self.unknown.fuse) {
                    ids.push(unknown);
                }
            } else {
                let text = &word[symbol.start as usize..symbol.end as usize];
                let message = format!("{text:?} is no token, and there is no unknown token");
                return Err(TokenizerError::Encode { message });
            }
            after_unknown = is_unknown;
        }
        Ok(())
    }
}

/// Appends a symbol; positions are below 2^32.
fn push(symbols: &mut Vec<Symbol>, id: u32, start: usize, end: usize) {
    let index = symbols.len() as u32;
    if let Some(last) = symbols.last_mut() {
        last.next = index;
    }
    let previous = index.checked_sub(1).unwrap_or(NONE);
    symbols.push(Symbol { id, start: start as u32, end: end as u32, previous, next: NONE });
}

/// The symbols that are left, in order.
fn survivors(symbols: &[Symbol]) -> impl Iterator<Item = &Symbol> {
    // The first is never merged into another.
    let mut index = if symbols.is_empty() { NONE } else { 0 };
    std::iter::from_fn(move || {
        let symbol = symbols.get(index as usize)?;
        index = symbol.next;
        Some(symbol)
    })
}

/// Merges pairs, the best first, until none is left. `pair` gives the rank of two neighbours, lowest first, and
/// the id they make.
fn merge(scratch: &mut Scratch, pair: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>) {
    let Scratch { symbols, queue } = scratch;
    let candidate = |symbols: &[Symbol], left: u32| {
        let first = symbols.get(left as usize)?;
        let second = symbols.get(first.next as usize)?;
        let (rank, id) = pair(first, second)?;
        Some(Reverse(Candidate { rank, left, end: second.end, id }))
    };
    let mut first: Vec<Reverse<Candidate>> = std::mem::take(queue).into_vec();
    first.clear();
    first.extend((0..symbols.len() as u32).filter_map(|left| candidate(symbols, left)));
    *queue = BinaryHeap::from(first);
    while let Some(Reverse(Candidate { left, end, id, .. })) = queue.pop() {
        let here = symbols[left as usize];
        let Some(right) = symbols.get(here.next as usize).copied() else { continue };
        // A symbol that was merged into another begins where it ends.
        if here.start == here.end || right.end != end {
            continue;
        }
        let merged = &mut symbols[left as usize];
        (merged.id, merged.end, merged.next) = (id, right.end, right.next);
        let dead = &mut symbols[here.next as usize];
        dead.start = dead.end;
        if let Some(after) = symbols.get_mut(right.next as usize) {
            after.previous = left;
        }
        queue.extend(candidate(symbols, here.previous));
        queue.extend(candidate(symbols, left));
    }
}
