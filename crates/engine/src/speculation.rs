//! Speculation: what a sequence may go on with is computed together with the token before it, and kept as far as it is what is
//! chosen.
//!
//! A draft is what followed where the last few tokens stood before in the prompt or the answer. Each of its tokens is one more row
//! of the pass, and by each row a token is chosen. As long as that is the next token of the draft, the row after it is the one that
//! would have been computed in the next pass: the bits of a row do not depend on how many there are, and the noise of a choice is a
//! function of its position. So the tokens are those that there are without drafts, whatever the options.

use crate::sampler::Sampler;

/// Whether sequences are speculated about. It changes no token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculation {
    /// Not.
    #[default]
    Off,
    /// Where passes with drafts have been giving more tokens a second than passes without.
    WhereItPays,
    /// Wherever there is a draft.
    Always,
}

/// What became of drafts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Speculated {
    /// Tokens of drafts that were computed.
    pub drafted: u64,
    /// Those of them that were chosen.
    pub kept: u64,
}

/// The most rows of a pass with drafts. So many are multiplied on a GPU as fewer are; with more, bits would change.
pub(crate) const MOST_ROWS: usize = 8;

/// Tokens that must have stood before; where the longer ones have not, the shorter.
const MATCHES: [usize; 2] = [3, 2];

/// Steps without a draft at the start of a sequence, to know how long they take.
const FIRST_STEPS: u32 = 4;
/// Steps in a row in which nothing had stood before, after which a sequence rests.
const MOST_MISSES: u32 = 32;
/// Drafts after which they are judged.
const TRIALS: u32 = 4;
/// Steps that a sequence rests: after drafts that did not pay at first, and at the most.
const REST: u32 = 16;
const LONGEST_REST: u32 = 1024;
/// Tokens that are thought to be kept of a draft before it is known better.
const HOPED: f32 = 1.0;

/// The draft of a sequence, and what came of those before.
#[derive(Debug)]
pub(crate) struct Draft {
    /// The tokens that have a row in the batch on its way, after that of the token chosen last.
    pub tokens: Vec<u32>,
    /// How many of them were chosen.
    kept: usize,
    /// For the choices by these rows; as many as there were rows at the most.
    pub samplers: Vec<Sampler>,
    /// Tokens of a draft that are kept, on average of the last ones.
    average: f32,
    /// Drafts since it last rested.
    trials: u32,
    /// Steps in a row without a draft.
    misses: u32,
    /// Steps that it rests yet, and the next time.
    rests: u32,
    next_rest: u32,
}

impl Default for Draft {
    fn default() -> Self {
        Draft {
            tokens: Vec::new(),
            kept: 0,
            samplers: Vec::new(),
            average: HOPED,
            trials: 0,
            misses: 0,
            rests: FIRST_STEPS,
            next_rest: REST,
        }
    }
}

impl Draft {
    /// No draft for the next batch.
    pub fn clear(&mut self) {
        self.kept = 0;
        self.tokens.clear();
    }

    /// Whether there may be a draft in the next step.
    pub fn is_awake(&self) -> bool {
        self.rests == 0
    }

    /// One step without a draft.
    pub fn rest(&mut self) {
        self.rests = self.rests.saturating_sub(1);
    }

    /// Drafts at most `most` of the tokens after `tokens`.
    pub fn propose(&mut self, tokens: &[u32], most: usize, speculation: Speculation) {
        self.clear();
        if speculation == Speculation::Off || most == 0 {
            return;
        }
        if speculation == Speculation::WhereItPays && !self.is_awake() {
            self.rest();
            return;
        }
        // Half as long again as what is kept, and never too short to show that more would be.
        let useful = 2 + (1.5 * self.average).ceil() as usize;
        follow(tokens, most.min(useful), &mut self.tokens);
        self.misses = if self.tokens.is_empty() { self.misses + 1 } else { 0 };
        if self.misses == MOST_MISSES {
            (self.rests, self.misses) = (REST, 0);
        }
    }

    /// Whether `token`, which was chosen, is the next of the draft, so that the choice by the row after it counts too.
    pub fn keeps(&mut self, token: u32) -> bool {
        let keeps = self.tokens.get(self.kept) == Some(&token);
        self.kept += usize::from(keeps);
        keeps
    }

    /// What became of the draft, which is over. `cost`: how many times as long as a step without drafts the step took, as far as known.
    pub fn judge(&mut self, cost: Option<f64>) -> Speculated {
        let (drafted, kept) = (self.tokens.len(), self.kept);
        self.clear();
        if drafted > 0 {
            self.average += 0.25 * (kept as f32 - self.average);
            self.trials += 1;
            let pays = cost.is_none_or(|cost| f64::from(1.0 + self.average) >= cost);
            if pays {
                self.next_rest = REST;
            } else if self.trials >= TRIALS {
                self.rests = self.next_rest;
                self.next_rest = (2 * self.next_rest).min(LONGEST_REST);
                (self.average, self.trials) = (HOPED, 0);
            }
        }
        Speculated { drafted: drafted as u64, kept: kept as u64 }
    }
}

