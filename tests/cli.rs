//! The program as its users see it: standard output, standard error, exit codes.

mod common;

use common::{error, ids, json, oxgpt, read_json, stdout, testdata};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn the_demo_continues_as_transformers_does() {
    for case in read_json("demo/greedy.json")["cases"].as_array().unwrap() {
        let prompt = case["prompt"].as_str().unwrap();
        let expected = ids(&case["greedy_ids"]);
        let report =
            json(oxgpt().args(["run", "--json", "--temperature", "0", "-n", "40", prompt]));
        assert_eq!(ids(&report["prompt_tokens"]), ids(&case["prompt_ids"]), "{prompt}");
        // A step where two tokens are nearly equal may go either way, since the backend rounds activations to 8 bits, and
        // all after it with it.
        let margins = case["margins"].as_array().unwrap();
        let sure = margins.iter().take_while(|margin| margin.as_f64().unwrap() > 0.05).count();
        let found = ids(&report["tokens"]);
        assert_eq!(found[..sure.min(found.len())], expected[..sure.min(found.len())], "{prompt}");
        assert!(found.len() == 40 || report["finish_reason"] == "stop");
    }
}

#[test]
fn the_demo_is_as_surprised_by_new_text_as_in_pytorch() {
    let expected = read_json("demo/perplexity.json");
    let file = testdata("demo/heldout.txt");
    let report = json(oxgpt().args(["perplexity", "--json"]).arg(file));
    assert_eq!(report["tokens"], expected["tokens"]);
    assert_eq!(report["scored_tokens"], expected["scored_tokens"]);
    let (found, expected) = (&report["perplexity"], &expected["q8_0"]["perplexity"]);
    let ratio = found.as_f64().unwrap() / expected.as_f64().unwrap();
    assert!((ratio - 1.0).abs() < 0.001, "{found} instead of {expected}");
}

