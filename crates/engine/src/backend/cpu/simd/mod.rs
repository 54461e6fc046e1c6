//! The vector instructions behind the CPU backend, chosen here and nowhere else.
//!
//! `Lanes` is sixteen f32 lanes; each instruction set implements it in a file of its own, and the kernels are
//! written once on top. All sets sum in the same sixteen lanes and the same tree, so AVX2 and AVX-512 give bit for
//! bit the same results; only the portable one differs, since it has no fused multiply-add.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod kernels;
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

    /// `a . b`
    pub fn dot(self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len(), "a dot product has two equal sides");
        dispatch!(self, dot(a, b))
    }

    /// `sum = sum * scale + weights[i] * rows[i]` over the rows of `rows`, each as long as `sum`, in order.
    pub fn add_weighted_rows(self, sum: &mut [f32], scale: f32, weights: &[f32], rows: &[f32]) {
        assert_eq!(rows.len(), weights.len() * sum.len(), "one weight for each row");
        dispatch!(self, add_weighted_rows(sum, scale, weights, rows));
    }
}

#[cfg(test)]
mod tests;
