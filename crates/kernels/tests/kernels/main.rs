//! Every kernel against the same computation in f64, on a GPU.
//!
//! Inputs are seeded, every element of them; outputs hold NaN before and have bands behind and before them that must stay as
//! they are; everything runs twice and must give the same bits. Without a CUDA driver the tests say `skipped: no CUDA driver`
//! and pass; with `OXGPT_REQUIRE_GPU=1` they fail then.

mod activate;
mod allocation;
mod attention;
mod attention_prompt;
mod common;
mod fused;
mod gemm;
mod moe;
mod norm;
mod product;
mod sampling;
mod weights;
