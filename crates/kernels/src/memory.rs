//! Device memory: one arena, planned before it is taken, from which buffers are handed out.

use crate::driver::{Gpu, check};
use crate::error::CudaError;
use crate::sampling::{ChoiceOptions, LogitEdit};
use cudarc::driver::sys;
use std::marker::PhantomData;
use std::mem::size_of_val;
use std::ptr;
use std::sync::Arc;

/// Every buffer starts at a multiple of this.
const ALIGNMENT: u64 = 256;

mod sealed {
    pub trait Sealed {}
}

/// What a buffer holds: plain numbers, for which every bit pattern is a value.
pub trait Element: Copy + Send + Sync + sealed::Sealed + 'static {}

macro_rules! elements {
    ($($type:ty)*) => { $(impl sealed::Sealed for $type {} impl Element for $type {})* };
}
elements!(u8 i8 u16 u32 i32 f32 u64 ChoiceOptions LogitEdit);

/// A block of device memory, freed with its last buffer.
struct Block {
    gpu: Gpu,
    address: sys::CUdeviceptr,
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the block was allocated once and no buffer is left. What runs on the stream may still use it, so that is
        // waited for.
        unsafe {
            let _ = self.gpu.synchronize();
            sys::cuMemFree_v2(self.address);
        }
    }
}

/// Device memory that is taken at once and given out piece by piece. What was given out is not taken back: an arena is as
/// large as the plan.
pub struct Arena {
    block: Arc<Block>,
    capacity: u64,
    used: u64,
}

impl Arena {
    /// Takes `capacity` bytes. Ends the process where [`Gpu::ready`] was told and `OXGPT_ABORT_ON_ALLOCATION=1` asks for that.
    ///
    /// # Errors
    /// When less is free.
    #[track_caller]
    pub fn new(gpu: &Gpu, capacity: u64) -> Result<Self, CudaError> {
        gpu.check_allocation(capacity);
        let (free, _) = gpu.memory()?;
        let mut address = 0;
        // SAFETY: writes one address.
        let result = unsafe { sys::cuMemAlloc_v2(&mut address, capacity.max(1) as usize) };
        if result == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(CudaError::OutOfMemory { needed: capacity, free });
        }
        check("cuMemAlloc", result)?;
        Ok(Arena { block: Arc::new(Block { gpu: gpu.clone(), address }), capacity, used: 0 })
    }

    /// Bytes that a buffer takes up in an arena.
    pub fn padded(bytes: u64) -> u64 {
        bytes.next_multiple_of(ALIGNMENT)
    }

    /// A buffer of `len` elements, which hold anything.
    ///
    /// # Errors
    /// When the arena has no room.
    pub fn buffer<T: Element>(&mut self, len: usize) -> Result<Buf<T>, CudaError> {
        let needed = Self::padded(len as u64 * size_of::<T>() as u64);
        if needed > self.capacity - self.used {
            let (capacity, used) = (self.capacity, self.used);
            return Err(CudaError::ArenaFull { capacity, used, needed });
        }
        let address = self.block.address + self.used;
        self.used += needed;
        Ok(Buf { block: self.block.clone(), address, len, element: PhantomData })
    }

    /// Sets every byte, also of what was given out.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn fill_bytes(&mut self, byte: u8) -> Result<(), CudaError> {
        let len = self.capacity as usize;
        let (block, address) = (self.block.clone(), self.block.address);
        Buf::<u8> { block, address, len, element: PhantomData }.fill_bytes(byte)
    }

    /// Keeps the memory, also when the arena and its buffers are gone.
    pub(crate) fn keep(&self) -> Kept {
        Kept { _block: self.block.clone() }
    }

    /// Bytes given out.
    pub fn used(&self) -> u64 {
        self.used
    }
}

/// Memory that is not freed while this lives.
pub(crate) struct Kept {
    _block: Arc<Block>,
}

/// Device memory for `len` elements.
pub struct Buf<T: Element> {
    block: Arc<Block>,
    address: sys::CUdeviceptr,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> Buf<T> {
    /// A buffer of its own, as [`Arena::new`].
    ///
    /// # Errors
    /// When there is not enough memory.
    #[track_caller]
    pub fn new(gpu: &Gpu, len: usize) -> Result<Self, CudaError> {
        Arena::new(gpu, Arena::padded(len as u64 * size_of::<T>() as u64))?.buffer(len)
    }

    /// A buffer of its own with the elements of `data`.
    ///
    /// # Errors
    /// When there is not enough memory.
    #[track_caller]
    pub fn from_slice(gpu: &Gpu, data: &[T]) -> Result<Self, CudaError> {
        let mut buffer = Self::new(gpu, data.len())?;
        buffer.write(data)?;
        Ok(buffer)
    }

    /// Another handle to the same memory. What kernels write through one is seen through the other, in the order of the
    /// stream.
    pub fn share(&self) -> Self {
        self.part(0, self.len)
    }

    /// A handle to `len` elements from `start` on.
    pub fn part(&self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.len, "{len} elements from {start} of {}", self.len);
        let address = self.address + (start * size_of::<T>()) as u64;
        Buf { block: self.block.clone(), address, len, element: PhantomData }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device it is on.
    pub fn gpu(&self) -> &Gpu {
        &self.block.gpu
    }

    /// Where it starts.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Copies `data` to the front of the buffer, after everything that was launched. `data` may be changed afterwards.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn write(&mut self, data: &[T]) -> Result<(), CudaError> {
        assert!(data.len() <= self.len, "{} elements into a buffer of {}", data.len(), self.len);
        self.block.gpu.make_current()?;
        let stream = self.block.gpu.stream();
        // SAFETY: `data` is no longer than the buffer. From pageable memory, the copy has left `data` when the call returns.
        let result = unsafe {
            sys::cuMemcpyHtoDAsync_v2(self.address, data.as_ptr().cast(), size_of_val(data), stream)
        };
        check("cuMemcpyHtoDAsync", result)
    }

