//! Arrays on their way to the device while the host goes on.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::{Buf, Element, Event, Pinned};
use crate::params::Params;
use std::mem::size_of_val;
use std::ptr;

/// Page-locked memory that arrays are copied from, in rounds: the memory of a round is used again in the one after the next.
pub struct Staging {
    gpu: Gpu,
    rooms: [Room; 2],
    current: usize,
    /// Bytes of the current room that are taken.
    used: usize,
    /// What is in it and not on its way yet.
    arrays: Vec<StagedArray>,
}

struct Room {
    memory: Pinned,
    /// The stream has passed the copies of the last round.
    copied: Event,
}

/// Every array starts at a multiple of this.
const ALIGNMENT: usize = 16;

/// Arrays that one launch brings.
const ARRAYS_AT_ONCE: usize = 8;
/// Words for which a block of threads is worth it, and the most blocks for one array.
const WORDS_OF_A_BLOCK: usize = 1024;
const MOST_BLOCKS: usize = 16;

/// As in `cuda/unstage.cu`; the device sees page-locked memory at the same address.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct StagedArray {
    from: u64,
    to: u64,
    rows: i32,
    words: i32,
    stride: i32,
    unused: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct UnstageParams {
    arrays: [StagedArray; ARRAYS_AT_ONCE],
}

const _: () = assert!(size_of::<UnstageParams>() == 256);

// SAFETY: `repr(C)`, and the fields are those of the structure in `cuda/unstage.cu` in their order.
unsafe impl Params for UnstageParams {}

impl Staging {
    /// Room for rounds of `bytes` in `arrays` arrays.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn new(gpu: &Gpu, bytes: usize, arrays: usize) -> Result<Self, CudaError> {
        let bytes = bytes + ALIGNMENT * arrays;
        let room = || Ok(Room { memory: Pinned::new(gpu, bytes)?, copied: Event::new(gpu)? });
        Ok(Staging {
            gpu: gpu.clone(),
            rooms: [room()?, room()?],
            current: 0,
            used: 0,
            arrays: Vec::new(),
        })
    }

    /// Begins a round, when the one before the last has left the host.
    ///
    /// # Errors
    /// When the driver or anything launched before fails.
    pub fn begin(&mut self) -> Result<(), CudaError> {
        (self.current, self.used) = (1 - self.current, 0);
        self.arrays.clear();
        self.rooms[self.current].copied.wait()
    }

    /// Has `data` copied to the front of `to` when the round ends.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn write<T: Element>(&mut self, to: &mut Buf<T>, data: &[T]) -> Result<(), CudaError> {
        self.write_rows(to, data.len(), data, 1)
    }

    /// Has `data`, which is `rows` rows, copied to the fronts of rows of `stride` elements when the round ends.
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
        let word = size_of::<u32>();
        assert!(size_of::<T>().is_multiple_of(word), "elements are words");
        let words = size_of::<T>() / word;
        self.arrays.push(StagedArray {
            from: place.as_ptr() as u64,
            to: to.address(),
            rows: rows as i32,
            words: (width * words) as i32,
            stride: (stride * words) as i32,
            unused: 0,
        });
        if self.arrays.len() == ARRAYS_AT_ONCE { self.unstage() } else { Ok(()) }
    }

    /// Has the arrays brought to where they belong.
    fn unstage(&mut self) -> Result<(), CudaError> {
        let Some(largest) = self.arrays.iter().map(|array| array.rows * array.words).max() else {
            return Ok(());
        };
        let blocks = (largest as usize).div_ceil(WORDS_OF_A_BLOCK).min(MOST_BLOCKS);
        let params = UnstageParams {
            arrays: std::array::from_fn(|i| self.arrays.get(i).copied().unwrap_or_default()),
        };
        let grid = [blocks, self.arrays.len(), 1];
        self.arrays.clear();
        self.gpu.launch("unstage", grid, 256, 0, &params)
    }

    /// Ends a round: what is launched from now on finds the arrays.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn end(&mut self) -> Result<(), CudaError> {
        self.unstage()?;
        self.rooms[self.current].copied.record()
    }
}
