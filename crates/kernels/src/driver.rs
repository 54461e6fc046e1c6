//! The driver: opening a device, recording and replaying launches, waiting. How kernels are launched is in [`launch`].

pub mod launch;

use crate::error::CudaError;
use crate::images::{BUILT, IMAGES};
use crate::memory::{Arena, Kept};
use cudarc::driver::sys;
use launch::{Cut, Function};
use std::collections::HashMap;
use std::ffi::CStr;
use std::panic::Location;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// The oldest devices that the kernels run on.
const OLDEST: (u32, u32) = (8, 0);

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Its compute capability.
    pub capability: (u32, u32),
    /// Its multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that a block of threads can have.
    pub shared_bytes: usize,
    /// Its memory in bytes.
    pub memory: u64,
    /// The version of CUDA that the driver supports.
    pub driver: (u32, u32),
}

/// A device with the kernels loaded, and a stream of work on it. Clones share both.
#[derive(Clone)]
pub struct Gpu {
    // Dropped before the context that it belongs to.
    stream: Arc<Stream>,
    shared: Arc<Shared>,
}

struct Stream {
    stream: sys::CUstream,
    /// See [`Gpu::ready`].
    ready: AtomicBool,
    /// See [`Gpu::load_only`].
    loads_only: AtomicBool,
    /// Launches are recorded.
    recording: AtomicBool,
    /// See [`Gpu::launch_first`].
    cut: Mutex<Option<Cut>>,
    shared: Arc<Shared>,
}

struct Shared {
    info: DeviceInfo,
    device: sys::CUdevice,
    context: sys::CUcontext,
    modules: Vec<sys::CUmodule>,
    functions: HashMap<String, Function>,
}

// SAFETY: handles of the driver may be used from every thread; the context is made current before each use.
unsafe impl Send for Shared {}
// SAFETY: as above; nothing changes once it is shared.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

/// Turns a result of the driver into an error that names the call.
pub(crate) fn check(call: &'static str, result: sys::CUresult) -> Result<(), CudaError> {
    if result == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let text = |of: unsafe fn(sys::CUresult, *mut *const std::ffi::c_char) -> sys::CUresult| {
        let mut text = ptr::null();
        // SAFETY: the driver writes one pointer, to a string of its own that lives as long as the driver, or null.
        unsafe {
            if of(result, &mut text) != sys::CUresult::CUDA_SUCCESS || text.is_null() {
                return format!("error {}", result as u32);
            }
            CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    };
    Err(CudaError::Driver {
        call,
        name: text(sys::cuGetErrorName),
        description: text(sys::cuGetErrorString),
    })
}

/// Opens the driver and returns the version of CUDA that it supports and how many devices it has.
fn open_driver(needed: u32) -> Result<((u32, u32), usize), CudaError> {
    // SAFETY: loads the driver's library, whose initializers are the driver's own.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    let mut version = 0;
    // SAFETY: writes one int; needs no initialization.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) })?;
    let found = (version as u32 / 1000, version as u32 % 1000 / 10);
    if found.0 < needed {
        return Err(CudaError::DriverTooOld { found, needed });
    }
    // SAFETY: may be called any number of times.
    match unsafe { sys::cuInit(0) } {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => return Err(CudaError::NoDevice),
        result => check("cuInit", result)?,
    }
    let mut count = 0;
    // SAFETY: writes one int.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    match count {
        0 => Err(CudaError::NoDevice),
        count => Ok((found, count as usize)),
    }
}

fn device_info(
    device: sys::CUdevice,
    ordinal: usize,
    driver: (u32, u32),
) -> Result<DeviceInfo, CudaError> {
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: writes one int about a device that exists.
        let result = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) };
        check("cuDeviceGetAttribute", result).map(|()| value as u32)
    };
    use sys::CUdevice_attribute_enum as Attribute;
    let mut name = [0; 256];
    // SAFETY: writes at most as many bytes as it is told, ending in a zero.
    check("cuDeviceGetName", unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), 256, device) })?;
    let name: Vec<u8> = name.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    let mut memory = 0;
    // SAFETY: writes one size.
    check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&mut memory, device) })?;
    Ok(DeviceInfo {
        ordinal,
        name: String::from_utf8_lossy(&name).into_owned(),
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
            as usize,
        memory: memory as u64,
        driver,
    })
}

