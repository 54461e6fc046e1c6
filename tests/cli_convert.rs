//! The commands that write models, and the one that plans memory.

mod common;

use common::{error, ids, json, oxgpt, stdout, testdata};
use std::fs;
use std::path::Path;

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_converted_directory_answers_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (testdata("tokenizer/bpe"), folder.path().join("bpe.gguf"));
    assert_eq!(stdout(oxgpt().arg("convert").arg(&source).arg(&out)), "");
    assert_eq!(names(folder.path()), ["bpe.gguf"]);
    let run = |model: &Path| {
        let args = ["run", "--json", "--temperature", "0", "-n", "12", "Zwölf Boxkämpfer <|x|>"];
        json(oxgpt().args(args).arg("-m").arg(model))
    };
    let (before, after) = (run(&source), run(&out));
    assert_eq!(before["prompt_tokens"], after["prompt_tokens"]);
    assert_eq!(ids(&before["tokens"]), ids(&after["tokens"]));
    let shown = json(oxgpt().args(["inspect", "--json", "-m"]).arg(&out));
    assert_eq!((&shown["format"], &shown["name"]), (&"GGUF".into(), &"bpe".into()));
}

#[test]
fn what_is_there_is_replaced_only_when_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (testdata("golden/gpt2-base"), folder.path().join("m.gguf"));
    fs::write(&out, "older").unwrap();
    let gguf = testdata("golden/gpt2-blocks-F16.gguf");
    for (command, first, rest) in [
        ("convert", source.as_os_str(), &[][..]),
        ("synth", "gpt2".as_ref(), &[]),
        ("quantize", gguf.as_os_str(), &["Q8_0"]),
    ] {
        let message = error(oxgpt().arg(command).arg(first).arg(&out).args(rest), 1);
        assert!(message.contains("m.gguf is there already"), "{message}");
        assert_eq!(fs::read(&out).unwrap(), b"older");
    }
    stdout(oxgpt().args(["convert", "--force"]).arg(&source).arg(&out));
    assert!(fs::read(&out).unwrap().starts_with(b"GGUF"));
}

#[test]
fn failures_name_the_cause_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.gguf");
    for (source, cause) in [
        (testdata("golden/gpt2-erf"), "activation_function"),
        (testdata("golden/gpt2-unscaled"), "scale_attn_weights"),
        (testdata("golden/gpt2-base-F32.gguf"), "a GGUF file already"),
        (testdata("tokenizer"), "config.json"),
        (folder.path().join("absent"), "absent"),
    ] {
        let message = error(oxgpt().arg("convert").arg(&source).arg(&out), 1);
        assert!(message.contains(cause), "{message}");
    }
    let nowhere = folder.path().join("absent/m.gguf");
    let message = error(oxgpt().arg("convert").arg(testdata("golden/gpt2-base")).arg(nowhere), 1);
    assert!(message.contains("absent"), "{message}");
    assert!(names(folder.path()).is_empty());
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let directory = testdata("golden/gpt2-base");
    let gguf = testdata("golden/gpt2-blocks-F16.gguf");
    for (command, last) in [
        (["convert", directory.to_str().unwrap()], None),
        (["synth", "gpt2"], None),
        (["quantize", gguf.to_str().unwrap()], Some("Q8_0")),
    ] {
        // A limit on the size of files, reported as an error and not by a signal, is as good as a full disk.
        let script = r#"trap "" XFSZ; ulimit -f 20; exec "$@""#;
        let mut shell = assert_cmd::Command::new("sh");
        shell.args(["-c", script, "sh"]).arg(env!("CARGO_BIN_EXE_oxgpt")).args(command);
        let message = error(shell.arg(folder.path().join("m.gguf")).args(last), 1);
        assert!(message.contains("cannot write") && message.contains("m.gguf"), "{message}");
        assert!(names(folder.path()).is_empty(), "{command:?}");
    }
}

