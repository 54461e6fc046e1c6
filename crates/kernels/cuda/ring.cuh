// Products of a few rows of activations with matrices of weights, by way of a ring in shared memory, from compute capability 9.0 on:
// the same outputs and endings as matvec.cuh.
//
// For types whose codes are bytes or become bytes, x becomes four digits of 256 (whole numbers of 31 bits, scaled by a power of two
// for each block of 32), so products with codes are exact in integers: m16n8k32 takes a block's 32 codes of 8 rows as rows 0 to 7 of
// its first operand and the next block's as rows 8 to 15, and the digits of x in both blocks as columns 0 to 3 and 4 to 7 of the
// second. The sum over a block, of which half of the 16 x 8 results are, meets the block's scales in f32. MXFP4's numbers are looked
// up by `prmt`, which knows eight and gives 0 for the others: positive and negative numbers are multiplied apart, and subtracted.
// Halves are multiplied as they are (m16n8k16), with x in two halves: two columns for each block, so that two tokens fit.
//
// A warp brings tiles of 8 outputs (or 8 gates and their ups) to the ring by bulk copies. Few are on their way at once: more would
// hold up what else is read, x above all. The multipliers are two teams, which take turns at tiles (of each expert, where
// they are combined); each warp of a team takes every eighth pair of a row's blocks. Another warp adds their sums in order and writes
// outputs. An output's bits depend neither on the other rows nor on how many blocks there are.
//
// A block takes so much of a multiprocessor that it is alone there, beside small kernels: two of a launch on one, and none on another,
// would take twice as long. Rows of an expert are a multiple of 16, their lengths of 64. Grid: as matvec.cuh; blocks of RING_THREADS;
// shared memory: see src/ring.rs. COMBINED takes one token, whose slots are x's rows.
#pragma once
#include "bulk.cuh"
#include "digits.cuh"

namespace oxgpt {

constexpr int TILE_ROWS = 8, MOST_STAGES = 8;
// Stages of the ring on their way at once: 50 KB for each multiprocessor are as many bytes as the memory delivers in two microseconds.
constexpr int ON_THEIR_WAY = 2;
// Tiles whose sums wait to be added.
constexpr int SUMMED = 4;

// Groups of a launch whose slots are more than one; see MOST_GROUPS of src/ring.rs.
constexpr int MOST_GROUPS = 64;

template <int TOKENS> struct RingShared {
    alignas(16) float scratch[STAGE_SCRATCH];
    // Of each stage: its weights are there, and all are through with them. Of summed tiles: their sums are there, and were taken.
    uint64_t there[MOST_STAGES], free[MOST_STAGES], summed[SUMMED], taken[SUMMED];
    int32_t groups[(TOKENS == 1 ? 1 : MOST_GROUPS) * GROUP_WORDS];
    int32_t experts[MOST_CHOICES];
    float shares[MOST_CHOICES];
};

// c += a * b of 16 x 32 and 32 x 8 signed bytes.
__device__ __forceinline__ void multiply_bytes(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint2 b) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b.x), "r"(b.y));
}

