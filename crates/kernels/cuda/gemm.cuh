// out[t] (+)= weight * x[t] + bias for many tokens, on the tensor cores in TF32: operands keep 11 significant bits and the range of
// f32, sums are f32. Weights are dequantized on their way into shared memory, once for each tile of tokens.
//
// A block computes TOKENS = 32 M_TILES tokens times 128 outputs, its eight warps 16 M_TILES times 32 each. Along K it walks in
// steps of 32 from start to end, one buffer of shared memory being filled while the other is multiplied. An output has the same
// bits whatever M_TILES and the other tokens are.
//
// Grid: (ceil(rows / 128), tiles of tokens), blocks of 256 threads, shared_floats(M_TILES) floats of shared memory.
#pragma once
#include "params.cuh"
#include "weights.cuh"

namespace oxgpt {

constexpr int GEMM_OUTPUTS = 128, GEMM_K = 32;
// Four floats more than a step, so that the lanes of a fragment are in different banks.
constexpr int GEMM_PITCH = GEMM_K + 4;

__device__ __forceinline__ float tf32(float v) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
    return __uint_as_float(bits);
}
// c += a * b, (16, 8) = (16, 8) * (8, 8)
__device__ __forceinline__ void mma_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
                   "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}
// Copies 16 bytes to shared memory, or zeros.
__device__ __forceinline__ void copy_16(float* to, const float* from, bool there) {
    uint32_t address = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(there ? 16 : 0) : "memory");
}