/// Starts a command that writes into `folder`, interrupts it as soon as there is a file, and waits for it.
#[cfg(unix)]
fn interrupted(folder: &Path, command: &mut std::process::Command) -> std::process::ExitStatus {
    let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    while names(folder).is_empty() {
        assert_eq!(child.try_wait().unwrap(), None, "it ended before it was interrupted");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let mut kill = std::process::Command::new("kill");
    assert!(kill.args(["-INT", &child.id().to_string()]).status().unwrap().success());
    child.wait().unwrap()
}

/// A GPT-2 of one narrow layer with a million tokens, 256 MB of zeros that take no room on a disk.
#[cfg(unix)]
fn write_wide_model(folder: &Path) {
    let (vocab, hidden) = (1_000_000, 64);
    let config = serde_json::json!({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": vocab,
        "n_embd": hidden, "n_layer": 1, "n_head": 1, "n_positions": 8,
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut shapes = vec![("wte.weight", vec![vocab, hidden]), ("wpe.weight", vec![8, hidden])];
    for (name, columns) in [
        ("h.0.attn.c_attn", 3 * hidden),
        ("h.0.attn.c_proj", hidden),
        ("h.0.mlp.c_fc", 4 * hidden),
        ("h.0.mlp.c_proj", hidden),
    ] {
        let rows = if name == "h.0.mlp.c_proj" { 4 * hidden } else { hidden };
        shapes.push((format!("{name}.weight").leak(), vec![rows, columns]));
        shapes.push((format!("{name}.bias").leak(), vec![columns]));
    }
    for name in ["h.0.ln_1.weight", "h.0.ln_1.bias", "h.0.ln_2.weight", "h.0.ln_2.bias"] {
        shapes.push((name, vec![hidden]));
    }
    shapes.extend([("ln_f.weight", vec![hidden]), ("ln_f.bias", vec![hidden])]);
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in shapes {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        let tensor =
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.to_string(), tensor);
    }
    let header = serde_json::Value::from(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    fs::write(folder.join("model.safetensors"), &file).unwrap();
    let weights = fs::File::options().write(true).open(folder.join("model.safetensors")).unwrap();
    weights.set_len((file.len() + end) as u64).unwrap();
}

#[cfg(unix)]
#[test]
fn an_interrupted_command_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("source"), folder.path().join("out"));
    fs::create_dir_all(&source).unwrap();
    fs::create_dir_all(&out).unwrap();
    let model = source.join("m.gguf");
    stdout(oxgpt().args(["synth", "gpt2", "--type", "F16"]).arg(&model));
    let oxgpt = || std::process::Command::new(env!("CARGO_BIN_EXE_oxgpt"));
    let to = out.join("m.gguf");
    write_wide_model(&source);
    let (mut convert, mut quantize, mut synth) = (oxgpt(), oxgpt(), oxgpt());
    convert.arg("convert").arg(&source).arg(&to);
    quantize.arg("quantize").arg(&model).arg(&to).arg("Q6_K");
    synth.args(["synth", "gpt2-xl", "--type", "F32"]).arg(&to);
    for command in [&mut convert, &mut quantize, &mut synth] {
        let status = interrupted(&out, command);
        assert_eq!(status.code(), Some(130), "{command:?}");
        assert!(names(&out).is_empty(), "{command:?}: {:?}", names(&out));
    }
}

#[test]
fn wrong_arguments_exit_with_2() {
    for args in [
        &["convert", "src"][..],
        &["convert", "src", "dst.gguf", "-m", "x"],
        &["-m", "x", "convert", "src", "dst.gguf"],
        &["synth", "gpt2", "dst.gguf", "--device", "cpu"],
        &["synth", "gpt2", "dst.gguf", "--memory-limit", "1GiB"],
        &["synth", "gpt5", "dst.gguf"],
        &["synth", "gpt2", "dst.gguf", "--type", "Q9_9"],
        &["synth", "gpt2", "dst.gguf", "--seed", "-1"],
        &["synth", "gpt2", "dst.gguf", "--layers", "0"],
        &["synth", "gpt-oss-20b", "dst.gguf", "--layers", "25"],
        &["plan", "--ctx", "0"],
        &["plan", "--sequences", "0"],
    ] {
        let message = error(oxgpt().args(args), 2);
        if args.contains(&"Q9_9") {
            assert!(message.contains("F32, F16, BF16") && message.contains("Q8_0"), "{message}");
        }
    }
    // What is set for other commands is no mistake here.
    let message = error(oxgpt().args(["convert", "absent", "dst.gguf"]).env("OXGPT_MODEL", "x"), 1);
    assert!(message.contains("absent"), "{message}");
}

#[test]
fn a_synthetic_model_is_exact_repeatable_and_alive() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let synth = |name: &str, seed: &str| {
        let args = ["synth", "gpt2", "--type", "q8_0", "--seed", seed];
        assert_eq!(stdout(oxgpt().args(args).arg(path(name))), "");
        fs::read(path(name)).unwrap()
    };
    let first = synth("a.gguf", "1");
    assert!(first == synth("b.gguf", "1"), "the same seed gives the same bytes");
    assert!(first != synth("c.gguf", "2"), "another seed gives others");
}

