//! A directory in Hugging Face layout: `config.json` and weights in safetensors files.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::bytes::Bytes;
use super::checkpoint::Contents;
use super::error::FormatError;
use super::safetensors;

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const WEIGHTS: &str = "model.safetensors";
const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// Configurations in use are a few kilobytes; the index of the largest sharded models is 10 MB.
const MAX_CONFIG_BYTES: u64 = 16 << 20;
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Where a Hugging Face checkpoint is, and its configuration.
#[derive(Clone, Debug)]
pub struct Files {
    /// The directory, where the tokenizer's files are too.
    pub directory: PathBuf,
    /// `config.json`: the model's family and sizes.
    pub config: Map<String, Value>,
    /// `generation_config.json`, if there is one: default sampling and end tokens.
    pub generation_config: Option<Map<String, Value>>,
}

/// The part of an index file that is used.
#[derive(Deserialize)]
struct WeightIndex {
    /// File names by tensor names.
    weight_map: BTreeMap<String, String>,
}

pub(super) fn open(directory: &Path) -> Result<Contents<Files>, FormatError> {
    let Some(config) = read_json(&directory.join(CONFIG), MAX_CONFIG_BYTES)? else {
        let hint = match names_with_extension(directory, "gguf")?.first() {
            Some(name) => format!(", but {name}, which is opened by its own path"),
            None => String::new(),
        };
        return Err(FormatError::MissingConfig {
            directory: directory.display().to_string(),
            hint,
        });
    };
    if let Some(method) = quantization(directory, &config) {
        return Err(FormatError::Quantized { directory: directory.display().to_string(), method });
    }
    let generation_config = read_json(&directory.join(GENERATION_CONFIG), MAX_CONFIG_BYTES)?;
    let source = Files { directory: directory.to_owned(), config, generation_config };

    // As in transformers, a whole file comes before an index.
    if is_there(&directory.join(WEIGHTS)) {
        return open_weights(source, [WEIGHTS.to_owned()]);
    }
    let index_path = directory.join(WEIGHTS_INDEX);
    if let Some(index) = read_json::<WeightIndex>(&index_path, MAX_INDEX_BYTES)? {
        return open_shards(source, &index_path, index);
    }
    match <[String; 1]>::try_from(names_with_extension(directory, "safetensors")?) {
        Ok(only) => open_weights(source, only),
        Err(names) => Err(no_weights(directory, names.len())?),
    }
}

/// Opens the shards that an index names, each of which must have the tensors it is said to have.
fn open_shards(
    source: Files,
    index_path: &Path,
    index: WeightIndex,
) -> Result<Contents<Files>, FormatError> {
    let file = || index_path.display().to_string();
    for (tensor, shard) in &index.weight_map {
        if !is_plain_name(shard) {
            let (tensor, shard) = (tensor.clone(), shard.clone());
            return Err(FormatError::ShardName { file: file(), tensor, shard });
        }
    }
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    let contents = open_weights(source, shards.iter().map(|&shard| shard.clone()))?;

    let positions: HashMap<&String, usize> =
        shards.into_iter().enumerate().map(|(position, shard)| (shard, position)).collect();
    let held: HashSet<(&str, Option<usize>)> =
        contents.tensors.iter().map(|tensor| (tensor.name.as_str(), Some(tensor.file))).collect();
    for (tensor, shard) in &index.weight_map {
        if !held.contains(&(tensor, positions.get(shard).copied())) {
            let (tensor, shard) = (tensor.clone(), shard.clone());
            return Err(FormatError::ShardLacksTensor { file: file(), tensor, shard });
        }
    }
    Ok(contents)
}

/// Opens weight files of the directory by name.
fn open_weights(
    source: Files,
    names: impl IntoIterator<Item = String>,
) -> Result<Contents<Files>, FormatError> {
    let (mut files, mut tensors) = (Vec::new(), Vec::new());
    for (index, name) in names.into_iter().enumerate() {
        let path = source.directory.join(name);
        let (name, bytes) = (path.display().to_string(), Bytes::map(&path)?);
        tensors.extend(safetensors::parse(&name, &bytes, index)?);
        files.push((name, bytes));
    }
    Ok(Contents { source, files, tensors })
}

