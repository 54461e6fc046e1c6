// out[t] = ending(weight * x[t] + bias) for many tokens, on the tensor cores: operands are halves with 11 significant bits, sums are f32.
//
// Weights are the left operand. Each thread reads pieces of two rows, from device memory straight into registers, and turns them
// into halves there (halves.cuh); no two threads of a block read the same. Tokens are the right operand, as pack.cu left them,
// and pass through a ring in shared memory that is filled beside the products.
//
// A block computes 128 outputs, of one of up to three matrices, of up to 256 tokens: two groups of four warps have 64 outputs each.
// Along K both walk in steps of 16 from start to end, so an output has the same bits whatever the other tokens are. With PAIRS a
// block has 64 gates and their ups, each thread a row of both, and gives gated(gate, up). With splits, blocks of a cluster share K,
// and add their sums up in order.
//
// Weights are on their way before the kernel before this one has ended, unless tiles say whose they are.
//
// Grid: (ceil(rows / 128) of all matrices, tiles of up to tile_tokens tokens, splits), blocks of 256 threads, stages * 32 KiB + 1 KiB of
// shared memory. Where no tile has more than 64 tokens, gemm_*_64 takes a fourth of that, and two blocks share a multiprocessor; the
// ring has more stages where tokens are fewer. gemm_*_pairs is the same with PAIRS.
#pragma once
#include "activation.cuh"
#include "halves.cuh"
#include "wgmma.cuh"