// A block's tiles, and where they lie in shared memory: stages of pieces of rows, scales of whole tiles, sums, x and scales of its
// blocks.
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
        for (int i = 0; i < (ROWS == 2 ? 1 : p.n_parts); i++) tiles += (p.parts[i].rows + TILE_ROWS - 1) / TILE_ROWS;
    }
    // The part that a tile is of, and its first row there.
    __device__ static void locate(const ProductParams& p, int tile, int& part, int& row) {
        part = 0;
        while (ROWS == 1 && part + 1 < p.n_parts && tile >= (p.parts[part].rows + TILE_ROWS - 1) / TILE_ROWS) {
            tile -= (p.parts[part].rows + TILE_ROWS - 1) / TILE_ROWS;
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

// Tiles of a block one after another: those of a launch, `step` apart, or of all groups of experts.
struct Work {
    int first, step, count;
};

// What tokens of a launch or of a group meet some of a block's tiles.
struct Span {
    int begin, end;     // of the block's tiles
    int first;          // that tile
    int64_t expert;     // 0 without groups
    int tokens;
    const int32_t* slots;  // null without groups
};

// The span that begins at a block's tile `begin`. `grouped`: tiles are those of all groups.
template <int TOKENS>
__device__ __forceinline__ Span span_at(const RingShared<TOKENS>& shared, const Work& work, int tiles, int tokens, bool grouped, int begin) {
    int tile = work.first + begin * work.step;
    if (!grouped) return {begin, work.count, tile, 0, tokens, nullptr};
    int group = TOKENS == 1 ? 0 : tile / tiles;
    const int32_t* words = shared.groups + group * GROUP_WORDS;
    int first = tile - group * tiles, left = TOKENS == 1 ? work.count : tiles - first;
    return {begin, min(work.count, begin + left), first, words[0], words[1], words + 2};
}

// The first tile of a block's share of all groups' tiles. How long one takes depends on its tokens: a few come while its weights do.
template <int TOKENS> __device__ __forceinline__ int share_begins(const RingShared<TOKENS>& shared, int n_groups, int tiles, int block) {
    auto cost = [&](int group) {
        int tokens = shared.groups[group * GROUP_WORDS + 1];
        return tokens == 0 ? 0 : tokens <= 2 ? 2 : tokens <= 4 ? 3 : 6;
    };
    int all = 0;
    for (int group = 0; group < n_groups; group++) all += cost(group);
    int at = (int)((int64_t)all * tiles * block / gridDim.x), begins = 0;
    for (int group = 0; group < n_groups; group++) {
        int of_group = cost(group);
        if (of_group == 0) break;
        if (at <= of_group * tiles) return begins + (at + of_group - 1) / of_group;
        at -= of_group * tiles, begins += tiles;
    }
    return begins;
}

// Fetches the tiles of a block, piece by piece; by one warp.
template <int TYPE, int TOKENS, int ROWS, bool COMBINED>
__device__ __forceinline__ void fetch_tiles(
    const ProductParams& p, const Tiles<TYPE, ROWS>& at, RingShared<TOKENS>& shared, char* dynamic, const Work& work, int choices, bool grouped
) {
    using C = Codes<TYPE>;
    int lane = threadIdx.x % WARP, r = lane / TILE_ROWS, i = lane % TILE_ROWS;
    RingPlace place, landing;
    int scale_slot = 0, on_their_way = 0;
    Span span;
    for (int begin = 0; begin < work.count; begin = span.end) {
        span = span_at(shared, work, at.tiles, 1, grouped, begin);
        for (int n = begin, tile = span.first; n < span.end; n++, tile += work.step) {
            int part, row;
            at.locate(p, tile, part, row);
            const Part& q = p.parts[ROWS == 2 ? r & 1 : part];
            // The last tile of a matrix may have fewer rows.
            int rows = COMBINED ? TILE_ROWS : min(TILE_ROWS, q.rows - row), scales_bytes = ROWS * rows * at.blocks * C::SCALES;
            for (int choice = 0; choice < choices; choice++) {
                int64_t matrix_row = (COMBINED ? (int64_t)shared.experts[choice] : span.expert) * q.matrix_rows + q.first_row + row;
                const uint8_t* low = q.weight.low + (matrix_row + i) * at.blocks * C::LOW;
                for (int first = 0; first < at.blocks; first += at.piece) {
                    uint32_t there = shared_address(shared.there + place.slot);
                    int length = min(at.piece, at.blocks - first) * C::LOW;
                    if (on_their_way == ON_THEIR_WAY) {
                        barrier_wait(shared_address(shared.there + landing.slot), landing.phase);
                        landing.advance(at.stages);
                    } else {
                        on_their_way++;
                    }
                    barrier_wait(shared_address(shared.free + place.slot), place.phase ^ 1);
                    if (lane == 0) barrier_expect(there, ROWS * rows * length + (first == 0 ? scales_bytes : 0));
                    __syncwarp();
                    if (lane < ROWS * TILE_ROWS && i < rows) {
                        char* stage = dynamic + place.slot * at.stage_bytes;
                        bulk_copy(shared_address(stage + lane * at.stride), low + first * C::LOW, length, there);
                        if (C::SCALES > 0 && i == 0 && first == 0) {
                            char* scales = at.scales + scale_slot * at.tile_scales + r * at.row_scales;
                            const uint8_t* from = q.weight.scales + matrix_row * at.blocks * C::SCALES;
                            bulk_copy(shared_address(scales), from, scales_bytes / ROWS, there);
                        }
                    }
                    place.advance(at.stages);
                }
                if (++scale_slot == at.scale_slots) scale_slot = 0;
            }
        }
    }
}

// A multiplier's place in the ring, and what it reads next there and of x.
template <int TYPE> struct Reader {
    using XScale = typename std::conditional<Codes<TYPE>::MINIMA, float2, float>::type;
    const char *low, *scales, *x;
    const XScale* x_scales;
    __device__ void advance(int pairs) {
        low += pairs * 2 * Codes<TYPE>::LOW, scales += pairs * 2 * Codes<TYPE>::SCALES;
        x += pairs * 2 * BLOCK * 4, x_scales += pairs * 2;
    }
};

// Adds COUNT pairs of blocks of a tile, the team's number of pairs apart, to the sums of the first two digits (lanes 0 and 2 of a
// row's four) or the others. `block`: the lane's of the first pair.
template <int TYPE, int NT, int ROWS, int COUNT>
__device__ __forceinline__ void add_pairs(
    float (&acc)[ROWS][NT][2], const Reader<TYPE>& from, const Tiles<TYPE, ROWS>& at, const Table& table, int cols, int t, int block
) {
    using C = Codes<TYPE>;
    constexpr int APART = 2 * RING_TEAM_WARPS;
    bool upper = t >= 2;
    uint32_t a[COUNT][ROWS][2][2], n[COUNT][ROWS][2][2];
    float scale[COUNT][ROWS], minimum[COUNT][ROWS] = {};
#pragma unroll
    for (int u = 0; u < COUNT; u++) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                C::codes(table, from.low + r * TILE_ROWS * at.stride + (u * APART + h) * C::LOW, a[u][r][h], n[u][r][h]);
            }
            C::scale(from.scales + r * at.row_scales + u * APART * C::SCALES, block, scale[u][r], minimum[u][r]);
        }
    }