/// The quantization that the weights are in, if it is one that is not run.
fn quantization(directory: &Path, config: &Map<String, Value>) -> Option<String> {
    // Tools that write their settings beside config.json instead of into it.
    for (file, method) in [("quantize_config.json", "gptq"), ("hf_quant_config.json", "modelopt")] {
        if is_there(&directory.join(file)) {
            return Some(method.to_owned());
        }
    }
    // Models for text and images have the text model's settings in `text_config`.
    let text_config = config.get("text_config").and_then(Value::as_object);
    for config in [Some(config), text_config].into_iter().flatten() {
        for key in ["quantization_config", "compression_config"] {
            let Some(settings) = config.get(key).filter(|settings| !settings.is_null()) else {
                continue;
            };
            let set = |flag| settings.get(flag).and_then(Value::as_bool).unwrap_or(false);
            return match settings.get("quant_method").and_then(Value::as_str) {
                Some("mxfp4") => continue,
                Some(method) => Some(method.to_owned()),
                // From before there was a `quant_method`.
                None if set("load_in_8bit") || set("load_in_4bit") => Some("bitsandbytes".into()),
                None if key == "compression_config" => Some("compressed-tensors".into()),
                None => Some("unnamed".into()),
            };
        }
    }
    None
}

/// Why there is nothing to load in a directory with that many safetensors files of unknown role.
fn no_weights(directory: &Path, safetensors: usize) -> Result<FormatError, FormatError> {
    let found = if safetensors > 0 {
        format!("{safetensors} .safetensors files and no index")
    } else if let Some(name) = names_with_extension(directory, "bin")?.first() {
        format!(
            "{name}, which is not supported because reading it can run code (convert it with \
             transformers: AutoModelForCausalLM.from_pretrained(SRC).save_pretrained(DST))"
        )
    } else if let Some(name) = names_with_extension(directory, "gguf")?.first() {
        format!("{name}, which is opened by its own path")
    } else {
        "none of them".to_owned()
    };
    Ok(FormatError::NoWeights { directory: directory.display().to_string(), found })
}

/// The names of the files with an extension, sorted.
fn names_with_extension(directory: &Path, extension: &str) -> Result<Vec<String>, FormatError> {
    let failed = |cause| FormatError::io(directory, "list", cause);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let name = PathBuf::from(entry.map_err(failed)?.file_name());
        if name.extension().is_some_and(|found| found == extension)
            && let Some(name) = name.to_str()
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Whether there is something of that name, be it a link to a file that is not there: to open it then
/// says what is wrong.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Whether a name is that of an entry of a directory: no path, nothing that leads out of it.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
        && !name.contains(['/', '\\', '\0'])
}

