//! CUDA kernels for oxgpt, and the only code that talks to the CUDA driver.
//!
//! The kernels in `cuda/` are compiled by the build script and embedded in the program; the driver is opened at run time, so
//! the same program starts on machines that have none. Every kernel has a launcher here that checks lengths before anything
//! reaches the device. Everything runs on one stream, in the order in which it was launched.

mod activate;
mod attention;
mod attention_prompt;
mod bandwidth;
mod driver;
mod elementwise;
mod embed;
mod error;
mod gemm;
mod images;
mod kv;
mod memory;
mod moe;
mod norm;
mod pack;
mod params;
mod product;
mod ring;
mod rope;
mod sampling;
mod staging;
mod weights;

pub use activate::{Activation, Gated, activate, activate_gated};
pub use attention::{
    AttentionShape, Partials, PartialsRoom, Positions, Turn, attend, attend_fresh, last_positions,
};
pub use attention_prompt::attend_prompt;
pub use bandwidth::read_bandwidth;
pub use driver::launch::Launch;
pub use driver::{DeviceInfo, Gpu, Graph};
pub use elementwise::{add, soft_cap};
pub use embed::{add_rows, embed, gather};
pub use error::CudaError;
pub use gemm::{
    Sorted, Sums, can_gate, can_gate_sorted, gemm, gemm_sorted, sort_slots, sorted_places,
    sorted_words,
};
pub use images::{BUILT, Built};
pub use kv::{BLOCK_POSITIONS, KvElement, KvPool, MAX_HEAD_DIM, append};
pub use memory::{Arena, Buf, Element, Landing};
pub use moe::{RoutesOut, Routing, combine, group_slots, group_words, route};
pub use norm::{Norm, norm};
pub use pack::{Packed, PackedRoom};
pub use product::{
    Choices, Ending, Grouped, Inputs, Outputs, Place, can_combine, can_route, product,
    product_combined, product_grouped, product_grouped_of, product_of, router,
};
pub use rope::{Rope, rotate, rotations};
pub use sampling::{Choice, ChoiceOptions, Chooser, FOLLOWS_NONE, LogitEdit};
pub use staging::Staging;
pub use weights::{Matrix, Uploader, WeightType};
