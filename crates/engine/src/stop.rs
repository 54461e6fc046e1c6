//! Stop strings: where an answer ends, found while its text is still arriving.

/// Why stop strings were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    /// An empty string would end every answer before it starts.
    #[error("stop string number {} is empty", .index + 1)]
    Empty {
        /// Its place among the stop strings, from 0.
        index: usize,
    },
}

/// What one piece of text led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Emit {
    /// Text of the answer that no stop string can take back any more.
    pub text: String,
    /// The stop string that ended the answer: its place among those given.
    pub matched: Option<usize>,
}

/// Finds the first stop string in a text that arrives in pieces.
///
/// The first is the one that is complete first; of those that complete at the same character, the one that
/// starts first (the longest); of equal ones, the one given first. The answer is the text before it. Text
/// that could be the start of a stop string is held back until it is decided, and never longer. How the
/// text is cut into pieces changes nothing.
///
/// Each byte is looked at once per stop string, plus an amortized constant number of steps back (Knuth,
/// Morris and Pratt 1977).
#[derive(Clone, Debug)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    held: String,
    matched: Option<usize>,
}

impl StopMatcher {
    /// A matcher for any number of stop strings; with none, all text passes.
    pub fn new(stops: Vec<String>) -> Result<Self, StopError> {
        if let Some(index) = stops.iter().position(String::is_empty) {
            return Err(StopError::Empty { index });
        }
        let patterns = stops.into_iter().map(Pattern::new).collect();
        Ok(Self { patterns, held: String::new(), matched: None })
    }

    /// Takes the next piece of text. After a match, all text is ignored.
    pub fn push(&mut self, text: &str) -> Emit {
        if self.matched.is_some() {
            return Emit { text: String::new(), matched: self.matched };
        }
        let mut end = self.held.len();
        self.held.push_str(text);
        for byte in text.bytes() {
            end += 1;
            // Patterns are non-empty, so length 0 stands for no match.
            let mut longest = 0;
            for (index, pattern) in self.patterns.iter_mut().enumerate() {
                if pattern.advance(byte) && pattern.bytes.len() > longest {
                    longest = pattern.bytes.len();
                    self.matched = Some(index);
                }
            }
            if longest > 0 {
                self.held.truncate(end - longest);
                return Emit { text: std::mem::take(&mut self.held), matched: self.matched };
            }
        }
        // A prefix of a stop string begins with the first byte of a character, so the cut is between
        // characters.
        let undecided = self.patterns.iter().map(|pattern| pattern.prefix).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - undecided);
        Emit { text: std::mem::replace(&mut self.held, rest), matched: None }
    }

    /// The text still held back, when no more comes: nothing completed it to a stop string.
    pub fn finish(self) -> String {
        self.held
    }
}

/// One stop string and how far the text so far goes along with it.
#[derive(Clone, Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// `fallback[n]`: the longest proper prefix of the pattern that ends its first n + 1 bytes.
    fallback: Vec<usize>,
    /// The longest prefix of the pattern that ends the text.
    prefix: usize,
}

impl Pattern {
    fn new(stop: String) -> Self {
        let mut pattern = Self { bytes: stop.into_bytes(), fallback: vec![0], prefix: 0 };
        // The pattern run over itself, from its second byte on.
        for at in 1..pattern.bytes.len() {
            pattern.advance(pattern.bytes[at]);
            pattern.fallback.push(pattern.prefix);
        }
        pattern.prefix = 0;
        pattern
    }

    /// Takes one byte; whether the pattern is complete with it. Not to be called after that.
    fn advance(&mut self, byte: u8) -> bool {
        while self.prefix > 0 && self.bytes[self.prefix] != byte {
            self.prefix = self.fallback[self.prefix - 1];
        }
        if self.bytes[self.prefix] == byte {
            self.prefix += 1;
        }
        self.prefix == self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        StopMatcher::new(stops.iter().map(|stop| stop.to_string()).collect()).unwrap()
    }

