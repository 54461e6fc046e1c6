//! The server as its clients see it: the compiled program, over HTTP.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/scripted.rs"]
mod scripted;

mod chat;
mod client;
mod completions;
mod errors;
mod harmony;
mod hostile;
mod models;
mod operations;

use common::testdata;
