// out[t] (+)= weight * x[t] + bias, for a few tokens at a time, in f32: every weight is read once for TOKENS tokens.
//
// A warp computes ROWS outputs. Lane l takes chunks l, l + 32, ... of each row in that order, and the lanes are summed at the
// end; so an output has the same bits whatever TOKENS, ROWS and the other tokens are. x lies in shared memory, turned
// around so that the lanes read neighbouring 16 bytes.
//
// Grid: (ceil(rows / (8 ROWS)), ceil(tokens / TOKENS) or groups), blocks of 256 threads.
#pragma once
#include "params.cuh"
#include "weights.cuh"

namespace oxgpt {

constexpr int GROUP_SLOTS = 8;
// Which slots (rows of out) meet the weights of one expert: expert, count, slots.
constexpr int GROUP_WORDS = 2 + GROUP_SLOTS;

template <int TYPE, int TOKENS, int ROWS>
__device__ __forceinline__ void matvec(const ProductParams& p) {
    using W = Weights<TYPE>;
    constexpr int WARPS = 8, PARTS = W::VALUES / 4;
    constexpr int TILE = 8192 / TOKENS, TILE_CHUNKS = TILE / W::VALUES;
    static_assert(TILE_CHUNKS % WARP == 0, "a tile must not change which lane takes a chunk");
    constexpr int PITCH = TILE_CHUNKS + 1;  // one more, so that storing has no bank conflicts
    __shared__ float4 xs[TOKENS * PARTS * PITCH];

    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int first_token = blockIdx.y * TOKENS, tokens = min(TOKENS, p.tokens - first_token);
    int64_t expert = 0;
    const int32_t* group = nullptr;
    if (p.groups) {
        group = p.groups + (int64_t)blockIdx.y * GROUP_WORDS;
        expert = group[0], tokens = group[1], group += 2;
        if (tokens == 0) return;
    }
    auto x_row = [&](int t) { return (int64_t)(group ? group[t] / p.slots_per_row : first_token + t); };
    auto out_row = [&](int t) { return (int64_t)(group ? group[t] : first_token + t); };

    int first_row = (blockIdx.x * WARPS + warp) * ROWS;
    int64_t base[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) base[r] = (expert * p.rows + min(first_row + r, p.rows - 1)) * p.chunks;
    float acc[ROWS][TOKENS] = {};
    bool aligned = p.cols % 4 == 0 && p.x_stride % 4 == 0;

    typename W::Raw next[ROWS];
    if (lane < p.chunks) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) next[r] = W::load(p.weight, base[r] + lane);
    }
    for (int first = 0; first < p.chunks; first += TILE_CHUNKS) {
        int end = min(first + TILE_CHUNKS, p.chunks);
        __syncthreads();
        for (int t = 0; t < TOKENS; t++) {
            for (int i = threadIdx.x; i < (end - first) * PARTS; i += WARPS * WARP) {
                int col = (first * PARTS + i) * 4;
                float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (t < tokens) {
                    const float* x = p.x + x_row(t) * p.x_stride + col;
                    if (aligned) {
                        if (col < p.cols) v = *(const float4*)x;
                    } else {
                        if (col < p.cols) v.x = x[0];
                        if (col + 1 < p.cols) v.y = x[1];
                        if (col + 2 < p.cols) v.z = x[2];
                        if (col + 3 < p.cols) v.w = x[3];
                    }
                }
                xs[(t * PARTS + i % PARTS) * PITCH + i / PARTS] = v;
            }
        }
        __syncthreads();
        for (int chunk = first + lane; chunk < end; chunk += WARP) {
            typename W::Raw raw[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) raw[r] = next[r];
            // The next chunk is on its way while this one is multiplied.
            if (chunk + WARP < p.chunks) {
#pragma unroll
                for (int r = 0; r < ROWS; r++) next[r] = W::load(p.weight, base[r] + chunk + WARP);
            }
            for_parts<PARTS>([&](auto part) {
                constexpr int J = decltype(part)::value;
                float4 x[TOKENS];
#pragma unroll
                for (int t = 0; t < TOKENS; t++) x[t] = xs[(t * PARTS + J) * PITCH + chunk - first];
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    float w[4];
                    W::template part<J>(raw[r], w);
#pragma unroll
                    for (int t = 0; t < TOKENS; t++) {
                        acc[r][t] = __fmaf_rn(w[0], x[t].x, acc[r][t]);
                        acc[r][t] = __fmaf_rn(w[1], x[t].y, acc[r][t]);
                        acc[r][t] = __fmaf_rn(w[2], x[t].z, acc[r][t]);
                        acc[r][t] = __fmaf_rn(w[3], x[t].w, acc[r][t]);
                    }
                }
            });
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            float sum = warp_sum(acc[r][t]);
            int row = first_row + r;
            if (lane == r * TOKENS + t && t < tokens && row < p.rows) {
                float* out = p.out + out_row(t) * p.out_stride + row;
                if (p.bias) sum += p.bias[expert * p.rows + row];
                *out = p.accumulate ? *out + sum : sum;
            }
        }
    }
}

}  // namespace oxgpt

#define OXGPT_MATVEC_KERNEL(name, TYPE, TOKENS, ROWS)                                                                      \
    extern "C" __global__ void __launch_bounds__(256) matvec_##name##_##TOKENS##_##ROWS(                                   \
        const __grid_constant__ oxgpt::ProductParams p) {                                                                  \
        oxgpt::matvec<oxgpt::TYPE, TOKENS, ROWS>(p);                                                                       \
    }
#define OXGPT_MATVEC(name, TYPE)             \
    OXGPT_MATVEC_KERNEL(name, TYPE, 1, 1)    \
    OXGPT_MATVEC_KERNEL(name, TYPE, 1, 4)    \
    OXGPT_MATVEC_KERNEL(name, TYPE, 4, 2)    \
    OXGPT_MATVEC_KERNEL(name, TYPE, 8, 2)
