//! The server as its clients see it: the compiled program, over HTTP.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/scripted.rs"]
mod scripted;

mod chat;
mod client;
mod completions;
mod conformance;
mod embeddings;
mod errors;
mod harmony;
mod hostile;
mod memory;
mod messages;
mod models;
mod openapi;
mod operations;
mod responses;
mod settings;
mod structured;
mod turns;

use common::testdata;
