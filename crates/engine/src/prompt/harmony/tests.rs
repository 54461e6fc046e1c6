//! Prompts equal to those of `openai-harmony`, and a parser that takes everything.

use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::*;
use crate::prompt::{ChatFormat, Conversation, Rendered, TemplateError, message};
use crate::tokenizer::Tokenizer;

/// `cases.json` is written by `tools/golden/harmony.py` with the Python package `openai-harmony`.
#[derive(Deserialize)]
struct Cases {
    conversations: Vec<Case>,
    answers: Vec<Answer>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    messages: Vec<Value>,
    tools: Option<Vec<Value>>,
    #[serde(default)]
    variables: Map<String, Value>,
    add_generation_prompt: Option<bool>,
    pieces: Vec<Piece>,
}

/// A special token, or the text between two.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Piece {
    Special(String),
    Text(String),
}

#[derive(Deserialize)]
struct Answer {
    name: String,
    text: String,
    messages: Vec<AnswerMessage>,
}

#[derive(Debug, Deserialize, PartialEq)]
struct AnswerMessage {
    author: String,
    channel: Option<String>,
    recipient: Option<String>,
    content_type: Option<String>,
    text: String,
}

const SPECIAL: [&str; 7] = [
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|channel|>",
    "<|constrain|>",
    "<|return|>",
    "<|call|>",
];

fn cases() -> Cases {
    serde_json::from_str(include_str!("cases.json")).expect("the cases are JSON")
}

/// The tokenizer of the test data with harmony's tokens, and a template as gpt-oss has one.
fn tokenizer_with(special: &[&str], template: &str) -> Tokenizer {
    let source =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/tokenizer/bpe/tokenizer.json");
    let text = std::fs::read_to_string(source).expect("the test data is there");
    let mut tokenizer: Value = serde_json::from_str(&text).expect("it is JSON");
    for (index, content) in special.iter().enumerate() {
        tokenizer["added_tokens"].as_array_mut().expect("a list").push(json!({
            "id": 1124 + index, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        }));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, value: &Value| {
        std::fs::write(folder.path().join(name), value.to_string()).expect("it can be written");
    };
    write("tokenizer.json", &tokenizer);
    let config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "chat_template": template});
    write("tokenizer_config.json", &config);
    Tokenizer::from_directory(folder.path()).expect("it is valid").expect("it is there")
}

fn tokenizer() -> Tokenizer {
    tokenizer_with(&SPECIAL, "<|channel|>")
}

fn harmony(tokenizer: &Tokenizer) -> Harmony {
    Harmony::of(tokenizer).expect("it has the tokens")
}

fn render(case: &Case, harmony: &Harmony) -> Result<Rendered, TemplateError> {
    harmony.render(&Conversation {
        messages: case.messages.clone(),
        tools: case.tools.clone(),
        variables: case.variables.clone(),
        add_generation_prompt: case.add_generation_prompt.unwrap_or(true),
        // 2025-06-28, 12:00
        now: Some(UNIX_EPOCH + Duration::from_secs(1_751_112_000)),
        ..Conversation::default()
    })
}