#pragma unroll
    for (int u = 0; u < COUNT; u++) {
#pragma unroll
        for (int k = 0; k < NT; k++) {
            uint2 b = *(const uint2*)(from.x + k * cols * 4 + u * APART * BLOCK * 4);
            auto x_scale = from.x_scales[k * at.blocks + u * APART];
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
                float w;
                if constexpr (C::MINIMA) {
                    w = scale[u][r] * x_scale.x;
                    // By the lane of the first two digits, whose sum is not multiplied any more.
                    acc[r][k][0] = __fmaf_rn(t % 2 ? 0.0f : -minimum[u][r], x_scale.y, acc[r][k][0]);
                } else {
                    w = scale[u][r] * x_scale;
                }
                acc[r][k][0] = __fmaf_rn(w, (float)v0, acc[r][k][0]);
                acc[r][k][1] = __fmaf_rn(w, (float)v1, acc[r][k][1]);
            }
        }
    }
}

// The same of halves: lanes 0 and 1 of a row's four add up a pair's blocks for one token, and lanes 2 and 3 for the next.
template <int NT, int ROWS, int COUNT>
__device__ __forceinline__ void add_halves(
    float (&acc)[ROWS][NT][2], const Reader<F16>& from, const Tiles<F16, ROWS>& at, int cols, int t
) {
    using C = Codes<F16>;
    constexpr int APART = 2 * RING_TEAM_WARPS;
    uint4 a[COUNT][ROWS][2];
#pragma unroll
    for (int u = 0; u < COUNT; u++) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
            for (int h = 0; h < 2; h++) a[u][r][h] = *(const uint4*)(from.low + r * TILE_ROWS * at.stride + (u * APART + h) * C::LOW);
        }
    }
#pragma unroll
    for (int u = 0; u < COUNT; u++) {
#pragma unroll
        for (int k = 0; k < NT; k += 2) {
            uint4 b = *(const uint4*)(from.x + k * cols * 4 + u * APART * BLOCK * 4);
            float x_scale = from.x_scales[k * at.blocks + u * APART];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float c[4] = {};
                multiply_tile(c, a[u][r][0].x, a[u][r][1].x, a[u][r][0].y, a[u][r][1].y, make_uint2(b.x, b.y));
                multiply_tile(c, a[u][r][0].z, a[u][r][1].z, a[u][r][0].w, a[u][r][1].w, make_uint2(b.z, b.w));
                acc[r][k][0] = __fmaf_rn(x_scale, t % 2 ? c[2] : c[0], acc[r][k][0]);
                acc[r][k][1] = __fmaf_rn(x_scale, t % 2 ? c[3] : c[1], acc[r][k][1]);
            }
        }
    }
}

