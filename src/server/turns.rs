//! The tokens of answers as they were generated, for the next turns of their conversations.
//!
//! A text has more than one row of tokens: what a model generates need not be what its tokenizer makes of the same text. So
//! a conversation that comes back as text would be computed anew from the first token that differs, though all of it was
//! computed before. A prompt that begins with the text of a remembered conversation gets the very tokens of that one.
//!
//! Two rows of tokens are the same text if they have the same special tokens at the same places and the same bytes between
//! them. So what comes from outside cannot become a special token here: a prompt is compared once its tokens are known.

use oxgpt_engine::tokenizer::Tokenizer;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;

/// The most tokens of all remembered conversations together: 4 MiB.
const MOST_TOKENS: usize = 1 << 20;

/// How many of the last tokens of an answer may be missing when it comes back: its end token, and what stop strings and
/// templates cut off.
const CUT: usize = 8;

/// Remembered conversations, the one used last kept longest.
#[derive(Debug)]
pub struct Turns {
    seed: u64,
    most_tokens: usize,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// By the hash of a text, the conversation that begins with it, and the number of its tokens there.
    texts: HashMap<u64, (u64, usize)>,
    /// By when they were used last.
    turns: BTreeMap<u64, Turn>,
    tokens: usize,
    clock: u64,
}

#[derive(Debug)]
struct Turn {
    /// The prompt and its answer.
    tokens: Vec<u32>,
    /// The hashes of its texts.
    hashes: Vec<u64>,
}

impl Default for Turns {
    fn default() -> Self {
        Self::new(MOST_TOKENS)
    }
}

impl Turns {
    fn new(most_tokens: usize) -> Self {
        let seed = RandomState::new().hash_one(0);
        Turns { seed, most_tokens, known: Mutex::default() }
    }

    /// Remembers an answer, or what there is of it, and the prompt before it.
    pub fn remember(&self, tokenizer: &Tokenizer, prompt: &[u32], answer: &[u32]) {
        if answer.is_empty() || prompt.len() + answer.len() > self.most_tokens {
            return;
        }
        let tokens = [prompt, answer].concat();
        let first = (tokens.len() - CUT.min(tokens.len())).max(prompt.len());
        let hashes: Vec<u64> = self.hashes(tokenizer, &tokens).skip(first).collect();
        let mut known = self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Known { texts, turns, tokens: sum, clock } = &mut *known;
        *clock += 1;
        texts.extend(hashes.iter().zip(first + 1..).map(|(hash, len)| (*hash, (*clock, len))));
        *sum += tokens.len();
        turns.insert(*clock, Turn { tokens, hashes });
        while *sum > self.most_tokens
            && let Some((time, turn)) = turns.pop_first()
        {
            *sum -= turn.tokens.len();
            for hash in turn.hashes {
                // A later answer may have the same text.
                if texts.get(&hash).is_some_and(|(at, _)| *at == time) {
                    texts.remove(&hash);
                }
            }
        }
    }

    /// The prompt with the tokens of the longest remembered conversation that its text begins with.
    pub fn recall(&self, tokenizer: &Tokenizer, prompt: Vec<u32>) -> Vec<u32> {
        let hashes: Vec<u64> = self.hashes(tokenizer, &prompt).collect();
        let mut known = self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let hashes = hashes.iter().enumerate();
        let found = hashes.filter_map(|(index, hash)| Some((index + 1, *known.texts.get(hash)?)));
        let found: Vec<(usize, (u64, usize))> = found.collect();
        for (end, (time, len)) in found.into_iter().rev() {
            let Some(turn) = known.turns.get(&time) else { continue };
            let (old, new) = (&turn.tokens[..len], &prompt[..end]);
            if !symbols(tokenizer, old).eq(symbols(tokenizer, new)) {
                continue;
            }
            let recalled = [old, &prompt[end..]].concat();
            known.touch(time);
            return recalled;
        }
        prompt
    }

    /// The hash of the text after each token.
    fn hashes<'a>(
        &self,
        tokenizer: &'a Tokenizer,
        tokens: &'a [u32],
    ) -> impl Iterator<Item = u64> + 'a {
        tokens.iter().scan(self.seed, |state, token| {
            for symbol in symbols_of(tokenizer, *token) {
                *state = (state.rotate_left(5) ^ symbol).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            }
            Some(*state)
        })
    }
}

impl Known {
    /// A conversation was used now.
    fn touch(&mut self, time: u64) {
        let Some(turn) = self.turns.remove(&time) else { return };
        self.clock += 1;
        for hash in &turn.hashes {
            if let Some((at, _)) = self.texts.get_mut(hash)
                && *at == time
            {
                *at = self.clock;
            }
        }
        self.turns.insert(self.clock, turn);
    }
}

