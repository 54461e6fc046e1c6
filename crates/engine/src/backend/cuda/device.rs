//! Opening devices, and what they are.

use crate::backend::DeviceError;
use oxgpt_kernels::{Buf, Gpu};
use std::sync::Mutex;

/// The CUDA kernels of this build in words, or why it has none.
pub fn kernels() -> String {
    match oxgpt_kernels::BUILT {
        Ok(built) => {
            let (major, minor) = built.nvcc;
            format!("CUDA {major}.{minor} kernels for {}", built.architectures)
        }
        Err(reason) => format!("no CUDA kernels: {reason}"),
    }
}

/// A device that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaDevice {
    /// Its name.
    pub name: String,
    /// Bytes of its memory that are free.
    pub free: u64,
    /// Bytes of its memory.
    pub total: u64,
}

/// Opens device `ordinal`, or says why it cannot be used.
///
/// # Errors
/// When there are no kernels, no driver, no such device, or when something is too old.
pub fn device(ordinal: usize) -> Result<CudaDevice, DeviceError> {
    let gpu = open(ordinal)?;
    let (free, total) = gpu.memory().map_err(|reason| DeviceError::Cuda { ordinal, reason })?;
    Ok(CudaDevice { name: gpu.info().name.clone(), free, total })
}

/// Bytes a second at which the memory of device `ordinal` can be read.
///
/// # Errors
/// When the device cannot be used or has no gigabyte free.
pub fn read_bandwidth(ordinal: usize) -> Result<f64, DeviceError> {
    let failed = |reason| DeviceError::Cuda { ordinal, reason };
    let gpu = open(ordinal)?;
    // Many times the second-level cache.
    let data = Buf::new(&gpu, 1 << 30).map_err(failed)?;
    oxgpt_kernels::read_bandwidth(&gpu, &data, 9).map_err(failed)
}

/// A device is opened once: that takes a while.
pub(super) fn open(ordinal: usize) -> Result<Gpu, DeviceError> {
    static OPENED: Mutex<Vec<Gpu>> = Mutex::new(Vec::new());
    let mut opened = OPENED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(gpu) = opened.iter().find(|gpu| gpu.info().ordinal == ordinal) {
        return Ok(gpu.clone());
    }
    let gpu = Gpu::open(ordinal).map_err(|reason| DeviceError::Cuda { ordinal, reason })?;
    opened.push(gpu.clone());
    Ok(gpu)
}
