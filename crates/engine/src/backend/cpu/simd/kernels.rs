//! What an instruction set offers to [`super::Isa::run`].

/// The entry points of an instruction set: the kernels for its lanes and its size of register tile (rows x tokens),
/// compiled with its features.
macro_rules! entry_points {
    ($lanes:ty, $rows:literal x $tokens:literal $(, $feature:literal)?) => {
        /// Runs a kernel.
        ///
        /// # Safety
        /// The instruction set must have been detected.
        $(#[target_feature(enable = $feature)])?
        pub unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
            // SAFETY: passed on.
            unsafe { kernel.run::<$lanes, $rows, $tokens>() }
        }
    };
}
pub(super) use entry_points;