template <int TYPE, int M_TILES>
__device__ __forceinline__ void gemm(const GemmParams& p) {
    using W = Weights<TYPE>;
    constexpr int TOKENS = 32 * M_TILES, VALUES = W::VALUES;
    // Each thread dequantizes half a step, 16 values, of one output.
    constexpr int RAWS = VALUES >= 16 ? 1 : 16 / VALUES;
    extern __shared__ float4 shared[];
    float* xs = (float*)shared;                     // [2][TOKENS][GEMM_PITCH]
    float* ws = xs + 2 * TOKENS * GEMM_PITCH;       // [2][GEMM_OUTPUTS][GEMM_PITCH]

    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int64_t expert = 0;
    int first = blockIdx.y * TOKENS, tokens = min(TOKENS, p.tokens - first);
    if (p.tiles) {
        const int32_t* tile = p.tiles + (int64_t)blockIdx.y * TILE_WORDS;
        expert = tile[0], first = tile[1], tokens = tile[2];
        if (tokens == 0) return;
    }
    auto out_row = [&](int t) { return (int64_t)(p.order ? p.order[first + t] : first + t); };

    // Rows of x that this thread copies, 16 bytes of each in every step.
    const float* x_from[M_TILES];
    bool x_there[M_TILES];
    int x_col = threadIdx.x % 8 * 4;
    bool aligned = p.cols % 4 == 0;
#pragma unroll
    for (int i = 0; i < M_TILES; i++) {
        int t = threadIdx.x / 8 + 32 * i;
        x_there[i] = t < tokens;
        int64_t row = x_there[i] ? out_row(t) / p.slots_per_row : 0;
        x_from[i] = p.x + row * p.x_stride + x_col;
    }
    auto copy_x = [&](int k, int buffer) {
#pragma unroll
        for (int i = 0; i < M_TILES; i++) {
            bool there = x_there[i] && k + x_col < p.cols;
            float* to = xs + (buffer * TOKENS + threadIdx.x / 8 + 32 * i) * GEMM_PITCH + x_col;
            if (aligned) {
                copy_16(to, there ? x_from[i] + k : p.x, there);
            } else {
#pragma unroll
                for (int j = 0; j < 4; j++) to[j] = there && k + x_col + j < p.cols ? x_from[i][k + j] : 0.0f;
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };

    int w_row = threadIdx.x % GEMM_OUTPUTS, half = threadIdx.x / GEMM_OUTPUTS;
    int64_t w_base = (expert * p.rows + min((int)(blockIdx.x * GEMM_OUTPUTS + w_row), p.rows - 1)) * p.chunks;
    typename W::Raw raw[RAWS];
    auto load_w = [&](int k) {
#pragma unroll
        for (int i = 0; i < RAWS; i++) {
            int chunk = VALUES == 32 ? k / 32 : (k + 16 * half) / VALUES + i;
            if (chunk < p.chunks) raw[i] = W::load(p.weight, w_base + chunk);
        }
    };
    auto store_w = [&](int k, int buffer) {
        float* to = ws + (buffer * GEMM_OUTPUTS + w_row) * GEMM_PITCH + 16 * half;
        auto store = [&](int i, bool there, const float* w) {
            float4 v = make_float4(tf32(w[0]), tf32(w[1]), tf32(w[2]), tf32(w[3]));
            *(float4*)(to + 4 * i) = there ? v : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        };
        if constexpr (VALUES == 32) {
            bool there = k / 32 < p.chunks;
            for_parts<4>([&](auto part) {
                constexpr int J = decltype(part)::value;
                float w[4];
                // The same for all threads of a warp.
                if (half == 0) {
                    W::template part<J>(raw[0], w);
                } else {
                    W::template part<J + 4>(raw[0], w);
                }
                store(J, there, w);
            });
        } else {
#pragma unroll
            for (int i = 0; i < RAWS; i++) {
                bool there = (k + 16 * half) / VALUES + i < p.chunks;
                for_parts<VALUES / 4>([&](auto part) {
                    constexpr int J = decltype(part)::value;
                    float w[4];
                    W::template part<J>(raw[i], w);
                    store(i * (VALUES / 4) + J, there, w);
                });
            }
        }
    };

    int warp_token = warp % 2 * 16 * M_TILES, warp_output = warp / 2 * 32;
    float acc[M_TILES][4][4] = {};
    int steps = (p.cols + GEMM_K - 1) / GEMM_K;
    load_w(0);
    copy_x(0, 0);
    store_w(0, 0);
    if (steps > 1) load_w(GEMM_K);
    for (int step = 0; step < steps; step++) {
        int buffer = step & 1, next = (step + 1) * GEMM_K;
        asm volatile("cp.async.wait_group 0;" ::: "memory");
        // Both buffers of this step are filled, and nobody reads those of the step before any more.
        __syncthreads();
        if (step + 1 < steps) {
            copy_x(next, buffer ^ 1);
            store_w(next, buffer ^ 1);
            if (step + 2 < steps) load_w(next + GEMM_K);
        }
        const float* x = xs + (buffer * TOKENS + warp_token + lane / 4) * GEMM_PITCH + lane % 4;
        const float* w = ws + (buffer * GEMM_OUTPUTS + warp_output + lane / 4) * GEMM_PITCH + lane % 4;
#pragma unroll
        for (int k = 0; k < GEMM_K; k += 8) {
            float a[M_TILES][4], b[4][2];
#pragma unroll
            for (int i = 0; i < M_TILES; i++) {
                const float* at = x + 16 * i * GEMM_PITCH + k;
                a[i][0] = tf32(at[0]), a[i][1] = tf32(at[8 * GEMM_PITCH]);
                a[i][2] = tf32(at[4]), a[i][3] = tf32(at[8 * GEMM_PITCH + 4]);
            }
#pragma unroll
            for (int j = 0; j < 4; j++) b[j][0] = w[8 * j * GEMM_PITCH + k], b[j][1] = w[8 * j * GEMM_PITCH + k + 4];
#pragma unroll
            for (int i = 0; i < M_TILES; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) mma_tf32(acc[i][j], a[i], b[j]);
            }
        }
    }

    int output = blockIdx.x * GEMM_OUTPUTS + warp_output + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2 * M_TILES; i++) {
        int t = warp_token + 8 * i + lane / 4;
        if (t >= tokens) continue;
        float* out = p.out + out_row(t) * p.out_stride;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            int row = output + j / 2 * 8 + j % 2;
            if (row >= p.rows) continue;
            float sum = acc[i / 2][j / 2][i % 2 * 2 + j % 2];
            if (p.bias) sum += p.bias[expert * p.rows + row];
            out[row] = p.accumulate ? out[row] + sum : sum;
        }
    }
}

}  // namespace oxgpt

#define OXGPT_GEMM_KERNEL(name, TYPE, M_TILES)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256) gemm_##name##_##M_TILES(const __grid_constant__ oxgpt::GemmParams p) {       \
        oxgpt::gemm<oxgpt::TYPE, M_TILES>(p);                                                                                      \
    }
#define OXGPT_GEMM(name, TYPE) OXGPT_GEMM_KERNEL(name, TYPE, 1) OXGPT_GEMM_KERNEL(name, TYPE, 4)