impl Gpu {
    /// Opens device `ordinal` and loads the kernels.
    ///
    /// # Errors
    /// When there are no kernels, no driver or no such device, or when one of them is too old.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        let built = BUILT.map_err(|reason| CudaError::NotBuilt { reason })?;
        let (driver, count) = open_driver(built.nvcc.0)?;
        if ordinal >= count {
            return Err(CudaError::NoSuchDevice { ordinal, count });
        }
        let mut device = 0;
        // SAFETY: writes one handle.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ordinal as i32) })?;
        let info = device_info(device, ordinal, driver)?;
        if info.capability < OLDEST {
            return Err(CudaError::DeviceTooOld { name: info.name, capability: info.capability });
        }
        let mut context = ptr::null_mut();
        // SAFETY: the primary context is released when the last clone is dropped.
        let result = unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) };
        check("cuDevicePrimaryCtxRetain", result)?;
        let mut shared =
            Shared { info, device, context, modules: Vec::new(), functions: HashMap::new() };
        shared.make_current()?;
        for (_, image) in IMAGES {
            shared.load(image, built.architectures)?;
        }
        Self::on_new_stream(Arc::new(shared))
    }

    fn on_new_stream(shared: Arc<Shared>) -> Result<Self, CudaError> {
        shared.make_current()?;
        let mut stream = ptr::null_mut();
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one handle, destroyed when the stream is dropped.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, flags) })?;
        let (ready, loads_only) = (AtomicBool::new(false), AtomicBool::new(false));
        let (cut, recording) = (Mutex::new(None), AtomicBool::new(false));
        let shared_too = shared.clone();
        let stream =
            Arc::new(Stream { stream, ready, loads_only, recording, cut, shared: shared_too });
        Ok(Gpu { stream, shared })
    }

    /// The same device with a stream of its own: what is launched there does not wait for what is launched here, nor is it
    /// recorded with it.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn with_own_stream(&self) -> Result<Self, CudaError> {
        Self::on_new_stream(self.shared.clone())
    }

    /// From now on, nothing that runs on this stream takes memory of the device: whatever it needs, it has. With
    /// `OXGPT_ABORT_ON_ALLOCATION=1` the process ends where that is not true.
    pub fn ready(&self) {
        let aborts =
            std::env::var_os("OXGPT_ABORT_ON_ALLOCATION").is_some_and(|value| value == "1");
        self.stream.ready.store(aborts, Ordering::Relaxed);
    }

    /// Ends the process if `bytes` of memory are asked for too late; see [`Gpu::ready`].
    #[track_caller]
    pub(crate) fn check_allocation(&self, bytes: u64) {
        if self.stream.ready.load(Ordering::Relaxed) {
            let (ordinal, place) = (self.info().ordinal, Location::caller());
            eprintln!(
                "OXGPT_ABORT_ON_ALLOCATION: {bytes} bytes of cuda:{ordinal} are taken by {place}, after all was ready"
            );
            std::process::abort();
        }
    }

    /// Has every kernel loaded that `work` launches on this stream, and launches none. The driver loads a kernel when it is first
    /// needed, which takes memory of the device and must not be while launches are recorded.
    pub fn load_only<T>(&self, work: impl FnOnce() -> T) -> T {
        self.stream.loads_only.store(true, Ordering::Relaxed);
        let result = work();
        self.stream.loads_only.store(false, Ordering::Relaxed);
        result
    }

    /// Has a kernel loaded.
    pub(crate) fn load(&self, name: &'static str) -> Result<(), CudaError> {
        self.shared.make_current()?;
        // SAFETY: the function is one of a loaded module.
        check("cuFuncLoad", unsafe { sys::cuFuncLoad(self.function(name).function) })
    }

    /// From now on, launches on this stream are recorded instead of run.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn start_recording(&self) -> Result<(), CudaError> {
        self.shared.make_current()?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as we do.
        let result = unsafe { sys::cuStreamBeginCapture_v2(self.stream(), mode) };
        check("cuStreamBeginCapture", result)?;
        self.stream.recording.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn is_recording(&self) -> bool {
        self.stream.recording.load(Ordering::Relaxed)
    }

    /// Ends a recording. Its launches take the same memory with the same parameters each time it is run: buffers of `arena`,
    /// which is kept as long as the graph.
    ///
    /// # Errors
    /// When the driver fails, or refused to record a launch.
    pub fn finish_recording(&self, arena: &Arena) -> Result<Graph, CudaError> {
        self.shared.make_current()?;
        self.stream.recording.store(false, Ordering::Relaxed);
        let mut graph = ptr::null_mut();
        // SAFETY: writes one handle, destroyed below.
        let result = unsafe { sys::cuStreamEndCapture(self.stream(), &mut graph) };
        check("cuStreamEndCapture", result)?;
        let mut executable = ptr::null_mut();
        // SAFETY: the graph was just recorded; what is made from it does not need it any more.
        unsafe {
            let made = sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0);
            check("cuGraphDestroy", sys::cuGraphDestroy(graph))?;
            check("cuGraphInstantiate", made)?;
        }
        let graph = Graph { gpu: self.clone(), executable, _memory: arena.keep() };
        // Or the first launch would take what the device needs of it.
        // SAFETY: both handles live.
        check("cuGraphUpload", unsafe { sys::cuGraphUpload(executable, self.stream()) })?;
        Ok(graph)
    }

    /// What the device is.
    pub fn info(&self) -> &DeviceInfo {
        &self.shared.info
    }

    /// Bytes of its memory that are free, and all of it.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        self.shared.make_current()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two sizes.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free as u64, total as u64))
    }

    /// Waits for everything that was launched.
    ///
    /// # Errors
    /// When any of it failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.shared.make_current()?;
        // SAFETY: the stream lives as long as we do.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream()) })
    }

    /// Seconds that `work` takes on the device.
    ///
    /// # Errors
    /// When the driver or `work` fails.
    pub fn time(&self, work: impl FnOnce() -> Result<(), CudaError>) -> Result<f64, CudaError> {
        self.shared.make_current()?;
        let event = || {
            let mut event = ptr::null_mut();
            // SAFETY: writes one handle.
            check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, 0) }).map(|()| event)
        };
        let (start, end) = (event()?, event()?);
        // SAFETY: the events were created above and are destroyed once, after the device has passed them.
        unsafe {
            check("cuEventRecord", sys::cuEventRecord(start, self.stream()))?;
            work()?;
            check("cuEventRecord", sys::cuEventRecord(end, self.stream()))?;
            check("cuEventSynchronize", sys::cuEventSynchronize(end))?;
            let mut milliseconds = 0.0;
            let result = sys::cuEventElapsedTime_v2(&mut milliseconds, start, end);
            check("cuEventElapsedTime", result)?;
            check("cuEventDestroy", sys::cuEventDestroy_v2(start))?;
            check("cuEventDestroy", sys::cuEventDestroy_v2(end))?;
            Ok(f64::from(milliseconds) / 1e3)
        }
    }

    pub(crate) fn stream(&self) -> sys::CUstream {
        self.stream.stream
    }

    /// Makes the device's context the current one of this thread.
    pub(crate) fn make_current(&self) -> Result<(), CudaError> {
        self.shared.make_current()
    }
}

