//! The compiled kernels.

/// What the kernels were built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Built {
    /// The version of nvcc.
    pub nvcc: (u32, u32),
    /// The architectures, such as `80,90a`.
    pub architectures: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/images.rs"));
