//! How fast device memory can be read.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::Buf;
use crate::params::BandwidthParams;

/// Bytes per second at which `data` can be read: the median of `repeats` times. `data` should be many times the device's
/// second-level cache.
///
/// # Errors
/// When the driver fails.
pub fn read_bandwidth(gpu: &Gpu, data: &Buf<u8>, repeats: usize) -> Result<f64, CudaError> {
    let mut out = Buf::<u32>::new(gpu, 1)?;
    out.fill_bytes(0)?;
    let params = BandwidthParams {
        data: data.address(),
        out: out.address(),
        pieces: (data.len() / 16) as i64,
    };
    let blocks = 2 * gpu.info().multiprocessors as usize;
    let read = || gpu.launch("read_all", [blocks, 1, 1], 512, 0, &params);
    read()?;
    let times: Result<Vec<f64>, CudaError> = (0..repeats.max(1)).map(|_| gpu.time(read)).collect();
    let mut times = times?;
    times.sort_by(f64::total_cmp);
    Ok((data.len() / 16 * 16) as f64 / times[times.len() / 2])
}