#[test]
fn a_stack_of_a_few_layers_is_the_beginning_of_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.gguf");
    stdout(oxgpt().args(["synth", "gpt2", "--type", "Q4_0", "--layers", "2"]).arg(&model));
    let shown = json(oxgpt().args(["inspect", "--json", "--tensors", "-m"]).arg(&model));
    assert_eq!(shown["layers"], 2);
    let names: Vec<_> =
        shown["tensors"].as_array().unwrap().iter().map(|tensor| &tensor["name"]).collect();
    assert!(names.iter().any(|name| **name == "blk.1.ffn_down.weight"), "{names:?}");
    assert!(names.iter().all(|name| !name.as_str().unwrap().starts_with("blk.2.")), "{names:?}");
}

#[test]
fn a_synthetic_model_runs_and_is_planned() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (folder.path().join("m.gguf"), folder.path().join("logits.safetensors"));
    stdout(oxgpt().args(["synth", "gpt2", "--type", "Q8_0"]).arg(&model));
    let shown = json(oxgpt().args(["inspect", "--json", "--tensors", "-m"]).arg(&model));
    assert_eq!(shown["parameters"], 124_439_808);
    assert_eq!(shown["vocab_size"], 50257);
    assert!(shown["tokenizer"].is_null());
    for tensor in shown["tensors"].as_array().unwrap() {
        let is_matrix = tensor["shape"].as_array().unwrap().len() == 2;
        let keeps = !is_matrix || tensor["name"] == "position_embd.weight";
        assert_eq!(tensor["type"], if keeps { "F32" } else { "Q8_0" }, "{tensor}");
    }
    stdout(oxgpt().args(["logits", "--tokens", "5,6,7", "-m"]).arg(&model).arg("--out").arg(&out));
    let file = fs::read(&out).unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    let logits = file.tensor("logits").unwrap().data().to_vec();
    let logits: Vec<f32> =
        logits.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
    let mean = logits.iter().sum::<f32>() / logits.len() as f32;
    let square = logits.iter().map(|logit| (logit - mean).powi(2)).sum::<f32>();
    let deviation = (square / logits.len() as f32).sqrt();
    assert!(deviation > 0.1 && deviation < 10.0, "{deviation}");
    assert!(logits.iter().all(|logit| logit.abs() < 100.0));

    let plan = json(oxgpt().args(["plan", "--json", "--sequences", "4", "-m"]).arg(&model));
    // 12 layers, keys and values of width 768, in f32.
    assert_eq!(plan["kv_per_token"]["actual"], 12 * 2 * 768 * 4);
    assert_eq!(plan["kv_per_token"]["actual"], plan["kv_per_token"]["multi_head"]);
    assert_eq!(plan["kv"].as_u64(), Some(12 * 2 * 768 * 4 * 1024 * 4));
    let eight = json(oxgpt().args(["plan", "--json", "--kv", "q8", "-m"]).arg(&model));
    // A byte each, and a half for each 32 of the 64 elements of a head.
    assert_eq!(eight["kv_per_token"]["actual"], 12 * 2 * 12 * (64 + 2 * 2));
    assert_eq!(eight["kv"].as_u64(), Some(12 * 2 * 12 * 68 * 1024));
    let weights = &plan["weights_by_type"];
    let sum = weights["Q8_0"].as_u64().unwrap() + weights["F32"].as_u64().unwrap();
    assert_eq!(plan["weights"].as_u64(), Some(sum));
}

