//! The vector instructions behind the CPU backend, chosen here and nowhere else.
//!
//! `Lanes` is sixteen f32 lanes; each instruction set implements it in a file of its own, and the kernels are
//! written once on top. All sets sum in the same sixteen lanes and the same tree, so AVX2 and AVX-512 give bit for
//! bit the same results; only the portable one differs, since it has no fused multiply-add.

mod activation;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod elementary;
mod kernels;
mod norm;
mod portable;
mod weight_types;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::backend::HostMatrix;

/// Rows that every instruction set's register tile divides.
pub const TILE_ROWS: usize = 4;

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
    /// Reads 16 IEEE half-precision numbers.
    unsafe fn load_f16(from: *const u8) -> Self;
    /// Reads 16 bfloat16 numbers.
    unsafe fn load_bf16(from: *const u8) -> Self;
    /// One IEEE half-precision number from its bits.
    unsafe fn f16(bits: u16) -> f32;
    /// Reads 16 signed bytes.
    unsafe fn load_i8(from: *const u8) -> Self;
    /// Reads 16 bytes and looks their low (or high) nibbles up in a table.
    unsafe fn load_nibbles(from: *const u8, high: bool, table: &[i8; 16]) -> Self;
    /// Reads 16 bytes and takes bit `bit` of each.
    unsafe fn bit_plane(from: *const u8, bit: usize) -> u16;
    /// Adds `value` to the lanes whose bits are set.
    unsafe fn add_where(self, bits: u16, value: f32) -> Self;
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
            Kind::Avx2 => unsafe { avx2::$function($($argument),*) },
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
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
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
            Kind::Avx512 => "AVX-512",
        }
    }

    /// `out[r][t] = weights[first_row + r] . x[t]` for as many rows as `out` has room for.
    ///
    /// `x` is (tokens, cols) and `out` (rows, tokens).
    pub fn matmul_rows(self, out: &mut [f32], weights: &HostMatrix, first_row: usize, x: &[f32]) {
        let tokens = x.len() / weights.cols;
        assert_eq!(x.len(), tokens * weights.cols, "x has whole rows");
        assert!(tokens > 0 && out.len().is_multiple_of(tokens), "out has whole rows");
        assert!(first_row + out.len() / tokens <= weights.rows, "the rows exist");
        dispatch!(self, matmul_rows(out, weights, first_row, x));
    }

    /// Runs a kernel with this instruction set.
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        dispatch!(self, run(kernel))
    }
}

#[cfg(test)]
mod tests;
