// out[t] (+)= weight * x[t] + bias for many tokens, on the tensor cores: operands are halves with 11 significant bits, sums are f32.
//
// Weights are the left operand. Each thread reads pieces of two rows, from device memory straight into registers, and turns them
// into halves there (halves.cuh); no two threads of a block read the same. Tokens are the right operand, as pack.cu left them,
// and pass through a ring in shared memory that is filled beside the products.
//
// A block computes 128 outputs of up to 256 tokens: two groups of four warps have 64 outputs each. Along K both walk in steps of 16
// from start to end, so an output has the same bits whatever the other tokens are.
//
// Grid: (ceil(rows / 128), tiles of up to tile_tokens tokens), blocks of 256 threads, stages * 32 KiB + 1 KiB of shared memory. Where
// no tile has more than 64 tokens, gemm_*_64 takes a fourth of that, and two blocks share a multiprocessor.
#pragma once
#include "halves.cuh"
#include "params.cuh"
#include "wgmma.cuh"

namespace oxgpt {

constexpr int GEMM_OUTPUTS = 128, GEMM_TOKENS = TILE_SLOTS;
// K of a stage of the ring, and the bytes of one of its rows.
constexpr int GEMM_K = 64, GEMM_ROW = 128;
constexpr int GEMM_FEW_TOKENS = 64, GEMM_MOST_STAGES = 6;
constexpr int GEMM_THREADS = 256;

struct GemmTile {
    int64_t expert;
    int first, tokens;
};

// The products of one warp: 16 outputs, of N tokens. ROOM: tokens that a stage has room for.
template <int TYPE, int N, int ROOM> struct GemmWarp {
    static constexpr int STAGE = ROOM * GEMM_ROW;
    using H = HalvesOf<TYPE>;
    // How many groups of weights are on their way: few tokens take less time, and leave more registers. None, where the weights of
    // one take too many.
    static constexpr bool WIDE = H::W::VALUES == 4, AHEAD = !WIDE || N < 256;
    static constexpr int DEPTH = N == 256 ? (H::SMALL ? 2 : 1) : N == 128 ? (WIDE ? 1 : 2) : WIDE ? 2 : 4;
    const GemmParams& p;
    const GemmTile& tile;
    // Of each token what its sums are multiplied with, and its row of out.
    const float* scales;
    const int* places;
    uint32_t ring, full, empty;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float acc[N / 2] = {};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    static constexpr int stages = GEMM_MOST_STAGES;
#else
    int stages = p.stages;
#endif

    __device__ GemmWarp(const GemmParams& p, const GemmTile& tile, const float* scales, const int* places, uint32_t ring, uint32_t full,
                        uint32_t empty)
        : p(p), tile(tile), scales(scales), places(places), ring(ring), full(full), empty(empty) {}

    __device__ void run(float factor, float unfactor) {
        int mine = lane % 4, groups = (p.cols + 127) / 128, steps = 2 * groups;
        start_ring(steps);
        // Rows r and r + 8 of the warp's sixteen.
        int output = blockIdx.x * GEMM_OUTPUTS + warp * 16 + lane / 4;
        int64_t base[2];
#pragma unroll
        for (int i = 0; i < 2; i++) base[i] = (tile.expert * p.rows + min(output + 8 * i, p.rows - 1)) * p.chunks;
        // Weights that are on their way.
        typename H::Raw raw[DEPTH][2];
        auto load = [&](auto slot, auto half, int group) {
            constexpr int SLOT = decltype(slot)::value, HALF = decltype(half)::value;
            if (group >= groups) return;
#pragma unroll
            for (int i = 0; i < 2; i++) H::template load<HALF>(raw[SLOT][i], p.weight, base[i], group, mine, p.chunks);
        };
        // Each half of a group makes four steps of 16.
        uint32_t a[2][4][4];
        auto convert = [&](auto slot, auto half, int group) {
            constexpr int SLOT = decltype(slot)::value, HALF = decltype(half)::value;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                H halves(raw[SLOT][i], HALF, factor);
                for_parts<4>([&](auto part) {
                    constexpr int S = decltype(part)::value;
                    halves.template step<4 * HALF + S>(a[HALF][S][i], a[HALF][S][2 + i]);
                });
            }
            // What lies beyond a row may be anything, and must not meet the zeros of the tokens as NaN.
            if (group == groups - 1) {
#pragma unroll
                for (int s = 0; s < 4; s++) {
                    bool there = H::there(group, 4 * HALF + s, mine, p.chunks);
#pragma unroll
                    for (int i = 0; i < 4; i++) a[HALF][s][i] = there ? a[HALF][s][i] : 0u;
                }
            }
        };
        for_parts<DEPTH>([&](auto slot) {
            constexpr int SLOT = decltype(slot)::value;
            load(slot, Index<0>{}, SLOT);
            load(slot, Index<1>{}, SLOT);
        });
        convert(Index<0>{}, Index<0>{}, 0);
        if (AHEAD) load(Index<0>{}, Index<0>{}, DEPTH);
        // While one half is multiplied, the next is converted.
        auto walk = [&](auto slot, int group) {
            constexpr int SLOT = decltype(slot)::value;
            multiply(a[0], wait_for(2 * group, steps));
            // The other half of the group before is done.
            release<1>(2 * group - 1);
            if (group > 0) fill(2 * group - 2, steps);
            convert(slot, Index<1>{}, group);
            if (AHEAD) load(slot, Index<1>{}, group + DEPTH);
            multiply(a[1], wait_for(2 * group + 1, steps));
            release<1>(2 * group);
            if (group > 0) fill(2 * group - 1, steps);
            if (group + 1 < groups) {
                constexpr auto next = Index<(SLOT + 1) % DEPTH>{};
                if (!AHEAD) load(next, Index<0>{}, group + 1), load(next, Index<1>{}, group + 1);
                convert(next, Index<0>{}, group + 1);
                if (AHEAD) load(next, Index<0>{}, group + 1 + DEPTH);
            }
        };
        for (int group = 0; group < groups; group += DEPTH) {
            for_parts<DEPTH>([&](auto slot) {
                constexpr int SLOT = decltype(slot)::value;
                if (group + SLOT < groups) walk(slot, group + SLOT);
            });
        }
        finish();
        store(unfactor);
    }

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    // One thread has the tokens of a step copied to its stage; warps say when they do not need them any more.
    __device__ void copy(int step) {
        int stage = step % stages;
        const uint8_t* from = (const uint8_t*)p.tokens16 + ((int64_t)step * p.places + tile.first) * GEMM_ROW;
        uint32_t bytes = (tile.tokens + 7) / 8 * 8 * GEMM_ROW;
        barrier_arrive_expecting(full + 8 * stage, bytes);
        copy_bulk(ring + stage * STAGE, from, bytes, full + 8 * stage);
    }
    __device__ void start_ring(int steps) {
        if (threadIdx.x == 0) {
            for (int i = 0; i < stages; i++) barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, GEMM_THREADS / WARP);
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
            for (int i = 0; i < min(stages, steps); i++) copy(i);
        }
        __syncthreads();
    }
    // Fills the stage of a step again, for the step that comes there next.
    __device__ void fill(int step, int steps) {
        if (threadIdx.x != 0 || step + stages >= steps) return;
        barrier_wait(empty + 8 * (step % stages), step / stages & 1);
        copy(step + stages);
    }
    __device__ uint32_t wait_for(int step, int) {
        int stage = step % stages;
        barrier_wait(full + 8 * stage, step / stages & 1);
        return ring + stage * STAGE;
    }
    // Waits until no more than PENDING products of stages are under way, and gives back the stage of a step before those.
    template <int PENDING> __device__ void release(int step) {
        wgmma_wait<PENDING>();
        if (step >= 0 && lane == 0) barrier_arrive(empty + 8 * (step % stages));
    }
    __device__ void finish() { wgmma_wait<0>(); }
    __device__ void multiply(const uint32_t (&a)[4][4], uint32_t stage) {
        uint64_t b = operand_descriptor(stage);
        wgmma_fence();
#pragma unroll
        for (int s = 0; s < 4; s++) wgmma<N>(acc, a[s], b + 2 * s);
        wgmma_commit();
    }
