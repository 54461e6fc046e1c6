//! A tokenizer from GPT-2's own two files, `vocab.json` and `merges.txt`.

use std::path::Path;

use super::build::{Parts, Wrap};
use super::directory::{self, Settings};
use super::vocabulary::{TokenMap, Vocabulary, split_merge};
use super::{TokenizerError, pre_tokenizer};

const VOCABULARY: &str = "vocab.json";
const MERGES: &str = "merges.txt";
/// GPT-2's only special token: its beginning, end and unknown token unless the files name others.
const DEFAULT: Option<&str> = Some("<|endoftext|>");

pub(super) fn read(
    vocabulary: &Path,
    merges: &Path,
    settings: Settings,
) -> Result<Parts, TokenizerError> {
    // Other classes cut words differently and keep the rule in their code, not in these files.
    if let Some(class) = settings.class().filter(|class| *class != "GPT2Tokenizer") {
        return Err(TokenizerError::Unsupported {
            file: "the tokenizer configuration".to_owned(),
            part: "tokenizer class",
            found: class.to_owned(),
            supported: "GPT2Tokenizer; any with a tokenizer.json".to_owned(),
        });
    }
    let TokenMap(tokens) = directory::read_json(vocabulary)?;
    let tokens = tokens.ok_or_else(|| TokenizerError::Json {
        file: vocabulary.display().to_string(),
        message: "not an object of tokens and their ids".to_owned(),
    })?;

    let mut pairs = Vec::new();
    let lines = directory::read_text(merges)?;
    for (index, line) in lines.lines().filter(|line| !line.starts_with("#version")).enumerate() {
        if !line.is_empty() {
            pairs.push(split_merge(MERGES, index, line)?);
        }
    }

    Ok(Parts {
        vocabulary: Vocabulary::new(VOCABULARY, tokens)?,
        merges: pairs,
        merges_file: MERGES.to_owned(),
        unknown_token: None,
        fuse_unknown: false,
        byte_fallback: false,
        ignore_merges: false,
        added: settings.added(&[], DEFAULT)?,
        normalizer: None,
        pre_tokenizer: pre_tokenizer::gpt2(settings.switch("add_prefix_space")?.unwrap_or(false)),
        wrap: Wrap::Named {
            bos: settings.switch("add_bos_token")?.unwrap_or(false),
            eos: settings.switch("add_eos_token")?.unwrap_or(false),
        },
        named: settings.named(DEFAULT)?,
        end_tokens: settings.end_tokens()?,
        context_length: settings.context_length(),
        chat_template: settings.chat_template()?,
    })
}