#[test]
fn run_json_has_every_field() {
    let report = json(oxgpt().args([
        "run",
        "--json",
        "--seed",
        "7",
        "-n",
        "5",
        "--logprobs",
        "3",
        "--device",
        "cpu",
        "The sea",
    ]));
    let mut keys: Vec<&str> = report.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    let expected = [
        "device",
        "finish_reason",
        "logprobs",
        "prompt_tokens",
        "seed",
        "text",
        "timings",
        "tokens",
    ];
    assert_eq!(keys, expected);
    assert_eq!(report["seed"], 7);
    assert_eq!(report["device"], "cpu");
    assert_eq!(report["finish_reason"], "length");
    assert_eq!(report["tokens"].as_array().unwrap().len(), 5);
    assert_eq!(report["logprobs"].as_array().unwrap().len(), 5);
    for (token, logprob) in
        ids(&report["tokens"]).iter().zip(report["logprobs"].as_array().unwrap())
    {
        assert_eq!(logprob["token"].as_u64(), Some(*token));
        let top = logprob["top"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert!(top[0]["logprob"].as_f64() >= logprob["logprob"].as_f64());
    }
    assert_eq!(report["timings"]["generated_tokens"], 5);
    let plain = json(oxgpt().args(["run", "--json", "-n", "1", "The sea"]));
    assert!(plain["logprobs"].is_null());
    assert!(plain["seed"].as_u64().unwrap() < 1 << 53);
}

#[test]
fn the_same_seed_gives_the_same_answer_on_any_number_of_threads() {
    let run = |seed: &str, threads: &str| {
        let args = ["run", "-n", "30", "--seed", seed, "--threads", threads, "It was"];
        stdout(oxgpt().args(args))
    };
    assert_eq!(run("1", "1"), run("1", "2"));
    assert_ne!(run("1", "1"), run("2", "1"));
}

#[test]
fn an_answer_is_the_same_with_speculation() {
    let prompt = "one two three four five one two three four five one two three";
    for temperature in ["0", "0.6"] {
        let run = |speculate: &[&str]| {
            let args = ["run", "--json", "--device", "cpu", "-n", "90", "--seed", "4"];
            json(
                oxgpt().args(args).args(["--temperature", temperature]).args(speculate).arg(prompt),
            )
        };
        let (plain, speculated) = (run(&[]), run(&["--speculate"]));
        assert_eq!(plain["tokens"], speculated["tokens"]);
        assert!(plain["timings"]["drafted_tokens"].is_null());
        let count = |key: &str| speculated["timings"][key].as_u64().unwrap();
        assert!(count("kept_tokens") <= count("drafted_tokens"), "{speculated}");
    }
}

#[test]
fn the_streamed_text_is_the_text_of_the_report() {
    let args = ["run", "--seed", "3", "-n", "25", "In the beginning"];
    let streamed = stdout(oxgpt().args(args));
    let report = json(oxgpt().args(args).arg("--json"));
    assert_eq!(streamed.strip_suffix('\n'), report["text"].as_str());
}

#[test]
fn a_stop_string_cuts_the_text_before_it() {
    let args = ["run", "--json", "--temperature", "0", "-n", "30", "Once upon a time"];
    let free = json(oxgpt().args(args));
    let text = free["text"].as_str().unwrap();
    // From the middle of one word to the middle of the next, so that it spans tokens.
    let from = text.match_indices(' ').nth(4).unwrap().0 - 1;
    let stop: String = text[from..].chars().take(4).collect();
    let stopped = json(oxgpt().args(args).args(["--stop", "never this", "--stop", &stop]));
    assert_eq!(stopped["finish_reason"], "stop");
    assert_eq!(stopped["text"].as_str().unwrap(), &text[..text.find(&stop).unwrap()]);
    assert!(stopped["tokens"].as_array().unwrap().len() < 30);
}

#[test]
fn the_end_token_ends_an_answer_unless_it_is_ignored() {
    // A bias makes the end token certain.
    let args = ["run", "--json", "-n", "4", "--logit-bias", "0=100", "Hello"];
    let end = json(oxgpt().args(["inspect", "--json"]))["tokenizer"]["eos"].as_u64().unwrap();
    assert_eq!(end, 0, "the bias is for the demo's end token");
    let report = json(oxgpt().args(args));
    assert_eq!(ids(&report["tokens"]), [end]);
    assert_eq!(report["finish_reason"], "stop");
    assert_eq!(report["text"], "");
    let report = json(oxgpt().args(args).arg("--ignore-eos"));
    assert_eq!(ids(&report["tokens"]), [end; 4]);
    assert_eq!(report["finish_reason"], "length");
}

#[test]
fn the_prompt_may_come_from_standard_input_or_as_ids() {
    let argument = json(oxgpt().args(["run", "--json", "-n", "1", "Good\nmorning"]));
    let piped = json(oxgpt().args(["run", "--json", "-n", "1"]).write_stdin("Good\nmorning\n"));
    assert_eq!(argument["prompt_tokens"], piped["prompt_tokens"]);
    let list: Vec<String> = ids(&argument["prompt_tokens"]).iter().map(u64::to_string).collect();
    let as_ids = json(oxgpt().args(["run", "--json", "-n", "1", "--tokens", &list.join(",")]));
    assert_eq!(argument["prompt_tokens"], as_ids["prompt_tokens"]);
}

#[test]
fn an_answer_fills_the_context_and_no_more() {
    let report =
        json(oxgpt().args(["run", "--json", "--ignore-eos", "--ctx", "12", "Once upon a time"]));
    let total = report["prompt_tokens"].as_array().unwrap().len()
        + report["tokens"].as_array().unwrap().len();
    // The last token is chosen, but needs no position.
    assert_eq!(total, 13);
    assert_eq!(report["finish_reason"], "length");
}

#[test]
fn tokenize_and_decode_are_inverse() {
    let text = "  Zwölf Boxkämpfer\n\n\tjagen 12,345 \u{1F9D1}\u{200D}\u{1F680} <|endoftext|>!";
    let encoded = json(oxgpt().args(["tokenize", text]));
    assert_eq!(encoded, json(oxgpt().arg("tokenize").write_stdin(text)));
    let list = encoded.to_string();
    assert_eq!(stdout(oxgpt().args(["tokenize", "--decode", &list])), text);
    assert_eq!(stdout(oxgpt().args(["tokenize", ""])), "[]\n");
    // Standard input is verbatim, its final newline included.
    let newline = json(oxgpt().arg("tokenize").write_stdin("a\n"));
    assert_eq!(newline.as_array().unwrap().len(), 2);
}

#[test]
fn tokenize_needs_no_weights() {
    let strings = read_json("tokenizer/hard-strings.json");
    for name in ["bpe-vocab-merges", "bpe.gguf"] {
        for row in strings.as_array().unwrap().iter().step_by(60) {
            let model = testdata("tokenizer").join(name);
            let text = row["text"].as_str().unwrap();
            let found = json(oxgpt().arg("tokenize").arg("-m").arg(model).write_stdin(text));
            assert_eq!(found, row["ids"]["bpe"], "{name}: {text:?}");
        }
    }
}

#[test]
fn logits_are_those_of_transformers_on_both_devices() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("logits.safetensors");
    fs::write(&out, "something older").unwrap();
    let golden = fs::read(testdata("golden/gpt2-untied/golden.safetensors")).unwrap();
    let golden = safetensors::SafeTensors::deserialize(&golden).unwrap();
    let words = |name: &str| golden.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
    let tokens: Vec<String> =
        words("tokens.0").iter().map(|word| u32::from_le_bytes(*word).to_string()).collect();
    let expected: Vec<f32> =
        words("logits.0").iter().map(|word| f32::from_le_bytes(*word)).collect();
    for device in ["cpu", "reference"] {
        // Model and device are taken before the command and after it.
        let model = testdata("golden/gpt2-untied");
        let mut command = oxgpt();
        command.arg("-m").arg(model).arg("logits").args(["--device", device]);
        stdout(command.args(["--tokens", &tokens.join(",")]).arg("--out").arg(&out));
        let file = fs::read(&out).unwrap();
        let file = safetensors::SafeTensors::deserialize(&file).unwrap();
        let logits = file.tensor("logits").unwrap();
        assert_eq!(logits.shape(), golden.tensor("logits.0").unwrap().shape());
        for (word, expected) in logits.data().as_chunks::<4>().0.iter().zip(&expected) {
            assert!((f32::from_le_bytes(*word) - expected).abs() < 1e-3 * expected.abs().max(1.0));
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left there");
}

#[test]
fn a_model_without_a_tokenizer_still_computes() {
    let model = testdata("golden/gpt2-one-head-F32-no-vocab.gguf");
    let report =
        json(oxgpt().args(["run", "--json", "-n", "3", "--tokens", "1,2"]).arg("-m").arg(&model));
    assert!(report["text"].is_null());
    assert_eq!(report["tokens"].as_array().unwrap().len(), 3);
    let streamed = stdout(
        oxgpt()
            .args(["run", "-n", "3", "--temperature", "0", "--tokens", "1,2"])
            .arg("-m")
            .arg(&model),
    );
    assert_eq!(streamed.trim_end().split(',').count(), 3);
    let shown = json(oxgpt().args(["inspect", "--json"]).arg("-m").arg(&model));
    assert!(shown["tokenizer"].is_null());
    assert!(
        error(oxgpt().args(["run", "Hello"]).arg("-m").arg(&model), 1).contains("no tokenizer")
    );
    assert!(
        error(oxgpt().args(["tokenize", "Hello"]).arg("-m").arg(&model), 1)
            .contains("no tokenizer")
    );
}

#[test]
fn inspect_shows_shapes_types_and_tensors() {
    let shown = json(oxgpt().args(["inspect", "--json", "--tensors"]));
    assert_eq!(shown["family"], "gpt2");
    assert_eq!(shown["context_length"], 512);
    assert_eq!(shown["head"]["tied"], true);
    assert!(shown["types"]["Q8_0"]["tensors"].as_u64().unwrap() > 10);
    let embedding = &shown["tensors"][0];
    assert!(embedding["name"].is_string() && embedding["shape"].is_array());
    let text = stdout(oxgpt().args(["inspect", "--tensors"]));
    assert!(text.contains("token_embd.weight") && text.contains("tokenizer"));
}

#[test]
fn version_and_inspect_say_whether_there_are_cuda_kernels() {
    let version = stdout(oxgpt().arg("--version"));
    assert!(version.starts_with("oxgpt 0.") && version.contains("CUDA"), "{version}");
    let shown = json(oxgpt().args(["inspect", "--json"]));
    let build = shown["build"].as_str().unwrap();
    assert!(version.contains(build) && stdout(oxgpt().arg("inspect")).contains(build));
}

#[test]
fn bench_measures_what_it_was_asked_to() {
    let args = ["bench", "--json", "-p", "20", "-n", "4", "-d", "8", "-b", "2", "-r", "2"];
    let report = json(oxgpt().args(args));
    let tests = report["tests"].as_array().unwrap();
    assert_eq!(tests[0]["name"], "pp20 @ d8");
    assert_eq!(tests[1]["name"], "tg4 @ d8");
    assert!(tests.iter().all(|test| test["tokens_per_second"].as_f64().unwrap() > 0.0));
    let share = tests[1]["share_of_bandwidth"].as_f64().unwrap();
    let bytes = tests[1]["bytes_per_second"].as_f64().unwrap();
    let bandwidth = report["read_bandwidth"].as_f64().unwrap();
    if cfg!(target_os = "linux") {
        // Without the half gigabyte that measuring the bandwidth takes.
        let resident = report["peak_resident"].as_u64().unwrap();
        assert!(resident > 14 << 20 && resident < 256 << 20, "{resident}");
    }
    assert!((bytes / bandwidth / share - 1.0).abs() < 1e-9);
    let no_vocab = testdata("golden/gpt2-one-head-F32-no-vocab.gguf");
    let shown =
        stdout(oxgpt().args(["bench", "-p", "0", "-n", "2", "-r", "1"]).arg("-m").arg(no_vocab));
    assert!(shown.contains("tg2") && !shown.contains("pp"));
}

#[test]
fn a_model_agrees_with_itself() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    fs::write(&text, "Call me Ishmael. Some years ago, never mind how long precisely.").unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo.gguf");
    let mut command = oxgpt();
    command.args(["perplexity", "--json", "--ctx", "8", "--stride", "3", "--against"]).arg(demo);
    let report = json(command.args(["--against-device", "reference"]).arg(text));
    // Activations in 8 bits make the difference, and no more than that.
    assert!(report["mean_kl_divergence"].as_f64().unwrap().abs() < 3e-3);
    assert!(report["top_1_agreement"].as_f64().unwrap() > 0.8);
    assert_eq!(report["scored_tokens"].as_u64().unwrap() + 1, report["tokens"].as_u64().unwrap());
}

#[test]
fn wrong_arguments_exit_with_2() {
    for args in [
        &["run", "--temperature", "NaN", "x"][..],
        &["run", "--temperature", "-1", "x"],
        &["run", "--temperature", "inf", "x"],
        &["run", "--top-p", "1.5", "x"],
        &["run", "--top-p", "-0.1", "x"],
        &["run", "--min-p", "2", "x"],
        &["run", "--repeat-penalty", "0", "x"],
        &["run", "--frequency-penalty", "nan", "x"],
        &["run", "--top-k", "-3", "x"],
        &["run", "--seed", "9007199254740992", "x"],
        &["run", "--stop", "", "x"],
        &["run", "--tokens", "1,two"],
        &["run", "--tokens", "1", "x"],
        &["run", "--chat", "--raw", "x"],
        &["run", "--ctx", "0", "x"],
        &["run", "--threads", "0", "x"],
        &["run", "--device", "gpu", "x"],
        &["run", "--memory-limit", "lots", "x"],
        &["run", "--no-such-option", "x"],
        &["logits", "--tokens", "1"],
        &["no-such-command"],
    ] {
        error(oxgpt().args(args), 2);
    }
}

#[test]
fn what_else_is_wrong_exits_with_1_and_names_the_cause() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().to_str().unwrap();
    let truncated = folder.path().join("truncated.gguf");
    let demo = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo.gguf")).unwrap();
    fs::write(&truncated, &demo[..demo.len() - 1]).unwrap();
    let truncated = truncated.to_str().unwrap();
    let long = "word ".repeat(600);
    for (args, cause) in [
        (&["run", ""][..], "prompt is empty"),
        (&["run", "--tokens", ""], "prompt is empty"),
        (&["run", &long], "512"),
        (&["run", "--ctx", "4", "one two three four five six"], "4"),
        (&["run", "--ctx", "513", "x"], "512"),
        (&["run", "--tokens", "999999"], "999999"),
        (&["run", "--chat", "x"], "chat template"),
        (&["run", "--system", "Be brief.", "x"], "chat template"),
        (&["run", "--device", "cuda:99", "x"], "cuda:99"),
        (&["run", "--memory-limit", "1MiB", "x"], "1048576"),
        (&["run", "-m", "no/such/file.gguf", "x"], "no/such/file.gguf"),
        (&["run", "-m", empty, "x"], "config.json"),
        (&["run", "-m", truncated, "x"], "truncated.gguf"),
        (&["inspect", "-m", truncated], "truncated.gguf"),
        (&["tokenize", "--decode", "999999"], "999999"),
        (&["logits", "--tokens", "1", "--out", "no/such/folder/x"], "no/such/folder"),
        (&["logits", "--tokens", "", "--out", "x"], "empty"),
        (&["perplexity", "no-such-text"], "no-such-text"),
        (&["bench", "-p", "600"], "512"),
        (&["bench", "-p", "0", "-n", "0"], "nothing to measure"),
        (&["run", "--logit-bias", "999999=1", "x"], "999999"),
    ] {
        let message = error(oxgpt().args(args), 1);
        assert!(message.contains(cause), "{args:?}: {message}");
    }
}

