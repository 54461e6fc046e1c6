// Where keys and values lie: a layer's pool has a block of 32 positions for each KV head, one after another.
//
// Inside a block, keys are (padded_dim / 8, 32 positions, 8), so that the lanes of a warp, one position each, read
// neighbouring pieces; values are (32 positions, padded_dim). padded_dim is head_dim rounded up to 8, with zeros.
//
// In 8 bits, that are codes, and behind them come scales, which are halves: (ceil(padded_dim / 32), 32 positions). An element is its
// code times the scale that the 32 of its head at its position share.
#pragma once
#include "params.cuh"

namespace oxgpt {

constexpr int BLOCK_POSITIONS = 32;

// A byte of a block in 8 bits.
struct Q8 {
    uint8_t byte;
};
constexpr int SCALED_TOGETHER = 32;
// The largest code, and the largest scale: what they give must be halves.
constexpr float MOST_CODE = 127.0f, MOST_SCALE = 515.5f;

// Elements of a block, or bytes of one in 8 bits.
template <class KV> __device__ __forceinline__ int kv_block_size(int padded_dim) { return BLOCK_POSITIONS * padded_dim; }
template <> __device__ __forceinline__ int kv_block_size<Q8>(int padded_dim) {
    return BLOCK_POSITIONS * (padded_dim + 2 * ((padded_dim + SCALED_TOGETHER - 1) / SCALED_TOGETHER));
}
// Where the block of a KV head begins.
template <class KV> __device__ __forceinline__ int64_t kv_block(uint32_t block, int kv_heads, int kv_head, int padded_dim) {
    return ((int64_t)block * kv_heads + kv_head) * kv_block_size<KV>(padded_dim);
}
__device__ __forceinline__ int key_element(int position, int d) { return (d / 8 * BLOCK_POSITIONS + position) * 8 + d % 8; }
__device__ __forceinline__ int value_element(int position, int d, int padded_dim) { return position * padded_dim + d; }
// The byte where the scale of an element lies.
__device__ __forceinline__ int scale_at(int position, int d, int padded_dim) {
    return BLOCK_POSITIONS * padded_dim + 2 * (d / SCALED_TOGETHER * BLOCK_POSITIONS + position);
}

__device__ __forceinline__ void store(float* p, float v) { *p = v; }
// Beyond the largest number comes the largest, not infinity.
__device__ __forceinline__ void store(__half* p, float v) { *p = __float2half_rn(fminf(fmaxf(v, -65504.0f), 65504.0f)); }

// The scale with which the largest of 32 elements, one for each lane, has the largest code.
__device__ __forceinline__ __half scale_of(float x) { return __float2half_rn(fminf(warp_max(fabsf(x)) / MOST_CODE, MOST_SCALE)); }
// The code that is nearest; what a scale is too small for is zero.
__device__ __forceinline__ int8_t code_of(float x, __half scale) {
    float code = roundf(x / __half2float(scale));
    if (__half2float(scale) == 0.0f || code != code) return 0;
    return (int8_t)fminf(fmaxf(code, -MOST_CODE), MOST_CODE);
}

// Stores the elements of a key or a value from d - lane on, of which each lane of a warp has one. `block` is where the block begins.
template <class KV>
__device__ __forceinline__ void store_32(KV* block, int position, int d, float x, bool is_value, int padded_dim) {
    int at = is_value ? value_element(position, d, padded_dim) : key_element(position, d);
    if constexpr (sizeof(KV) == 1) {
        __half scale = scale_of(x);
        if (d < padded_dim) block[at].byte = (uint8_t)code_of(x, scale);
        if (d < padded_dim && d % SCALED_TOGETHER == 0) *(__half*)(block + scale_at(position, d, padded_dim)) = scale;
    } else {
        if (d < padded_dim) store(block + at, x);
    }
}

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

// Eight elements of a key from d on, and two of a value.
template <class KV> __device__ __forceinline__ void key_8(const KV* block, int position, int d, int padded_dim, float* out) {
    if constexpr (sizeof(KV) == 1) {
        uint2 codes = *(const uint2*)(block + key_element(position, d));
        float scale = __half2float(*(const __half*)(block + scale_at(position, d, padded_dim)));
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = (float)(int8_t)((i < 4 ? codes.x : codes.y) >> i % 4 * 8) * scale;
    } else {
        load_8(block + key_element(position, d), out);
    }
}
template <class KV> __device__ __forceinline__ float2 value_2(const KV* block, int position, int d, int padded_dim) {
    if constexpr (sizeof(KV) == 1) {
        uint16_t codes = *(const uint16_t*)(block + value_element(position, d, padded_dim));
        float scale = __half2float(*(const __half*)(block + scale_at(position, d, padded_dim)));
        return make_float2((float)(int8_t)codes * scale, (float)(int8_t)(codes >> 8) * scale);
    } else {
        return load_2(block + value_element(position, d, padded_dim));
    }
}

// Codes as halves: two in each result.
__device__ __forceinline__ void codes_to_halves(uint32_t codes, __half2& low, __half2& high) {
    // 1024 plus a byte, which is 128 more than its code.
    uint32_t bytes = codes ^ 0x80808080u, a = __byte_perm(bytes, 0x64646464u, 0x4140), b = __byte_perm(bytes, 0x64646464u, 0x4342);
    __half2 offset = __float2half2_rn(1152.0f);
    low = __hsub2(*(__half2*)&a, offset), high = __hsub2(*(__half2*)&b, offset);
}

}  // namespace oxgpt