/// Reads a JSON file of at most `limit` bytes; `None` if it does not exist.
fn read_json<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<Option<T>, FormatError> {
    if !is_there(path) {
        return Ok(None);
    }
    let name = path.display().to_string();
    let failed = |action| move |cause| FormatError::io(path, action, cause);
    let metadata = std::fs::metadata(path).map_err(failed("open"))?;
    if !metadata.is_file() {
        return Err(FormatError::NotAFile { file: name });
    }
    let mut text = Vec::new();
    let file = File::open(path).map_err(failed("open"))?;
    // One byte more than the limit shows that there is more, also if the file grows meanwhile.
    file.take(limit + 1).read_to_end(&mut text).map_err(failed("read"))?;
    if text.len() as u64 > limit {
        let found = metadata.len().max(text.len() as u64);
        return Err(FormatError::FileTooLarge { file: name, found, limit });
    }
    serde_json::from_slice(&text).map(Some).map_err(|cause| safetensors::json(&name, &cause))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::super::{Checkpoint, Source};
    use super::*;

    /// A safetensors file of one-byte tensors.
    fn weights(names: &[&str]) -> Vec<u8> {
        let entries = names.iter().enumerate().map(|(start, name)| {
            let end = start + 1;
            format!(r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{start},{end}]}}"#)
        });
        let header = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(0..names.len() as u8);
        bytes
    }

    fn directory(files: &[(&str, &[u8])]) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(directory.path().join(name), bytes).unwrap();
        }
        directory
    }

    /// Asserts that a directory of these files is refused with this variant, naming the directory.
    macro_rules! assert_refused {
        ($files:expr, $variant:pat) => {{
            let directory = directory($files);
            let error = Checkpoint::open(directory.path()).expect_err("must be refused");
            assert!(matches!(error, $variant), "{error:?}");
            let message = error.to_string();
            assert!(message.contains(directory.path().to_str().unwrap()), "{message}");
            message
        }};
    }

    const GPT2: &[u8] = br#"{"model_type":"gpt2","n_layer":2,"quantization_config":null}"#;

    #[test]
    fn one_file_of_weights() {
        for name in ["model.safetensors", "pytorch_lora_free_name.safetensors"] {
            let directory = directory(&[
                ("config.json", GPT2),
                ("generation_config.json", br#"{"eos_token_id":[1,2]}"#),
                (name, &weights(&["a", "b"])),
            ]);
            let checkpoint = Checkpoint::open(directory.path()).unwrap();
            assert_eq!(checkpoint.path(), directory.path());
            let Source::HuggingFace(files) = checkpoint.source() else { panic!("not a file") };
            assert_eq!(files.directory, directory.path());
            assert_eq!(files.config["n_layer"], 2);
            assert_eq!(files.generation_config.as_ref().unwrap()["eos_token_id"][1], 2);
            assert_eq!(checkpoint.file_bytes(), weights(&["a", "b"]).len() as u64);
            assert_eq!(&*checkpoint.bytes(checkpoint.tensor("b").unwrap()), [1]);
        }
    }

    fn index(map: &[(&str, &str)]) -> Vec<u8> {
        let map: Map<String, Value> =
            map.iter().map(|&(tensor, shard)| (tensor.into(), shard.into())).collect();
        serde_json::json!({"metadata": {"total_size": 3}, "weight_map": map}).to_string().into()
    }

    const FIRST: &str = "model-00001-of-00002.safetensors";
    const SECOND: &str = "model-00002-of-00002.safetensors";

    #[test]
    fn shards_are_opened_by_the_index() {
        let directory = directory(&[
            ("config.json", GPT2),
            (WEIGHTS_INDEX, &index(&[("c", SECOND), ("a", FIRST)])),
            (FIRST, &weights(&["a", "not in the index"])),
            (SECOND, &weights(&["b", "c"])),
        ]);
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        // As transformers does, all that the shards hold is there.
        let names: Vec<_> =
            checkpoint.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["a", "not in the index", "b", "c"]);
        assert_eq!(&*checkpoint.bytes(checkpoint.tensor("c").unwrap()), [1]);
    }

    #[test]
    fn shards_and_index_that_disagree() {
        let open = |map: &[(&str, &str)], first: &[&str], second: &[&str]| {
            let directory = directory(&[
                ("config.json", GPT2),
                (WEIGHTS_INDEX, &index(map)),
                (FIRST, &weights(first)),
                (SECOND, &weights(second)),
            ]);
            Checkpoint::open(directory.path()).unwrap_err()
        };
        let error = open(&[("a", FIRST), ("b", FIRST)], &["a"], &[]);
        assert!(matches!(error, FormatError::ShardLacksTensor { .. }), "{error:?}");
        let error = open(&[("a", FIRST), ("b", SECOND)], &["b"], &["a"]);
        assert!(matches!(error, FormatError::ShardLacksTensor { .. }), "{error:?}");
        let error = open(&[("a", FIRST), ("b", SECOND)], &["a"], &["a", "b"]);
        assert!(matches!(error, FormatError::DuplicateTensor { .. }), "{error:?}");
        let error = open(&[("a", FIRST), ("b", "absent.safetensors")], &["a"], &[]);
        assert!(matches!(error, FormatError::Io { .. }), "{error:?}");
        assert!(error.to_string().contains("absent.safetensors"), "{error}");
    }

    #[test]
    fn shard_names_lead_nowhere_else() {
        for shard in
            ["../x.safetensors", "/etc/passwd", "sub/x", "..", ".", "", "./x", "a\\b", "a\0b"]
        {
            assert_refused!(
                &[("config.json", GPT2), (WEIGHTS_INDEX, &index(&[("a", shard)]))],
                FormatError::ShardName { .. }
            );
        }
    }

    #[test]
    fn a_directory_without_configuration() {
        let message = assert_refused!(
            &[("model.safetensors", &weights(&["a"]))],
            FormatError::MissingConfig { .. }
        );
        assert!(message.ends_with("has no config.json"), "{message}");
        let message =
            assert_refused!(&[("m-Q8_0.gguf", b"GGUF")], FormatError::MissingConfig { .. });
        assert!(message.contains("m-Q8_0.gguf"), "{message}");
    }

    #[test]
    fn a_directory_without_weights() {
        for (files, found) in [
            (&[("tokenizer.json", &b"{}"[..])][..], "none of them"),
            (&[("pytorch_model.bin", b"PK")], "save_pretrained"),
            (&[("m.gguf", b"GGUF")], "m.gguf"),
            (&[("a.safetensors", b""), ("b.safetensors", b"")], "2 .safetensors files"),
        ] {
            let files = [files, &[("config.json", GPT2)]].concat();
            let message = assert_refused!(&files, FormatError::NoWeights { .. });
            assert!(message.contains(found), "{message}");
        }
    }

    #[test]
    fn quantized_directories_are_refused_by_name() {
        for (config, method) in [
            (r#"{"quantization_config":{"quant_method":"fp8"}}"#, "fp8"),
            (r#"{"quantization_config":{"quant_method":"awq","bits":4}}"#, "awq"),
            (r#"{"quantization_config":{"load_in_8bit":true}}"#, "bitsandbytes"),
            (r#"{"compression_config":{}}"#, "compressed-tensors"),
            (r#"{"quantization_config":{"bits":4}}"#, "unnamed"),
            (r#"{"quantization_config":"int4"}"#, "unnamed"),
            (r#"{"text_config":{"quantization_config":{"quant_method":"gptq"}}}"#, "gptq"),
        ] {
            let files = [("config.json", config.as_bytes()), (WEIGHTS, &weights(&["a"]))];
            let message = assert_refused!(&files, FormatError::Quantized { .. });
            assert!(message.contains(&format!("the {method} quantization")), "{message}");
        }
        let files = [("config.json", GPT2), ("quantize_config.json", b"{}")];
        assert_refused!(&files, FormatError::Quantized { .. });
        let directory = directory(&[
            ("config.json", br#"{"quantization_config":{"quant_method":"mxfp4"}}"#),
            (WEIGHTS, &weights(&["a"])),
        ]);
        assert!(Checkpoint::open(directory.path()).is_ok());
    }

    #[test]
    fn configurations_that_are_not_objects_of_a_sane_size() {
        for config in [&b""[..], b"[]", b"{", b"null", b"\xff", "[".repeat(1 << 16).as_bytes()] {
            assert_refused!(&[("config.json", config)], FormatError::Json { .. });
        }
        let files = [("config.json", GPT2), ("generation_config.json", b"[]")];
        assert_refused!(&files, FormatError::Json { .. });
        let huge = vec![b' '; MAX_CONFIG_BYTES as usize + 1];
        assert_refused!(&[("config.json", &huge)], FormatError::FileTooLarge { .. });
        let files = [("config.json", GPT2), (WEIGHTS_INDEX, br#"{"metadata":{}}"#)];
        assert_refused!(&files, FormatError::Json { .. });
    }

    #[test]
    fn weights_that_are_missing_or_broken_are_named() {
        let files = [("config.json", GPT2), (WEIGHTS, &b"\x02\0\0\0\0\0\0\0"[..])];
        let message = assert_refused!(&files, FormatError::Truncated { .. });
        assert!(message.contains(WEIGHTS), "{message}");
        let directory = directory(&[("config.json", GPT2)]);
        std::fs::create_dir(directory.path().join(WEIGHTS)).unwrap();
        let error = Checkpoint::open(directory.path()).unwrap_err();
        assert!(matches!(error, FormatError::NotAFile { .. }), "{error:?}");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_as_in_a_hub_cache() {
        let blobs = directory(&[("blob", &weights(&["a"]))]);
        let snapshot = directory(&[("config.json", GPT2)]);
        let link = snapshot.path().join(WEIGHTS);
        std::os::unix::fs::symlink(blobs.path().join("blob"), &link).unwrap();
        assert!(Checkpoint::open(snapshot.path()).is_ok());
        std::fs::remove_file(blobs.path().join("blob")).unwrap();
        let error = Checkpoint::open(snapshot.path()).unwrap_err();
        assert!(matches!(error, FormatError::Io { .. }), "{error:?}");
    }
}