#else
    // All threads copy the tokens of a step to its stage.
    __device__ void copy(int step, int steps) {
        if (step < steps) {
            const uint8_t* from = (const uint8_t*)p.tokens16 + ((int64_t)step * p.places + tile.first) * GEMM_ROW;
            uint32_t to = ring + step % stages * STAGE;
            for (int i = threadIdx.x; i < (tile.tokens + 7) / 8 * 64; i += GEMM_THREADS) copy_16(to + 16 * i, from + 16 * i, true);
        }
        copy_commit();
    }
    __device__ void start_ring(int steps) {
        for (int i = 0; i < stages - 1; i++) copy(i, steps);
    }
    // Waits until a stage is full, and fills the one that was used before; there are two at least.
    __device__ uint32_t wait_for(int step, int steps) {
        if (stages == 2) copy_wait<0>();
        else copy_wait<1>();
        __syncthreads();
        copy(step + stages - 1, steps);
        return ring + step % stages * STAGE;
    }
    __device__ void fill(int, int) {}
    template <int> __device__ void release(int) {}
    __device__ void finish() {}
    __device__ void multiply(const uint32_t (&a)[4][4], uint32_t stage) {
        // Lanes name rows of the two halves of a step, for eight tokens and the next eight.
        uint32_t row = stage + (lane % 8 + lane / 16 * 8) * GEMM_ROW;
#pragma unroll
        for (int s = 0; s < 4; s++) {
            uint32_t piece = (2 * s + lane / 8 % 2) ^ lane % 8;
#pragma unroll
            for (int n = 0; n < N / 16; n++) {
                uint32_t b[4];
                load_matrices(b, row + 16 * n * GEMM_ROW + 16 * piece);
                mma_f16(*(float(*)[4])(acc + 8 * n), a[s], b[0], b[1]);
                mma_f16(*(float(*)[4])(acc + 8 * n + 4), a[s], b[2], b[3]);
            }
        }
    }