namespace oxgpt {

constexpr int GEMM_OUTPUTS = 128, GEMM_TOKENS = TILE_SLOTS;
// K of a stage of the ring, and the bytes of one of its rows.
constexpr int GEMM_K = 64, GEMM_ROW = 128;
constexpr int GEMM_FEW_TOKENS = 64, GEMM_MOST_STAGES = 6, GEMM_FEW_STAGES = 12, GEMM_FEWEST_TOKENS = 16;
// Up to so many are multiplied by warps that do not wait for each other.
constexpr int GEMM_SYNC_TOKENS = 32;
// Of rings for few tokens.
constexpr int GEMM_MOST_FEW_STAGES = GEMM_FEW_STAGES / 2 * GEMM_FEW_TOKENS / GEMM_FEWEST_TOKENS;
constexpr int GEMM_THREADS = 256;

// In the order of `Ending` in src/gemm.rs.
enum GemmEnding { GEMM_STORE, GEMM_ADD, GEMM_ACTIVATE, GEMM_GATED };

// What a block computes: of which expert, for which tokens, and of which matrix from which row on.
struct GemmTile {
    int64_t expert;
    int first, tokens;
    int part, row;
};

// The products of one warp: 16 outputs, or 8 with their gates, of N tokens. ROOM: tokens that a stage has room for.
template <int TYPE, int N, int ROOM, bool PAIRS> struct GemmWarp {
    static constexpr int STAGE = ROOM * GEMM_ROW;
    static constexpr bool FEW = ROOM <= GEMM_FEW_TOKENS;
    // Matrices that a thread's two rows are of.
    static constexpr int MATRICES = PAIRS ? 2 : 1;
    // Outputs that a lane gets in the end, where tokens are many.
    static constexpr int EACH = GEMM_OUTPUTS / WARP;
    using H = HalvesOf<TYPE>;
    // How many groups of weights are on their way: few tokens take less time, and leave more registers. None, where the weights of
    // one take too many.
    static constexpr bool WIDE = H::W::VALUES == 4, AHEAD = !WIDE || N < 256;
    static constexpr int DEPTH = N == 256 ? (H::SMALL ? 2 : 1) : N == 128 ? (WIDE ? 1 : 2) : FEW || WIDE ? 2 : 4;
    const GemmParams& p;
    const GemmTile& tile;
    // Of each token what its sums are multiplied with, and its row of out.
    float* scales;
    int* places;
    uint32_t ring, full, empty;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float acc[N / 2] = {};

    // Groups of 128 along K that are this block's.
    int begin, end;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    static constexpr bool ASYNC = N > GEMM_SYNC_TOKENS;
    // Many tokens, whose sums the ring has room for.
    static constexpr int SHARED_TOKENS = N;
    static constexpr int stages = FEW ? GEMM_FEW_STAGES * GEMM_FEW_TOKENS / ROOM : GEMM_MOST_STAGES;
#else
    static constexpr bool ASYNC = false;
    static constexpr int SHARED_TOKENS = N < 64 ? N : 64;
    int stages = FEW ? p.stages * GEMM_FEW_TOKENS / ROOM : p.stages;
#endif

    __device__ GemmWarp(const GemmParams& p, const GemmTile& tile, float* scales, int* places, uint32_t ring, uint32_t full, uint32_t empty)
        : p(p), tile(tile), scales(scales), places(places), ring(ring), full(full), empty(empty) {
        int groups = (p.cols + 127) / 128, each = (groups + p.splits - 1) / p.splits;
        begin = blockIdx.z * each, end = min(begin + each, groups);
    }

    __device__ const GemmPart& part(int i) const { return p.parts[PAIRS ? i : tile.part]; }
    // The row of output i of this thread's two.
    __device__ int output(int i) const { return PAIRS ? tile.row + warp * 8 + lane / 4 : tile.row + warp * 16 + lane / 4 + 8 * i; }

    __device__ void run() {
        Planes planes[MATRICES];
        uint32_t most[MATRICES];
#pragma unroll
        for (int i = 0; i < MATRICES; i++) planes[i] = part(i).weight, most[i] = H::KEPT ? 0 : stream_4(part(i).largest);
        // Rows r and r + 8 of the warp's sixteen: where what is to be loaded next begins, and how many pieces there are.
        int64_t next[2];
        constexpr int PIECES = 4 * H::RAWS;
        int left = min(end * PIECES, p.chunks) - begin * PIECES - lane % 4;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const GemmPart& q = part(i);
            next[i] = (tile.expert * q.matrix_rows + q.first_row + min(output(i), q.rows - 1)) * p.chunks + begin * PIECES + lane % 4;
        }
        // Weights that are on their way.
        typename H::Raw raw[DEPTH][2];
        auto load = [&](auto slot, auto half) {
            constexpr int SLOT = decltype(slot)::value, HALF = decltype(half)::value;
#pragma unroll
            for (int i = 0; i < 2; i++) H::template load<HALF>(raw[SLOT][i], planes[PAIRS ? i : 0], next[i], left);
            if (HALF == 1) next[0] += PIECES, next[1] += PIECES, left -= PIECES;
        };
        for_parts<DEPTH>([&](auto slot) { load(slot, Index<0>{}), load(slot, Index<1>{}); });
        if (!p.tiles) wait_for_previous();
        launch_dependents();
        start_ring();
        // There are as many threads as tokens.
        static_assert(GEMM_THREADS == GEMM_TOKENS, "a thread for each token");
        bool has_token = (int)threadIdx.x < tile.tokens;
        int place = tile.first + (has_token ? threadIdx.x : 0);
        float scale_of_token = has_token ? __ldcg(p.scales + place) : 0.0f;
        int place_of_token = has_token && p.order ? __ldcg(p.order + place) : place;
        float factor[MATRICES], unfactor[MATRICES];
#pragma unroll
        for (int i = 0; i < MATRICES; i++) {
            int exponent = H::KEPT ? 0 : min(max(H::TOP - 1 - exponent_of(__uint_as_float(most[i])), -126), 126);
            factor[i] = power_of_two(exponent), unfactor[i] = power_of_two(-exponent);
        }
        // Each half of a group makes four steps of 16.
        uint32_t a[2][4][4];
        typename H::Scale scale[2];
        auto convert = [&](auto slot, auto half) {
            constexpr int SLOT = decltype(slot)::value, HALF = decltype(half)::value;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (HALF == 0 || H::RAWS > 1) scale[i] = H::scale(raw[SLOT][i], HALF, factor[PAIRS ? i : 0]);
                for_parts<4>([&](auto part) {
                    constexpr int S = decltype(part)::value;
                    H::template step<4 * HALF + S>(raw[SLOT][i], scale[i], a[HALF][S][i], a[HALF][S][2 + i]);
                });
            }
        };
        // While one half is multiplied, the next is converted.
        auto walk = [&](auto slot, int group) {
            convert(slot, Index<0>{});
            if (AHEAD) load(slot, Index<0>{});
            multiply(a[0], wait_for<0>(group));
            // The other half of the group before is done.
            release<1>(group - 1);
            fill<1>(group - 1);
            convert(slot, Index<1>{});
            if (AHEAD) load(slot, Index<1>{});
            multiply(a[1], wait_for<1>(group));
            release<0>(group);
            fill<0>(group);
            if (!AHEAD) load(slot, Index<0>{}), load(slot, Index<1>{});
        };
        for (int group = 0; group < end - begin; group += DEPTH) {
            for_parts<DEPTH>([&](auto slot) {
                constexpr int SLOT = decltype(slot)::value;
                if (group + SLOT < end - begin) walk(slot, group + SLOT);
            });
        }
        finish();
        if (has_token) scales[threadIdx.x] = scale_of_token, places[threadIdx.x] = place_of_token;
        __syncthreads();
        if constexpr (FEW) store_few(unfactor);
        else store_many(unfactor[0]);
    }

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    // A stage has both steps of a group, or one.
    static constexpr int AT_ONCE = FEW ? 2 : 1, STAGES = stages / AT_ONCE;
    // Of the ring, with the parity of its phase: what is next to be read, given back, and filled again.
    struct Stage {
        int index = 0, parity = 0;
        __device__ void advance() {
            if (++index == STAGES) index = 0, parity ^= 1;
        }
    } reading, returned, refilled;
    // One thread has the tokens of a stage copied there; warps say when they do not need them any more.
    __device__ void copy(int filled, int stage) {
        uint32_t bytes = (tile.tokens + 7) / 8 * 8 * GEMM_ROW;
        barrier_arrive_expecting(full + 8 * stage, AT_ONCE * bytes);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int step = 2 * begin + filled * AT_ONCE + i;
            const uint8_t* from = (const uint8_t*)p.tokens16 + ((int64_t)step * p.places + tile.first) * GEMM_ROW;
            copy_bulk(ring + (stage * AT_ONCE + i) * STAGE, from, bytes, full + 8 * stage);
        }
    }
    __device__ void start_ring() {
        if (threadIdx.x < STAGES) {
            barrier_init(full + 8 * threadIdx.x, 1), barrier_init(empty + 8 * threadIdx.x, GEMM_THREADS / WARP);
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        __syncthreads();
        // One thread would take longer for all stages than the first products do.
        if (lane == 0) {
            for (int i = warp; i < min(STAGES, 2 * (end - begin) / AT_ONCE); i += GEMM_THREADS / WARP) copy(i, i);
        }
    }
    // Fills the stage of this half of a group again, for what comes there next.
    template <int HALF> __device__ void fill(int group) {
        if (FEW && HALF == 0) return;
        int used = FEW ? group : 2 * group + HALF;
        if (group < 0 || used + STAGES >= 2 * (end - begin) / AT_ONCE) return;
        if (threadIdx.x == 0) {
            barrier_wait(empty + 8 * refilled.index, refilled.parity);
            copy(used + STAGES, refilled.index);
        }
        refilled.advance();
    }
    // Where the tokens of half a group are.
    template <int HALF> __device__ uint32_t wait_for(int) {
        if (FEW && HALF == 1) return ring + (2 * reading_before() + 1) * STAGE;
        barrier_wait(full + 8 * reading.index, reading.parity);
        uint32_t at = ring + reading.index * AT_ONCE * STAGE;
        reading.advance();
        return at;
    }
    __device__ int reading_before() const { return reading.index == 0 ? STAGES - 1 : reading.index - 1; }
    // Waits for all products but those of the last half, and gives back the stage of this half of a group, which is before that.
    template <int HALF> __device__ void release(int group) {
        if (ASYNC) wgmma_wait<1>();
        if (group < 0 || (FEW && HALF == 0)) return;
        if (!ASYNC) __syncwarp();
        if (lane == 0) barrier_arrive(empty + 8 * returned.index);
        returned.advance();
    }
    __device__ void finish() {
        if (ASYNC) wgmma_wait<0>();
    }
#else
    // All threads copy the tokens of a step to its stage.
    __device__ void copy(int step) {
        if (step < 2 * (end - begin)) {
            const uint8_t* from = (const uint8_t*)p.tokens16 + ((int64_t)(2 * begin + step) * p.places + tile.first) * GEMM_ROW;
            uint32_t to = ring + step % stages * STAGE;
            for (int i = threadIdx.x; i < (tile.tokens + 7) / 8 * 64; i += GEMM_THREADS) copy_16(to + 16 * i, from + 16 * i, true);
        }
        copy_commit();
    }
    __device__ void start_ring() {
        for (int i = 0; i < stages - 1; i++) copy(i);
    }
    // Waits until the stage of half a group is full, and fills the one that was used before; there are two at least.
    template <int HALF> __device__ uint32_t wait_for(int group) {
        int step = 2 * group + HALF;
        if (stages == 2) copy_wait<0>();
        else copy_wait<1>();
        __syncthreads();
        copy(step + stages - 1);
        return ring + step % stages * STAGE;
    }
    template <int> __device__ void fill(int) {}
    template <int> __device__ void release(int) {}
    __device__ void finish() {}
#endif

    __device__ void multiply(const uint32_t (&a)[4][4], uint32_t stage) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        if constexpr (ASYNC) {
            uint64_t b = operand_descriptor(stage);
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < 4; s++) wgmma<N>(acc, a[s], b + 2 * s);
            wgmma_commit();
            return;
        }
