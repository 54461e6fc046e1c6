//! A tokenizer from GPT-2's own two files, `vocab.json` and `merges.txt`.

use std::path::Path;

use super::TokenizerError;
use super::build::{Parts, Wrap};
use super::decoder::Decoder;
use super::directory::{self, Settings};
use super::json::Tokens;
use super::model::ModelParts;
use super::pre_tokenizer::PreTokenizer;
use super::vocabulary::{Vocabulary, split_merge};

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
    let text = directory::read_text(vocabulary)?;
    let Tokens::Ids(tokens) = directory::parse_json(vocabulary, &text)? else {
        return Err(TokenizerError::Json {
            file: vocabulary.display().to_string(),
            message: "not an object of tokens and their ids".to_owned(),
        });
    };
    let vocabulary = Vocabulary::new(VOCABULARY, tokens.iter().map(|(token, id)| (&token.0, *id)))?;

    let lines = directory::read_text(merges)?;
    let lines: Vec<&str> =
        lines.lines().filter(|line| !line.starts_with("#version") && !line.is_empty()).collect();
    let merges = lines.iter().enumerate().map(|(index, line)| split_merge(MERGES, index, line));
    let merges = vocabulary.merges(MERGES, merges)?;

    Ok(Parts {
        vocabulary,
        model: ModelParts::Merges {
            merges,
            unknown_token: None,
            fuse_unknown: false,
            byte_fallback: false,
            whole_words: false,
        },
        added: settings.added(&[], DEFAULT)?,
        normalizer: None,
        pre_tokenizer: PreTokenizer::gpt2(settings.switch("add_prefix_space")?.unwrap_or(false)),
        decoder: Decoder::ByteLevel,
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
