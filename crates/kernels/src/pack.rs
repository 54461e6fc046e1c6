//! Rows of activations as tensor cores take them.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::gemm::Sorted;
use crate::memory::{Arena, Buf};
use crate::norm::Norm;
use crate::params::PackParams;
use crate::weights::Matrix;

/// Columns that rows are padded to.
const COLS: usize = 128;
/// Places that lie together in the order of their pieces.
const PLACES: usize = 8;

/// Room for packed rows, and what is in it: each row as halves (11 significant bits), multiplied with a power of two of its own.
pub struct Packed {
    halves: Buf<u16>,
    scales: Buf<f32>,
    pub(crate) cols: usize,
    /// Weights that lie together in the planes of the weights that it is for.
    piece: usize,
    /// Rows with those that pad them.
    pub(crate) places: usize,
    /// The first row that was packed, and the one after the last.
    pub(crate) rows: (usize, usize),
}

/// What is packed at once at most: rows, or slots of experts as [`crate::sort_slots`] places them, and their columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackedRoom {
    places: usize,
    halves: usize,
}

impl PackedRoom {
    /// Room for this and for `rows` rows of `cols` columns.
    pub fn with(self, rows: usize, cols: usize) -> Self {
        let places = rows.next_multiple_of(PLACES);
        PackedRoom {
            places: self.places.max(places),
            halves: self.halves.max(places * cols.next_multiple_of(COLS)),
        }
    }

    /// Bytes that it takes up in an arena.
    pub fn bytes(self) -> u64 {
        Arena::padded(2 * self.halves as u64) + Arena::padded(4 * self.places as u64)
    }
}

impl Packed {
    /// Takes the room.
    ///
    /// # Errors
    /// When the arena is full.
    pub fn new(arena: &mut Arena, room: PackedRoom) -> Result<Self, CudaError> {
        let (halves, scales) = (arena.buffer(room.halves)?, arena.buffer(room.places)?);
        Ok(Packed { halves, scales, cols: 0, piece: 0, places: 0, rows: (0, 0) })
    }

    /// Whether what was packed can be multiplied with `weight`: the order of columns depends on its type.
    pub fn suits(&self, weight: &Matrix) -> bool {
        (self.cols, self.piece) == (weight.cols(), weight.piece())
    }

    pub(crate) fn addresses(&self) -> (u64, u64) {
        (self.halves.address(), self.scales.address())
    }

    fn launch(
        &mut self,
        gpu: &Gpu,
        x: u64,
        order: Option<u64>,
        slots_per_row: usize,
        count: usize,
        norm: Option<Norm<'_>>,
    ) -> Result<(), CudaError> {
        let halves = self.places * self.cols.next_multiple_of(COLS);
        assert!(halves <= self.halves.len() && self.places <= self.scales.len(), "no such room");
        let (tokens16, scales) = self.addresses();
        let norm_bias = norm.and_then(|norm| norm.bias);
        assert!(norm.is_none_or(|norm| norm.weight.len() >= self.cols), "the norm is too short");
        assert!(norm_bias.is_none_or(|bias| bias.len() >= self.cols), "its bias is too short");
        let params = PackParams {
            x,
            order: order.unwrap_or(0),
            norm_weight: norm.map_or(0, |norm| norm.weight.address()),
            norm_bias: norm_bias.map_or(0, Buf::address),
            tokens16,
            scales,
            cols: self.cols as i32,
            places: self.places as i32,
            slots_per_row: slots_per_row as i32,
            piece: self.piece as i32,
            centered: norm.is_some_and(|norm| norm.centered).into(),
            eps: norm.map_or(0.0, |norm| norm.eps),
        };
        let shared = 4 * self.cols.next_multiple_of(COLS);
        gpu.launch_early("pack", [count, 1, 1], 256, shared, &params)
    }

    /// Packs the rows of `x`, which is (rows, weight columns), from `first` to before `end`, normed first if there is a norm, for
    /// products with `weight` and with what [`Packed::suits`].
    ///
    /// # Errors
    /// When the driver fails.
    pub fn rows(
        &mut self,
        gpu: &Gpu,
        x: &Buf<f32>,
        weight: &Matrix,
        (first, end): (usize, usize),
        norm: Option<Norm<'_>>,
    ) -> Result<(), CudaError> {
        let cols = weight.cols();
        assert!(end * cols <= x.len(), "x is too short");
        (self.cols, self.piece, self.rows) = (cols, weight.piece(), (first, end));
        let count = end.saturating_sub(first);
        self.places = count.next_multiple_of(PLACES);
        self.launch(gpu, x.address() + (4 * first * cols) as u64, None, 1, count, norm)
    }

    /// Packs what the sorted slots take of `x`, for products with `weight` and with what [`Packed::suits`]: `x` is (rows, weight
    /// columns), or (slots, weight columns) with `by_slot`, and normed first if there is a norm.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn slots(
        &mut self,
        gpu: &Gpu,
        x: &Buf<f32>,
        weight: &Matrix,
        sorted: Sorted<'_>,
        by_slot: bool,
        norm: Option<Norm<'_>>,
    ) -> Result<(), CudaError> {
        let (end, cols) = (sorted.rows.1, weight.cols());
        let x_rows = if by_slot { end * sorted.top_k } else { end };
        assert!(x_rows * cols <= x.len(), "x is too short");
        (self.cols, self.piece) = (cols, weight.piece());
        (self.rows, self.places) = (sorted.rows, sorted.places());
        let slots_per_row = if by_slot { 1 } else { sorted.top_k };
        let order = Some(sorted.words.address());
        self.launch(gpu, x.address(), order, slots_per_row, self.places, norm)
    }
}

/// Places that `slots` slots of `experts` experts take at most: those of an expert start at a multiple of eight.
pub fn places(slots: usize, experts: usize) -> usize {
    (slots + (PLACES - 1) * experts.min(slots)).next_multiple_of(PLACES)
}
