//! The vector instructions behind the CPU backend, chosen here and nowhere else.
//!
//! Products work on lanes that are rows of weights (`rows::RowLanes`; weights are packed for it at load, see
//! [`PackedMatrix`]), everything else on sixteen f32 lanes of one row (`Lanes`). Each instruction set implements both, and
//! the kernels are written once on top. All sets sum in the same order, so AVX2 and AVX-512 give bit for bit the same
//! results; only the portable one differs, since it has no fused multiply-add.

mod activation;
mod activations;
mod arena;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod block_types;
mod elementary;
mod kernels;
mod norm;
mod one_row;
mod output;
mod packed;
mod portable;
mod product;
mod rows;
#[cfg(target_arch = "x86_64")]
mod rows_avx2;
#[cfg(target_arch = "x86_64")]
mod rows_avx512;
#[cfg(target_arch = "x86_64")]
mod rows_avx_vnni;
mod rows_portable;
mod tiles;

pub use activations::Activations;
pub use arena::Arena;
pub use output::{Finish, Target};
pub use packed::PackedMatrix;

use activations::Tile;
use output::Columns;
use tiles::TileFunctions;

/// Rows of weights that lie side by side.
const GROUP: usize = 16;

/// Columns that block types are read by, a block of the file or a part of one.
const BLOCK: usize = 32;

/// Number of f32 lanes that all kernels work in.
pub const LANES: usize = 16;

/// Sixteen f32 lanes of one instruction set.
///
/// # Safety
/// Every method may only be called where the instruction set was detected; pointers must be valid for the read or
/// write of the elements that the method names, without any alignment.
#[allow(unsafe_code)]
unsafe trait Lanes: Copy {
    /// All lanes zero.
    unsafe fn zero() -> Self;
    /// All lanes `value`.
    unsafe fn splat(value: f32) -> Self;
    /// Reads 16 f32.
    unsafe fn load(from: *const f32) -> Self;
    /// Writes 16 f32.
    unsafe fn store(self, to: *mut f32);
    /// Asks for the cache line at `at`, wherever that is.
    unsafe fn prefetch(at: *const u8);
    /// `self * other`
    unsafe fn mul(self, other: Self) -> Self;
    /// `self + a * b`
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
    /// The sum of all lanes, as the tree (0+8, 1+9, ...), (0+4, ...), (0+2, ...), (0+1).
    unsafe fn sum(self) -> f32;
    /// `self + other`
    unsafe fn add(self, other: Self) -> Self;
    /// `self - other`
    unsafe fn sub(self, other: Self) -> Self;
    /// `self / other`
    unsafe fn div(self, other: Self) -> Self;
    /// The smaller of each two lanes; that of `other` where one is NaN.
    unsafe fn min(self, other: Self) -> Self;
    /// The larger of each two lanes; that of `other` where one is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// The largest lane; unspecified if one is NaN.
    unsafe fn max_lane(self) -> f32;
    /// The nearest integers, the even one of two; for lanes between -2^22 and 2^22.
    unsafe fn round(self) -> Self;
    /// `self * 2^power`, for integers between -250 and 250, rounded once if `self` is near 1.
    unsafe fn scale_by_power(self, power: Self) -> Self;
    /// `then` where `self < than`, else `otherwise`.
    unsafe fn if_below(self, than: Self, then: Self, otherwise: Self) -> Self;
    /// `self` where the bit is set, else `otherwise`.
    unsafe fn where_set(self, bits: u16, otherwise: Self) -> Self;

    /// Reads up to 16 f32; the lanes that are left are zero.
    #[inline(always)]
    unsafe fn load_some(from: &[f32]) -> Self {
        // SAFETY: the caller has the instruction set; 16 elements are there.
        unsafe {
            if from.len() >= LANES {
                return Self::load(from.as_ptr());
            }
            let mut padded = [0.0; LANES];
            padded[..from.len()].copy_from_slice(from);
            Self::load(padded.as_ptr())
        }
    }

    /// Writes the first lanes, as many of the 16 as there is room for.
    #[inline(always)]
    unsafe fn store_some(self, to: &mut [f32]) {
        // SAFETY: the caller has the instruction set; there is room for 16 elements.
        unsafe {
            if to.len() >= LANES {
                return self.store(to.as_mut_ptr());
            }
            let mut padded = [0.0; LANES];
            self.store(padded.as_mut_ptr());
            to.copy_from_slice(&padded[..to.len()]);
        }
    }
}