    /// Copies the front of the buffer to `data`, after everything that was launched, and waits for it.
    ///
    /// # Errors
    /// When the driver or anything launched before fails.
    pub fn read(&self, data: &mut [T]) -> Result<(), CudaError> {
        assert!(data.len() <= self.len, "{} elements from a buffer of {}", data.len(), self.len);
        self.block.gpu.make_current()?;
        let stream = self.block.gpu.stream();
        // SAFETY: `data` is no longer than the buffer, holds plain numbers, and is waited for before it is looked at.
        let result = unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                data.as_mut_ptr().cast(),
                self.address,
                size_of_val(data),
                stream,
            )
        };
        check("cuMemcpyDtoHAsync", result)?;
        self.block.gpu.synchronize()
    }

    /// Sets every byte.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn fill_bytes(&mut self, byte: u8) -> Result<(), CudaError> {
        self.block.gpu.make_current()?;
        let (bytes, stream) = (self.len * size_of::<T>(), self.block.gpu.stream());
        // SAFETY: the bytes are the buffer's own.
        let result = unsafe { sys::cuMemsetD8Async(self.address, byte, bytes, stream) };
        check("cuMemsetD8Async", result)
    }
}

/// Page-locked host memory, from which the device copies while the host goes on.
pub(crate) struct Pinned {
    gpu: Gpu,
    data: *mut u8,
    len: usize,
}

// SAFETY: plain memory that belongs to this value alone.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(crate) fn new(gpu: &Gpu, len: usize) -> Result<Self, CudaError> {
        gpu.make_current()?;
        let mut data = ptr::null_mut();
        // SAFETY: writes one address.
        check("cuMemAllocHost", unsafe { sys::cuMemAllocHost_v2(&mut data, len) })?;
        // SAFETY: `len` bytes were allocated; they are initialized before anything reads them.
        unsafe { ptr::write_bytes(data.cast::<u8>(), 0, len) };
        Ok(Pinned { gpu: gpu.clone(), data: data.cast(), len })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the bytes were initialized and belong to this value, which is borrowed.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the bytes were initialized and belong to this value, which is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
    }

    /// Copies the first `bytes` to a device address while the host goes on.
    ///
    /// # Safety
    /// `to` has room for as many bytes, and the bytes here stay as they are until the stream has passed the copy.
    pub(crate) unsafe fn copy_to(&self, to: u64, bytes: usize) -> Result<(), CudaError> {
        assert!(bytes <= self.len);
        self.gpu.make_current()?;
        // SAFETY: the caller's promise.
        let result = unsafe {
            sys::cuMemcpyHtoDAsync_v2(to, self.data.cast_const().cast(), bytes, self.gpu.stream())
        };
        check("cuMemcpyHtoDAsync", result)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated once; copies from it are waited for first.
        unsafe {
            let _ = self.gpu.synchronize();
            sys::cuMemFreeHost(self.data.cast());
        }
    }
}

/// Page-locked memory by way of which large results come to the host, faster than the driver brings them to any other.
pub struct Landing {
    piece: Pinned,
}

impl Landing {
    const BYTES: usize = 1 << 20;

    /// Page-locked memory for it.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        Ok(Landing { piece: Pinned::new(gpu, Self::BYTES)? })
    }

    /// As [`Buf::read`].
    ///
    /// # Errors
    /// When the driver or anything launched before fails.
    pub fn read<T: Element>(&mut self, from: &Buf<T>, data: &mut [T]) -> Result<(), CudaError> {
        assert!(data.len() <= from.len(), "{} elements from {}", data.len(), from.len());
        let mut address = from.address();
        for data in data.chunks_mut(Self::BYTES / size_of::<T>()) {
            self.piece.gpu.make_current()?;
            let (stream, piece) = (self.piece.gpu.stream(), self.piece.data);
            let bytes = size_of_val(data);
            // SAFETY: the piece is as long, and left alone until the copy has been waited for.
            let result = unsafe { sys::cuMemcpyDtoHAsync_v2(piece.cast(), address, bytes, stream) };
            check("cuMemcpyDtoHAsync", result)?;
            self.piece.gpu.synchronize()?;
            // SAFETY: both have as many bytes, and every bit pattern is an element.
            unsafe { ptr::copy_nonoverlapping(piece, data.as_mut_ptr().cast(), bytes) };
            address += bytes as u64;
        }
        Ok(())
    }
}

/// A point of the stream that the host can wait for.
pub(crate) struct Event {
    gpu: Gpu,
    event: sys::CUevent,
}

// SAFETY: a handle of the driver, which may be used from every thread.
unsafe impl Send for Event {}

impl Event {
    pub(crate) fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        gpu.make_current()?;
        let mut event = ptr::null_mut();
        let flags = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: writes one handle.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, flags) })?;
        Ok(Event { gpu: gpu.clone(), event })
    }

    pub(crate) fn record(&self) -> Result<(), CudaError> {
        self.gpu.make_current()?;
        // SAFETY: both handles live.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.event, self.gpu.stream()) })
    }

    /// Waits until the stream has passed the last recorded point; at once if none was.
    pub(crate) fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the handle lives.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.event) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        unsafe {
            let _ = self.gpu.make_current();
            sys::cuEventDestroy_v2(self.event);
        }
    }
}