    /// The text shown in total, and the match.
    fn run<'a>(
        mut matcher: StopMatcher,
        pieces: impl IntoIterator<Item = &'a str>,
    ) -> (String, Option<usize>) {
        let mut shown = String::new();
        let mut matched = None;
        for piece in pieces {
            let emit = matcher.push(piece);
            shown += &emit.text;
            matched = emit.matched;
        }
        (shown + &matcher.finish(), matched)
    }

    /// Searches the whole text, end by end.
    fn obvious(stops: &[String], text: &str) -> (String, Option<usize>) {
        for end in 0..=text.len() {
            let complete = (0..stops.len())
                .filter(|&i| text.as_bytes()[..end].ends_with(stops[i].as_bytes()))
                .min_by_key(|&i| end - stops[i].len());
            if let Some(index) = complete {
                return (text[..end - stops[index].len()].to_string(), Some(index));
            }
        }
        (text.to_string(), None)
    }

    #[test]
    fn text_passes_until_it_may_stop() {
        let mut matcher = matcher(&["\n\nQ:", "END"]);
        assert_eq!(matcher.push("one\n"), Emit { text: "one".into(), matched: None });
        assert_eq!(matcher.push("\n"), Emit::default());
        assert_eq!(matcher.push("\n"), Emit { text: "\n".into(), matched: None });
        assert_eq!(matcher.push("Q:more"), Emit { text: String::new(), matched: Some(0) });
        assert_eq!(matcher.push("more"), Emit { text: String::new(), matched: Some(0) });
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn the_end_of_the_text_releases_what_was_held() {
        assert_eq!(run(matcher(&["abc"]), ["xab"]), ("xab".into(), None));
    }

    #[test]
    fn prefixes_may_overlap() {
        assert_eq!(run(matcher(&["aab"]), ["a", "a", "ab!"]), ("a".into(), Some(0)));
        assert_eq!(run(matcher(&["abab!"]), ["abababab!"]), ("abab".into(), Some(0)));
    }

    #[test]
    fn the_first_to_complete_wins_then_the_longest() {
        assert_eq!(run(matcher(&["abcd", "bc"]), ["abcd"]), ("a".into(), Some(1)));
        assert_eq!(run(matcher(&["bc", "abc"]), ["xabc"]), ("x".into(), Some(1)));
        assert_eq!(run(matcher(&["bc", "bc"]), ["abc"]), ("a".into(), Some(0)));
    }

    #[test]
    fn characters_stay_whole() {
        let mut matcher = matcher(&["é€!"]);
        assert_eq!(matcher.push("aé").text, "a");
        assert_eq!(matcher.push("€").text, "");
        assert_eq!(matcher.push("ê").text, "é€ê");
        assert_eq!(matcher.push("é€!"), Emit { text: String::new(), matched: Some(0) });
    }

    #[test]
    fn empty_stop_strings_are_refused() {
        let error = StopMatcher::new(vec!["a".into(), String::new()]).unwrap_err();
        assert_eq!(error.to_string(), "stop string number 2 is empty");
        assert_eq!(run(matcher(&[]), ["a", "b"]), ("ab".into(), None));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            stops in prop::collection::vec("[abé€]{1,5}", 0..4),
            pieces in prop::collection::vec("[abé€]{0,4}", 0..16),
        ) {
            let text = pieces.concat();
            let matcher = StopMatcher::new(stops.clone()).unwrap();
            let found = run(matcher.clone(), pieces.iter().map(String::as_str));
            prop_assert_eq!(&found, &obvious(&stops, &text));
            prop_assert_eq!(&found, &run(matcher, [text.as_str()]));
        }

        /// Nothing is held back that can no longer be part of a stop string.
        #[test]
        fn held_text_is_the_start_of_a_stop_string(
            stop in "[ab]{1,5}",
            pieces in prop::collection::vec("[abc]{0,4}", 0..16),
        ) {
            let mut matcher = matcher(&[&stop]);
            for piece in pieces {
                if matcher.push(&piece).matched.is_some() {
                    break;
                }
                prop_assert!(stop.starts_with(&matcher.held));
            }
        }
    }
}