#endif
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

    // Of every eight of few tokens, one block of the cluster gets the sums of all. Without clusters there is one split.
    __device__ bool is_mine(int n) const { return n % p.splits == (int)blockIdx.z; }
    __device__ void add_splits() {
#if __CUDA_ARCH__ >= 900
        // Nobody reads the ring any more, and nothing is on its way there.
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
            store_shared(ring + (n * GEMM_THREADS + threadIdx.x) * 16, make_float4(acc[4 * n], acc[4 * n + 1], acc[4 * n + 2], acc[4 * n + 3]));
        }
        cluster_barrier();
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
            if (!is_mine(n)) continue;
            float4 sum = {};
            for (int split = 0; split < p.splits; split++) {
                float4 v;
                load_shared_of(v, ring + (n * GEMM_THREADS + threadIdx.x) * 16, split);
                sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
            }
            acc[4 * n] = sum.x, acc[4 * n + 1] = sum.y, acc[4 * n + 2] = sum.z, acc[4 * n + 3] = sum.w;
        }
        // What others read stays until they have it.
        cluster_barrier();
#endif
    }

    // Ends the sums of few tokens where they are, in registers, all at once.
    __device__ void store_few(const float (&unfactor)[MATRICES]) {
        if (p.splits > 1) add_splits();
        float bias[2];
        bool there[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const GemmPart& q = part(i);
            there[i] = output(i) < q.rows;
            bias[i] = q.bias && there[i] ? q.bias[tile.expert * q.matrix_rows + q.first_row + output(i)] : 0.0f;
        }
        // Of several tokens at once, so that what is added to is waited for once.
        constexpr int AT_ONCE = N / 8 < 4 ? N / 8 : 4;
#pragma unroll
        for (int first = 0; first < N / 8; first += AT_ONCE) {
            float sum[AT_ONCE][4];
            float* to[AT_ONCE][2];
#pragma unroll
            for (int n = 0; n < AT_ONCE; n++) {
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    int t = 8 * (first + n) + lane % 4 * 2 + j;
                    bool is_real = t < tile.tokens && is_mine(first + n);
                    to[n][j] = is_real ? p.out + (int64_t)places[t] * p.out_stride + part(0).start + output(0) : nullptr;
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        sum[n][2 * i + j] = __fmaf_rn(acc[4 * (first + n) + 2 * i + j], scales[t] * unfactor[PAIRS ? i : 0], bias[i]);
                    }
                }
            }
            if (PAIRS) {
#pragma unroll
                for (int n = 0; n < AT_ONCE; n++) {
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        if (to[n][j] && there[0]) *to[n][j] = gated(sum[n][j], sum[n][2 + j], p.activation, p.limit, p.alpha);
                    }
                }
                continue;
            }
            if (p.ending == GEMM_ADD) {
#pragma unroll
                for (int n = 0; n < AT_ONCE; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        if (to[n][i % 2] && there[i / 2]) sum[n][i] += __ldcg(to[n][i % 2] + i / 2 * 8);
                    }
                }
            } else if (p.ending == GEMM_ACTIVATE) {
#pragma unroll
                for (int n = 0; n < AT_ONCE; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) sum[n][i] = activation(sum[n][i], p.activation);
                }
            }