/// A copy of a golden directory, with one value of its `config.json` changed.
fn with_config(folder: &Path, key: &str, value: Value) -> PathBuf {
    let copy = folder.join(key);
    fs::create_dir(&copy).unwrap();
    let source = testdata("golden/gpt2-base");
    fs::copy(source.join("model.safetensors"), copy.join("model.safetensors")).unwrap();
    let mut config = read_json("golden/gpt2-base/config.json");
    config[key] = value;
    fs::write(copy.join("config.json"), config.to_string()).unwrap();
    copy
}

#[test]
fn models_that_cannot_be_run_are_refused_by_name_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let gguf = fs::read(testdata("golden/gpt2-base-F32.gguf")).unwrap();
    let find = |bytes: &[u8]| gguf.windows(bytes.len()).position(|at| at == bytes).unwrap();

    // After a tensor's name: the number of dimensions, two dimensions of eight bytes, the type.
    let name = b"token_embd.weight";
    let mut unknown_type = gguf.clone();
    let at = find(name) + name.len() + 4 + 2 * 8;
    unknown_type[at..at + 4].copy_from_slice(&999u32.to_le_bytes());
    fs::write(folder.join("type.gguf"), unknown_type).unwrap();

    // After a key: the type of the value, the length of the string, the string.
    let key = b"general.architecture";
    let mut unknown_architecture = gguf.clone();
    let at = find(key) + key.len() + 4 + 8;
    unknown_architecture[at..at + 4].copy_from_slice(b"gptX");
    fs::write(folder.join("architecture.gguf"), unknown_architecture).unwrap();

    let truncated = with_config(folder, "n_positions", 96.into());
    let weights = fs::read(truncated.join("model.safetensors")).unwrap();
    fs::write(truncated.join("model.safetensors"), &weights[..weights.len() - 7]).unwrap();
    let no_weights = with_config(folder, "n_ctx", 96.into());
    fs::remove_file(no_weights.join("model.safetensors")).unwrap();
    let broken_config = with_config(folder, "n_head", 5.into());
    fs::write(broken_config.join("config.json"), "{\"model_type\": ").unwrap();

    for (model, causes) in [
        (folder.join("type.gguf"), ["token_embd.weight", "999"]),
        (folder.join("architecture.gguf"), ["architecture.gguf", "gptX"]),
        (truncated, ["model.safetensors", "incomplete"]),
        (no_weights, ["n_ctx", "safetensors"]),
        (broken_config, ["n_head", "config.json"]),
        (with_config(folder, "model_type", "bert".into()), ["config.json", "bert"]),
        (with_config(folder, "n_inner", 121.into()), ["mlp.c_fc.weight", "[40, 121]"]),
        (with_config(folder, "n_layer", 4_000_000_000u32.into()), ["layers", "4000000000"]),
        (with_config(folder, "n_embd", Value::Null), ["n_embd", "config.json"]),
        (with_config(folder, "activation_function", "mish".into()), ["gelu_new", "mish"]),
    ] {
        let out = folder.join("logits.safetensors");
        let mut command = oxgpt();
        command.args(["logits", "--tokens", "1", "--out"]).arg(&out).arg("-m").arg(&model);
        let message = error(&mut command, 1);
        for cause in causes {
            assert!(message.contains(cause), "{}: {message}", model.display());
        }
        assert!(!out.exists(), "{}", model.display());
    }
}

#[test]
fn the_environment_names_a_model_and_a_device() {
    let model = testdata("golden/gpt2-base");
    let shown = json(oxgpt().args(["inspect", "--json"]).env("OXGPT_MODEL", &model));
    assert_eq!(shown["format"], "Hugging Face");
    let report =
        json(oxgpt().args(["run", "--json", "-n", "1", "x"]).env("OXGPT_DEVICE", "reference"));
    assert_eq!(report["device"], "reference");
}
