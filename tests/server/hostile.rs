//! Clients that go away, stand still, or say nothing of sense; others must not notice.

use crate::client::{Server, read, until};
use serde_json::json;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

/// An answer that takes long.
fn endless() -> String {
    json!({"model": "demo", "prompt": "The sea", "max_tokens": 500, "ignore_eos": true}).to_string()
}

fn endless_stream() -> String {
    let request = json!({
        "model": "demo", "prompt": "The sea", "max_tokens": 500, "ignore_eos": true, "stream": true
    });
    request.to_string()
}

const PATH: &str = "/v1/completions";

#[test]
fn who_goes_away_is_not_answered_any_more() {
    // The slow device, so that an answer takes longer than it takes to go away.
    let server = Server::demo(&["--device", "reference", "--sequences", "2"]);
    let running = || server.metric("oxgpt_running_sequences");
    for body in [endless(), endless_stream()] {
        for ends in [Shutdown::Both, Shutdown::Write] {
            let mut stream = server.begin("POST", PATH, &[], &body);
            until("it runs", || running() == 1.0);
            if body.contains("stream") {
                let mut first = [0; 16];
                stream.read_exact(&mut first).unwrap();
            }
            let before = server.metric("oxgpt_generated_tokens_total");
            stream.shutdown(ends).unwrap();
            until("it is cancelled", || running() == 0.0);
            let after = server.metric("oxgpt_generated_tokens_total");
            assert!(after < before + 400.0, "{before} {after}");
        }
    }
    let cancelled = r#"oxgpt_sequences_total{model_name="demo",finished_reason="abort"}"#;
    let text = server.get("/metrics").body;
    assert!(text.contains(&format!("{cancelled} 4")), "{text}");
    // Those who wait go away as well.
    let streams: Vec<_> = (0..5).map(|_| server.begin("POST", PATH, &[], &endless())).collect();
    until("they wait", || server.metric("oxgpt_waiting_sequences") == 3.0);
    drop(streams);
    until("all have gone", || running() == 0.0 && server.metric("oxgpt_waiting_sequences") == 0.0);
}