#endif

    __device__ void store(float unfactor) {
        int output = blockIdx.x * GEMM_OUTPUTS + warp * 16 + lane / 4;
        float bias[2];
#pragma unroll
        for (int i = 0; i < 2; i++) bias[i] = p.bias && output + 8 * i < p.rows ? p.bias[tile.expert * p.rows + output + 8 * i] : 0.0f;
        // Of several tokens at once, so that what is added to is waited for once.
        constexpr int AT_ONCE = 4;
#pragma unroll
        for (int first = 0; first < N / 8; first += AT_ONCE) {
            float sum[AT_ONCE][4];
            float* to[AT_ONCE][2];
#pragma unroll
            for (int n = 0; n < AT_ONCE; n++) {
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    int t = 8 * (first + n) + lane % 4 * 2 + j;
                    to[n][j] = t < tile.tokens ? p.out + (int64_t)places[t] * p.out_stride + output : nullptr;
                    float scale = scales[t] * unfactor;
#pragma unroll
                    for (int i = 0; i < 2; i++) sum[n][2 * i + j] = __fmaf_rn(acc[4 * (first + n) + 2 * i + j], scale, bias[i]);
                }
            }
            if (p.accumulate) {
#pragma unroll
                for (int n = 0; n < AT_ONCE; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        if (to[n][i % 2] && output + i / 2 * 8 < p.rows) sum[n][i] += to[n][i % 2][i / 2 * 8];
                    }
                }
            }
#pragma unroll
            for (int n = 0; n < AT_ONCE; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (to[n][i % 2] && output + i / 2 * 8 < p.rows) to[n][i % 2][i / 2 * 8] = sum[n][i];
                }
            }
        }
    }
};

// FEW: no tile has more than 64 tokens.
template <int TYPE, bool FEW> __device__ __forceinline__ void gemm(const GemmParams& p) {
    using H = HalvesOf<TYPE>;
    extern __shared__ uint8_t shared[];
    __shared__ uint64_t barriers[2 * GEMM_MOST_STAGES];
    __shared__ float scales[GEMM_TOKENS];
    __shared__ int places[GEMM_TOKENS];
    uint32_t ring = (shared_address(shared) + 1023) & ~1023u;
    uint32_t full = shared_address(barriers), empty = full + 8 * GEMM_MOST_STAGES;

    GemmTile tile = {0, (int)blockIdx.y * p.tile_tokens, 0};
    tile.tokens = min(p.tile_tokens, p.tokens - tile.first);
    if (p.tiles) {
        const int32_t* words = p.tiles + (int64_t)blockIdx.y * TILE_WORDS;
        tile = {words[0], words[1], words[2]};
        if (tile.tokens == 0) return;
    }
    // The same for all threads, which the compiler cannot know.
    tile.tokens = __shfl_sync(ALL_LANES, tile.tokens, 0);
    // There are as many threads as tokens; what they write is read behind the barrier of the ring.
    static_assert(GEMM_THREADS == GEMM_TOKENS, "a thread for each token");
    if ((int)threadIdx.x < tile.tokens) {
        int place = tile.first + threadIdx.x;
        scales[threadIdx.x] = p.scales[place], places[threadIdx.x] = p.order ? p.order[place] : place;
    }
    float factor = 1.0f, unfactor = 1.0f;
    if (!H::KEPT) {
        int exponent = min(max(H::TOP - 1 - exponent_of(__uint_as_float(*p.largest)), -126), 126);
        factor = power_of_two(exponent), unfactor = power_of_two(-exponent);
    }
    if constexpr (FEW) {
        GemmWarp<TYPE, 64, GEMM_FEW_TOKENS>(p, tile, scales, places, ring, full, empty).run(factor, unfactor);
    } else if (tile.tokens > 128) {
        GemmWarp<TYPE, 256, GEMM_TOKENS>(p, tile, scales, places, ring, full, empty).run(factor, unfactor);
    } else if (tile.tokens > 64) {
        GemmWarp<TYPE, 128, GEMM_TOKENS>(p, tile, scales, places, ring, full, empty).run(factor, unfactor);
    } else {
        GemmWarp<TYPE, 64, GEMM_TOKENS>(p, tile, scales, places, ring, full, empty).run(factor, unfactor);
    }
}

}  // namespace oxgpt

#define OXGPT_GEMM(name, TYPE)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256, 1) gemm_##name(const __grid_constant__ oxgpt::GemmParams p) {         \
        oxgpt::gemm<oxgpt::TYPE, false>(p);                                                                                 \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256, 2) gemm_##name##_64(const __grid_constant__ oxgpt::GemmParams p) {    \
        oxgpt::gemm<oxgpt::TYPE, true>(p);                                                                                  \
    }