#[test]
fn the_plan_is_what_loading_goes_by() {
    let plan = |args: &[&str]| json(oxgpt().args(["plan", "--json", "--ctx", "64"]).args(args));
    let total = plan(&[])["total"].as_u64().unwrap();
    for (limit, fits) in [(total, true), (total - 1, false)] {
        let limit = limit.to_string();
        let report = plan(&["--memory-limit", &limit]);
        assert_eq!(report["fits_memory_limit"], fits);
        let args = ["run", "-n", "1", "--ctx", "64", "--memory-limit", &limit, "x"];
        if fits {
            stdout(oxgpt().args(args));
        } else {
            let message = error(oxgpt().args(args), 1);
            assert!(message.contains(&total.to_string()), "{message}");
        }
    }
    let report = plan(&[]);
    assert!(report["memory_limit"].is_null() && report["fits_memory_limit"].is_null());
    if cfg!(target_os = "linux") {
        assert!(report["available"].as_u64().unwrap() > 0 && report["fits"].is_boolean());
    }
    let reference = plan(&["--device", "reference"]);
    assert_eq!(reference["kv"].as_u64(), report["kv"].as_u64().map(|kv| 2 * kv));
    let text = stdout(oxgpt().args(["plan", "--memory-limit", "1MiB"]));
    assert!(text.contains("does not fit") && text.contains("multi-head"), "{text}");
    assert!(error(oxgpt().args(["plan", "--ctx", "513"]), 1).contains("512"));
}

#[test]
fn the_plan_says_what_would_fit() {
    // A GPU that is named by its memory need not be here.
    for device in ["cpu", "cuda", "cuda:3"] {
        let plan = |limit: u64, sequences: u64, context: u64| {
            let [limit, sequences, context] = [limit, sequences, context].map(|n| n.to_string());
            let mut plan = oxgpt();
            plan.args(["plan", "--json", "--device", device, "--memory-limit", &limit]);
            json(plan.args(["--sequences", &sequences, "--ctx", &context]))
        };
        let fits = |limit, sequences, context| {
            plan(limit, sequences, context)["fits_memory_limit"].as_bool().unwrap()
        };
        let total = plan(1, 3, 256)["total"].as_u64().unwrap();
        for limit in [total, total - 1, total * 9 / 10, total / 8] {
            let fit = &plan(limit, 3, 256)["fit"];
            assert_eq!(fit["fits"], limit == total, "{fit}");
            // What would fit does, and one more does not.
            let most = fit["largest_sequences"].as_u64();
            assert_eq!(most == Some(3), limit == total, "{fit}");
            match most {
                Some(most) => {
                    assert!(fits(limit, most, 256) && !fits(limit, most + 1, 256), "{fit}");
                }
                None => assert!(!fits(limit, 1, 256)),
            }
            match fit["largest_context"].as_u64() {
                Some(most) => assert!(fits(limit, 3, most) && !fits(limit, 3, most + 1), "{fit}"),
                None => assert!(!fits(limit, 3, 1)),
            }
        }
        let shared = ["plan", "--json", "--device", device, "--ctx", "64", "--kv-tokens", "200"];
        let report = json(oxgpt().args(shared).args(["--memory-limit", "1GiB"]));
        assert_eq!(report["fit"]["largest_context"], 200, "as long as there is room for one");
        let text = stdout(oxgpt().args(["plan", "--device", device, "--memory-limit", "20MiB"]));
        assert!(text.contains("does not fit") && text.contains("--memory-limit "), "{text}");
    }
    let shown = json(oxgpt().args(["inspect", "--json"]));
    assert_eq!(shown["devices"][0]["device"], "cpu");
    let planned = json(oxgpt().args(["plan", "--json"]));
    assert_eq!(shown["devices"][0]["total"], planned["devices"][0]["total"]);
    assert!(stdout(oxgpt().args(["inspect"])).contains("on cpu"));
}

/// The types of a model's tensors, by name.
fn types(model: &Path) -> Vec<(String, String)> {
    let shown = json(oxgpt().args(["inspect", "--json", "--tensors", "-m"]).arg(model));
    let tensors = shown["tensors"].as_array().unwrap().iter();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_string();
    tensors.map(|tensor| (text(&tensor["name"]), text(&tensor["type"]))).collect()
}

