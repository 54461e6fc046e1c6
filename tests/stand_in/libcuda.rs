//! A CUDA driver without a device behind it, which fails as `OXGPT_STAND_IN` says. Built by `cuda_faults.rs`.
#![allow(non_snake_case, unused_unsafe)]

use std::ffi::{c_char, c_int, c_uint, c_void};

const SUCCESS: c_int = 0;
const NO_DEVICE: c_int = 100;
const NO_BINARY_FOR_GPU: c_int = 209;
const ILLEGAL_ADDRESS: c_int = 700;
const UNKNOWN: c_int = 999;

fn fault(name: &str) -> bool {
    std::env::var("OXGPT_STAND_IN").is_ok_and(|fault| fault == name)
}

macro_rules! driver {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:expr;)*) => { $(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> c_int {
            $(let _ = $argument;)*
            unsafe { $result }
        }
    )* };
}

unsafe fn set<T>(to: *mut T, value: T) -> c_int {
    unsafe { to.write(value) };
    SUCCESS
}

/// Any address that is not null.
fn handle() -> *mut c_void {
    std::ptr::without_provenance_mut(64)
}

driver! {
    cuDriverGetVersion(version: *mut c_int) -> set(version, if fault("old driver") { 12040 } else { 13000 });
    cuInit(flags: c_uint) -> match () {
        () if fault("no device") => NO_DEVICE,
        () if fault("broken driver") => UNKNOWN,
        () => SUCCESS,
    };
    cuDeviceGetCount(count: *mut c_int) -> set(count, 1);
    cuDeviceGet(device: *mut c_int, ordinal: c_int) -> set(device, ordinal);
    // 75 and 76 ask for the compute capability.
    cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) -> set(value, match attribute {
        75 => if fault("old device") { 7 } else { 9 },
        76 => if fault("old device") { 5 } else { 0 },
        _ => 8,
    });
    cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) -> {
        std::ptr::copy_nonoverlapping(c"Stand-in".as_ptr(), name, 9);
        SUCCESS
    };
    cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> set(bytes, 1 << 34);
    cuGetErrorName(error: c_int, name: *mut *const c_char) -> set(name, match error {
        ILLEGAL_ADDRESS => c"CUDA_ERROR_ILLEGAL_ADDRESS".as_ptr(),
        _ => c"CUDA_ERROR_UNKNOWN".as_ptr(),
    });
    cuGetErrorString(error: c_int, text: *mut *const c_char) -> set(text, match error {
        ILLEGAL_ADDRESS => c"an illegal memory access was encountered".as_ptr(),
        _ => c"unknown error".as_ptr(),
    });
    cuDevicePrimaryCtxRetain(context: *mut *mut c_void, device: c_int) -> set(context, handle());
    cuDevicePrimaryCtxRelease_v2(device: c_int) -> SUCCESS;
    cuCtxSetCurrent(context: *mut c_void) -> SUCCESS;
    cuStreamCreate(stream: *mut *mut c_void, flags: c_uint) -> set(stream, handle());
    cuStreamDestroy_v2(stream: *mut c_void) -> SUCCESS;
    cuStreamSynchronize(stream: *mut c_void) -> SUCCESS;
    cuModuleLoadData(module: *mut *mut c_void, image: *const c_void) -> match () {
        () if fault("other devices") => NO_BINARY_FOR_GPU,
        () => set(module, handle()),
    };
    cuModuleUnload(module: *mut c_void) -> SUCCESS;
    cuModuleGetFunctionCount(count: *mut c_uint, module: *mut c_void) -> set(count, 1);
    cuModuleEnumerateFunctions(functions: *mut *mut c_void, count: c_uint, module: *mut c_void) -> set(functions, handle());
    // The first kernel that the demo model needs.
    cuFuncGetName(name: *mut *const c_char, function: *mut c_void) -> set(name, c"repack_q8_0".as_ptr());
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> {
        set(total, 1 << 34);
        set(free, if fault("little memory") { 1 << 20 } else { 1 << 34 })
    };
    cuMemAlloc_v2(address: *mut u64, bytes: usize) -> set(address, 256);
    cuMemFree_v2(address: u64) -> SUCCESS;
    cuMemAllocHost_v2(address: *mut *mut c_void, bytes: usize) -> {
        // Never given back: a test's process does not live long.
        let memory: &'static mut [u8] = vec![0; bytes].leak();
        set(address, memory.as_mut_ptr().cast())
    };
    cuMemFreeHost(address: *mut c_void) -> SUCCESS;
    cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: *mut c_void) -> SUCCESS;
    cuMemcpy2DAsync_v2(copy: *const c_void, stream: *mut c_void) -> SUCCESS;
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: *mut c_void) -> SUCCESS;
    cuEventCreate(event: *mut *mut c_void, flags: c_uint) -> set(event, handle());
    cuEventRecord(event: *mut c_void, stream: *mut c_void) -> SUCCESS;
    cuEventSynchronize(event: *mut c_void) -> SUCCESS;
    cuEventDestroy_v2(event: *mut c_void) -> SUCCESS;
    cuMemsetD8Async(to: u64, byte: u8, bytes: usize, stream: *mut c_void) -> SUCCESS;
    cuFuncSetAttribute(function: *mut c_void, attribute: c_int, value: c_int) -> SUCCESS;
    cuLaunchKernelEx(
        config: *const c_void, function: *mut c_void, parameters: *mut *mut c_void, extra: *mut *mut c_void
    ) -> ILLEGAL_ADDRESS;
}
