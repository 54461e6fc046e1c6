//! Arrays on their way to the device while the host goes on.

use crate::driver::{Gpu, check};
use crate::error::CudaError;
use crate::memory::{Buf, Element, Event, Pinned};
use cudarc::driver::sys;
use std::mem::size_of_val;
use std::ptr;

/// Page-locked memory that arrays are copied from, in rounds: the memory of a round is used again in the one after the next.
pub struct Staging {
    gpu: Gpu,
    rooms: [Room; 2],
    current: usize,
    /// Bytes of the current room that are taken.
    used: usize,
}

struct Room {
    memory: Pinned,
    /// The stream has passed the copies of the last round.
    copied: Event,
}

/// Every array starts at a multiple of this.
const ALIGNMENT: usize = 16;

impl Staging {
    /// Room for rounds of `bytes` in `arrays` arrays.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn new(gpu: &Gpu, bytes: usize, arrays: usize) -> Result<Self, CudaError> {
        let bytes = bytes + ALIGNMENT * arrays;
        let room = || Ok(Room { memory: Pinned::new(gpu, bytes)?, copied: Event::new(gpu)? });
        Ok(Staging { gpu: gpu.clone(), rooms: [room()?, room()?], current: 0, used: 0 })
    }

    /// Begins a round, when the one before the last has left the host.
    ///
    /// # Errors
    /// When the driver or anything launched before fails.
    pub fn begin(&mut self) -> Result<(), CudaError> {
        (self.current, self.used) = (1 - self.current, 0);
        self.rooms[self.current].copied.wait()
    }

    /// Copies `data` to the front of `to`, after everything that was launched.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn write<T: Element>(&mut self, to: &mut Buf<T>, data: &[T]) -> Result<(), CudaError> {
        self.write_rows(to, data.len(), data, 1)
    }

    /// Copies `data`, which is `rows` rows, to the fronts of rows of `stride` elements.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn write_rows<T: Element>(
        &mut self,
        to: &mut Buf<T>,
        stride: usize,
        data: &[T],
        rows: usize,
    ) -> Result<(), CudaError> {
        if data.is_empty() {
            return Ok(());
        }
        let width = data.len() / rows;
        assert!(width * rows == data.len() && width <= stride, "rows of {width} in {stride}");
        assert!((rows - 1) * stride + width <= to.len(), "{rows} rows in {} elements", to.len());
        let room = &mut self.rooms[self.current];
        let bytes = size_of_val(data);
        let place = &mut room.memory.bytes_mut()[self.used..][..bytes];
        // SAFETY: both have as many bytes, and elements are plain numbers.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr().cast(), place.as_mut_ptr(), bytes) };
        self.used = (self.used + bytes).next_multiple_of(ALIGNMENT);
        let (row_bytes, stride_bytes) = (width * size_of::<T>(), stride * size_of::<T>());
        let copy = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
            srcHost: place.as_ptr().cast(),
            srcDevice: 0,
            srcArray: ptr::null_mut(),
            srcPitch: row_bytes,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: ptr::null_mut(),
            dstDevice: to.address(),
            dstArray: ptr::null_mut(),
            dstPitch: stride_bytes,
            WidthInBytes: row_bytes,
            Height: rows,
        };
        self.gpu.make_current()?;
        // SAFETY: the rows lie in the buffer, and what is copied stays as it is until the round after the next, which waits.
        let result = unsafe {
            match rows {
                1 => {
                    sys::cuMemcpyHtoDAsync_v2(to.address(), copy.srcHost, bytes, self.gpu.stream())
                }
                _ => sys::cuMemcpy2DAsync_v2(&copy, self.gpu.stream()),
            }
        };
        check("cuMemcpyHtoDAsync", result)
    }

    /// Ends a round.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn end(&mut self) -> Result<(), CudaError> {
        self.rooms[self.current].copied.record()
    }
}