#[test]
fn quantizing_gives_each_tensor_its_type_and_says_what_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let quantize = |from: &Path, to: &Path, target: &str| {
        let output = oxgpt().arg("quantize").arg(from).arg(to).arg(target).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && output.stdout.is_empty(), "{stderr}");
        stderr
    };
    let source = testdata("golden/gpt2-blocks-F16.gguf");
    let said = quantize(&source, &path("q8.gguf"), "q8_0");
    assert_eq!(said, "");
    for (name, dtype) in types(&path("q8.gguf")) {
        let keeps = !name.ends_with("weight") || name.contains("norm") || name.contains("position");
        assert_eq!(dtype, if keeps { "F32" } else { "Q8_0" }, "{name}");
    }
    let shown = json(oxgpt().args(["inspect", "--json", "-m"]).arg(path("q8.gguf")));
    let metadata = shown["metadata"].to_string();
    assert!(metadata.contains(r#"["general.file_type","7"]"#), "{metadata}");
    // Rows of 64 and 96 are no whole blocks of 256.
    let said = quantize(&source, &path("mix.gguf"), "Q4_K_M");
    let line = |dtype: &str| said.lines().find(|line| line.contains(dtype)).unwrap();
    assert!(
        line("are Q5_0").contains("6 tensors are Q5_0, since their rows are no whole blocks"),
        "{said}"
    );
    assert!(line("are Q8_0").contains("token_embd.weight"), "{said}");
    let dtypes: Vec<(String, String)> = types(&path("mix.gguf"));
    for (name, dtype) in [
        ("blk.0.ffn_up.weight", "Q5_0"),
        ("blk.0.attn_qkv.weight", "Q5_0"),
        ("blk.1.attn_qkv.weight", "Q8_0"),
        ("token_embd.weight", "Q8_0"),
    ] {
        assert!(dtypes.contains(&(name.into(), dtype.into())), "{name}: {dtypes:?}");
    }
    let said = quantize(&path("q8.gguf"), &path("q4.gguf"), "Q4_0");
    assert!(said.contains("Q8_0 tensors were turned into Q4_0"), "{said}");
    // As F32 nothing more is lost.
    assert_eq!(quantize(&path("q8.gguf"), &path("f32.gguf"), "F32"), "");
    // The same type again changes no byte of a tensor.
    assert_eq!(quantize(&path("q8.gguf"), &path("again.gguf"), "Q8_0"), "");
    assert!(fs::read(path("again.gguf")).unwrap() == fs::read(path("q8.gguf")).unwrap());

    let logits = |model: &str| {
        let out = path("logits.safetensors");
        let mut command = oxgpt();
        command
            .args(["logits", "--device", "reference", "--tokens", "3,1,4,1,5", "-m"])
            .arg(path(model));
        stdout(command.arg("--out").arg(&out));
        let file = fs::read(&out).unwrap();
        let file = safetensors::SafeTensors::deserialize(&file).unwrap();
        let data = file.tensor("logits").unwrap().data().to_vec();
        data.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect::<Vec<_>>()
    };
    fs::copy(&source, path("f16.gguf")).unwrap();
    let (exact, q8) = (logits("f16.gguf"), logits("q8.gguf"));
    let norm = exact.iter().map(|x| x * x).sum::<f32>();
    let error = exact.iter().zip(&q8).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
    assert!((error / norm).sqrt() < 0.05, "{error} of {norm}");
}

#[test]
fn quantize_refuses_what_it_cannot_do_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("m.gguf"), folder.path().join("out.gguf"));
    fs::copy(testdata("golden/gpt2-blocks-F16.gguf"), &source).unwrap();
    let before = fs::read(&source).unwrap();
    let run = |from: &Path, to: &Path, code| {
        error(oxgpt().args(["quantize", "--force"]).arg(from).arg(to).arg("Q8_0"), code)
    };
    assert!(run(&source, &source, 1).contains("part of the model that is read"));
    assert!(run(&testdata("golden/gpt2-base"), &out, 1).contains("a directory"));
    assert!(run(&folder.path().join("absent.gguf"), &out, 1).contains("absent.gguf"));
    let message = error(oxgpt().arg("quantize").arg(&source).arg(&out).arg("Q9_9"), 2);
    assert!(message.contains("Q4_K_M"), "{message}");
    assert_eq!(names(folder.path()), ["m.gguf"]);
    assert!(fs::read(&source).unwrap() == before);
}
