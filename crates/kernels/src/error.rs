//! Why a GPU cannot be used.

/// What is wrong with the driver, the device or a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// No kernels.
    #[error("this build of oxgpt has no CUDA kernels: {reason}")]
    NotBuilt {
        /// Why they were not built.
        reason: &'static str,
    },
    /// No driver.
    #[error("no CUDA driver: libcuda.so.1 was not found")]
    NoDriver,
    /// The driver is older than what the kernels were compiled for.
    #[error(
        "the CUDA driver supports CUDA {}.{}, but this build needs {}.0 or newer", found.0, found.1, needed
    )]
    DriverTooOld {
        /// What the driver supports.
        found: (u32, u32),
        /// The major version that is needed.
        needed: u32,
    },
    /// Nothing to run on.
    #[error("the CUDA driver finds no device")]
    NoDevice,
    /// Not that many devices.
    #[error("there is no device cuda:{ordinal}: the CUDA driver finds {count}, numbered from 0")]
    NoSuchDevice {
        /// Asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// Too old a device.
    #[error(
        "{name} has compute capability {}.{}, but 8.0 or newer is needed", capability.0, capability.1
    )]
    DeviceTooOld {
        /// The device.
        name: String,
        /// Its compute capability.
        capability: (u32, u32),
    },
    /// The kernels were built for other devices.
    #[error(
        "{name} has compute capability {}.{}, but this build has kernels for {architectures} alone",
        capability.0, capability.1
    )]
    NoCodeForDevice {
        /// The device.
        name: String,
        /// Its compute capability.
        capability: (u32, u32),
        /// What the kernels were built for.
        architectures: &'static str,
    },
    /// Not enough memory.
    #[error("{needed} bytes of GPU memory are needed, but {free} are free")]
    OutOfMemory {
        /// Asked for.
        needed: u64,
        /// Free on the device.
        free: u64,
    },
    /// A planned arena is full.
    #[error("the arena of {capacity} bytes has no room for {needed} more beside {used}")]
    ArenaFull {
        /// All of it.
        capacity: u64,
        /// In use.
        used: u64,
        /// Asked for.
        needed: u64,
    },
    /// The driver refused a call, or a kernel failed.
    #[error("the CUDA driver failed in {call}: {name}: {description}")]
    Driver {
        /// What was called.
        call: &'static str,
        /// The driver's name for the error.
        name: String,
        /// The driver's description.
        description: String,
    },
}
