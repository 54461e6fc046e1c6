//! Memory for weights in huge pages.
//!
//! Decoding walks through all weights for each token. With pages of 4 KiB the processor looks up an address for each of
//! them, which on a virtual machine takes as long as to read the page; pages of 2 MiB make those look-ups vanish. Since
//! a small matrix alone fills no such page, matrices share chunks.
#![allow(unsafe_code)]

use memmap2::MmapMut;
use std::alloc::{Layout, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// The size of a huge page on x86 and of most on ARM.
const HUGE_PAGE: usize = 2 << 20;
/// Addresses that are taken at once. What is not written to takes no memory.
const CHUNK: usize = 64 << 20;
/// Where a region may start: at a cache line.
const ALIGNMENT: usize = 64;

/// Hands out regions, which live as long as they are used.
#[derive(Default)]
pub struct Arena {
    chunk: Option<Arc<Chunk>>,
    /// Bytes of the chunk that were handed out.
    used: usize,
}

struct Chunk {
    /// At a huge page's border inside `_map`.
    start: *mut u8,
    bytes: usize,
    _map: MmapMut,
}

// SAFETY: `start` leads to memory that `_map` owns and keeps where it is; it is accessed through regions only, no two of
// which overlap.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

impl Chunk {
    fn new(bytes: usize) -> Self {
        let bytes = bytes.next_multiple_of(HUGE_PAGE);
        let mapped = bytes + HUGE_PAGE;
        let Ok(mut map) = MmapMut::map_anon(mapped) else {
            handle_alloc_error(Layout::from_size_align(mapped, ALIGNMENT).expect("a valid layout"))
        };
        // A system without huge pages refuses, and all is as with other memory.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let skipped = map.as_ptr().align_offset(HUGE_PAGE);
        Chunk { start: map[skipped..].as_mut_ptr(), bytes, _map: map }
    }
}

/// Bytes of an arena that belong to whoever has this value; at first zero.
pub struct Region {
    chunk: Arc<Chunk>,
    offset: usize,
    bytes: usize,
}

impl Arena {
    /// A region of `bytes` bytes at the border of a cache line.
    pub fn allocate(&mut self, bytes: usize) -> Region {
        let needed = bytes.next_multiple_of(ALIGNMENT);
        let free = self.chunk.as_ref().map_or(0, |chunk| chunk.bytes - self.used);
        if needed > CHUNK && needed > free {
            // A chunk of its own; what follows may still fit into the one in use.
            return Region { chunk: Arc::new(Chunk::new(needed)), offset: 0, bytes };
        }
        if needed > free {
            self.chunk = Some(Arc::new(Chunk::new(CHUNK)));
            self.used = 0;
        }
        let chunk = Arc::clone(self.chunk.get_or_insert_with(|| Arc::new(Chunk::new(CHUNK))));
        let offset = self.used;
        self.used += needed;
        Region { chunk, offset, bytes }
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `allocate` put the region inside its chunk and gives no byte to two regions, and this one is not
        // borrowed for writing.
        unsafe { std::slice::from_raw_parts(self.chunk.start.add(self.offset), self.bytes) }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else borrows the region.
        unsafe { std::slice::from_raw_parts_mut(self.chunk.start.add(self.offset), self.bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_zero_aligned_apart_and_outlive_the_arena() {
        let mut arena = Arena::default();
        let sizes = [1, 64, 100, 40 << 20, 30 << 20, (64 << 20) + 1, 7, 0];
        let mut regions: Vec<Region> = sizes.iter().map(|size| arena.allocate(*size)).collect();
        drop(arena);
        for (index, region) in regions.iter_mut().enumerate() {
            assert_eq!(region.len(), sizes[index]);
            assert!(region.as_ptr().addr().is_multiple_of(ALIGNMENT));
            assert!(region.iter().step_by(4093).all(|byte| *byte == 0));
            region.iter_mut().step_by(31).for_each(|byte| *byte = index as u8 + 1);
            if let Some(last) = region.last_mut() {
                *last = index as u8 + 1;
            }
        }
        for (index, region) in regions.iter().enumerate() {
            assert!(region.iter().step_by(31).all(|byte| *byte == index as u8 + 1));
        }
    }
}
