//! Tokenizer files that we did not write: an error or a tokenizer that works, never a panic.

use std::fs;
use std::path::{Path, PathBuf};

use oxgpt_engine::format::{Checkpoint, Source};
use oxgpt_engine::tokenizer::{EncodeOptions, GgufTokenizer, Segment, Tokenizer};
use serde_json::{Value, json};

const TEXTS: [&str; 6] = [
    "",
    "Hello  world, it's 2024!\n\n\tœ 日本 😀 <|endoftext|>  <mask> <|endoftext|>",
    "   \u{a0}\u{2028} <mask>   <mask><|a|>  <sep>  x",
    "x<mask>",
    "\u{10FFFD}\u{E000}\0\u{7f}\u{ad}",
    "\u{1100}\u{1161}\u{11a8} e\u{301} ﬁ",
];

/// A generator good enough to pick mutations.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tokenizer").join(name)
}

/// Opens the directory and, if it can be opened, uses it in every way. Whether it could be.
fn exercise(directory: &Path) -> bool {
    let Ok(Some(tokenizer)) = Tokenizer::from_directory(directory) else { return false };
    use_it(&tokenizer);
    true
}

fn use_it(tokenizer: &Tokenizer) {
    assert_eq!(tokenizer.max_id() as usize + 1, tokenizer.metadata().vocabulary_size);
    for text in TEXTS {
        for parse_special in [true, false] {
            let options = EncodeOptions { add_special_tokens: true, parse_special };
            let segments = [
                Segment { text: text.into(), parse_special },
                Segment { text: text.into(), parse_special: !parse_special },
            ];
            for ids in [tokenizer.encode_with(text, options), tokenizer.encode_segments(&segments)]
            {
                // An unknown token that the vocabulary lacks shows only when it is needed.
                let Ok(ids) = ids else { continue };
                tokenizer.decode(&ids).expect("its own ids decode");
            }
        }
    }
}

/// Replaces one value of the tree, or removes or repeats it.
fn mutate(value: &mut Value, random: &mut Random) {
    match value {
        Value::Object(object) if !object.is_empty() && random.below(8) > 0 => {
            let index = random.below(object.len());
            let key = object.keys().nth(index).cloned().expect("the index is within");
            match random.below(12) {
                0 => drop(object.remove(&key)),
                1 => {
                    let child = object[&key].clone();
                    object.insert(format!("{key} "), child);
                }
                _ => mutate(&mut object[&key], random),
            }
        }
        Value::Array(values) if !values.is_empty() && random.below(8) > 0 => {
            let index = random.below(values.len());
            match random.below(12) {
                0 => drop(values.remove(index)),
                1 => values.push(values[index].clone()),
                2 => {
                    let other = random.below(values.len());
                    values.swap(index, other);
                }
                _ => mutate(&mut values[index], random),
            }
        }
        _ => {
            let choices = [
                json!(null),
                json!(true),
                json!(false),
                json!(-1),
                json!(0),
                json!(1124),
                json!(4294967295u32),
                json!(1.5),
                json!(""),
                json!(" "),
                json!("\n\n"),
                json!("a"),
                json!("Ġ"),
                json!("<|endoftext|>"),
                json!("ByteLevel"),
                json!("Sequence"),
                json!([]),
                json!({}),
                json!(["a", "b"]),
                json!({"content": "  ", "lstrip": true}),
                json!({"Regex": "(a*)*$"}),
                json!("Prepend"),
                json!("Metaspace"),
                json!("\u{2581}"),
                json!("<0x0A>"),
                json!(1e308),
                json!({"Regex": "("}),
            ];
            *value = choices[random.below(choices.len())].clone();
        }
    }
}

fn copy(from: &Path, to: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(from).expect("the test data is there").flatten() {
        let name = entry.file_name();
        // The tiny model beside a tokenizer.
        if !name.to_string_lossy().ends_with(".safetensors") {
            fs::copy(entry.path(), to.join(&name)).expect("a file to copy");
            files.push(to.join(&name));
        }
    }
    files.sort();
    files
}

