//! Options of `serve`.

use super::generation::EngineArgs;
use super::values::{parse_positive, parse_size};
use crate::server::app::Log;
use std::path::PathBuf;
use std::time::Duration;

/// Answer requests over HTTP.
///
/// The server speaks OpenAI's API. It listens before the model is loaded; /health says when it is ready.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// A TOML file with options, such as `port = 8080`; what is typed or in the environment goes before it
    #[arg(long, value_name = "FILE", env = "OXGPT_CONFIG")]
    pub config: Option<PathBuf>,
    /// The address to listen at; 0.0.0.0 is every one of this machine
    #[arg(long, value_name = "HOST", env = "OXGPT_HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// The port to listen at; 0 picks a free one
    #[arg(long, value_name = "PORT", env = "OXGPT_PORT", default_value_t = 8080)]
    pub port: u16,
    /// A key that clients must give; may be given several times
    #[arg(long, value_name = "KEY", env = "OXGPT_API_KEY", hide_env_values = true, value_parser = parse_key)]
    pub api_key: Vec<String>,
    /// What clients call the model [default: the name of its file or directory]
    #[arg(long, value_name = "NAME", env = "OXGPT_ALIAS")]
    pub alias: Option<String>,
    /// Answers that are generated at once
    #[arg(long, value_name = "N", env = "OXGPT_SEQUENCES", value_parser = parse_positive, default_value = "4")]
    pub sequences: usize,
    /// Answers that may wait beside those; more are refused
    #[arg(long, value_name = "N", env = "OXGPT_QUEUE", default_value_t = 256)]
    pub queue: usize,
    /// Tokens, of all answers together with their prompts, whose keys and values there is room for; when it is full, the
    /// answers that came last wait for the others [default: `--sequences` whole contexts]
    #[arg(long, value_name = "N", env = "OXGPT_KV_TOKENS", value_parser = parse_positive)]
    pub kv_tokens: Option<usize>,
    /// A chat template in place of the model's own
    #[arg(long, value_name = "FILE", env = "OXGPT_CHAT_TEMPLATE")]
    pub chat_template: Option<PathBuf>,
    /// Pages of this origin, such as `https://example.org`, may use the server; * is any; may be given several times
    #[arg(long, value_name = "ORIGIN", env = "OXGPT_CORS")]
    pub cors: Vec<String>,
    /// Encrypt connections, with the certificates in this file (PEM)
    #[arg(long, value_name = "FILE", env = "OXGPT_TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The private key of the first of these certificates (PEM)
    #[arg(long, value_name = "FILE", env = "OXGPT_TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// The most bytes of a request's body
    #[arg(long, value_name = "SIZE", env = "OXGPT_MAX_BODY", value_parser = parse_size, default_value = "16MiB")]
    pub max_body: u64,
    /// How many seconds a client may take to send a request, or to take in a part of an answer
    #[arg(long, value_name = "SECONDS", env = "OXGPT_CLIENT_TIMEOUT", value_parser = parse_seconds, default_value = "60")]
    pub client_timeout: Duration,
    /// How many seconds an answer may take [default: any number]
    #[arg(long, value_name = "SECONDS", env = "OXGPT_REQUEST_TIMEOUT", value_parser = parse_seconds)]
    pub request_timeout: Option<Duration>,
    /// The lines of the log, one for each request; none has text of prompts or answers
    #[arg(long, value_name = "FORMAT", env = "OXGPT_LOG", default_value = "text")]
    pub log: Log,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Where the same tokens stood before, compute what followed them together with the token before it, if that pays: the same answers, sooner
    #[arg(long, help_heading = "Engine", env = "OXGPT_SPECULATE")]
    pub speculate: bool,
}

fn parse_key(text: &str) -> Result<String, String> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("expected visible ASCII characters".to_string());
    }
    Ok(text.to_string())
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_string())?;
    if !(0.001..=1e9).contains(&seconds) {
        return Err("expected a number of seconds from 0.001 to 1e9".to_string());
    }
    Ok(Duration::from_secs_f64(seconds))
}
