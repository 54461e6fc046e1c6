//! The pre-tokenizers that GGUF files name (`tokenizer.ggml.pre`).
//!
//! The names are llama.cpp's (`llama-vocab.cpp`); the expressions are those of the `tokenizer.json` of the models
//! that the names come from. llama.cpp matches some of them by expressions that are nearly the same: it has no
//! classes such as `\p{Lu}`. A name says how a model was trained: with another rule the ids are plausible and
//! wrong, so a name that is not here is refused.

/// A way to find words; what is between two is a word too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Every match of the expression is a word.
    Split(&'static str),
    /// Every digit is a word.
    Digits,
    /// GPT-2's own rule; the last step where there is one.
    Gpt2,
}

/// A named rule.
#[derive(Debug)]
pub(super) struct Rule {
    /// The first is the one to write.
    pub names: &'static [&'static str],
    /// One after the other; each cuts further.
    pub cuts: &'static [Cut],
    /// Whether the text is composed first (NFC), of which GGUF files have no word. llama.cpp does not.
    pub nfc: bool,
    /// Whether a word that is a token is that token, whatever the merges say.
    pub whole_words: bool,
    /// Whether bos goes first where the file does not say.
    pub adds_bos: bool,
}

const DEFAULT: Rule =
    Rule { names: &[], cuts: &[], nfc: false, whole_words: false, adds_bos: false };

/// GPT-2's words: contractions, letters, digits and other marks, each with one space before, and whitespace.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

/// OpenAI's cl100k: contractions in any case, letters with a mark before, three digits, newlines after marks.
const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The same with single digits.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The same with combining marks as letters.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// OpenAI's o200k: words begin at capital letters and keep their contraction.
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Mistral's tekken: o200k without contractions, with single digits.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// DeepSeek's letters that have case, with whitespace before.
const DEEPSEEK_LETTERS: &str = "\\s?[\
     A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}\u{295}-\u{2AF}\
     \u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}\
     \u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}\
     \u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\
     \u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\
     \u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\
     \u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\
     \u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\
     \u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}\
     \u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\
     \u{A680}-\u{A69B}\u{A722}-\u{A76F}\u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\
     \u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\
     \u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}\
     \u{1E900}-\u{1E943}]+";

/// DeepSeek's marks, with whitespace before.
const DEEPSEEK_MARKS: &str =
    "\\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+";

/// Chinese, Japanese and Korean, as DeepSeek's first tokenizers have them.
const DEEPSEEK_CJK: &str = "[\u{4E00}-\u{9FA5}\u{0800}-\u{4E00}\u{AC00}-\u{D7FF}]+";

/// Chinese and Japanese, as DeepSeek V3 has them.
const DEEPSEEK_V3_CJK: &str = "[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+";

const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

/// Every rule there is.
pub(super) const RULES: &[Rule] = &[
    Rule {
        names: &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
        ],
        cuts: &[Cut::Gpt2],
        ..DEFAULT
    },
    // llama.cpp's rule for this name, from before GGUF files named theirs.
    Rule {
        names: &["default"],
        cuts: &[
            Cut::Split(r"[\p{P}\$\+<=>\^~\|]+"),
            Cut::Split(GPT2),
            Cut::Split(r"\p{N}+"),
            Cut::Split("[0-9][0-9][0-9]"),
        ],
        ..DEFAULT
    },
    Rule {
        names: &["llama-bpe", "llama3", "llama-v3"],
        cuts: &[Cut::Split(CL100K)],
        whole_words: true,
        adds_bos: true,
        ..DEFAULT
    },
    Rule { names: &["dbrx", "smaug-bpe"], cuts: &[Cut::Split(CL100K)], ..DEFAULT },
    Rule { names: &["qwen2"], cuts: &[Cut::Split(QWEN2)], nfc: true, ..DEFAULT },
    // DeepSeek-R1-Distill-Qwen's; text is not composed, as llama.cpp does not compose it.
    Rule { names: &["deepseek-r1-qwen"], cuts: &[Cut::Split(QWEN2)], ..DEFAULT },
    Rule { names: &["qwen35"], cuts: &[Cut::Split(QWEN35)], nfc: true, ..DEFAULT },
    Rule { names: &["gpt-4o", "o200k", "llama4"], cuts: &[Cut::Split(O200K)], ..DEFAULT },
    Rule {
        names: &["tekken"],
        cuts: &[Cut::Split(TEKKEN)],
        whole_words: true,
        adds_bos: true,
        ..DEFAULT
    },
    Rule {
        names: &["smollm", "starcoder", "refact", "codeshell"],
        cuts: &[Cut::Digits, Cut::Gpt2],
        ..DEFAULT
    },
    Rule {
        names: &["deepseek-llm"],
        cuts: &[
            Cut::Split(r"[\r\n]"),
            Cut::Split(DEEPSEEK_LETTERS),
            Cut::Split(DEEPSEEK_MARKS),
            Cut::Split(r"\s+$"),
            Cut::Split(DEEPSEEK_CJK),
            Cut::Digits,
        ],
        ..DEFAULT
    },
    Rule {
        names: &["deepseek-coder"],
        cuts: &[
            Cut::Split(r"[\r\n]"),
            Cut::Split(r"\s?\p{L}+"),
            Cut::Split(r"\s?\p{P}+"),
            Cut::Split(DEEPSEEK_CJK),
            Cut::Digits,
        ],
        ..DEFAULT
    },
    Rule {
        names: &["deepseek-v3"],
        cuts: &[Cut::Split(r"\p{N}{1,3}"), Cut::Split(DEEPSEEK_V3_CJK), Cut::Split(DEEPSEEK_V3)],
        ..DEFAULT
    },
];

/// The rule of a GGUF file. A file without `tokenizer.ggml.pre` gets GPT-2's: such files are older than the field,
/// and among the models of that time in GPT-2's own architecture there was no other.
pub(super) fn by_name(name: Option<&str>) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.names.contains(&name.unwrap_or("gpt-2")))
}

/// All names, for errors.
pub(super) fn all_names() -> String {
    let names: Vec<&str> = RULES.iter().flat_map(|rule| rule.names.iter().copied()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_one_rule() {
        let mut names: Vec<&str> = RULES.iter().flat_map(|rule| rule.names).copied().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(by_name(Some("llama3")).is_some_and(|rule| rule.names[0] == "llama-bpe"));
        assert!(by_name(None).is_some_and(|rule| rule.names[0] == "gpt-2"));
        assert!(by_name(Some("falcon")).is_none());
    }

    #[test]
    fn only_the_last_step_is_gpt2s() {
        for rule in RULES {
            let gpt2 = rule.cuts.iter().position(|cut| *cut == Cut::Gpt2);
            assert!(gpt2.is_none_or(|at| at + 1 == rule.cuts.len()), "{:?}", rule.names);
        }
    }
}
