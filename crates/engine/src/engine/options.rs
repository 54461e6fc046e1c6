//! Where and how a model runs.

use crate::kv::KvType;
use crate::scheduler::PrefixSharing;
use crate::speculation::Speculation;
use std::fmt;

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The slow definition, in f64.
    Reference,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU, by its number.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Reference => f.write_str("reference"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl Device {
    /// Rows of a step that keep the device busy; see [`EngineOptions::chunk`].
    pub fn chunk(self) -> usize {
        match self {
            Device::Reference | Device::Cpu => 256,
            // Each expert gets some hundred of them. Twice as many would be 6 % faster, in twice the workspace.
            Device::Cuda(_) => 4096,
        }
    }

    /// What later requests can take over without a change of a bit; see [`EngineOptions::sharing`].
    pub fn sharing(self) -> PrefixSharing {
        match self {
            Device::Reference | Device::Cpu => PrefixSharing::All,
            // Generated tokens are multiplied in another way than those of prompts.
            Device::Cuda(_) => PrefixSharing::Prompts,
        }
    }

    /// Bytes of a key, or of a value, of one head at one position.
    pub fn kv_bytes(self, kv: KvType, head_dim: usize) -> usize {
        let element = match self {
            Device::Reference => size_of::<f64>(),
            Device::Cpu => size_of::<f32>(),
            Device::Cuda(_) => size_of::<half::f16>(),
        };
        kv.vector_bytes(element, head_dim)
    }

    /// Bytes of one activation.
    pub(super) fn activation_bytes(self) -> usize {
        match self {
            Device::Reference => size_of::<f64>(),
            Device::Cpu | Device::Cuda(_) => size_of::<f32>(),
        }
    }
}

/// How to run a model.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Where.
    pub device: Device,
    /// Positions of each sequence; the model's own limit if `None`.
    pub context: Option<usize>,
    /// Sequences that can run at once.
    pub sequences: usize,
    /// Positions of all sequences together whose keys and values there is room for; those of `sequences` whole contexts
    /// if `None`. With less than that, sequences may have to wait for others in the middle. Changes no result.
    pub kv_tokens: Option<usize>,
    /// How keys and values are stored; the reference has them in full only.
    pub kv: KvType,
    /// Rows of one step: longer prompts are computed in chunks. Changes no result.
    pub chunk: usize,
    /// CPU threads; the physical cores if `None`. Changes no result.
    pub threads: Option<usize>,
    /// The most bytes that weights, keys and values, and workspace may take.
    pub memory_limit: Option<u64>,
    /// Which keys and values later requests may take over.
    pub sharing: PrefixSharing,
    /// Whether results must not depend on what else runs. What gives that up for speed is named in `docs/determinism.md`.
    pub deterministic: bool,
    /// Whether tokens are computed before they are known to be chosen. Changes no result.
    pub speculation: Speculation,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            device: Device::Cpu,
            context: None,
            sequences: 1,
            kv_tokens: None,
            kv: KvType::Full,
            chunk: Device::Cpu.chunk(),
            threads: None,
            memory_limit: None,
            sharing: PrefixSharing::All,
            deterministic: false,
            speculation: Speculation::Off,
        }
    }
}
