// Products of a few rows of activations with matrices of weights on the integer tensor cores, from compute capability 9.0 on:
// the same outputs and endings as matvec.cuh, for types whose codes are bytes or are looked up as bytes.
//
// x becomes four digits of 256 (whole numbers of 31 bits, scaled by a power of two for each block of 32), so products with
// codes are exact in integers: m16n8k32 takes a block's 32 codes of 8 rows as rows 0 to 7 of its first operand and the next
// block's as rows 8 to 15, and the digits of x in both blocks as columns 0 to 3 and 4 to 7 of the second. The sum over a block,
// of which half of the 16 x 8 results are, meets the block's scales in f32. MXFP4's numbers are looked up by `prmt`,
// which knows eight and gives 0 for the others: positive and negative numbers are multiplied apart, and subtracted.
//
// A warp of its own brings tiles of 8 outputs (or 8 gates and their ups) to a ring in shared memory by bulk copies. The others,
// the multipliers, each take every eighth pair of a tile's blocks; their sums are added in order by one of them. An output's
// bits depend neither on the other rows nor on how many blocks there are.
//
// Rows of a matrix (of an expert) are a multiple of 16, their lengths of 64. Grid: as matvec.cuh; blocks of 288 threads; shared
// memory: see `ring` in src/integer.rs. COMBINED takes one token, whose slots are x's rows.
#pragma once
#include "bulk.cuh"
#include "digits.cuh"

namespace oxgpt {

constexpr int TILE_ROWS = 8, MOST_STAGES = 8;

struct IntegerShared {
    alignas(16) float scratch[2 * ROW_WARPS];
    // Of each stage: its weights are there, and all are through with them. Of two tiles: their sums are there, and were taken.
    uint64_t there[MOST_STAGES], free[MOST_STAGES], summed[2], taken[2];
    int32_t group[GROUP_WORDS];
    int32_t experts[MOST_CHOICES];
    float shares[MOST_CHOICES];
};

// c += a * b of 16 x 32 and 32 x 8 signed bytes.
__device__ __forceinline__ void multiply_bytes(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint2 b) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b.x), "r"(b.y));
}

// A block's tiles, and where they lie in shared memory: stages of pieces of rows, scales of whole tiles, sums, digits of x and
// scales of its blocks.
template <int TYPE, int ROWS> struct Tiles {
    using C = Codes<TYPE>;
    int blocks, piece, pieces, stages, stride, stage_bytes, row_scales, tile_scales, scale_slots, tiles;
    char *scales, *sums;

    __device__ Tiles(const ProductParams& p, char* dynamic) {
        blocks = p.cols / BLOCK, piece = p.piece, pieces = (blocks + piece - 1) / piece, stages = p.stages;
        stride = piece * C::LOW + C::PAD, stage_bytes = ROWS * TILE_ROWS * stride;
        row_scales = TILE_ROWS * blocks * C::SCALES, tile_scales = ROWS * row_scales;
        // Of each tile that has pieces in the ring.
        scale_slots = (stages + pieces - 1) / pieces + 1;
        scales = dynamic + stages * stage_bytes, sums = scales + scale_slots * tile_scales;
        tiles = 0;
        for (int i = 0; i < (ROWS == 2 ? 1 : p.n_parts); i++) tiles += p.parts[i].rows / TILE_ROWS;
    }
    // The part that a tile is of, and its first row there.
    __device__ static void locate(const ProductParams& p, int tile, int& part, int& row) {
        part = 0;
        while (ROWS == 1 && part + 1 < p.n_parts && tile >= p.parts[part].rows / TILE_ROWS) {
            tile -= p.parts[part].rows / TILE_ROWS;
            part++;
        }
        row = tile * TILE_ROWS;
    }
};

// Where a ring is: the next slot, and the phase of its barrier.
struct RingPlace {
    int slot = 0, phase = 0;
    __device__ void advance(int slots) {
        if (++slot == slots) slot = 0, phase ^= 1;
    }
};