#pragma unroll
            for (int n = 0; n < AT_ONCE; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (to[n][i % 2] && there[i / 2]) to[n][i % 2][i / 2 * 8] = sum[n][i];
                }
            }
        }
    }

    // Where a sum of this block lies in the ring once nobody reads tokens there any more: the lanes of a fragment meet different banks.
    __device__ uint32_t sum_at(int token, int column) const { return ring + 4 * (token * (GEMM_OUTPUTS + 4) + column); }
    // Brings sums to where all threads, and all blocks of a cluster, see them; `first` is known to the compiler.
    __device__ void share(int first) {
#pragma unroll
        for (int n = 0; n < SHARED_TOKENS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int column = warp * 16 + lane / 4 + 8 * (i / 2);
                store_shared(sum_at(8 * n + lane % 4 * 2 + i % 2, column), acc[4 * (first / 8 + n) + i]);
            }
        }
    }
    __device__ void meet() {
#if __CUDA_ARCH__ >= 900
        if (p.splits > 1) {
            cluster_barrier();
            return;
        }
#endif
        __syncthreads();
    }
    __device__ float sum_of(uint32_t at, int split) const {
#if __CUDA_ARCH__ >= 900
        float v;
        if (p.splits > 1) {
            load_shared_of(v, at, split);
            return v;
        }
#endif
        return load_shared(at);
    }
    // Whether there is an output for the lane in each 32 of the block's.
    __device__ bool is_output(int e) const { return tile.row + lane + WARP * e < part(0).rows; }
    // Calls end(v, to, is_real) for the shared tokens that are this block's: v has results of this lane, which belong to `to` and
    // every 32nd place after it. A warp has a token to itself; AT_ONCE of its tokens are looked at together.
    template <int AT_ONCE, class End> __device__ void for_results(int first, float unfactor, End&& end) {
        const GemmPart& q = part(0);
        float bias[EACH];
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            bias[e] = q.bias && is_output(e) ? q.bias[tile.expert * q.matrix_rows + q.first_row + tile.row + lane + WARP * e] : 0.0f;
        }
        int count = min(SHARED_TOKENS, tile.tokens - first), step = GEMM_THREADS / WARP * p.splits;
        for (int t = warp * p.splits + blockIdx.z; t < count; t += AT_ONCE * step) {
            float v[AT_ONCE][EACH] = {};
            for (int split = 0; split < p.splits; split++) {
#pragma unroll
                for (int a = 0; a < AT_ONCE; a++) {
#pragma unroll
                    for (int e = 0; e < EACH; e++) v[a][e] += sum_of(sum_at(min(t + a * step, count - 1), lane + WARP * e), split);
                }
            }
            float* to[AT_ONCE];
#pragma unroll
            for (int a = 0; a < AT_ONCE; a++) {
                int token = first + min(t + a * step, count - 1);
                to[a] = p.out + (int64_t)places[token] * p.out_stride + q.start + tile.row + lane;
#pragma unroll
                for (int e = 0; e < EACH; e++) v[a][e] = __fmaf_rn(v[a][e], scales[token] * unfactor, bias[e]);
            }
            end(v, to, [&](int a, int e) { return t + a * step < count && is_output(e); });
        }
    }
    // Ends the sums of many tokens by way of the ring, with the same few instructions for each: unrolled for all of them, they do not
    // fit into the cache for instructions.
    __device__ void store_many(float unfactor) {
#pragma unroll
        for (int first = 0; first < N; first += SHARED_TOKENS) {
            if (first > 0) meet();
            share(first);
            meet();
            if (p.ending == GEMM_ACTIVATE) {
                for_results<1>(first, unfactor, [&](auto& v, float** to, auto&& is_real) {
#pragma unroll
                    for (int e = 0; e < EACH; e++) {
                        if (is_real(0, e)) to[0][WARP * e] = activation(v[0][e], p.activation);
                    }
                });
            } else {
                // What is added to is waited for once for several tokens.
                constexpr int AT_ONCE = 4;
                for_results<AT_ONCE>(first, unfactor, [&](auto& v, float** to, auto&& is_real) {
                    float old[AT_ONCE][EACH] = {};
#pragma unroll
                    for (int i = 0; i < AT_ONCE * EACH; i++) {
                        int a = i / EACH, e = i % EACH;
                        if (p.ending == GEMM_ADD && is_real(a, e)) old[a][e] = __ldcg(to[a] + WARP * e);
                    }
#pragma unroll
                    for (int i = 0; i < AT_ONCE * EACH; i++) {
                        int a = i / EACH, e = i % EACH;
                        if (is_real(a, e)) to[a][WARP * e] = p.ending == GEMM_ADD ? v[a][e] + old[a][e] : v[a][e];
                    }
                });
            }
        }
        // What others read stays until they have it.
        if (p.splits > 1) meet();
    }
};