// What the end of a tile needs beside its sums: a lane's bias of row lane % 8, of gate or up or of choice lane / 8 (and of four more),
// and old values of the lane's outputs.
template <int NT> struct Beside {
    static constexpr int OLD = NT * TILE_ROWS > WARP ? 2 : 1;
    float bias[2], old[OLD];
};

// Ends the tiles of a span: adds the sums of the multipliers in order, and writes outputs; by one warp.
template <int TYPE, int TOKENS, int NT, int ROWS, bool COMBINED>
__device__ __forceinline__ void finish_tiles(
    const ProductParams& p, const Tiles<TYPE, ROWS>& at, RingShared<TOKENS>& shared, const float* sums, const Work& work, const Span& span,
    int first_token, int choices, RingPlace& place
) {
    constexpr int WARP_SUMS = ROWS * NT * TILE_ROWS, TILE_SUMS = RING_TEAM_WARPS * ROWS * TOKENS * TILE_ROWS;
    constexpr int OLD = Beside<NT>::OLD, UPPERS = WARP / TILE_ROWS;
    int lane = threadIdx.x % WARP, i = lane % TILE_ROWS, upper = lane / TILE_ROWS, tiles = span.end - span.begin;
    auto output = [&](int part, int row, int n) {
        int k = n * UPPERS + upper;
        return p.out + p.parts[part].start + row + i + (int64_t)(span.slots ? span.slots[k] : first_token + k) * p.out_stride;
    };
    auto writes = [&](int part, int row, int n) { return n * UPPERS + upper < (COMBINED ? 1 : span.tokens) && row + i < p.parts[part].rows; };
    auto look_beside = [&](int n_tile) {
        Beside<NT> v = {};
        if (n_tile >= tiles) return v;
        int part, row;
        at.locate(p, span.first + n_tile * work.step, part, row);
#pragma unroll
        for (int n = 0; n < (COMBINED ? 2 : 1); n++) {
            int number = n * UPPERS + upper;
            const Part& q = p.parts[part + (ROWS == 2 ? upper & 1 : 0)];
            bool real = q.bias && number < (COMBINED ? choices : ROWS) && row + i < q.rows;
            int64_t e = COMBINED ? (int64_t)shared.experts[min(number, choices - 1)] : span.expert;
            if (real) v.bias[n] = __ldg(q.bias + e * q.matrix_rows + q.first_row + row + i);
        }
#pragma unroll
        for (int n = 0; n < OLD; n++) {
            if ((COMBINED || p.ending == ADD) && writes(part, row, n)) v.old[n] = __ldcg(output(part, row, n));
        }
        return v;
    };
    // Of tiles that come, since these loads take as long as some of them.
    Beside<NT> now = look_beside(0), next = look_beside(1), after = look_beside(2);
    for (int n_tile = 0; n_tile < tiles; n_tile++) {
        int part, row;
        at.locate(p, span.first + n_tile * work.step, part, row);
        Beside<NT> later = look_beside(n_tile + 3);
        float total[OLD] = {};
#pragma unroll 1
        for (int choice = 0; choice < choices; choice++) {
            barrier_wait(shared_address(shared.summed + place.slot), place.phase);
#pragma unroll
            for (int n = 0; n < OLD; n++) {
                int k = n * UPPERS + upper;
                auto value = [&](int r) {
                    int number = COMBINED ? choice : r;
                    float bias = __shfl_sync(ALL_LANES, number < UPPERS ? now.bias[0] : now.bias[1], number * TILE_ROWS % WARP + i);
                    const float* from = sums + place.slot * TILE_SUMS + (r * NT + k) * TILE_ROWS + i;
                    float v = 0.0f;
                    if (k < NT) {
#pragma unroll
                        for (int w = 0; w < RING_TEAM_WARPS; w++) v += from[w * WARP_SUMS];
                    }
                    return __fadd_rn(v, bias);
                };
                float v = value(0);
                if constexpr (ROWS == 2) v = gated(v, value(1), p.activation, p.limit, p.alpha);
                total[n] = COMBINED ? __fmaf_rn(shared.shares[choice], v, total[n]) : v;
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(shared_address(shared.taken + place.slot));
            place.advance(SUMMED);
        }
#pragma unroll
        for (int n = 0; n < OLD; n++) {
            float v = total[n];
            if (COMBINED || p.ending == ADD) v = now.old[n] + v;
            else if (ROWS == 1 && p.ending == ACTIVATE) v = activation(v, p.activation);
            if (writes(part, row, n)) *output(part, row, n) = v;
        }
        now = next, next = after, after = later;
    }
}

// Where a multiplier is.
struct Progress {
    RingPlace place, summed;
    int scale_slot = 0, turn = 0;
};

// Multiplies the tiles of a span that are this warp's team's, with up to NT tokens.
template <int TYPE, int TOKENS, int NT, int ROWS, bool COMBINED>
__device__ __forceinline__ void multiply_tiles(
    const ProductParams& p, const Tiles<TYPE, ROWS>& at, RingShared<TOKENS>& shared, char* dynamic, float* sums, uint32_t* digits,
    float* x_scales, const Span& span, int first_token, int choices, Progress& progress
) {
    using C = Codes<TYPE>;
    constexpr int WARP_SUMS = ROWS * NT * TILE_ROWS, TILE_SUMS = RING_TEAM_WARPS * ROWS * TOKENS * TILE_ROWS;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    // Rows that are not normed and lie one after another are as one.
    bool together = COMBINED || (!span.slots && !p.x_rows && !p.norm_weight && p.x_stride == p.cols);
    int scales_stride = at.blocks * (C::MINIMA ? 2 : 1);
    auto x_row = [&](int r) {
        int64_t row = COMBINED ? 0 : span.slots ? span.slots[r] / p.slots_per_row : p.x_rows ? (int64_t)__ldcg(p.x_rows + first_token + r) : first_token + r;
        return p.x + row * p.x_stride;
    };
    if (NT == 1 || together) {
        int width = COMBINED ? choices * p.cols : span.tokens * p.cols;
        stage_digits<TYPE, COMBINED ? 6 : 2, 1, !COMBINED>(p, shared.scratch, digits, x_scales, scales_stride, width, x_row);
    } else {
#pragma unroll 1
        for (int r = 0; r < span.tokens; r += ROWS_AT_ONCE) {
            if (r > 0) multipliers_meet();
            // What lies beyond the last is not looked at.
            stage_digits<TYPE, 2, NT < ROWS_AT_ONCE ? NT : ROWS_AT_ONCE, true>(
                p, shared.scratch, digits + r * p.cols, x_scales + r * scales_stride, scales_stride, p.cols,
                [&](int i) { return x_row(min(r + i, span.tokens - 1)); });
        }
    }
    multipliers_meet();

    const Table table((uint32_t)p.n_parts >> 8);
    // Held in a register: the compiler would compute it again each time.
    uint32_t barriers;
    asm volatile("mov.u32 %0, %1;" : "=r"(barriers) : "r"(shared_address(shared.there)));
    auto barrier = [&](const uint64_t* of) { return barriers + (uint32_t)((const char*)of - (const char*)shared.there); };
    // This lane's part of the first pair of its warp. Of halves, the lower four rows' lanes multiply with one token, the upper with
    // the next.
    constexpr bool HALVES = TYPE == F16;
    int team = warp / RING_TEAM_WARPS, member = warp % RING_TEAM_WARPS, block = 2 * member + (HALVES ? t % 2 : t / 2);
    Reader<TYPE> first_pair = {
        dynamic + g * at.stride + t * C::LANE + 2 * member * C::LOW,
        at.scales + g * at.blocks * C::SCALES + C::scales_before(block),
        HALVES ? (const char*)digits + ((2 * member + g / 2 % 2) * 32 + g % 2 * 16 + t * 4) * 4 + (NT > 1 ? g / 4 * p.cols * 4 : 0)
               : (const char*)((const uint2*)digits + (2 * member + g / 4) * 16 + g % 4 * 4 + t),
        (const typename Reader<TYPE>::XScale*)x_scales + block + (HALVES && NT > 1 ? t / 2 * at.blocks : 0)};
    float* lane_sums = sums + member * WARP_SUMS + g;
    RingPlace place = progress.place, summed = progress.summed;
    int scale_slot = progress.scale_slot, turn = progress.turn;
    for (int n = span.begin; n < span.end; n++) {
#pragma unroll 1
        for (int choice = 0; choice < choices; choice++, turn ^= 1) {
            if (turn != team) {
                for (int i = 0; i < at.pieces; i++) place.advance(at.stages);
                if (++scale_slot == at.scale_slots) scale_slot = 0;
                summed.advance(SUMMED);
                continue;
            }
            float acc[ROWS][NT][2] = {};
            Reader<TYPE> from = first_pair;
            from.scales += scale_slot * at.tile_scales, from.x += choice * p.cols * 4, from.x_scales += choice * at.blocks;
#pragma unroll 1
            for (int first = 0; first < at.blocks; first += at.piece) {
                int pair = member, pairs = min(at.piece, at.blocks - first) / 2;
                barrier_wait(barrier(shared.there + place.slot), place.phase);
                Reader<TYPE> here = from;
                here.low += place.slot * at.stage_bytes;
                constexpr int MOST = NT == 1 ? 2 : 1;
                auto add = [&](auto count) {
                    constexpr int COUNT = decltype(count)::value;
                    if constexpr (HALVES) add_halves<NT, ROWS, COUNT>(acc, here, at, p.cols, t);
                    else add_pairs<TYPE, NT, ROWS, COUNT>(acc, here, at, table, p.cols, t, block);
                };
#pragma unroll 1
                for (; pair + (MOST - 1) * RING_TEAM_WARPS < pairs; pair += MOST * RING_TEAM_WARPS) {
                    add(Index<MOST>{});
                    here.advance(MOST * RING_TEAM_WARPS);
                }
                if (MOST > 1 && pair < pairs) add(Index<1>{});
                __syncwarp();
                if (lane == 0) barrier_arrive(barrier(shared.free + place.slot));
                place.advance(at.stages);
                from.advance(at.piece / 2), from.low = first_pair.low;
            }
            if (++scale_slot == at.scale_slots) scale_slot = 0;
            // Before the first is taken, it is free.
            barrier_wait(barrier(shared.taken + summed.slot), summed.phase ^ 1);
            float* to = lane_sums + summed.slot * TILE_SUMS;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
#pragma unroll
                for (int k = 0; k < NT; k += HALVES ? 2 : 1) {
                    float v = HALVES ? acc[r][k][0] + acc[r][k][1] : __fmaf_rn(256.0f, acc[r][k][1], acc[r][k][0]) * (t % 2 ? 65536.0f : 1.0f);
                    v += __shfl_xor_sync(ALL_LANES, v, 1);
                    if (!HALVES) v += __shfl_xor_sync(ALL_LANES, v, 2);
                    if (t == 0) to[(r * NT + k) * TILE_ROWS] = v;
                    if (HALVES && NT > 1 && t == 2) to[(r * NT + k + 1) * TILE_ROWS] = v;
                }
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(barrier(shared.summed + summed.slot));
            summed.advance(SUMMED);
        }
    }
    progress = {place, summed, scale_slot, turn};
}

template <int TYPE, int TOKENS, int ROWS, bool COMBINED> __device__ __forceinline__ void ring_product(const ProductParams& p) {
#if __CUDA_ARCH__ >= 900
    __shared__ RingShared<TOKENS> shared;
    extern __shared__ __align__(16) char dynamic[];
    const Tiles<TYPE, ROWS> at(p, dynamic);
    const int warp = threadIdx.x / WARP, choices = COMBINED ? p.choices : 1;
    float* sums = (float*)at.sums;
    uint32_t* digits = (uint32_t*)(sums + SUMMED * RING_TEAM_WARPS * ROWS * TOKENS * TILE_ROWS);
    float* x_scales = (float*)(digits + (COMBINED ? choices : TOKENS == 1 ? 1 : p.at_once) * p.cols);

    if (threadIdx.x == 0) {
        for (int i = 0; i < at.stages; i++) {
            barrier_init(shared_address(shared.there + i), 1), barrier_init(shared_address(shared.free + i), RING_TEAM_WARPS);
        }
        for (int i = 0; i < SUMMED; i++) {
            barrier_init(shared_address(shared.summed + i), RING_TEAM_WARPS), barrier_init(shared_address(shared.taken + i), 1);
        }
        barriers_are_ready();
    }
    // Experts were chosen before the launch before this one, for which that had waited when it let this one start.
    if (COMBINED && threadIdx.x < choices) {
        shared.experts[threadIdx.x] = __ldcg(p.experts + threadIdx.x);
        shared.shares[threadIdx.x] = __ldcg(p.shares + threadIdx.x);
    }
    const bool grouped = !COMBINED && p.groups;
    int first_token = 0, tokens = 1, tiles = at.tiles;
    Work work = {(int)blockIdx.x, (int)gridDim.x, 0};
    if (grouped) {
        wait_for_previous();
        if constexpr (TOKENS == 1) {
            // One group is a row of blocks.
            if (threadIdx.x < GROUP_WORDS) shared.groups[threadIdx.x] = __ldcg(p.groups + (int64_t)blockIdx.y * GROUP_WORDS + threadIdx.x);
            __syncthreads();
        } else {
            // Those that have slots come first. Each block takes its share of all their tiles.
            for (int i = threadIdx.x; i < p.n_groups * GROUP_WORDS; i += RING_THREADS) shared.groups[i] = __ldcg(p.groups + i);
            __syncthreads();
            int begin = share_begins(shared, p.n_groups, tiles, blockIdx.x), end = share_begins(shared, p.n_groups, tiles, blockIdx.x + 1);
            work = {begin, 1, end - begin};
        }
    } else {
        __syncthreads();
        first_token = blockIdx.y * p.at_once, tokens = min(p.at_once, p.tokens - first_token);
    }
    if (TOKENS == 1 || !grouped) work.count = (int)blockIdx.x < tiles ? (tiles - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x : 0;
    // Its blocks begin where those of this launch end.
    launch_dependents();
    if (warp == FETCHER) {
        fetch_tiles<TYPE, TOKENS, ROWS, COMBINED>(p, at, shared, dynamic, work, choices, grouped);
        return;
    }
    wait_for_previous();
    Progress progress;
    Span span;
    for (int begin = 0; begin < work.count; begin = span.end) {
        span = span_at(shared, work, tiles, tokens, grouped, begin);
        auto take = [&](auto count) {
            constexpr int NT = decltype(count)::value;
            if (warp == FINISHER) {
                finish_tiles<TYPE, TOKENS, NT, ROWS, COMBINED>(p, at, shared, sums, work, span, first_token, choices, progress.summed);
            } else {
                // Until all are through with what x was.
                if (begin > 0) multipliers_meet();
                multiply_tiles<TYPE, TOKENS, NT, ROWS, COMBINED>(p, at, shared, dynamic, sums, digits, x_scales, span, first_token, choices, progress);
            }
        };
        if (TOKENS == 1 || span.tokens == 1) take(Index<1>{});
        if constexpr (TOKENS > 1) {
            if (span.tokens == 2) take(Index<2>{});
            else if (span.tokens > 2 && span.tokens <= 4) take(Index<4>{});
            else if (span.tokens > 4) take(Index<8>{});
        }
    }
#endif
}

}  // namespace oxgpt

#define OXGPT_RING_KERNEL(name, TYPE, TOKENS, ROWS, COMBINED)                                                              \
    extern "C" __global__ void __launch_bounds__(oxgpt::RING_THREADS, 1) ring_##name(                                      \
        const __grid_constant__ oxgpt::ProductParams p) {                                                                  \
        oxgpt::ring_product<oxgpt::TYPE, TOKENS, ROWS, COMBINED>(p);                                                       \
    }
#define OXGPT_RING(name, TYPE)                                   \
    OXGPT_RING_KERNEL(name##_1_1, TYPE, 1, 1, false)             \
    OXGPT_RING_KERNEL(name##_1_2, TYPE, 1, 2, false)             \
    OXGPT_RING_KERNEL(name##_8_1, TYPE, 8, 1, false)             \
    OXGPT_RING_KERNEL(name##_8_2, TYPE, 8, 2, false)             \
    OXGPT_RING_KERNEL(name##_combined, TYPE, 1, 1, true)