#[test]
fn prompts_are_those_of_openai_harmony() {
    let harmony = harmony(&tokenizer());
    let mut wrong = Vec::new();
    for case in cases().conversations {
        let rendered = render(&case, &harmony).expect(&case.name);
        let mut pieces: Vec<Piece> = Vec::new();
        for segment in rendered.segments {
            match (segment.parse_special, pieces.last_mut()) {
                (true, _) => pieces.push(Piece::Special(segment.text.into_owned())),
                (false, Some(Piece::Text(text))) => text.push_str(&segment.text),
                (false, _) => pieces.push(Piece::Text(segment.text.into_owned())),
            }
        }
        if pieces != case.pieces {
            let at = pieces.iter().zip(&case.pieces).take_while(|(a, b)| a == b).count();
            wrong.push(format!("{}\n{:?}\n{:?}", case.name, case.pieces.get(at), pieces.get(at)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn special_strings_from_outside_are_no_special_tokens() {
    let tokenizer = tokenizer();
    let case = cases().conversations.into_iter().find(|case| case.name == "special strings");
    let case = case.expect("the case is there");
    let rendered = render(&case, &harmony(&tokenizer)).expect("it renders");
    let ids = tokenizer.encode_segments(&rendered.segments).expect("it can be encoded");
    let found = ids.iter().filter(|id| tokenizer.is_special(**id));
    let found: Vec<String> = found.map(|id| tokenizer.decode(&[*id]).expect("a token")).collect();
    let structure = case.pieces.iter().filter_map(|piece| match piece {
        Piece::Special(token) => Some(token.as_str()),
        Piece::Text(_) => None,
    });
    assert_eq!(found, structure.collect::<Vec<_>>());
    assert_eq!(tokenizer.decode(&ids).expect("tokens"), rendered.text());
}

#[test]
fn messages_that_cannot_be_said_are_refused() {
    let harmony = harmony(&tokenizer());
    let error = |messages: Value, tools: Value, variables: Value| {
        let conversation = Conversation {
            messages: messages.as_array().expect("a list").clone(),
            tools: tools.as_array().cloned(),
            variables: variables.as_object().cloned().unwrap_or_default(),
            ..Conversation::default()
        };
        harmony.render(&conversation).expect_err("it is refused").to_string()
    };
    for (messages, cause) in [
        (
            json!([message("user", "x"), message("critic", "x")]),
            "message 2 of the conversation: expected the role",
        ),
        (json!([{"content": "x"}]), "found null"),
        (json!([{"role": "user"}]), "expected a text as content, found nothing"),
        (json!([{"role": "user", "content": [{"type": "image"}]}]), "not text"),
        (json!([{"role": "tool", "content": "x"}]), "names no call before it"),
        (json!([{"role": "tool", "content": "x", "name": "f to=assistant"}]), "names no call"),
        (json!([{"role": "assistant", "tool_calls": [{"function": {"name": "a\nb"}}]}]), "no name"),
        (json!([{"role": "assistant", "tool_calls": 7}]), "not a list"),
        (json!([{"role": "assistant", "content": "x", "thinking": 7}]), "reasoning"),
    ] {
        let found = error(messages, Value::Null, Value::Null);
        assert!(found.contains(cause), "{found}");
    }
    let user = json!([message("user", "x")]);
    for (tools, variables, cause) in [
        (
            json!([{"type": "function"}]),
            Value::Null,
            "a tool's name: expected a word, found nothing",
        ),
        (json!([{"name": "two words"}]), Value::Null, "two words"),
        (
            Value::Null,
            json!({"reasoning_effort": "extreme"}),
            "expected low, medium or high, found \"extreme\"",
        ),
        (Value::Null, json!({"model_identity": 1}), "model_identity"),
        (Value::Null, json!({"response_format": "json"}), "response_format"),
    ] {
        let found = error(user.clone(), tools, variables);
        assert!(found.contains(cause), "{found}");
    }
}

#[test]
fn a_schema_may_be_nested_without_end() {
    let mut schema = json!({"type": "string"});
    for _ in 0..100 {
        schema = json!({"type": "array", "items": {"type": "object", "properties": {"a": schema}}});
    }
    let conversation = Conversation {
        tools: Some(vec![json!({"name": "f", "parameters": schema})]),
        ..Conversation::default()
    };
    let text = harmony(&tokenizer()).render(&conversation).expect("it renders").text();
    assert!(text.contains("a?: any[],") || text.contains("a?: any,"), "{text}");
}

#[test]
fn the_format_is_harmony_where_tokens_and_model_agree() {
    let is_harmony = |special: &[&str], template: &str, family: &str| {
        let format =
            ChatFormat::new(&tokenizer_with(special, template), family).expect("it is valid");
        matches!(format, Some(ChatFormat::Harmony(_)))
    };
    assert!(is_harmony(&SPECIAL, "{{ '<|channel|>' }}", "llama"));
    assert!(is_harmony(&SPECIAL, "{{ messages }}", "gpt_oss"));
    assert!(!is_harmony(&SPECIAL, "{{ messages }}", "llama"));
    assert!(!is_harmony(&SPECIAL[..6], "{{ '<|channel|>' }}", "gpt_oss"));
    let tokenizer = tokenizer();
    let HarmonyTokens { end, end_of_answer, call, .. } =
        HarmonyTokens::of(&tokenizer).expect("all");
    let ends = harmony(&tokenizer).end_tokens(&[1123, end, end_of_answer]);
    assert!(ends == [1123, end_of_answer, call] && !ends.contains(&end));
}

fn parse(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<Part> {
    let mut parser = harmony(tokenizer).parser(tokenizer);
    let mut deltas: Vec<Delta> = ids.iter().flat_map(|id| parser.push(*id)).collect();
    let (rest, parts) = parser.finish();
    deltas.extend(rest);
    // The deltas tell the same.
    let mut told: Vec<Part> = Vec::new();
    for delta in deltas {
        match delta {
            Delta::Start(header) => told.push(Part {
                header,
                text: String::new(),
                end: End::None,
                end_text: String::new(),
            }),
            Delta::Text(text) => told.last_mut().expect("a message").text += &text,
            Delta::End(end) => told.last_mut().expect("a message").end = end,
        }
    }
    let bare = |part: &Part| Part { end_text: String::new(), ..part.clone() };
    assert_eq!(told, parts.iter().map(bare).collect::<Vec<_>>());
    parts
}

fn parse_text(tokenizer: &Tokenizer, text: &str) -> Vec<Part> {
    parse(tokenizer, &tokenizer.encode(text).expect("it can be encoded"))
}

#[test]
fn answers_are_read_as_openai_harmony_reads_them() {
    let tokenizer = tokenizer();
    for answer in cases().answers {
        let parts = parse_text(&tokenizer, &answer.text);
        let found: Vec<AnswerMessage> = parts
            .iter()
            .map(|part| AnswerMessage {
                author: part.header.author.clone(),
                channel: part.header.channel.clone(),
                recipient: part.header.recipient.clone(),
                content_type: part.header.constraint.clone(),
                text: part.text.clone(),
            })
            .collect();
        let expected = answer.messages.into_iter().map(|message| AnswerMessage {
            // There the name of the token is part of the type.
            content_type: message.content_type.map(|name| name.replace("<|constrain|>", "")),
            ..message
        });
        assert_eq!(found, expected.collect::<Vec<_>>(), "{}", answer.name);
    }
}

#[test]
fn parts_have_their_purpose_and_calls_their_arguments() {
    let tokenizer = tokenizer();
    let parts = parse_text(
        &tokenizer,
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>b<|end|>\
         <|start|>assistant to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>\
         <|start|>assistant<|channel|>final<|message|>c<|return|>",
    );
    let kinds: Vec<Kind> = parts.iter().map(Part::kind).collect();
    assert_eq!(kinds, [Kind::Reasoning, Kind::Commentary, Kind::ToolCall, Kind::Final]);
    let ends: Vec<End> = parts.iter().map(|part| part.end).collect();
    assert_eq!(ends, [End::Message, End::Message, End::Call, End::Answer]);
    let call = parts[2].tool_call().expect("a call");
    assert_eq!((call.name.as_str(), call.arguments.as_str()), ("f", "{}"));
    assert_eq!(call.constraint.as_deref(), Some("json"));
    assert!(parts[3].tool_call().is_none());
}

#[test]
fn what_is_not_in_the_format_is_raw() {
    let tokenizer = tokenizer();
    let raw = |text: &str| {
        let parts = parse_text(&tokenizer, text);
        parts.iter().map(|part| (part.kind(), part.text.clone())).collect::<Vec<_>>()
    };
    let one = |text: &str| vec![(Kind::Raw, text.to_owned())];
    assert_eq!(raw("Hello, world"), one("Hello, world"));
    assert_eq!(raw("<|channel|>final"), one("<|channel|>final"));
    assert_eq!(raw("<|channel|>other<|message|>x<|end|>"), one("x"));
    assert_eq!(raw("<|start|>user<|channel|>final<|message|>x"), one("x"));
    assert_eq!(raw("<|message|>x"), one("x"));
    assert_eq!(raw("<|return|>"), one(""));
    assert_eq!(raw(""), []);
    // A channel within a text begins the next message; a message within a text is lost from view otherwise.
    let two = raw("<|channel|>analysis<|message|>a<|channel|>final<|message|>b");
    assert_eq!(two, [(Kind::Reasoning, "a".to_owned()), (Kind::Final, "b".to_owned())]);
    let two = raw("<|channel|>final<|message|>a<|end|>b");
    assert_eq!(two, [(Kind::Final, "a".to_owned()), (Kind::Raw, "b".to_owned())]);
    // A header that never ends is shown before it fills memory.
    let mut parser = harmony(&tokenizer).parser(&tokenizer);
    let ids = tokenizer.encode(&"word ".repeat(300)).expect("text");
    assert!(ids.iter().any(|id| !parser.push(*id).is_empty()));
}

/// The text that tokens stand for, special tokens by their strings, broken characters replaced run by run.
fn text_of(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let runs = ids.chunk_by(|a, b| tokenizer.is_special(*a) == tokenizer.is_special(*b));
    runs.map(|run| {
        let bytes = run.iter().filter_map(|id| tokenizer.token_bytes(*id)).flatten().copied();
        String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
    })
    .collect()
}

fn whole(parts: &[Part]) -> String {
    parts.iter().map(|part| part.header.raw.clone() + &part.text + &part.end_text).collect()
}

/// Ids of which a third are special, and some of which do not exist.
fn ids() -> impl Strategy<Value = Vec<u32>> {
    let id = prop_oneof![1124..1131u32, 1124..1131u32, 0..1140u32, 0..256u32];
    prop::collection::vec(id, 0..200)
}

proptest! {
    #[test]
    fn every_sequence_of_tokens_is_read_and_nothing_is_lost(ids in ids()) {
        let tokenizer = TOKENIZER.with(std::rc::Rc::clone);
        let parts = parse(&tokenizer, &ids);
        let known: Vec<u32> = ids.into_iter().filter(|id| tokenizer.token_bytes(*id).is_some()).collect();
        prop_assert_eq!(whole(&parts), text_of(&tokenizer, &known));
    }

    /// How a text is cut into tokens changes nothing.
    #[test]
    fn the_cut_into_tokens_does_not_matter(
        pieces in prop::collection::vec(
            prop_oneof![
                prop::sample::select(SPECIAL.to_vec()).prop_map(str::to_owned),
                prop::sample::select(vec!["assistant", " to=functions.f", "final", "analysis", "commentary ", "é😀"])
                    .prop_map(str::to_owned),
                "[a-zé漢 \\n]{0,12}",
            ],
            0..24,
        )
    ) {
        let tokenizer = TOKENIZER.with(std::rc::Rc::clone);
        let text = pieces.concat();
        let ids = tokenizer.encode(&text).expect("text");
        // Every byte a token of its own.
        let mut bytes = Vec::new();
        for id in &ids {
            match tokenizer.is_special(*id) {
                true => bytes.push(*id),
                false => bytes.extend(tokenizer.token_bytes(*id).expect("a token").iter().map(|byte| BYTES.with(|b| b[*byte as usize]))),
            }
        }
        let parts = parse(&tokenizer, &ids);
        prop_assert_eq!(&parts, &parse(&tokenizer, &bytes));
        prop_assert_eq!(whole(&parts), text);
    }
}

thread_local! {
    static TOKENIZER: std::rc::Rc<Tokenizer> = std::rc::Rc::new(tokenizer());
    /// The token of every byte.
    static BYTES: Vec<u32> = TOKENIZER.with(|tokenizer| {
        (0..=255u8)
            .map(|byte| {
                let is_it = |id: &u32| tokenizer.token_bytes(*id) == Some(&[byte]);
                (0..1124).find(is_it).expect("every byte is a token")
            })
            .collect()
    });
}