/// A computation on lanes, for [`Isa::run`].
#[allow(unsafe_code)]
trait Kernel {
    /// What it returns.
    type Output;

    /// Must be `#[inline(always)]`, so that it is compiled for the instruction set that runs it. `ROWS` and `COLS` are the
    /// size of a register tile.
    ///
    /// # Safety
    /// `L` must be usable.
    unsafe fn run<L: Lanes, const ROWS: usize, const COLS: usize>(self) -> Self::Output;
}

/// An instruction set that was seen to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Calls a kernel with the lanes of an instruction set.
macro_rules! dispatch {
    ($isa:expr, $function:ident ( $($argument:expr),* )) => {
        match $isa.0 {
            #[allow(unsafe_code)]
            // SAFETY: the portable lanes need no instruction set.
            Kind::Portable => unsafe { portable::$function($($argument),*) },
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            // SAFETY: an `Isa` exists only for an instruction set that was detected.
            Kind::Avx2 | Kind::AvxVnni => unsafe { avx2::$function($($argument),*) },
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            // SAFETY: an `Isa` exists only for an instruction set that was detected.
            Kind::Avx512 => unsafe { avx512::$function($($argument),*) },
        }
    };
}

impl Isa {
    /// Every instruction set of this machine, the slowest first.
    pub fn all() -> Vec<Isa> {
        let mut all = vec![Isa(Kind::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                all.push(Isa(Kind::Avx2));
                if is_x86_feature_detected!("avxvnni") {
                    all.push(Isa(Kind::AvxVnni));
                }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
                {
                    all.push(Isa(Kind::Avx512));
                }
            }
        }
        all
    }

    /// The fastest instruction set of this machine.
    pub fn best() -> Isa {
        *Isa::all().last().expect("the portable one is always there")
    }

    /// What `inspect` and the start-up line call it.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni => "AVX2 with VNNI",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "AVX-512",
        }
    }

    /// Tokens of the widest register tile.
    fn widest_tile(self) -> usize {
        match self.0 {
            Kind::Portable => rows_portable::Portable::WIDEST,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => rows_avx2::Avx2::WIDEST,
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni => rows_avx_vnni::AvxVnni::WIDEST,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => rows_avx512::Avx512::WIDEST,
        }
    }

    /// See [`rows::RowLanes::WIDE_LESS_128`].
    fn is_wide_less_128(self) -> bool {
        match self.0 {
            Kind::Portable => rows_portable::Portable::WIDE_LESS_128,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => rows_avx2::Avx2::WIDE_LESS_128,
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni => rows_avx_vnni::AvxVnni::WIDE_LESS_128,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => rows_avx512::Avx512::WIDE_LESS_128,
        }
    }

    /// See [`activations::quantize_tile`].
    #[allow(unsafe_code)]
    fn quantize_tile(self, tile: &mut Tile, x: &[f32], halves: bool) {
        match self.0 {
            // SAFETY: the portable code needs no instruction set.
            Kind::Portable => unsafe { rows_portable::quantize_tile(tile, x, halves) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` exists only for an instruction set that was detected.
            Kind::Avx2 => unsafe { rows_avx2::quantize_tile(tile, x, halves) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` exists only for an instruction set that was detected.
            Kind::AvxVnni => unsafe { rows_avx_vnni::quantize_tile(tile, x, halves) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` exists only for an instruction set that was detected.
            Kind::Avx512 => unsafe { rows_avx512::quantize_tile(tile, x, halves) },
        }
    }

    /// See [`product::piece`].
    #[allow(unsafe_code)]
    fn piece(
        self,
        columns: &mut Columns<'_>,
        x: &Activations,
        weights: &PackedMatrix,
        finish: Finish<'_>,
    ) {
        match self.0 {
            // SAFETY: the portable code needs no instruction set.
            Kind::Portable => unsafe {
                product::piece::<rows_portable::Portable>(columns, x, weights, finish)
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` exists only for an instruction set that was detected.
            Kind::Avx2 => unsafe { product::piece::<rows_avx2::Avx2>(columns, x, weights, finish) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` exists only for an instruction set that was detected.
            Kind::AvxVnni => unsafe {
                product::piece::<rows_avx_vnni::AvxVnni>(columns, x, weights, finish)
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` exists only for an instruction set that was detected.
            Kind::Avx512 => unsafe {
                product::piece::<rows_avx512::Avx512>(columns, x, weights, finish)
            },
        }
    }

    /// Runs a kernel with this instruction set.
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        dispatch!(self, run(kernel))
    }
}

#[cfg(test)]
mod tests;
