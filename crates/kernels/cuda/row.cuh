// Sums over a row by a block of 512 threads, or by 128 of them for each of four rows at once: the same bits either way.
//
// The row is in pieces of four elements. Of 512 virtual threads, number i takes pieces i, i + 512, ..., and they are summed
// by warps, then warp by warp; each of 128 real threads is four virtual ones.
#pragma once
#include "params.cuh"

namespace oxgpt {

constexpr int ROW_THREADS = 512, ROW_WARPS = ROW_THREADS / WARP;

// `V` virtual threads to a thread: 1 or 4. `scratch` has V * ROW_WARPS floats; begins with a barrier.
template <int V> __device__ __forceinline__ float row_sum(float (&sums)[V], float* scratch) {
    constexpr int THREADS = ROW_THREADS / V;
    int row = threadIdx.x / THREADS, warp = threadIdx.x % THREADS / WARP;
#pragma unroll
    for (int v = 0; v < V; v++) sums[v] = warp_sum(sums[v]);
    __syncthreads();
#pragma unroll
    for (int v = 0; v < V; v++) {
        if (threadIdx.x % WARP == 0) scratch[row * ROW_WARPS + v * (THREADS / WARP) + warp] = sums[v];
    }
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < ROW_WARPS; i += 4) {
        float4 part = *(const float4*)(scratch + row * ROW_WARPS + i);
        sum += (part.x + part.y) + (part.z + part.w);
    }
    return sum;
}
// The largest of numbers that are not negative.
template <int V> __device__ __forceinline__ float row_max(float most, float* scratch) {
    constexpr int THREADS = ROW_THREADS / V;
    int row = threadIdx.x / THREADS, warp = threadIdx.x % THREADS / WARP;
    // Such floats are ordered as their bits are.
    most = __uint_as_float(__reduce_max_sync(ALL_LANES, __float_as_uint(most)));
    __syncthreads();
    if (threadIdx.x % WARP == 0) scratch[row * ROW_WARPS + warp] = most;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < THREADS / WARP; i += 4) {
        float4 part = *(const float4*)(scratch + row * ROW_WARPS + i);
        most = fmaxf(most, fmaxf(fmaxf(part.x, part.y), fmaxf(part.z, part.w)));
    }
    return most;
}

// Of each of V virtual threads, up to N pieces in a row: piece v * THREADS + thread + 512 n.
template <int V, int N, class F> __device__ __forceinline__ void for_pieces(F&& f) {
    constexpr int THREADS = ROW_THREADS / V;
#pragma unroll
    for (int v = 0; v < V; v++) {
#pragma unroll
        for (int n = 0; n < N; n++) f(v, n, (int)(threadIdx.x % THREADS) + v * THREADS + n * ROW_THREADS);
    }
}

// What a norm takes off a row, and multiplies it with.
struct RowScale { float mean, scale; };
// `sweep(f)` calls f(v, i, x) for each piece of virtual thread v in order, zeros beyond the end.
template <int V, class Sweep>
__device__ __forceinline__ RowScale row_scale(int width, bool centered, float eps, float* scratch, Sweep&& sweep) {
    float sums[V] = {};
    float mean = 0.0f;
    if (centered) {
        sweep([&](int v, int, const float4& x) { sums[v] += (x.x + x.y) + (x.z + x.w); });
        mean = row_sum<V>(sums, scratch) / (float)width;
#pragma unroll
        for (int v = 0; v < V; v++) sums[v] = 0.0f;
    }
    sweep([&](int v, int i, const float4& x) {
        auto add = [&](float x, int k) {
            float d = 4 * i + k < width ? __fsub_rn(x, mean) : 0.0f;
            sums[v] = __fmaf_rn(d, d, sums[v]);
        };
        add(x.x, 0), add(x.y, 1), add(x.z, 2), add(x.w, 3);
    });
    float variance = row_sum<V>(sums, scratch) / (float)width;
    return {mean, 1.0f / sqrtf(variance + eps)};
}
__device__ __forceinline__ float normed(float x, const RowScale& s, float weight, float bias, bool with_bias) {
    float v = __fmul_rn(__fsub_rn(x, s.mean), s.scale);
    return with_bias ? __fmaf_rn(v, weight, bias) : __fmul_rn(v, weight);
}
__device__ __forceinline__ float4 normed(const float4& x, const RowScale& s, const float4& weight, const float4& bias, bool with_bias) {
    return make_float4(
        normed(x.x, s, weight.x, bias.x, with_bias), normed(x.y, s, weight.y, bias.y, with_bias),
        normed(x.z, s, weight.z, bias.z, with_bias), normed(x.w, s, weight.w, bias.w, with_bias));
}
__device__ __forceinline__ float largest(const float4& v) { return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))); }

// Elements 4 i to 4 i + 3 of a row of `width`, zeros beyond the end. What another kernel wrote is not looked for in the
// first-level cache, which may have it from before.
__device__ __forceinline__ float4 row_piece(const float* x, int i, int width, bool aligned) {
    float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (4 * i >= width) return v;
    if (aligned) return __ldcg((const float4*)x + i);
    x += 4 * i;
    if (4 * i < width) v.x = __ldcg(x);
    if (4 * i + 1 < width) v.y = __ldcg(x + 1);
    if (4 * i + 2 < width) v.z = __ldcg(x + 2);
    if (4 * i + 3 < width) v.w = __ldcg(x + 3);
    return v;
}

}  // namespace oxgpt