// Fetches the tiles of a block, piece by piece; by one warp.
template <int TYPE, int ROWS, bool COMBINED>
__device__ __forceinline__ void fetch_tiles(
    const ProductParams& p, const Tiles<TYPE, ROWS>& at, IntegerShared& shared, char* dynamic, int choices, int64_t expert
) {
    using C = Codes<TYPE>;
    int lane = threadIdx.x % WARP, r = lane / TILE_ROWS, i = lane % TILE_ROWS;
    RingPlace place;
    int scale_slot = 0;
    for (int tile = blockIdx.x; tile < at.tiles; tile += gridDim.x) {
        int part, row;
        at.locate(p, tile, part, row);
        const Part& q = p.parts[ROWS == 2 ? r & 1 : part];
        for (int choice = 0; choice < choices; choice++) {
            int64_t matrix_row = (COMBINED ? (int64_t)shared.experts[choice] : expert) * q.matrix_rows + q.first_row + row;
            const uint8_t* low = q.weight.low + (matrix_row + i) * at.blocks * C::LOW;
            for (int first = 0; first < at.blocks; first += at.piece) {
                uint32_t there = shared_address(shared.there + place.slot);
                int length = min(at.piece, at.blocks - first) * C::LOW;
                barrier_wait(shared_address(shared.free + place.slot), place.phase ^ 1);
                if (lane == 0) barrier_expect(there, ROWS * (TILE_ROWS * length + (first == 0 ? at.row_scales : 0)));
                __syncwarp();
                if (lane < ROWS * TILE_ROWS) {
                    char* stage = dynamic + place.slot * at.stage_bytes;
                    bulk_copy(shared_address(stage + lane * at.stride), low + first * C::LOW, length, there);
                    if (i == 0 && first == 0) {
                        char* scales = at.scales + scale_slot * at.tile_scales + r * at.row_scales;
                        bulk_copy(shared_address(scales), q.weight.scales + matrix_row * at.blocks * C::SCALES, at.row_scales, there);
                    }
                }
                place.advance(at.stages);
            }
            if (++scale_slot == at.scale_slots) scale_slot = 0;
        }
    }
}

// A multiplier's place in the ring, and what it reads next there and of x.
template <int TYPE> struct Reader {
    const char *low, *scales, *x;
    const float* x_scales;
    __device__ void advance(int pairs) {
        low += pairs * 2 * Codes<TYPE>::LOW, scales += pairs * 2 * Codes<TYPE>::SCALES;
        x += pairs * 2 * BLOCK * 4, x_scales += pairs * 2;
    }
};

// Adds COUNT pairs of blocks of a tile, the multipliers' number of pairs apart, to the sums of the first two digits (lanes
// 0 and 2 of a row's four) or the others.
template <int TYPE, int NT, int ROWS, int COUNT>
__device__ __forceinline__ void add_pairs(
    float (&acc)[ROWS][NT][2], const Reader<TYPE>& from, const Tiles<TYPE, ROWS>& at, const Table& table, int cols, bool upper
) {
    using C = Codes<TYPE>;
    uint32_t a[COUNT][ROWS][2][2], n[COUNT][ROWS][2][2];
    float scale[COUNT][ROWS];
#pragma unroll
    for (int u = 0; u < COUNT; u++) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const char* block = from.low + r * TILE_ROWS * at.stride + (u * 2 * MULTIPLIER_WARPS + h) * C::LOW;
                C::codes(table, block, a[u][r][h], n[u][r][h]);
            }
            scale[u][r] = C::scale(from.scales + r * at.row_scales + u * 2 * MULTIPLIER_WARPS * C::SCALES);
        }
    }
#pragma unroll
    for (int u = 0; u < COUNT; u++) {
#pragma unroll
        for (int k = 0; k < NT; k++) {
            uint2 b = *(const uint2*)(from.x + k * cols * 4 + u * 2 * MULTIPLIER_WARPS * BLOCK * 4);
            float up = from.x_scales[k * at.blocks + u * 2 * MULTIPLIER_WARPS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                int c[4] = {};
                multiply_bytes(c, a[u][r][0][0], a[u][r][1][0], a[u][r][0][1], a[u][r][1][1], b);
                int v0 = upper ? c[2] : c[0], v1 = upper ? c[3] : c[1];
                if constexpr (C::SIGNS_APART) {
                    int d[4] = {};
                    multiply_bytes(d, n[u][r][0][0], n[u][r][1][0], n[u][r][0][1], n[u][r][1][1], b);
                    v0 -= upper ? d[2] : d[0], v1 -= upper ? d[3] : d[1];
                }
                float w = scale[u][r] * up;
                acc[r][k][0] = __fmaf_rn(w, (float)v0, acc[r][k][0]);
                acc[r][k][1] = __fmaf_rn(w, (float)v1, acc[r][k][1]);
            }
        }
    }
}