/// Writes to `draft` the `most` tokens that followed where the last of `tokens` last stood before; none if they did not. Beyond the end
/// it goes on with what it drafted.
fn follow(tokens: &[u32], most: usize, draft: &mut Vec<u32>) {
    for count in MATCHES {
        let Some(before) = tokens.len().checked_sub(count) else { continue };
        let end = &tokens[before..];
        let Some(start) = (0..before).rev().find(|start| tokens[*start..].starts_with(end)) else {
            continue;
        };
        for next in start + count..start + count + most {
            let token = tokens.get(next).copied();
            draft.push(token.unwrap_or_else(|| draft[next - tokens.len()]));
        }
        return;
    }
}

/// How long steps take that compute nothing but so many rows of generated tokens.
#[derive(Debug, Default)]
pub(crate) struct Costs {
    seconds: [Option<f64>; MOST_ROWS + 1],
}

impl Costs {
    /// One step took this long.
    pub fn add(&mut self, rows: usize, seconds: f64) {
        if let Some(known) = self.seconds.get_mut(rows) {
            *known = Some(known.map_or(seconds, |known| known + 0.2 * (seconds - known)));
        }
    }

    /// How many times as long as `without` rows `rows` rows take.
    pub fn ratio(&self, rows: usize, without: usize) -> Option<f64> {
        let seconds = |rows: usize| self.seconds.get(rows).copied().flatten();
        Some(seconds(rows)? / seconds(without)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn followers(tokens: &[u32], most: usize) -> Vec<u32> {
        let mut draft = Vec::new();
        follow(tokens, most, &mut draft);
        draft
    }

    #[test]
    fn a_draft_is_what_followed_the_same_tokens_the_last_time() {
        assert_eq!(followers(&[1, 2, 3, 4, 9, 1, 2, 3, 5, 6, 1, 2, 3], 2), [5, 6]);
        // Three tokens go before two, though these stood later.
        assert_eq!(followers(&[7, 2, 3, 4, 9, 2, 3, 5, 7, 2, 3], 1), [4]);
        assert_eq!(followers(&[2, 3, 5, 8, 2, 3], 4), [5, 8, 2, 3]);
        // What goes on in circles is drafted to do so.
        assert_eq!(followers(&[1, 2, 1, 2, 1, 2], 5), [1, 2, 1, 2, 1]);
        assert_eq!(followers(&[4, 4, 4], 3), [4, 4, 4]);
        assert!(followers(&[1, 2, 3, 4, 5], 3).is_empty());
        assert!(followers(&[1], 3).is_empty() && followers(&[], 3).is_empty());
    }

    #[test]
    fn a_draft_is_kept_as_far_as_it_is_chosen() {
        let mut draft = Draft::default();
        draft.propose(&[1, 2, 3, 4, 5, 1, 2], 3, Speculation::Always);
        assert_eq!(draft.tokens, [3, 4, 5]);
        assert!(draft.keeps(3) && draft.keeps(4) && !draft.keeps(6));
        assert_eq!(draft.judge(None), Speculated { drafted: 3, kept: 2 });
        assert_eq!(draft.judge(None), Speculated::default(), "it is over");
        draft.propose(&[1, 2, 1, 2], 3, Speculation::Off);
        assert!(draft.tokens.is_empty());
    }

    /// Steps with a draft among so many, where each takes twice as long as one without and `kept` tokens of it are kept.
    fn drafts(steps: usize, kept: usize) -> usize {
        let mut draft = Draft::default();
        let count = (0..steps).filter(|_| {
            draft.propose(&[1; 20], 7, Speculation::WhereItPays);
            let (is_there, tokens) = (!draft.tokens.is_empty(), draft.tokens.len());
            (0..kept.min(tokens)).for_each(|_| assert!(draft.keeps(1)));
            draft.judge(Some(2.0));
            is_there
        });
        count.count()
    }

    #[test]
    fn a_sequence_rests_longer_and_longer_where_drafts_do_not_pay() {
        assert_eq!(drafts(1000, 3), 1000 - FIRST_STEPS as usize);
        let some = drafts(1000, 0);
        assert!((TRIALS as usize..60).contains(&some), "{some}");
        assert!(drafts(100_000, 0) < 1000);
    }

    #[test]
    fn it_rests_where_nothing_stands_twice() {
        let mut draft = Draft::default();
        let tokens: Vec<u32> = (0..100).collect();
        for _ in 0..FIRST_STEPS + MOST_MISSES {
            draft.propose(&tokens, 7, Speculation::WhereItPays);
        }
        assert!(!draft.is_awake());
        (0..REST).for_each(|_| draft.rest());
        assert!(draft.is_awake());
    }

    #[test]
    fn costs_are_compared_where_both_are_known() {
        let mut costs = Costs::default();
        costs.add(1, 0.5);
        assert_eq!(costs.ratio(4, 1), None);
        costs.add(4, 1.0);
        costs.add(MOST_ROWS + 1, 9.0);
        assert_eq!(costs.ratio(4, 1), Some(2.0));
        costs.add(1, 1.0);
        assert_eq!(costs.ratio(4, 1), Some(1.0 / 0.6));
        assert_eq!(costs.ratio(MOST_ROWS + 1, 1), None);
    }
}