impl Shared {
    fn make_current(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained as long as we live.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    /// Loads an image, and finds its kernels by name.
    fn load(&mut self, image: &[u8], architectures: &'static str) -> Result<(), CudaError> {
        let mut module = ptr::null_mut();
        // SAFETY: the image is a whole fatbin that nvcc made; one handle is written.
        match unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) } {
            sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {
                return Err(CudaError::NoCodeForDevice {
                    name: self.info.name.clone(),
                    capability: self.info.capability,
                    architectures,
                });
            }
            result => check("cuModuleLoadData", result)?,
        }
        self.modules.push(module);
        let mut count = 0;
        // SAFETY: writes one number.
        let result = unsafe { sys::cuModuleGetFunctionCount(&mut count, module) };
        check("cuModuleGetFunctionCount", result)?;
        let mut functions = vec![ptr::null_mut(); count as usize];
        // SAFETY: writes as many handles as the vector has.
        let result =
            unsafe { sys::cuModuleEnumerateFunctions(functions.as_mut_ptr(), count, module) };
        check("cuModuleEnumerateFunctions", result)?;
        for function in functions {
            let mut name = ptr::null();
            // SAFETY: writes one pointer to a string that lives as long as the module.
            let name = unsafe {
                check("cuFuncGetName", sys::cuFuncGetName(&mut name, function))?;
                CStr::from_ptr(name).to_string_lossy().into_owned()
            };
            self.functions.insert(name, Function::new(function));
        }
        Ok(())
    }
}

/// Launches that were recorded.
pub struct Graph {
    gpu: Gpu,
    executable: sys::CUgraphExec,
    /// What the launches use.
    _memory: Kept,
}

// SAFETY: a handle of the driver, which may be used from every thread.
unsafe impl Send for Graph {}

impl Graph {
    /// Runs the launches in the order in which they were recorded, after everything that was launched before.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn launch(&self) -> Result<(), CudaError> {
        self.gpu.make_current()?;
        // SAFETY: the handle lives, and so does the memory that the launches use.
        let result = unsafe { sys::cuGraphLaunch(self.executable, self.gpu.stream()) };
        check("cuGraphLaunch", result)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: destroyed once; a launch on its way goes on.
        unsafe {
            let _ = self.gpu.make_current();
            sys::cuGraphExecDestroy(self.executable);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: destroyed once; work on its way goes on.
        unsafe {
            let _ = self.shared.make_current();
            sys::cuStreamDestroy_v2(self.stream);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: nothing else uses these handles any more; a failure leaves nothing to do.
        unsafe {
            sys::cuCtxSetCurrent(self.context);
            for module in &self.modules {
                sys::cuModuleUnload(*module);
            }
            sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}
