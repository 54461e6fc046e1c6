//! From the parts that a source provides to a tokenizer.

use std::collections::{BTreeSet, HashMap};

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedVocabulary, NormalizerWrapper, PreTokenizerWrapper};

use super::table::TokenTable;
use super::vocabulary::{Added, Vocabulary};
use super::{Tokenizer, TokenizerError, TokenizerKind, TokenizerMetadata};

/// What every source provides. Checks that need more than one part are made by [`build`](Self::build).
pub(super) struct Parts {
    pub vocabulary: Vocabulary,
    /// The merges, with the file they are in.
    pub merges: Vec<(String, String)>,
    pub merges_file: String,
    pub unknown_token: Option<String>,
    pub fuse_unknown: bool,
    pub byte_fallback: bool,
    pub ignore_merges: bool,
    pub added: Vec<Added>,
    pub normalizer: Option<NormalizerWrapper>,
    pub pre_tokenizer: PreTokenizerWrapper,
    pub wrap: Wrap,
    pub named: Named,
    /// Other ids that end a generation. Those outside the vocabulary are dropped: a configuration made
    /// from defaults names ids that its small model does not have and so can never sample.
    pub end_tokens: Vec<u32>,
    pub context_length: Option<usize>,
    pub chat_template: Option<String>,
}

/// What is put around a text.
pub(super) enum Wrap {
    /// `bos` and `eos`, where they exist.
    Named { bos: bool, eos: bool },
    /// These ids.
    Ids { prefix: Vec<u32>, suffix: Vec<u32> },
}

/// The tokens with a role.
#[derive(Default)]
pub(super) struct Named {
    pub bos: Option<TokenRef>,
    pub eos: Option<TokenRef>,
    pub pad: Option<TokenRef>,
    pub unknown: Option<TokenRef>,
}

/// A token as a source names it.
#[derive(Clone)]
pub(super) enum TokenRef {
    Text(String),
    Id(u32),
}

impl Parts {
    /// The id of a token with a role, given those of the added tokens.
    pub(super) fn resolve(
        &self,
        placed: &HashMap<String, u32>,
        token: &Option<TokenRef>,
    ) -> Option<u32> {
        match token.as_ref()? {
            TokenRef::Id(id) => Some(*id),
            TokenRef::Text(text) => placed.get(text).copied().or_else(|| self.vocabulary.id(text)),
        }
    }

    pub(super) fn build(self) -> Result<Tokenizer, TokenizerError> {
        let file = self.vocabulary.file().to_owned();
        let failed = |error: tokenizers::Error| TokenizerError::Build {
            file: file.clone(),
            message: error.to_string(),
        };

        self.vocabulary.check_merges(&self.merges_file, &self.merges)?;
        for Added { token, file, .. } in &self.added {
            // With both, the crate computes a match that ends before it starts and panics.
            if token.lstrip && token.content.chars().all(char::is_whitespace) {
                return Err(TokenizerError::Field {
                    file: file.clone(),
                    field: format!("added token {:?}", token.content),
                    problem: "is whitespace that strips whitespace on its left".to_owned(),
                });
            }
        }
        let placed = self.vocabulary.place(&self.added)?;
        let bos = self.resolve(&placed, &self.named.bos);
        let eos = self.resolve(&placed, &self.named.eos);
        let pad = self.resolve(&placed, &self.named.pad);
        let unknown = self.resolve(&placed, &self.named.unknown);
        let (prefix, suffix) = match self.wrap {
            Wrap::Ids { prefix, suffix } => (prefix, suffix),
            Wrap::Named { bos: add_bos, eos: add_eos } => {
                let only =
                    |id: Option<u32>, wanted: bool| id.filter(|_| wanted).into_iter().collect();
                (only(bos, add_bos), only(eos, add_eos))
            }
        };

        let tokens = self.vocabulary.into_tokens();
        let mut builder = BPE::builder()
            .vocab_and_merges(tokens.iter().cloned().collect::<Vocab>(), self.merges)
            .fuse_unk(self.fuse_unknown)
            .byte_fallback(self.byte_fallback)
            .ignore_merges(self.ignore_merges);
        if let Some(token) = self.unknown_token {
            builder = builder.unk_token(token);
        }
        let model = builder.build().map_err(failed)?;

        let mut added = AddedVocabulary::new();
        added
            .add_tokens(
                self.added.into_iter().map(|added| added.token),
                &model,
                self.normalizer.as_ref(),
            )
            .map_err(failed)?;
        let mut added_without_special = added.clone();
        added_without_special.set_encode_special_tokens(true);

        let table = TokenTable::new(&file, &tokens, &added)?;
        let size = table.size();
        let within = |role: &'static str, id: Option<u32>| match id {
            Some(id) if !table.contains(id) => {
                Err(TokenizerError::SpecialId { file: file.clone(), role, id, size })
            }
            _ => Ok(()),
        };
        within("bos", bos)?;
        within("eos", eos)?;
        within("pad", pad)?;
        within("unknown", unknown)?;
        for id in prefix.iter().chain(&suffix) {
            within("post-processor", Some(*id))?;
        }

        let end_tokens: BTreeSet<u32> =
            eos.into_iter().chain(self.end_tokens).filter(|id| table.contains(*id)).collect();
        let mut special_tokens: Vec<(u32, String)> = added
            .get_added_tokens_decoder()
            .iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (*id, token.content.clone()))
            .collect();
        special_tokens.sort_unstable();
        let metadata = TokenizerMetadata {
            kind: TokenizerKind::ByteLevelBpe,
            vocabulary_size: size,
            bos,
            eos,
            pad,
            unknown,
            end_tokens: end_tokens.into_iter().collect(),
            special_tokens,
            context_length: self.context_length,
            adds_bos: bos.is_some() && prefix.first().copied() == bos,
            adds_eos: eos.is_some() && suffix.last().copied() == eos,
            chat_template: self.chat_template,
        };
        Ok(Tokenizer {
            model,
            added,
            added_without_special,
            normalizer: self.normalizer,
            pre_tokenizer: self.pre_tokenizer,
            prefix,
            suffix,
            table,
            metadata,
        })
    }
}
