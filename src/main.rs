//! The `oxgpt` program.
#![forbid(unsafe_code)]

fn main() {}
