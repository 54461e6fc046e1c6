//! What a tokenizer knows about itself.

/// How a tokenizer cuts words into tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenizerKind {
    /// Byte-pair encoding over GPT-2's byte-level alphabet.
    ByteLevelBpe,
    /// SentencePiece's byte-pair encoding, where `▁` is a space and unknown characters are byte tokens.
    SentencePieceBpe,
    /// SentencePiece's unigram model.
    Unigram,
}

impl TokenizerKind {
    /// The name to show.
    pub fn name(self) -> &'static str {
        match self {
            Self::ByteLevelBpe => "byte-level BPE",
            Self::SentencePieceBpe => "SentencePiece BPE",
            Self::Unigram => "unigram",
        }
    }
}

/// What a tokenizer knows about itself and its model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizerMetadata {
    /// How words are cut.
    pub kind: TokenizerKind,
    /// One more than the largest id: the embedding rows that the tokenizer needs. A vocabulary with
    /// holes has fewer tokens than this.
    pub vocabulary_size: usize,
    /// The beginning-of-sequence token.
    pub bos: Option<u32>,
    /// The end-of-sequence token.
    pub eos: Option<u32>,
    /// The padding token.
    pub pad: Option<u32>,
    /// The unknown token.
    pub unknown: Option<u32>,
    /// Every token that ends a generation: `eos`, the end of a turn or of a message, and those that the
    /// model's generation settings list. In ascending order, each once.
    pub end_tokens: Vec<u32>,
    /// The special tokens with their text, in ascending order.
    pub special_tokens: Vec<(u32, String)>,
    /// The context length that the tokenizer's files give, where they give a real one.
    pub context_length: Option<usize>,
    /// Whether [`encode`](super::Tokenizer::encode) puts `bos` first.
    pub adds_bos: bool,
    /// Whether [`encode`](super::Tokenizer::encode) puts `eos` last.
    pub adds_eos: bool,
    /// The chat template, as it stands in the files.
    pub chat_template: Option<String>,
}
