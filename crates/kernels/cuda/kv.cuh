// Where keys and values lie: a layer's pool has a block of 32 positions for each KV head, one after another.
//
// Inside a block, keys are (padded_dim / 8, 32 positions, 8), so that the lanes of a warp, one position each, read
// neighbouring pieces; values are (32 positions, padded_dim). padded_dim is head_dim rounded up to 8, with zeros.
#pragma once
#include "params.cuh"

namespace oxgpt {

constexpr int BLOCK_POSITIONS = 32;

// Where the block of a KV head begins, in elements.
__device__ __forceinline__ int64_t kv_block(uint32_t block, int kv_heads, int kv_head, int padded_dim) {
    return ((int64_t)block * kv_heads + kv_head) * BLOCK_POSITIONS * padded_dim;
}
__device__ __forceinline__ int key_element(int position, int d) { return (d / 8 * BLOCK_POSITIONS + position) * 8 + d % 8; }
__device__ __forceinline__ int value_element(int position, int d, int padded_dim) { return position * padded_dim + d; }

__device__ __forceinline__ void store(float* p, float v) { *p = v; }
// Beyond the largest number comes the largest, not infinity.
__device__ __forceinline__ void store(__half* p, float v) { *p = __float2half_rn(fminf(fmaxf(v, -65504.0f), 65504.0f)); }

__device__ __forceinline__ void load_8(const float* p, float* out) {
    float4 a = ((const float4*)p)[0], b = ((const float4*)p)[1];
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w, out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}
__device__ __forceinline__ void load_8(const __half* p, float* out) {
    uint4 v = *(const uint4*)p;
    uint32_t u[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) out[2 * i] = half_bits(u[i] & 0xffffu), out[2 * i + 1] = half_bits(u[i] >> 16);
}
__device__ __forceinline__ float2 load_2(const float* p) { return *(const float2*)p; }
__device__ __forceinline__ float2 load_2(const __half* p) { return __half22float2(*(const __half2*)p); }

}  // namespace oxgpt
