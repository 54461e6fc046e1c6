// What every kernel shares: PTX wrappers, reductions of a fixed order, and the planes that weights lie in.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>
#include <stdint.h>

namespace oxgpt {

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// Weights are read once: they must not push activations out of the first-level cache.
__device__ __forceinline__ uint4 stream_16(const void* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
__device__ __forceinline__ uint2 stream_8(const void* p) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}
__device__ __forceinline__ uint32_t stream_4(const void* p) {
    uint32_t v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

// A kernel may be launched while the one before it still runs (programmatic dependent launch, from compute capability 9.0
// on): what it reads or writes that others write or read comes after `wait_for_previous`. All threads call both.
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Sums and maxima over a warp: every lane gets the same bits.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(ALL_LANES, v, offset);
    return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, offset));
    return v;
}

// The sum over a block of `WARPS` warps, the same bits in every thread. `scratch` has WARPS floats; the call begins and
// ends with a barrier.
template <int WARPS>
__device__ __forceinline__ float block_sum(float v, float* scratch) {
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = v;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS; i++) sum += scratch[i];
    __syncthreads();
    return sum;
}

__device__ __forceinline__ float half_bits(uint32_t bits) { return __half2float(__ushort_as_half((unsigned short)bits)); }
__device__ __forceinline__ float bf16_bits(uint32_t bits) { return __uint_as_float(bits << 16); }

// A matrix of weights in planes: every field of a block type in an array of its own, rows one after another, so that
// each is read in aligned pieces. The bytes are those of the file. See `src/weights.rs` for what each plane holds.
struct Planes {
    const uint8_t* low;     // values, or the lower bits of the codes
    const uint8_t* high;    // the upper bits of the codes
    const uint8_t* scales;  // scales of groups, or the header of a superblock
    const uint8_t* super;   // scales of superblocks
};
static_assert(sizeof(Planes) == 32, "shared with src/weights.rs");

}  // namespace oxgpt