// Ends a tile: adds the sums of the multipliers in order, and writes outputs; by one warp.
template <int TYPE, int NT, int ROWS, bool COMBINED>
__device__ __forceinline__ void finish_tile(
    const ProductParams& p, const Tiles<TYPE, ROWS>& at, const IntegerShared& shared, const float* sums, uint32_t summed, int phase,
    int tile, int tokens, int first_token, int choices, int64_t expert, const int32_t* slots
) {
    constexpr int WARP_SUMS = ROWS * NT * TILE_ROWS;
    int lane = threadIdx.x % WARP, part, row, outputs = (COMBINED ? 1 : tokens) * TILE_ROWS;
    at.locate(p, tile, part, row);
#pragma unroll 1
    for (int start = 0; start < outputs; start += WARP) {
        int i = lane % TILE_ROWS, k = (start + lane) / TILE_ROWS;
        bool writes = start + lane < outputs;
        float* out = p.out + p.parts[part].start + row + i;
        float old = 0.0f;
        if (writes) {
            out += (int64_t)(slots ? slots[k] : first_token + k) * p.out_stride;
            if (COMBINED || p.ending == ADD) old = __ldcg(out);
        }
        if (start == 0) barrier_wait(summed, phase);
        if (!writes) continue;
        auto value = [&](int choice, int r) {
            const Part& q = p.parts[part + r];
            int64_t e = COMBINED ? (int64_t)shared.experts[choice] : expert;
            float bias = q.bias ? __ldg(q.bias + e * q.matrix_rows + q.first_row + row + i) : 0.0f;
            const float* from = sums + choice * MULTIPLIER_WARPS * WARP_SUMS + (r * NT + k) * TILE_ROWS + i;
            float v = 0.0f;
#pragma unroll
            for (int w = 0; w < MULTIPLIER_WARPS; w++) v += from[w * WARP_SUMS];
            return __fadd_rn(v, bias);
        };
        if constexpr (ROWS == 2) {
            *out = gated(value(0, 0), value(0, 1), p.activation, p.limit, p.alpha);
        } else if constexpr (COMBINED) {
            float total = 0.0f;
            for (int choice = 0; choice < choices; choice++) total = __fmaf_rn(shared.shares[choice], value(choice, 0), total);
            *out = old + total;
        } else {
            float v = value(0, 0);
            *out = p.ending == ADD ? old + v : p.ending == ACTIVATE ? activation(v, p.activation) : v;
        }
    }
}

