//! The instructions that products are made of: lanes that are rows of weights.

/// `ROWS` lanes of one instruction set, each of which is one row of a group of [`super::GROUP`] rows.
///
/// Words are four bytes of one row, and a *line* is the words of all rows of a group, side by side. Methods that read take
/// where the group's line or scales start, and the first of the rows to read.
///
/// # Safety
/// Every method may only be called where the instruction set was detected; pointers must be valid for what the method
/// reads or writes for the rows `row..row + ROWS`, without any alignment.
#[allow(unsafe_code)]
pub(super) unsafe trait RowLanes {
    /// Rows computed at once; divides [`super::GROUP`].
    const ROWS: usize;
    /// Whether codes above 128 are multiplied less 128, so that the sums of pairs fit into 16 bits.
    const WIDE_LESS_128: bool;
    /// A word or an integer for each row.
    type Words: Copy;
    /// A number for each row.
    type Floats: Copy;

    /// Reads the words of a line.
    unsafe fn words(line: *const u8, row: usize) -> Self::Words;
    /// Every byte `& mask`.
    unsafe fn and(words: Self::Words, mask: u8) -> Self::Words;
    /// `a | b`
    unsafe fn or(a: Self::Words, b: Self::Words) -> Self::Words;
    /// Words shifted to the left, or to the right where `left` is negative.
    unsafe fn shift(words: Self::Words, left: i32) -> Self::Words;
    /// The entries of a table at every byte, each of which must be below 16.
    unsafe fn look_up(bytes: Self::Words, table: &[u8; 16]) -> Self::Words;
    /// All rows `value`.
    unsafe fn splat_word(value: i32) -> Self::Words;
    /// `sum` and the dot product of four unsigned bytes of each row with the four signed bytes of `x`, none of which is
    /// -128. `wide` says that codes may be above 127; see [`RowLanes::WIDE_LESS_128`].
    unsafe fn dot(sum: Self::Words, codes: Self::Words, x: i32, wide: bool) -> Self::Words;
    /// Reads an unsigned byte of each row.
    unsafe fn bytes(at: *const u8, row: usize) -> Self::Words;
    /// Reads a signed byte of each row.
    unsafe fn signed_bytes(at: *const u8, row: usize) -> Self::Words;

    /// Integers as numbers, rounded to nearest even.
    unsafe fn floats(integers: Self::Words) -> Self::Floats;
    /// `2^(exponent - 128)` for exponents from 0 to 255.
    unsafe fn half_scales(exponents: Self::Words) -> Self::Floats;
    /// Reads an f32 of each row.
    unsafe fn f32s(at: *const u8, row: usize) -> Self::Floats;
    /// Reads an IEEE half-precision number of each row.
    unsafe fn f16s(at: *const u8, row: usize) -> Self::Floats;
    /// Reads a bfloat16 number of each row.
    unsafe fn bf16s(at: *const u8, row: usize) -> Self::Floats;
    /// All rows `value`.
    unsafe fn splat(value: f32) -> Self::Floats;
    /// `a * b`
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `sum + a * b`
    unsafe fn mul_add(sum: Self::Floats, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// Writes a number of each row.
    unsafe fn store(floats: Self::Floats, to: *mut f32);
    /// Asks for the cache line at `at`, wherever that is.
    unsafe fn prefetch(at: *const u8);
}
