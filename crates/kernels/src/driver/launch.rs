//! Launching kernels.

use super::{Gpu, check};
use crate::error::CudaError;
use crate::params::Params;
use cudarc::driver::sys;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

/// Shared memory that a launch may ask for without more ado: of 48 KiB, kernels have some for themselves.
const DEFAULT_SHARED_BYTES: usize = 24 << 10;

/// A kernel of a loaded module.
pub(super) struct Function {
    pub(super) function: sys::CUfunction,
    /// The most shared memory that was asked for.
    shared_bytes: Mutex<usize>,
    prefers_shared: AtomicBool,
}

/// A launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The kernel.
    pub kernel: &'static str,
    /// Bytes of weights that it reads.
    pub bytes: u64,
}

/// See [`Gpu::launch_first`].
pub(super) struct Cut {
    first: usize,
    launches: Vec<Launch>,
    /// What the next launch reads.
    bytes: u64,
}

/// What a mutex holds; nothing that is done with it leaves it half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Gpu {
    /// Of what `work` has recorded on this stream, records only the `first`, and tells what all would have been.
    pub fn launch_first<T>(&self, first: usize, work: impl FnOnce() -> T) -> (T, Vec<Launch>) {
        let cut = Cut { first, launches: Vec::new(), bytes: 0 };
        *lock(&self.stream.cut) = Some(cut);
        let result = work();
        let cut = lock(&self.stream.cut).take();
        (result, cut.map(|cut| cut.launches).unwrap_or_default())
    }

    /// Notes how many bytes of weights the next launch reads.
    pub(crate) fn reads(&self, bytes: u64) {
        if let Some(cut) = &mut *lock(&self.stream.cut) {
            cut.bytes = bytes;
        }
    }

    /// Launches a kernel, whose parameters must be what the kernel takes and point to what it may use.
    pub(crate) fn launch<P: Params>(
        &self,
        name: &'static str,
        grid: [usize; 3],
        threads: u32,
        shared_bytes: usize,
        params: &P,
    ) -> Result<(), CudaError> {
        self.launch_with(name, grid, threads, shared_bytes, params, &mut [])
    }

    /// As [`Gpu::launch`]; the blocks with one `y` and `z` can wait for one another, where there is more than one.
    pub(crate) fn launch_clusters<P: Params>(
        &self,
        name: &'static str,
        grid: [usize; 3],
        threads: u32,
        shared_bytes: usize,
        params: &P,
    ) -> Result<(), CudaError> {
        if grid[0] <= 1 {
            return self.launch(name, grid, threads, shared_bytes, params);
        }
        let attributes = &mut [cluster([grid[0], 1, 1])];
        self.launch_with(name, grid, threads, shared_bytes, params, attributes)
    }

    /// As [`Gpu::launch`], for a kernel that waits for the one before it by itself (`wait_for_previous`), and so may be started
    /// while that one still runs, where the device can do that.
    pub(crate) fn launch_early<P: Params>(
        &self,
        name: &'static str,
        grid: [usize; 3],
        threads: u32,
        shared_bytes: usize,
        params: &P,
    ) -> Result<(), CudaError> {
        if self.info().capability < (9, 0) {
            return self.launch(name, grid, threads, shared_bytes, params);
        }
        self.shared.make_current()?;
        self.function(name).prefer_shared()?;
        self.launch_with(name, grid, threads, shared_bytes, params, &mut [early()])
    }

    /// As [`Gpu::launch_early`]; the blocks with one `x` and `y` can wait for one another, where there is more than one.
    pub(crate) fn launch_split<P: Params>(
        &self,
        name: &'static str,
        grid: [usize; 3],
        threads: u32,
        shared_bytes: usize,
        params: &P,
    ) -> Result<(), CudaError> {
        if grid[2] <= 1 {
            return self.launch_early(name, grid, threads, shared_bytes, params);
        }
        self.shared.make_current()?;
        self.function(name).prefer_shared()?;
        let attributes = &mut [early(), cluster([1, 1, grid[2]])];
        self.launch_with(name, grid, threads, shared_bytes, params, attributes)
    }

    pub(super) fn function(&self, name: &'static str) -> &Function {
        match self.shared.functions.get(name) {
            Some(function) => function,
            None => panic!("no module has a kernel `{name}`"),
        }
    }

    fn launch_with<P: Params>(
        &self,
        name: &'static str,
        grid: [usize; 3],
        threads: u32,
        shared_bytes: usize,
        params: &P,
        attributes: &mut [sys::CUlaunchAttribute],
    ) -> Result<(), CudaError> {
        if grid.contains(&0) {
            return Ok(());
        }
        assert!(
            grid[0] <= i32::MAX as usize && grid[1] <= 65535 && grid[2] <= 65535,
            "{name}: a grid of {grid:?}"
        );
        self.shared.make_current()?;
        let function = self.function(name);
        function.allow_shared(shared_bytes)?;
        if self.stream.loads_only.load(Ordering::Relaxed) {
            return self.load(name);
        }
        if let Some(cut) = lock(&self.stream.cut).as_mut().filter(|_| self.is_recording()) {
            let bytes = std::mem::take(&mut cut.bytes);
            cut.launches.push(Launch { kernel: name, bytes });
            if cut.launches.len() > cut.first {
                return Ok(());
            }
        }
        let config = sys::CUlaunchConfig {
            gridDimX: grid[0] as u32,
            gridDimY: grid[1] as u32,
            gridDimZ: grid[2] as u32,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared_bytes as u32,
            hStream: self.stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        let mut arguments = [ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // SAFETY: the kernel takes one parameter of exactly this structure (`Params` says which), which the driver copies
        // before it returns, as it does the attributes.
        let result = unsafe {
            sys::cuLaunchKernelEx(
                &config,
                function.function,
                arguments.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        check("cuLaunchKernelEx", result)
    }
}

/// That a kernel may be started while the one before it still runs.
fn early() -> sys::CUlaunchAttribute {
    let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
    value.programmaticStreamSerializationAllowed = 1;
    let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    sys::CUlaunchAttribute { id, pad: [0; 4], value }
}

/// That so many blocks are a cluster.
fn cluster([x, y, z]: [usize; 3]) -> sys::CUlaunchAttribute {
    let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
    value.clusterDim =
        sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: x as u32, y: y as u32, z: z as u32 };
    let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    sys::CUlaunchAttribute { id, pad: [0; 4], value }
}

impl Function {
    pub(super) fn new(function: sys::CUfunction) -> Self {
        let shared_bytes = Mutex::new(DEFAULT_SHARED_BYTES);
        Function { function, shared_bytes, prefers_shared: AtomicBool::new(false) }
    }

    /// Allows launches with as much shared memory; what was allowed stays so, since others may be launching.
    fn allow_shared(&self, bytes: usize) -> Result<(), CudaError> {
        let mut allowed = lock(&self.shared_bytes);
        if bytes <= *allowed {
            return Ok(());
        }
        let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        self.set(most, bytes as i32)?;
        *allowed = bytes;
        Ok(())
    }

    /// Has multiprocessors set all of their memory aside for sharing. They do so for one kernel like for another, or they would
    /// have to end one before they begin with the next.
    fn prefer_shared(&self) -> Result<(), CudaError> {
        if self.prefers_shared.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let share = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        self.set(share, 100)
    }

    fn set(&self, attribute: sys::CUfunction_attribute, value: i32) -> Result<(), CudaError> {
        // SAFETY: the function is one of a loaded module.
        let result = unsafe { sys::cuFuncSetAttribute(self.function, attribute, value) };
        check("cuFuncSetAttribute", result)
    }
}