#[test]
fn changed_values_are_refused_or_work() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for name in [
        "bpe-added",
        "bpe-bos",
        "bpe-nfc",
        "bpe-vocab-merges-bos",
        "families/llama2",
        "families/llama2-first",
        "families/gemma",
        "families/unigram-bytes",
    ] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let files = copy(&source(name), directory.path());
        assert!(exercise(directory.path()), "{name} as it is");
        let (mut opened, mut refused) = (0, 0);
        for _ in 0..300 {
            let path = &files[random.below(files.len())];
            let original = fs::read(path).expect("a file to read");
            if let Ok(mut value) = serde_json::from_slice::<Value>(&original) {
                // The vocabulary and merges are most of the file; the rest is where the settings are.
                let part =
                    ["added_tokens", "normalizer", "pre_tokenizer", "post_processor", "model"];
                match value.get_mut(part[random.below(part.len())]) {
                    Some(part) if random.below(4) > 0 => mutate(part, &mut random),
                    _ => mutate(&mut value, &mut random),
                }
                fs::write(path, value.to_string()).expect("a file to write");
                if exercise(directory.path()) { opened += 1 } else { refused += 1 }
            }
            fs::write(path, &original).expect("a file to write");
        }
        assert!(opened > 20 && refused > 5, "{name}: {opened} opened, {refused} refused");
    }
}

#[test]
fn changed_bytes_are_refused_or_work() {
    let mut random = Random(42);
    for name in ["bpe-added", "bpe-vocab-merges"] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let files = copy(&source(name), directory.path());
        for _ in 0..200 {
            let path = &files[random.below(files.len())];
            let original = fs::read(path).expect("a file to read");
            let mut bytes = original.clone();
            let at = random.below(bytes.len());
            match random.below(4) {
                0 => bytes.truncate(at),
                1 => bytes[at] = random.below(256) as u8,
                2 => bytes.insert(at, b" \",:{}[]0\n"[random.below(10)]),
                _ => drop(bytes.remove(at)),
            }
            fs::write(path, &bytes).expect("a file to write");
            exercise(directory.path());
            fs::write(path, &original).expect("a file to write");
        }
    }
}

#[test]
fn changed_gguf_metadata_is_refused_or_works() {
    let mut random = Random(7);
    for name in ["llama2", "phi3", "gemma", "llama3", "tekken"] {
        let checkpoint =
            Checkpoint::open(&source(&format!("families/{name}.gguf"))).expect("a file");
        let Source::Gguf(metadata) = checkpoint.source() else { panic!("not GGUF") };
        let tokens = metadata.require_strings("tokenizer.ggml.tokens").expect("tokens");
        let types = metadata.require_i32s("tokenizer.ggml.token_type").expect("types");
        let scores = metadata.f32s("tokenizer.ggml.scores").expect("scores, or none");
        let merges = metadata.strings("tokenizer.ggml.merges").expect("merges, or none");
        let model = metadata.require_string("tokenizer.ggml.model").expect("a model");
        let (mut opened, mut refused) = (0, 0);
        for _ in 0..200 {
            let (mut tokens, mut types) = (tokens.to_vec(), types.to_vec());
            let (mut scores, mut merges) =
                (scores.map(<[f32]>::to_vec), merges.map(<[String]>::to_vec));
            let at = random.below(tokens.len());
            let other = random.below(tokens.len());
            let mut fields = GgufTokenizer { model, ..GgufTokenizer::default() };
            match random.below(10) {
                0 => tokens[at] = tokens[other].clone(),
                1 => {
                    tokens[at] =
                        ["", " ", "\u{2581}\u{2581}", "<0x0A>", "a b"][random.below(5)].into()
                }
                2 => types[at] = random.below(9) as i32 - 1,
                3 => {
                    let value = [f32::NAN, f32::INFINITY, f32::MIN, 0.0, 1e30][random.below(5)];
                    scores.iter_mut().for_each(|scores| scores[at] = value);
                }
                4 => tokens.truncate(at),
                5 => scores = None,
                6 => merges.iter_mut().for_each(|merges| {
                    let at = random.below(merges.len());
                    merges[at] = ["a", "a  b", "\u{2581} \u{2581}", " "][random.below(4)].into();
                }),
                7 => fields.unknown = Some(at as u32 * 2),
                8 => {
                    (fields.add_space_prefix, fields.pre) =
                        (Some(at.is_multiple_of(2)), Some("tekken"))
                }
                _ => {
                    (fields.bos, fields.add_eos, fields.architecture) =
                        (Some(other as u32), Some(true), Some("phi3"))
                }
            }
            fields.tokens = &tokens;
            fields.token_types =
                Some(&types).filter(|_| !other.is_multiple_of(8)).map(Vec::as_slice);
            (fields.scores, fields.merges) = (scores.as_deref(), merges.as_deref());
            match Tokenizer::from_gguf(fields) {
                Ok(tokenizer) => {
                    use_it(&tokenizer);
                    opened += 1;
                }
                Err(_) => refused += 1,
            }
        }
        assert!(opened > 20 && refused > 20, "{name}: {opened} opened, {refused} refused");
    }
}