#[test]
fn slow_clients_are_given_up() {
    let server = Server::demo(&["--client-timeout", "0.4"]);
    let begin = Instant::now();
    // Half a head, half a body, and nothing at all.
    let mut head = server.connect();
    head.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n").unwrap();
    let mut body = server.connect();
    body.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 100\r\n\r\n{")
        .unwrap();
    let mut silent = server.connect();
    let response = read(&mut body);
    assert_eq!(response.status, 408, "{}", response.body);
    assert!(response.error().contains("not complete after 0.4 s"));
    for stream in [&mut head, &mut silent] {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn an_answer_may_take_only_so_long() {
    let server = Server::demo(&["--device", "reference", "--request-timeout", "0.3"]);
    let late = server.send("POST", PATH, &[], &endless());
    assert_eq!(late.status, 504, "{}", late.body);
    assert_eq!(late.json()["error"]["code"], "timeout");
    // A stream has begun with 200, and says it at its end.
    let late = server.send("POST", PATH, &[], &endless_stream());
    assert_eq!(late.status, 200);
    let last = late.body.lines().rfind(|line| line.starts_with("data: ")).unwrap();
    assert!(last.contains("\"timeout\"") && !late.body.contains("[DONE]"), "{last}");
    until("it is cancelled", || server.metric("oxgpt_running_sequences") == 0.0);
}

#[test]
fn garbage_disturbs_nobody() {
    let server = Server::demo(&[]);
    let request = json!({"model": "demo", "prompt": "The sea", "temperature": 0, "max_tokens": 20});
    let expected = server.answer(PATH, &request)["choices"].clone();
    thread::scope(|scope| {
        for client in 0..4u64 {
            let (server, request, expected) = (&server, &request, &expected);
            scope.spawn(move || {
                let mut state = client + 1;
                let mut random = || {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state
                };
                for round in 0..12 {
                    assert_eq!(server.answer(PATH, request)["choices"], *expected);
                    let bytes: Vec<u8> = (0..200).map(|_| random() as u8).collect();
                    let mut stream = server.connect();
                    let _ = match round % 3 {
                        0 => stream.write_all(&bytes),
                        1 => {
                            let head = format!(
                                "POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: 200\r\n\r\n"
                            );
                            stream
                                .write_all(head.as_bytes())
                                .and_then(|()| stream.write_all(&bytes))
                        }
                        _ => {
                            let body = request.to_string();
                            let cut = random() as usize % body.len();
                            let head = format!(
                                "POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{}",
                                body.len(),
                                &body[..cut]
                            );
                            stream.write_all(head.as_bytes())
                        }
                    };
                    drop(stream);
                }
            });
        }
    });
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
    until("nothing is left", || server.metric("oxgpt_running_sequences") == 0.0);
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let server = Server::demo(&[]);
    let cases: [&[u8]; 5] = [
        b"{\"model\": \"demo\", \"prompt\": \"\xff\xfe\"}",
        b"{\"model\": \"demo\", \"prompt\": \"\xc3\"}",
        b"{\"mod\xe9l\": \"demo\", \"prompt\": \"a\"}",
        b"\xef\xbb\xbf{\"model\": \"demo\", \"prompt\": \"a\"}",
        b"\0\0\0\0",
    ];
    for path in ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings"] {
        for body in cases {
            let mut stream = server.connect();
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
            let response = read(&mut stream);
            assert_eq!(response.status, 400, "{}", response.body);
            let message = response.error();
            assert!(
                message.contains("not UTF-8") || message.contains("not valid JSON"),
                "{message}"
            );
        }
    }
    let name = server.get("/v1/models/%ff");
    assert_eq!(name.status, 400);
    assert!(name.error().contains("UTF-8"), "{}", name.error());
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_connection_takes_many_requests_in_any_framing() {
    let server = Server::demo(&[]);
    let body = json!({"model": "demo", "prompt": "The sea", "max_tokens": 2}).to_string();
    let length = body.len();
    let plain =
        format!("POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}");
    let (one, two) = body.split_at(7);
    let chunked = format!(
        "POST {PATH} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n{one}\r\n{:x}\r\n{two}\r\n0\r\n\r\n",
        two.len()
    );
    let wrong = format!("POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{{}}");
    let last = "GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    // All at once, before any answer.
    let mut stream = server.connect();
    stream.write_all([&*plain, &chunked, &wrong, &plain, last].concat().as_bytes()).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    let statuses: Vec<&str> =
        all.match_indices("HTTP/1.1 ").map(|(at, _)| &all[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "200", "400", "200", "200"]);

    // One that waits to be told to go on.
    let mut stream = server.connect();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut told = [0; 25];
    stream.read_exact(&mut told).unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(body.as_bytes()).unwrap();
    assert_eq!(read(&mut stream).status, 200);
}

#[test]
fn other_methods_are_told_which_there_are() {
    let server = Server::demo(&[]);
    for (method, path, allow) in [
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/models", "GET,HEAD"),
        ("PUT", "/v1/completions", "POST"),
    ] {
        let response = server.send(method, path, &[], "");
        assert_eq!(response.status, 405);
        assert_eq!(response.header("allow"), Some(allow));
        assert_eq!(response.error(), format!("{path} does not take {method}"));
    }
    let head = server.send("HEAD", "/v1/models", &[], "");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(server.send("OPTIONS", PATH, &[], "").status, 200);
}

#[test]
fn too_many_requests_are_told_when_to_come_again() {
    let server = Server::demo(&["--device", "reference", "--sequences", "1", "--queue", "2"]);
    let streams: Vec<_> = (0..3).map(|_| server.begin("POST", PATH, &[], &endless())).collect();
    until("two wait", || server.metric("oxgpt_waiting_sequences") == 2.0);
    let refused = server.send("POST", PATH, &[], &endless());
    assert_eq!(refused.status, 429, "{}", refused.body);
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=600).contains(&seconds));
    assert!(refused.error().starts_with("2 requests are waiting already; try again in"));
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    assert_eq!(server.metric("oxgpt_refused_requests_total"), 1.0);
    drop(streams);
    until("there is room", || server.metric("oxgpt_waiting_sequences") == 0.0);
    let request = json!({"model": "demo", "prompt": "The sea", "max_tokens": 2});
    until("it is answered", || server.post(PATH, &request).status == 200);
}
