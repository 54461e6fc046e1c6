// out[t] (+)= weight * x[t] + bias for many tokens, on the tensor cores: operands are halves with 11 significant bits, sums are f32.
//
// Weights are the left operand. Each thread reads chunks of 32 of two rows, from device memory straight into registers, and turns
// them into halves there (halves.cuh); no two threads of a block read the same. Tokens are the right operand, as pack.cu left them,
// and pass through a ring in shared memory that is filled beside the products.
//
// A block computes 128 outputs of up to 256 tokens: two groups of four warps have 64 outputs each, so that one multiplies while the
// other makes halves. Along K both walk in steps of 16 from start to end, so an output has the same bits whatever the other tokens
// are.
//
// Grid: (ceil(rows / 128), tiles of up to 256 tokens), blocks of 256 threads, stages * 32 KiB + 1 KiB of shared memory.
#pragma once
#include "halves.cuh"
#include "params.cuh"
#include "wgmma.cuh"

namespace oxgpt {

constexpr int GEMM_OUTPUTS = 128, GEMM_TOKENS = TILE_SLOTS;
// K of a stage of the ring, and the bytes of one of its rows.
constexpr int GEMM_K = 64, GEMM_ROW = 128;
constexpr int GEMM_STAGE = GEMM_TOKENS * GEMM_ROW, GEMM_MOST_STAGES = 8;
constexpr int GEMM_THREADS = 256;

// Where a block is in the ring.
struct Stage {
    int index = 0, parity = 0;
    __device__ void next(int stages) {
        if (++index == stages) index = 0, parity ^= 1;
    }
};

struct GemmTile {
    int64_t expert;
    int first, tokens;
};

// The products of one warp: 16 outputs, of N tokens.
template <int TYPE, int N> struct GemmWarp {
    using H = HalvesOf<TYPE>;
    const GemmParams& p;
    const GemmTile& tile;
    uint32_t ring, full, empty;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float acc[N / 2] = {};

    __device__ GemmWarp(const GemmParams& p, const GemmTile& tile, uint32_t ring, uint32_t full, uint32_t empty)
        : p(p), tile(tile), ring(ring), full(full), empty(empty) {}

    // The four steps of half a chunk, with the tokens of one stage.
    __device__ void multiply(const uint32_t (&a)[8][4], int half, uint32_t stage) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        uint64_t b = operand_descriptor(stage);
#pragma unroll
        for (int s = 0; s < 4; s++) wgmma<N>(acc, a[4 * half + s], b + 2 * s);
#else
        // Lanes name rows of the two halves of a step, for eight tokens and the next eight.
        uint32_t row = stage + (lane % 8 + lane / 16 * 8) * GEMM_ROW;
#pragma unroll
        for (int s = 0; s < 4; s++) {
            uint32_t piece = (2 * s + lane / 8 % 2) ^ lane % 8;
#pragma unroll
            for (int n = 0; n < N / 16; n++) {
                uint32_t b[4];
                load_matrices(b, row + 16 * n * GEMM_ROW + 16 * piece);
                mma_f16(*(float(*)[4])(acc + 8 * n), a[4 * half + s], b[0], b[1]);
                mma_f16(*(float(*)[4])(acc + 8 * n + 4), a[4 * half + s], b[2], b[3]);
            }
        }
#endif
    }

    __device__ void run(float factor, float unfactor) {
        int mine = lane % 4, groups = (p.cols + 127) / 128;
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        if (threadIdx.x == 0) {
            for (int i = 0; i < p.stages; i++) barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, GEMM_THREADS / WARP);
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
            for (int i = 0; i < min(p.stages, 2 * groups); i++) copy(i, i);
        }
        __syncthreads();
#endif
        // Rows r and r + 8 of the warp's sixteen.
        int output = blockIdx.x * GEMM_OUTPUTS + warp * 16 + lane / 4;
        int64_t base[2];
#pragma unroll
        for (int i = 0; i < 2; i++) base[i] = (tile.expert * p.rows + min(output + 8 * i, p.rows - 1)) * p.chunks;
        typename H::Raw raw[2];
        auto load = [&](int group) {
#pragma unroll
            for (int i = 0; i < 2; i++) H::load(raw[i], p.weight, base[i], 4 * group + mine, p.chunks);
        };
        if (H::AHEAD) load(0);
        Stage stage;
        for (int group = 0; group < groups; group++) {
            if (!H::AHEAD) load(group);
            uint32_t a[8][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                H halves(raw[i], factor);
                for_parts<8>([&](auto part) {
                    constexpr int S = decltype(part)::value;
                    halves.template step<S>(a[S][i], a[S][2 + i]);
                });
            }
            // What lies beyond a row may be anything, and must not meet the zeros of the tokens as NaN.
            if (group == groups - 1) {
#pragma unroll
                for (int s = 0; s < 8; s++) {
                    constexpr int PIECE = H::W::VALUES;
                    bool there = (4 * group + mine) * (32 / PIECE) + 4 * s / PIECE < p.chunks;
#pragma unroll
                    for (int i = 0; i < 4; i++) a[s][i] = there ? a[s][i] : 0u;
                }
            }
            if (H::AHEAD && group + 1 < groups) load(group + 1);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
            Stage second = stage;
            second.next(p.stages);
            barrier_wait(full + 8 * stage.index, stage.parity);
            barrier_wait(full + 8 * second.index, second.parity);
            wgmma_fence();
            multiply(a, 0, ring + stage.index * GEMM_STAGE);
            multiply(a, 1, ring + second.index * GEMM_STAGE);
            wgmma_commit();
            // Meanwhile the stages of the products before are filled again.
            if (threadIdx.x == 0 && group > 0) fill(2 * group + p.stages - 2, 2 * groups);
            wgmma_wait<0>();
            if (lane == 0) barrier_arrive(empty + 8 * stage.index), barrier_arrive(empty + 8 * second.index);
            stage = second;
            stage.next(p.stages);
#else
#pragma unroll
            for (int half = 0; half < 2; half++) {
                fill(2 * group + half, 2 * groups);
                multiply(a, half, ring + stage.index * GEMM_STAGE);
                stage.next(p.stages);
            }
#endif
        }
        store(unfactor);
    }

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    // Has the tokens of two steps copied to their stages, once nobody needs what is there.
    __device__ void fill(int step, int steps) {
        for (int i = step; i < min(step + 2, steps); i++) {
            int stage = i % p.stages, round = i / p.stages;
            if (round > 0) barrier_wait(empty + 8 * stage, round - 1 & 1);
            copy(i, stage);
        }
    }
    __device__ void copy(int step, int stage) {
        const uint8_t* from = (const uint8_t*)p.tokens16 + ((int64_t)step * p.places + tile.first) * GEMM_ROW;
        uint32_t bytes = (tile.tokens + 7) / 8 * 8 * GEMM_ROW;
        barrier_arrive_expecting(full + 8 * stage, bytes);
        copy_bulk(ring + stage * GEMM_STAGE, from, bytes, full + 8 * stage);
    }