// One block's tiles, for up to NT tokens. `expert`: of a group, else 0; `slots`: of a group, else null.
template <int TYPE, int NT, int ROWS, bool COMBINED>
__device__ __forceinline__ void multiply_integers(
    const ProductParams& p, IntegerShared& shared, char* dynamic, int tokens, int first_token, int64_t expert, const int32_t* slots
) {
    using C = Codes<TYPE>;
    const Tiles<TYPE, ROWS> at(p, dynamic);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    const int choices = COMBINED ? p.choices : 1;
    constexpr int WARP_SUMS = ROWS * NT * TILE_ROWS, CHOICE_SUMS = MULTIPLIER_WARPS * WARP_SUMS;
    float* sums = (float*)at.sums;
    uint32_t* digits = (uint32_t*)(sums + 2 * choices * CHOICE_SUMS);
    float* x_scales = (float*)(digits + (COMBINED ? choices : NT) * p.cols);

    if (threadIdx.x == 0) {
        for (int i = 0; i < at.stages; i++) {
            barrier_init(shared_address(shared.there + i), 1), barrier_init(shared_address(shared.free + i), MULTIPLIER_WARPS);
        }
        for (int i = 0; i < 2; i++) {
            barrier_init(shared_address(shared.summed + i), MULTIPLIER_WARPS), barrier_init(shared_address(shared.taken + i), 1);
        }
        barriers_are_ready();
    }
    // Experts were chosen before the launch before this one, for which that had waited when it let this one start.
    if (COMBINED && threadIdx.x < choices) {
        shared.experts[threadIdx.x] = __ldcg(p.experts + threadIdx.x);
        shared.shares[threadIdx.x] = __ldcg(p.shares + threadIdx.x);
    }
    __syncthreads();
    if (warp == MULTIPLIER_WARPS) {
        fetch_tiles<TYPE, ROWS, COMBINED>(p, at, shared, dynamic, choices, expert);
        return;
    }
    wait_for_previous();
    // Rows that are not normed and lie one after another are as one.
    bool together = COMBINED || (!slots && !p.x_rows && !p.norm_weight && p.x_stride == p.cols);
    int rows = together ? 1 : tokens, width = together ? (COMBINED ? choices : tokens) * p.cols : p.cols;
#pragma unroll 1
    for (int r = 0; r < rows; r++) {
        int64_t row = COMBINED ? 0 : slots ? slots[r] / p.slots_per_row : p.x_rows ? (int64_t)__ldcg(p.x_rows + first_token + r) : first_token + r;
        if (r > 0) multipliers_meet();
        stage_digits<TYPE, COMBINED ? 12 : 4, !COMBINED>(p, shared.scratch, digits + r * p.cols, x_scales + r * at.blocks, p.x + row * p.x_stride, width);
    }
    // What the next launch fetches must not hold x up.
    launch_dependents();
    multipliers_meet();

    const Table table((uint32_t)p.n_parts >> 8);
    // Held in a register: the compiler would compute it again each time.
    uint32_t barriers;
    asm volatile("mov.u32 %0, %1;" : "=r"(barriers) : "r"(shared_address(shared.there)));
    auto barrier = [&](const uint64_t* of) { return barriers + (uint32_t)((const char*)of - (const char*)shared.there); };
    // This lane's part of the first pair of its warp.
    Reader<TYPE> first_pair = {
        dynamic + g * at.stride + t * C::LANE, at.scales + (g * at.blocks + t / 2) * C::SCALES,
        (const char*)((const uint2*)digits + g / 4 * 16 + g % 4 * 4 + t), x_scales + t / 2};
    first_pair.advance(warp);
    float* lane_sums = sums + warp * WARP_SUMS + g;
    RingPlace place;
    int scale_slot = 0, count = 0;
    for (int tile = blockIdx.x; tile < at.tiles; tile += gridDim.x, count++) {
        int buffer = count & 1;
        if (count >= 2) barrier_wait(barrier(shared.taken + buffer), (count / 2 - 1) & 1);
#pragma unroll 1
        for (int choice = 0; choice < choices; choice++) {
            float acc[ROWS][NT][2] = {};
            Reader<TYPE> from = first_pair;
            from.scales += scale_slot * at.tile_scales, from.x += choice * p.cols * 4, from.x_scales += choice * at.blocks;
#pragma unroll 1
            for (int first = 0; first < at.blocks; first += at.piece) {
                int pair = warp, pairs = min(at.piece, at.blocks - first) / 2;
                barrier_wait(barrier(shared.there + place.slot), place.phase);
                Reader<TYPE> here = from;
                here.low += place.slot * at.stage_bytes;
                constexpr int MOST = NT == 1 ? 2 : 1;
#pragma unroll 1
                for (; pair + (MOST - 1) * MULTIPLIER_WARPS < pairs; pair += MOST * MULTIPLIER_WARPS) {
                    add_pairs<TYPE, NT, ROWS, MOST>(acc, here, at, table, p.cols, t >= 2);
                    here.advance(MOST * MULTIPLIER_WARPS);
                }
                if (MOST > 1 && pair < pairs) add_pairs<TYPE, NT, ROWS, 1>(acc, here, at, table, p.cols, t >= 2);
                __syncwarp();
                if (lane == 0) barrier_arrive(barrier(shared.free + place.slot));
                place.advance(at.stages);
                from.advance(at.piece / 2), from.low = first_pair.low;
            }
            if (++scale_slot == at.scale_slots) scale_slot = 0;
            float* to = lane_sums + (buffer * choices + choice) * CHOICE_SUMS;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
#pragma unroll
                for (int k = 0; k < NT; k++) {
                    float v = __fmaf_rn(256.0f, acc[r][k][1], acc[r][k][0]) * (t % 2 ? 65536.0f : 1.0f);
                    v += __shfl_xor_sync(ALL_LANES, v, 1);
                    v += __shfl_xor_sync(ALL_LANES, v, 2);
                    if (t == 0) to[(r * NT + k) * TILE_ROWS] = v;
                }
            }
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(barrier(shared.summed + buffer));
        if (warp != count % MULTIPLIER_WARPS) continue;
        finish_tile<TYPE, NT, ROWS, COMBINED>(
            p, at, shared, sums + buffer * choices * CHOICE_SUMS, barrier(shared.summed + buffer), count / 2 & 1, tile, tokens,
            first_token, choices, expert, slots);
        __syncwarp();
        if (lane == 0) barrier_arrive(barrier(shared.taken + buffer));
    }
}

