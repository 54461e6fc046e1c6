//! From the parts that a source provides to a tokenizer.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{AddedVocabulary, NormalizerWrapper, Token};

use super::decoder::Decoder;
use super::model::ModelParts;
use super::pre_tokenizer::PreTokenizer;
use super::table::TokenTable;
use super::vocabulary::{Added, Vocabulary};
use super::{Tokenizer, TokenizerError, TokenizerMetadata, normalizer};

/// What every source provides. Checks that need more than one part are made by [`build`](Self::build).
pub(super) struct Parts {
    pub vocabulary: Vocabulary,
    pub model: ModelParts,
    pub added: Vec<Added>,
    pub normalizer: Option<NormalizerWrapper>,
    pub pre_tokenizer: PreTokenizer,
    pub decoder: Decoder,
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

        let mut added = AddedVocabulary::new();
        let places = Places { ids: &placed, count: self.vocabulary.len() };
        added
            .add_tokens(
                self.added.into_iter().map(|added| added.token),
                &places,
                self.normalizer.as_ref(),
            )
            .map_err(|error| TokenizerError::Build {
                file: file.clone(),
                message: error.to_string(),
            })?;
        let mut added_without_special = added.clone();
        added_without_special.set_encode_special_tokens(true);

        let table = TokenTable::new(&self.vocabulary, &added, self.decoder)?;
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
        let kind = self.model.kind(self.decoder == Decoder::ByteLevel);
        let special = special_tokens.iter().map(|(id, _)| *id).collect();
        let metadata = TokenizerMetadata {
            kind,
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
            model: self.model.build(&self.vocabulary, special),
            vocabulary: self.vocabulary,
            added,
            added_without_special,
            prepends: normalizer::prepends_to(&self.normalizer),
            normalizer: self.normalizer,
            pre_tokenizer: self.pre_tokenizer,
            decoder: self.decoder,
            prefix,
            suffix,
            table,
            metadata,
        })
    }
}

/// The ids of the added tokens, as the crate asks a model for them.
struct Places<'a> {
    ids: &'a HashMap<String, u32>,
    /// How many tokens the vocabulary has.
    count: usize,
}

impl tokenizers::Model for Places<'_> {
    type Trainer = BpeTrainer;

    fn tokenize(&self, text: &str) -> tokenizers::Result<Vec<Token>> {
        let id = self.token_to_id(text).ok_or_else(|| format!("{text:?} is not an added token"))?;
        Ok(vec![Token::new(id, text.to_owned(), (0, text.len()))])
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.ids.iter().find(|(_, place)| **place == id).map(|(token, _)| token.clone())
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.ids.clone()
    }

    fn get_vocab_size(&self) -> usize {
        self.count
    }

    fn save(&self, _: &Path, _: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err("the places of added tokens are not kept in a file".into())
    }

    fn get_trainer(&self) -> BpeTrainer {
        BpeTrainer::default()
    }
}