#else
    // Copies the tokens of a step to its stage; all threads together.
    __device__ void copy(int step, int steps) {
        if (step < steps) {
            const uint8_t* from = (const uint8_t*)p.tokens16 + ((int64_t)step * p.places + tile.first) * GEMM_ROW;
            uint32_t to = ring + step % p.stages * GEMM_STAGE;
            for (int i = threadIdx.x; i < (tile.tokens + 7) / 8 * 64; i += GEMM_THREADS) copy_16(to + 16 * i, from + 16 * i, true);
        }
        copy_commit();
    }
    // Waits until a stage is full, and fills the one that was used before.
    __device__ void fill(int step, int steps) {
        // One less than the stages are under way, and there are two stages at least.
        if (step == 0) {
            for (int i = 0; i < p.stages - 1; i++) copy(i, steps);
        }
        if (p.stages == 2) copy_wait<0>();
        else copy_wait<1>();
        __syncthreads();
        copy(step + p.stages - 1, steps);
    }
#endif

    __device__ void store(float unfactor) {
        int output = blockIdx.x * GEMM_OUTPUTS + warp * 16 + lane / 4;
        float bias[2];
#pragma unroll
        for (int i = 0; i < 2; i++) bias[i] = p.bias && output + 8 * i < p.rows ? p.bias[tile.expert * p.rows + output + 8 * i] : 0.0f;
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                int t = 8 * n + lane % 4 * 2 + j;
                if (t >= tile.tokens) continue;
                int place = tile.first + t;
                float scale = p.scales[place] * unfactor;
                float* out = p.out + (int64_t)(p.order ? p.order[place] : place) * p.out_stride;
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int row = output + 8 * i;
                    if (row >= p.rows) continue;
                    float sum = __fmaf_rn(acc[4 * n + 2 * i + j], scale, bias[i]);
                    out[row] = p.accumulate ? out[row] + sum : sum;
                }
            }
        }
    }
};

template <int TYPE> __device__ __forceinline__ void gemm(const GemmParams& p) {
    using H = HalvesOf<TYPE>;
    extern __shared__ uint8_t shared[];
    __shared__ uint64_t barriers[2 * GEMM_MOST_STAGES];
    uint32_t ring = (shared_address(shared) + 1023) & ~1023u;
    uint32_t full = shared_address(barriers), empty = full + 8 * GEMM_MOST_STAGES;

    GemmTile tile = {0, (int)blockIdx.y * GEMM_TOKENS, 0};
    tile.tokens = min(GEMM_TOKENS, p.tokens - tile.first);
    if (p.tiles) {
        const int32_t* words = p.tiles + (int64_t)blockIdx.y * TILE_WORDS;
        tile = {words[0], words[1], words[2]};
        if (tile.tokens == 0) return;
    }
    // The same for all threads, which the compiler cannot know.
    tile.tokens = __shfl_sync(ALL_LANES, tile.tokens, 0);
    float factor = 1.0f, unfactor = 1.0f;
    if (!H::KEPT) {
        int exponent = min(max(H::TOP - 1 - exponent_of(__uint_as_float(*p.largest)), -126), 126);
        factor = power_of_two(exponent), unfactor = power_of_two(-exponent);
    }
    if (tile.tokens > 128) {
        GemmWarp<TYPE, 256>(p, tile, ring, full, empty).run(factor, unfactor);
    } else if (tile.tokens > 64) {
        GemmWarp<TYPE, 128>(p, tile, ring, full, empty).run(factor, unfactor);
    } else {
        GemmWarp<TYPE, 64>(p, tile, ring, full, empty).run(factor, unfactor);
    }
}

}  // namespace oxgpt

#define OXGPT_GEMM(name, TYPE)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256, 1) gemm_##name(const __grid_constant__ oxgpt::GemmParams p) {        \
        oxgpt::gemm<oxgpt::TYPE>(p);                                                                                       \
    }