// FEW: no tile has more than 64 tokens.
template <int TYPE, bool FEW, bool PAIRS> __device__ __forceinline__ void gemm(const GemmParams& p) {
    extern __shared__ uint8_t shared[];
    constexpr int STAGES = FEW ? GEMM_MOST_FEW_STAGES : GEMM_MOST_STAGES, TOKENS = FEW ? GEMM_FEW_TOKENS : GEMM_TOKENS;
    __shared__ uint64_t barriers[2 * STAGES];
    __shared__ float scales[TOKENS];
    __shared__ int places[TOKENS];
    uint32_t ring = (shared_address(shared) + 1023) & ~1023u;
    uint32_t full = shared_address(barriers), empty = full + 8 * STAGES;

    GemmTile tile = {0, (int)blockIdx.y * p.tile_tokens, 0, 0, (int)blockIdx.x * (PAIRS ? GEMM_OUTPUTS / 2 : GEMM_OUTPUTS)};
    tile.tokens = min(p.tile_tokens, p.tokens - tile.first);
    if (!PAIRS) {
        // Matrices begin at whole tiles.
        for (; tile.part + 1 < p.n_parts && tile.row >= p.parts[tile.part].rows; tile.part++) {
            tile.row -= (p.parts[tile.part].rows + GEMM_OUTPUTS - 1) / GEMM_OUTPUTS * GEMM_OUTPUTS;
        }
    }
    if (p.tiles) {
        wait_for_previous();
        const int32_t* words = p.tiles + (int64_t)blockIdx.y * TILE_WORDS;
        tile.expert = __ldcg(words), tile.first = __ldcg(words + 1), tile.tokens = __ldcg(words + 2);
        if (tile.tokens == 0) return;
    }
    // The same for all threads, which the compiler cannot know.
    tile.tokens = __shfl_sync(ALL_LANES, tile.tokens, 0);
    if constexpr (FEW) {
        if (tile.tokens > 32) {
            GemmWarp<TYPE, 64, 64, PAIRS>(p, tile, scales, places, ring, full, empty).run();
        } else if (tile.tokens > 16) {
            GemmWarp<TYPE, 32, 32, PAIRS>(p, tile, scales, places, ring, full, empty).run();
        } else {
            GemmWarp<TYPE, 16, 16, PAIRS>(p, tile, scales, places, ring, full, empty).run();
        }
    } else if (tile.tokens > 128) {
        GemmWarp<TYPE, 256, GEMM_TOKENS, PAIRS>(p, tile, scales, places, ring, full, empty).run();
    } else if (tile.tokens > 64) {
        GemmWarp<TYPE, 128, GEMM_TOKENS, PAIRS>(p, tile, scales, places, ring, full, empty).run();
    } else {
        GemmWarp<TYPE, 64, GEMM_TOKENS, PAIRS>(p, tile, scales, places, ring, full, empty).run();
    }
}

}  // namespace oxgpt

#define OXGPT_GEMM_KERNEL(name, TYPE, BLOCKS, FEW, PAIRS)                                                                          \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) gemm_##name(const __grid_constant__ oxgpt::GemmParams p) {           \
        oxgpt::gemm<oxgpt::TYPE, FEW, PAIRS>(p);                                                                                   \
    }
#define OXGPT_GEMM(name, TYPE)                             \
    OXGPT_GEMM_KERNEL(name, TYPE, 1, false, false)         \
    OXGPT_GEMM_KERNEL(name##_64, TYPE, 2, true, false)       \
    OXGPT_GEMM_KERNEL(name##_pairs, TYPE, 2, true, true)
