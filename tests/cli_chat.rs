//! Conversations, with a model whose answers are written into it.

mod common;
#[path = "common/scripted.rs"]
mod scripted;

use common::{error, ids, json, oxgpt, stdout, testdata};
use scripted::{HARMONY, write_model};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Output;
use tempfile::TempDir;

const POSITIONS: usize = 512;
const END: u32 = 1123;
const TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'critic' %}{{ raise_exception('No critics!') }}{% endif %}\
    [{{ m.role }}: {{ m.content }}]{% endfor %}{% if reasoning_effort is defined %}({{ reasoning_effort }}){% endif %}\
    {% if add_generation_prompt %}[assistant: {% endif %}";

/// The ids of a text.
fn tokens(model: &Path, text: &str) -> Vec<u32> {
    let ids = ids(&json(oxgpt().args(["tokenize", text, "-m"]).arg(model)));
    ids.into_iter().map(|id| id as u32).collect()
}

/// What a model must know to say `answer` after `prompt` tokens.
fn script(prompt: usize, answer: &[u32]) -> Vec<(usize, u32)> {
    answer.iter().enumerate().map(|(index, token)| (prompt - 1 + index, *token)).collect()
}

/// A model that answers these prompts, given as text, with these texts, given with their special tokens.
fn model(special: &[&str], template: &str, answers: &[(usize, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), special, Some(template), POSITIONS, &[]);
    let script: Vec<(usize, u32)> = answers
        .iter()
        .flat_map(|(prompt, answer)| script(*prompt, &tokens(folder.path(), answer)))
        .collect();
    write_model(folder.path(), special, Some(template), POSITIONS, &script);
    folder
}

/// A model with the plain template, whose every answer to a conversation of `turns` is known. Each turn is what the user
/// says and what the model answers.
fn plain(turns: &[(&str, &str)]) -> TempDir {
    let bare = model(&[], TEMPLATE, &[]);
    let mut answers: Vec<(usize, String)> = Vec::new();
    let mut text = String::new();
    for (user, answer) in turns {
        text += &format!("[user: {user}][assistant: ");
        answers.push((tokens(bare.path(), &text).len(), format!("{answer}<|endoftext|>")));
        text += &format!("{answer}]");
    }
    let answers: Vec<(usize, &str)> =
        answers.iter().map(|(at, text)| (*at, text.as_str())).collect();
    model(&[], TEMPLATE, &answers)
}

/// What a conversation with these lines prints.
fn chat(model: &Path, args: &[&str], lines: &str) -> Output {
    let mut command = oxgpt();
    command.args(["chat", "--temperature", "0"]).args(args).arg("-m").arg(model);
    command.write_stdin(lines).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_conversation_is_remembered_saved_and_loaded() {
    let model = plain(&[
        ("Hello", "Hi there."),
        ("line one\nline two", "Two lines."),
        ("/etc", "A folder."),
    ]);
    let file = model.path().join("said.json");
    let lines = format!("Hello\n\nline one\\\nline two\n/save {}\n//etc\n", file.display());
    let output = chat(model.path(), &[], &lines);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "Hi there.\nTwo lines.\nA folder.\n");
    let saved: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(
        saved,
        json!([
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi there."},
            {"role": "user", "content": "line one\nline two"},
            {"role": "assistant", "content": "Two lines."}
        ])
    );
    let output =
        chat(model.path(), &[], &format!("/load {}\n//etc\n/exit\nnever said\n", file.display()));
    assert_eq!(text(&output.stdout), "A folder.\n", "{}", text(&output.stderr));
    // A block says the same as a line that goes on.
    let output = chat(model.path(), &[], "Hello\n\"\"\"\nline one\nline two\"\"\"\n/reset\nHello");
    assert_eq!(text(&output.stdout), "Hi there.\nTwo lines.\nHi there.\n");
}

#[test]
fn commands_that_are_wrong_are_named_and_change_nothing() {
    let model = plain(&[("Hello", "Hi."), ("Again", "Yes.")]);
    let write = |name: &str, text: &str| {
        let file = model.path().join(name);
        fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let cases = [
        ("/nonsense".to_string(), "unknown command /nonsense"),
        ("/".to_string(), "unknown command /"),
        ("/save".to_string(), "/save needs the name of a file"),
        ("/reset now".to_string(), "takes nothing after it, found `now`"),
        ("/reasoning maybe".to_string(), "found `maybe`"),
        ("/load no/such/file".to_string(), "no/such/file"),
        ("/save no/such/folder/file".to_string(), "no/such/folder/file"),
        (format!("/load {}", write("text", "Hello")), "not a JSON list of messages"),
        (format!("/load {}", write("number", "[7]")), "message 1: expected an object, found 7"),
        (
            format!("/load {}", write("role", r#"[{"role": "critic", "content": ""}]"#)),
            "found \"critic\"",
        ),
        (format!("/load {}", write("content", r#"[{"role": "user", "content": 7}]"#)), "found 7"),
    ];
    let lines: String = cases.iter().map(|(line, _)| line.clone() + "\n").collect();
    let output = chat(model.path(), &[], &format!("Hello\n{lines}/help\nAgain\n"));
    assert_eq!(text(&output.stdout), "Hi.\nYes.\n");
    let stderr = text(&output.stderr);
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error:")).collect();
    assert_eq!(errors.len(), cases.len(), "{stderr}");
    for ((line, cause), error) in cases.iter().zip(errors) {
        assert!(error.contains(cause), "{line}: {error}");
    }
    assert!(stderr.contains("/system TEXT") && stderr.contains("Ctrl-C"));
}

#[test]
fn the_system_message_and_the_effort_reach_the_template() {
    let bare = model(&[], TEMPLATE, &[]);
    let prompt = tokens(bare.path(), "[system: Be kind.][user: Hello](high)[assistant: ").len();
    let model = model(&[], TEMPLATE, &[(prompt, "Dear!<|endoftext|>")]);
    let args = ["--system", "Be kind.", "--reasoning-effort", "high"];
    assert_eq!(text(&chat(model.path(), &args, "Hello\n").stdout), "Dear!\n");
    let lines = "/system Be kind.\nHello\n/reset\nHello\n";
    assert_eq!(text(&chat(model.path(), &args[2..], lines).stdout), "Dear!\nDear!\n");
    let mut run = oxgpt();
    run.args(["run", "--temperature", "0", "Hello", "--chat"])
        .args(args)
        .arg("-m")
        .arg(model.path());
    assert_eq!(stdout(&mut run), "Dear!\n");
}

#[test]
fn what_does_not_fit_is_refused_and_what_is_cut_says_so() {
    let model = plain(&[("Hello", "Hi."), ("Again", "Yes.")]);
    let long = "word ".repeat(600);
    let output = chat(model.path(), &[], &format!("Hello\n{long}\nAgain\n"));
    assert_eq!(text(&output.stdout), "Hi.\nYes.\n", "the long message is as if it was not sent");
    let stderr = text(&output.stderr);
    let error = stderr.lines().find(|line| line.starts_with("error:")).unwrap();
    assert!(error.contains(" tokens, but the context holds 512"), "{error}");

    let output = chat(model.path(), &["-n", "1"], "Hello\n");
    assert_eq!(text(&output.stdout), "H\n");
    assert!(text(&output.stderr).contains("[cut after 1 tokens, as --max-tokens says]"));
    let prompt = tokens(model.path(), "[user: Hello][assistant: ").len();
    let output = chat(model.path(), &["--ctx", &prompt.to_string()], "Hello\n");
    let cut = format!("[cut: the context of {prompt} positions is full]");
    assert!(text(&output.stderr).contains(&cut), "{}", text(&output.stderr));
}

#[test]
fn a_model_without_a_template_has_no_conversations() {
    assert!(
        error(oxgpt().arg("chat").write_stdin("Hello\n"), 1)
            .contains("has no chat template, which chat needs")
    );
    assert!(
        error(oxgpt().args(["run", "--reasoning-effort", "low", "x"]), 1)
            .contains("--reasoning-effort")
    );
    let no_vocab = testdata("golden/gpt2-one-head-F32-no-vocab.gguf");
    assert!(error(oxgpt().arg("chat").arg("-m").arg(no_vocab), 1).contains("no chat template"));
    for args in [
        &["chat", "--temperature", "-1"][..],
        &["chat", "--reasoning-effort", "extreme"],
        &["chat", "words"],
        &["run", "--raw", "--reasoning-effort", "low", "x"],
        &["run", "--raw", "--hide-reasoning", "x"],
    ] {
        error(oxgpt().args(args), 2);
    }
    let broken = model(&[], "{% for %}", &[]);
    assert!(
        error(oxgpt().arg("chat").arg("-m").arg(broken.path()), 1)
            .contains("chat template is not valid")
    );
    let failing = model(&[], "{{ raise_exception('Never!') }}", &[]);
    let message = error(oxgpt().args(["run", "x", "-m"]).arg(failing.path()), 1);
    assert!(message.contains("refuses the conversation: Never!"), "{message}");
}

#[test]
fn special_strings_of_a_message_are_text() {
    let model = plain(&[]);
    let report = |text: &str| {
        let report = json(oxgpt().args(["run", "--json", "-n", "1", text, "-m"]).arg(model.path()));
        ids(&report["prompt_tokens"])
    };
    assert!(!report("a<|endoftext|>b").contains(&u64::from(END)));
    assert!(
        ids(&json(oxgpt().args(["tokenize", "a<|endoftext|>b", "-m"]).arg(model.path())))
            .contains(&u64::from(END))
    );
}

/// The prompt of the message `Hello` in harmony, as the program writes it today.
fn harmony_prompt(model: &Path) -> String {
    let report = json(oxgpt().args(["run", "--json", "-n", "1", "Hello", "-m"]).arg(model));
    let ids = report["prompt_tokens"].to_string();
    let text = stdout(oxgpt().args(["tokenize", "--decode", &ids, "-m"]).arg(model));
    assert!(text.starts_with("<|start|>system<|message|>You are ChatGPT"), "{text}");
    assert!(
        text.contains("Reasoning: medium") && text.ends_with(&format!("{HELLO}<|start|>assistant")),
        "{text}"
    );
    text
}

const HELLO: &str = "<|start|>user<|message|>Hello<|end|>";
const THOUGHT: &str = "<|channel|>analysis<|message|>Be nice.<|end|><|start|>assistant<|channel|>final<|message|>Hi there.<|return|>";
const CALLS: &str =
    "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"a\": 1}<|call|>";

/// Long, so that the answer to it begins after the positions of the answer before, which had reasoning.
const GO_ON: &str = "Go on, please, and tell me what you think of the weather in the far north, of its long nights and of \
    the light that comes back to it every year in spring, when the ice breaks and the birds return.";

/// A model that thinks before it answers, and then calls a tool.
fn gpt_oss() -> TempDir {
    let template = "{{ '<|channel|>' }}";
    let bare = model(&HARMONY, template, &[]);
    let first = harmony_prompt(bare.path());
    let second = format!(
        "{first}<|channel|>final<|message|>Hi there.<|end|><|start|>user<|message|>{GO_ON}<|end|><|start|>assistant"
    );
    let [first, second] = [first, second].map(|text| tokens(bare.path(), &text).len());
    assert!(second >= first + tokens(bare.path(), THOUGHT).len());
    model(&HARMONY, template, &[(first, THOUGHT), (second, CALLS)])
}

#[test]
fn harmony_keeps_reasoning_answers_and_calls_apart() {
    let model = gpt_oss();
    let file = model.path().join("said.json");
    let lines =
        format!("Hello\n{GO_ON}\n/save {}\n/reset\n/reasoning off\nHello\n", file.display());
    let output = chat(model.path(), &[], &lines);
    assert_eq!(text(&output.stdout), "Hi there.\n\nHi there.\n", "{}", text(&output.stderr));
    let stderr = text(&output.stderr);
    assert_eq!(stderr.matches("Be nice.").count(), 1, "{stderr}");
    assert!(stderr.contains("[calls functions.f] {\"a\": 1}"), "{stderr}");
    let saved: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(
        saved,
        json!([
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi there."},
            {"role": "user", "content": GO_ON},
            {"role": "assistant", "content": "", "tool_calls": [
                {"type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}
            ]}
        ])
    );
}

#[test]
fn run_prints_the_final_channel() {
    let model = gpt_oss();
    let run = |args: &[&str]| {
        let mut command = oxgpt();
        command.args(["run", "--temperature", "0", "Hello"]).args(args).arg("-m").arg(model.path());
        command
    };
    let output = run(&[]).output().unwrap();
    assert_eq!(text(&output.stdout), "Hi there.\n");
    assert!(text(&output.stderr).contains("Be nice.\n"));
    let output = run(&["--hide-reasoning"]).output().unwrap();
    assert_eq!(text(&output.stdout), "Hi there.\n");
    assert!(!text(&output.stderr).contains("Be nice."));
    let report = json(&mut run(&["--json"]));
    assert_eq!(report["text"], "Hi there.");
    assert_eq!(report["reasoning"], "Be nice.");
    assert_eq!((&report["commentary"], &report["tool_calls"]), (&json!(""), &json!([])));
    assert_eq!(report["finish_reason"], "stop");
    // The answer ends with <|return|>, and not with the <|end|> of its first message.
    assert_eq!(ids(&report["tokens"]).last(), Some(&1129));
    let report = json(&mut run(&["--json", "--stop", "there"]));
    assert_eq!((&report["text"], &report["reasoning"]), (&json!("Hi "), &json!("Be nice.")));
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_the_answer_and_keeps_the_conversation() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};
    // Nothing is scripted after the prompt, so the answer never ends by itself.
    let model = model(&[], TEMPLATE, &[]);
    let start = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_oxgpt"))
            .args(["chat", "--temperature", "0", "--device", "reference", "-m"])
            .arg(model.path())
            .args(args)
            .env_remove("OXGPT_MODEL")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let interrupt = |id: u32| {
        assert!(Command::new("kill").args(["-INT", &id.to_string()]).status().unwrap().success())
    };
    let mut child = start(&[]);
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    writeln!(stdin, "Hello").unwrap();
    // The first token of the answer is an exclamation mark.
    let mut first = [0];
    std::io::Read::read_exact(&mut stdout, &mut first).unwrap();
    interrupt(child.id());
    let mut rest = String::new();
    stdout.read_line(&mut rest).unwrap();
    let file = model.path().join("said.json");
    writeln!(stdin, "/save {}", file.display()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let saved: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(saved[0], json!({"role": "user", "content": "Hello"}));
    let answer = format!("{}{}", first[0] as char, rest.trim_end_matches('\n'));
    assert_eq!(saved[1]["content"], answer.as_str());
    // It may have been complete before the signal arrived.
    assert!(stderr.contains("[stopped]") || stderr.contains("[cut: "), "{stderr}");

    // Where nothing is being answered, it ends the program.
    let child = start(&["--max-tokens", "1"]);
    let mut child = child;
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    writeln!(stdin, "Hello").unwrap();
    stdout.read_line(&mut String::new()).unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("[cut after") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0);
    }
    interrupt(child.id());
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