/// A text as numbers: its bytes, and larger ones for special tokens.
fn symbols<'a>(tokenizer: &'a Tokenizer, tokens: &'a [u32]) -> impl Iterator<Item = u64> + 'a {
    tokens.iter().flat_map(|token| symbols_of(tokenizer, *token))
}

fn symbols_of(tokenizer: &Tokenizer, token: u32) -> impl Iterator<Item = u64> + '_ {
    let bytes = tokenizer.token_bytes(token).filter(|_| !tokenizer.is_special(token));
    let special = bytes.is_none().then_some(256 + u64::from(token));
    bytes.unwrap_or_default().iter().map(|byte| u64::from(*byte)).chain(special)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oxgpt_engine::tokenizer::Tokenizer;
    use std::path::Path;

    fn tokenizer() -> Tokenizer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tokenizer/bpe");
        Tokenizer::from_directory(&folder).unwrap().unwrap()
    }

    /// The tokens of a text, one for each byte.
    fn spelled(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        let id = |byte: &u8| {
            let ids = (0..1124).find(|id| {
                !tokenizer.is_special(*id) && tokenizer.token_bytes(*id) == Some(&[*byte])
            });
            ids.unwrap()
        };
        text.as_bytes().iter().map(id).collect()
    }

    #[test]
    fn a_prompt_that_goes_on_after_an_answer_has_its_tokens() {
        let tokenizer = tokenizer();
        let encode = |text: &str| tokenizer.encode(text).unwrap();
        let special = (0..1124).find(|id| tokenizer.is_special(*id)).unwrap();
        let prompt = encode("Say something.\n");
        let mut answer = spelled(&tokenizer, "the other thing");
        assert_ne!(answer, encode("the other thing"));
        answer.push(special);
        let turns = Turns::default();
        assert_eq!(turns.recall(&tokenizer, prompt.clone()), prompt, "nothing is known yet");
        turns.remember(&tokenizer, &prompt, &answer);

        let mut next = encode("Say something.\nthe other thing");
        next.push(special);
        next.extend(encode("\nAnd then?"));
        let expected = [&prompt[..], &answer, &encode("\nAnd then?")].concat();
        assert_eq!(turns.recall(&tokenizer, next.clone()), expected);
        assert_eq!(turns.recall(&tokenizer, prompt.clone()), prompt, "there is no answer in it");
        let other = encode("Say something.\nthat other thing");
        assert_eq!(turns.recall(&tokenizer, other.clone()), other);
        let before = encode("Do say something.\nthe other thing");
        assert_eq!(turns.recall(&tokenizer, before.clone()), before);

        // Without its end token, or what was cut with that.
        let mut cut = encode("Say something.\nthe other");
        cut.push(special + 1);
        let kept = [&prompt[..], &answer[..9], &[special + 1]].concat();
        assert_eq!(turns.recall(&tokenizer, cut), kept);
    }

    #[test]
    fn a_special_token_is_not_its_text() {
        let tokenizer = tokenizer();
        let special = (0..1124).find(|id| tokenizer.is_special(*id)).unwrap();
        let text = std::str::from_utf8(tokenizer.token_bytes(special).unwrap()).unwrap();
        let turns = Turns::default();
        let prompt = tokenizer.encode("Say it: ").unwrap();
        turns.remember(&tokenizer, &prompt, &spelled(&tokenizer, text));
        let with_special = [&prompt[..], &[special]].concat();
        assert_eq!(turns.recall(&tokenizer, with_special.clone()), with_special);
    }

    #[test]
    fn what_was_used_longest_ago_is_forgotten() {
        let tokenizer = tokenizer();
        let turns = Turns::new(60);
        let prompt = |index: usize| tokenizer.encode(&format!("{index}\n")).unwrap();
        let answer = spelled(&tokenizer, "the other thing");
        let recalls = |index: usize| {
            let text = format!("{index}\nthe other thing");
            let tokens = tokenizer.encode(&text).unwrap();
            turns.recall(&tokenizer, tokens.clone()) != tokens
        };
        for index in 0..3 {
            turns.remember(&tokenizer, &prompt(index), &answer);
        }
        assert!(recalls(0), "there is room for three, and this one was used now");
        turns.remember(&tokenizer, &prompt(3), &answer);
        assert_eq!([0, 1, 2, 3].map(recalls), [true, false, true, true]);
        turns.remember(&tokenizer, &prompt(4), &[answer.as_slice(); 5].concat());
        assert!(recalls(0), "a conversation that is too long changes nothing");
        let known = turns.known.lock().unwrap();
        let tokens: usize = known.turns.values().map(|turn| turn.tokens.len()).sum();
        assert_eq!(known.tokens, tokens);
        assert!(known.texts.len() <= 3 * CUT);
    }
}