template <int TYPE, int TOKENS, int ROWS, bool COMBINED> __device__ __forceinline__ void integer_product(const ProductParams& p) {
#if __CUDA_ARCH__ >= 900
    __shared__ IntegerShared shared;
    extern __shared__ __align__(16) char dynamic[];
    int first_token = blockIdx.y * p.at_once, tokens = min(p.at_once, p.tokens - first_token);
    int64_t expert = 0;
    const int32_t* slots = nullptr;
    if (!COMBINED && p.groups) {
        wait_for_previous();
        if (threadIdx.x < GROUP_WORDS) shared.group[threadIdx.x] = __ldcg(p.groups + (int64_t)blockIdx.y * GROUP_WORDS + threadIdx.x);
        __syncthreads();
        expert = shared.group[0], tokens = shared.group[1], slots = shared.group + 2, first_token = 0;
        if (tokens == 0) return;
    }
    if (TOKENS == 1 || tokens == 1) multiply_integers<TYPE, 1, ROWS, COMBINED>(p, shared, dynamic, tokens, first_token, expert, slots);
    if constexpr (TOKENS > 1) {
        if (tokens == 2) multiply_integers<TYPE, 2, ROWS, false>(p, shared, dynamic, tokens, first_token, expert, slots);
        else if (tokens > 2 && tokens <= 4) multiply_integers<TYPE, 4, ROWS, false>(p, shared, dynamic, tokens, first_token, expert, slots);
        else if (tokens > 4) multiply_integers<TYPE, 8, ROWS, false>(p, shared, dynamic, tokens, first_token, expert, slots);
    }
#endif
}

}  // namespace oxgpt

#define OXGPT_INTEGER_KERNEL(name, TYPE, TOKENS, ROWS, COMBINED)                                                            \
    extern "C" __global__ void __launch_bounds__(oxgpt::INTEGER_THREADS, TOKENS == 1 ? 2 : 1) integer_##name(               \
        const __grid_constant__ oxgpt::ProductParams p) {                                                                  \
        oxgpt::integer_product<oxgpt::TYPE, TOKENS, ROWS, COMBINED>(p);                                                    \
    }
#define OXGPT_INTEGER(name, TYPE)                                   \
    OXGPT_INTEGER_KERNEL(name##_1_1, TYPE, 1, 1, false)             \
    OXGPT_INTEGER_KERNEL(name##_1_2, TYPE, 1, 2, false)             \
    OXGPT_INTEGER_KERNEL(name##_8_1, TYPE, 8, 1, false)             \
    OXGPT_INTEGER_KERNEL(name##_8_2, TYPE, 8, 2, false)             \
    OXGPT_INTEGER_KERNEL(name##_combined, TYPE, 1, 1, true)
