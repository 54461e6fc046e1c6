//! A server that ends with the test, and requests to it.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for any answer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server.
pub struct Server {
    child: Child,
    pub address: String,
    stderr: Arc<Mutex<String>>,
}

/// A response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// In lower case, each as `name: value`.
    pub headers: Vec<String>,
    pub body: String,
}

impl Response {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let prefix = format!("{name}: ");
        self.headers.iter().find_map(|header| header.strip_prefix(&prefix))
    }

    /// The events of a stream, which ends with `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        let data: Vec<&str> =
            self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.last(), Some(&"[DONE]"), "{}", self.body);
        data[..data.len() - 1].iter().map(|text| serde_json::from_str(text).unwrap()).collect()
    }

    /// The message of an error, which must have the shape of OpenAI's.
    pub fn error(&self) -> String {
        let body = self.json();
        let error = &body["error"];
        for field in ["message", "type", "param", "code"] {
            assert!(error.get(field).is_some(), "{}", self.body);
        }
        error["message"].as_str().unwrap().to_string()
    }
}

impl Server {
    /// A server of the built-in model, once it is ready.
    pub fn demo(args: &[&str]) -> Self {
        let server = Self::start(None, args);
        server.wait();
        server
    }

    /// A server of another model, once it is ready.
    pub fn of(model: &Path, args: &[&str]) -> Self {
        let server = Self::start(Some(model), args);
        server.wait();
        server
    }

    /// A server that listens.
    pub fn start(model: Option<&Path>, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oxgpt"));
        command.env_remove("OXGPT_MODEL").env("OXGPT_DEVICE", "cpu");
        command.args(["serve", "--port", "0", "--threads", "1"]).args(args);
        if let Some(model) = model {
            command.arg("-m").arg(model);
        }
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut first = String::new();
        lines.read_line(&mut first).unwrap();
        let address = first.trim().strip_prefix("listening on http");
        let address = address.map(|rest| rest.trim_start_matches("s").trim_start_matches("://"));
        let address = address.unwrap_or_else(|| panic!("{first}")).to_string();
        let stderr = Arc::new(Mutex::new(first));
        let said = Arc::clone(&stderr);
        thread::spawn(move || {
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
                said.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        Server { child, address, stderr }
    }

    /// Waits until the model is loaded.
    pub fn wait(&self) {
        until("the server is ready", || self.get("/health").status == 200);
    }

    /// What the server said on standard error.
    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    pub fn get(&self, path: &str) -> Response {
        self.send("GET", path, &[], "")
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.send("POST", path, &["Content-Type: application/json"], &body.to_string())
    }

    /// The JSON of a request that is answered.
    pub fn answer(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body);
        assert_eq!(response.status, 200, "{}", response.body);
        response.json()
    }

    pub fn send(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Response {
        let mut stream = self.begin(method, path, headers, body);
        read(&mut stream)
    }

    /// Sends a request, and leaves the response to be read.
    pub fn begin(&self, method: &str, path: &str, headers: &[&str], body: &str) -> TcpStream {
        let mut stream = self.connect();
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A sample of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text
            .lines()
            .find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        let line = line.unwrap_or_else(|| panic!("{name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// The exit code, once the program has ended.
    pub fn exit_code(&mut self) -> Option<i32> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(begin.elapsed() < PATIENCE, "the server does not end: {}", self.stderr());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("the server said:\n{}", self.stderr());
        }
    }
}

/// Waits for something.
pub fn until(what: &str, mut happens: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !happens() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Reads a response to its end.
pub fn read(stream: &mut TcpStream) -> Response {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Response {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no head: {}", String::from_utf8_lossy(bytes)));
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let header = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        format!("{}: {value}", name.to_lowercase())
    };
    let headers: Vec<String> = lines.map(header).collect();
    let body = &bytes[end + 4..];
    let is_chunked = headers.iter().any(|header| header == "transfer-encoding: chunked");
    let body = if is_chunked { unchunked(body) } else { body.to_vec() };
    Response { status, headers, body: String::from_utf8(body).unwrap() }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") {
        let length = std::str::from_utf8(&bytes[..end]).unwrap();
        let length = usize::from_str_radix(length, 16).unwrap();
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&bytes[end + 2..end + 2 + length]);
        bytes = &bytes[end + 4 + length..];
    }
    panic!("the response was cut short after {} bytes", body.len());
}
