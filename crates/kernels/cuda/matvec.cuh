// Products of a few rows of activations with matrices of weights, which are read once for up to 8 rows:
//
//   v[t] = weight * norm(x[t]) + bias, and out[t] = v, out[t] + v, activation(v), activation(gate) * up or, of several
//   experts, out[t] + the sum of share * v.
//
// Four warps, a team, compute a tile of 8 outputs (or 8 gates and their ups). Lane (g, t) of a warp reads row g, of it the chunks
// 4 (w + 4 s) + t of warp w for s = 0, 1, ..., in order. The codes of a chunk go to the tensor cores four at a time, as they
// are, and x as the sum of two halves, scaled by a power of two for each row: products are exact and sums in f32.
// Each lane's part of a row is kept apart by a column of its own: of the 8 columns of an operand, 2 t and 2 t + 1 have the
// upper and lower halves of x where lanes t are, and zeros elsewhere. So each lane gets the sum over its own chunk, and
// multiplies it with the scale of that. Lanes and then warps are summed in order. Types whose numbers are no halves are
// multiplied in f32 instead, a row to a warp's 32 lanes. An output's bits depend neither on the other rows nor on how many blocks there are.
//
// Grid: (blocks that share the tiles, ceil(tokens / at_once) or groups), blocks of 512 threads (four teams); shared memory for
// the rings and for x: 16 bytes for four elements of a row and 4 for a chunk, rows padded to 4 chunks (32 of wide types). COMBINE takes one token, whose slots are x's rows.
#pragma once
#include "activation.cuh"
#include "operand.cuh"
#include "row.cuh"

namespace oxgpt {

constexpr int GROUP_SLOTS = 8;
// Which slots (rows of out) meet the weights of one expert: expert, count, slots.
constexpr int GROUP_WORDS = 2 + GROUP_SLOTS;

// In the order of `Ending` in src/product.rs.
enum Ending { STORE, ADD, ACTIVATE, GATED, COMBINE };

constexpr int TEAMS = 4, TEAM_WARPS = 4, TEAM_THREADS = TEAM_WARPS * WARP, MOST_TILE = 8, MOST_TOKENS = 8, MOST_CHOICES = 8;

// Shared memory of a kernel for TOKENS tokens, beside the rings and x.
template <int TOKENS> struct MatvecShared {
    alignas(16) float scratch[4 * ROW_WARPS];
    int32_t group[GROUP_WORDS];
    int32_t experts[MOST_CHOICES];
    float shares[MOST_CHOICES];
    float chosen[MOST_CHOICES][MOST_TILE];
    // Of each team, twice: sums of each warp.
    float sums[TEAMS][2][TEAM_WARPS * 2 * MOST_TILE * TOKENS];
};

// c += a * b, with a of 16 x 16 and b of 16 x 8
__device__ __forceinline__ void multiply_tile(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint2 b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b.x), "r"(b.y));
}

// The first `count` elements, and zeros.
__device__ __forceinline__ float4 cut(const float4& v, int count) {
    return make_float4(v.x, count > 1 ? v.y : 0.0f, count > 2 ? v.z : 0.0f, count > 3 ? v.w : 0.0f);
}

// How lanes share the rows of a tile.
template <int TYPE> struct Tile {
    static constexpr int LANES = Operand<TYPE>::WIDE ? WARP : 4, ROWS = WARP / LANES;
};

// Where elements 4 i to 4 i + 3 of a row of x are in shared memory, in 16 bytes: beside those of the other lanes' chunks.
template <int TYPE> __device__ __forceinline__ int x_slot(int i) {
    constexpr int PARTS = Weights<TYPE>::VALUES / 4, LANES = Tile<TYPE>::LANES;
    int chunk = i / PARTS, part = i % PARTS;
    return (chunk / LANES * PARTS + part) * LANES + chunk % LANES;
}
// Of a row, which is filled up with zeros.
template <int TYPE> __device__ __forceinline__ int x_slots(const ProductParams& p) {
    constexpr int PARTS = Weights<TYPE>::VALUES / 4, LANES = Tile<TYPE>::LANES;
    return (p.chunks + LANES - 1) / LANES * LANES * PARTS;
}
template <int TYPE> __device__ __forceinline__ int x_chunks(const ProductParams& p) { return x_slots<TYPE>(p) / (Weights<TYPE>::VALUES / 4); }

// Four elements as upper and lower halves, after they were multiplied with `up`.
template <int TYPE> __device__ __forceinline__ uint4 split(const float4& v, float up) {
    float x[4] = {v.x * up, v.y * up, v.z * up, v.w * up};
    __half high[4], low[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        high[k] = __float2half_rn(x[k]);
        low[k] = __float2half_rn(x[k] - __half2float(high[k]));
    }
    constexpr int A = Operand<TYPE>::NATURAL ? 1 : 2, B = Operand<TYPE>::NATURAL ? 2 : 1;
    auto pair = [](__half a, __half b) { return as_bits(__halves2half2(a, b)); };
    return make_uint4(pair(high[0], high[A]), pair(high[B], high[3]), pair(low[0], low[A]), pair(low[B], low[3]));
}

// Brings rows of x to shared memory, V rows at a time, and the scale of each chunk. N: pieces that a virtual thread has in
// registers; longer rows go by way of shared memory.
template <int TYPE, int V, int N, bool NORM, class Row>
__device__ __forceinline__ void stage_rows(const ProductParams& p, float* scratch, float4* xs, float* scales, int rows, Row&& row) {
    constexpr int THREADS = ROW_THREADS / V, PARTS = Weights<TYPE>::VALUES / 4;
    int pieces = x_slots<TYPE>(p), mine = threadIdx.x / THREADS;
    bool aligned = p.cols % 4 == 0 && p.x_stride % 4 == 0, norm = NORM && p.norm_weight, biased = p.norm_bias;
    for (int first = 0; first < rows; first += V) {
        int r = first + mine, width = r < rows ? p.cols : 0, room = r < rows ? pieces : 0;
        float4* slots = xs + r * pieces;
        const float* x = r < rows ? p.x + row(r) * p.x_stride : p.x;
        // Without a row, all of it is beyond the end.
        auto weight = [&](int i) { return row_piece(p.norm_weight, i, width, p.cols % 4 == 0); };
        auto bias = [&](int i) { return biased ? row_piece(p.norm_bias, i, width, p.cols % 4 == 0) : float4{}; };
        // All threads of a warp call this together; those of a chunk are side by side.
        auto store = [&](int i, const float4& v) {
            if constexpr (Operand<TYPE>::WIDE) {
                if (i < room) slots[x_slot<TYPE>(i)] = v;
            } else {
                float most = largest(v);
#pragma unroll
                for (int offset = 1; offset < PARTS; offset *= 2) most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, offset));
                // A power of two that brings the largest to 2^14 or just below twice that; halves reach 2^16, and lose
                // nothing that is not 2^38 times smaller.
                int exponent = (int)((__float_as_uint(most) >> 23) & 0xffu) - 127;
                exponent = most == 0.0f || exponent == 128 ? 0 : max(exponent - 14, -126);
                if (i >= room) return;
                if (i % PARTS == 0) scales[r * (pieces / PARTS) + i / PARTS] = __uint_as_float((uint32_t)(127 + exponent) << 23);
                *(uint4*)(slots + x_slot<TYPE>(i)) = split<TYPE>(v, __uint_as_float((uint32_t)(127 - exponent) << 23));
            }
        };
        if (pieces <= N * ROW_THREADS) {
            float4 v[V][N];
            for_pieces<V, N>([&](int k, int n, int i) { v[k][n] = row_piece(x, i, width, aligned); });
            if (norm) {
                float4 w[V][N];
                for_pieces<V, N>([&](int k, int n, int i) { w[k][n] = weight(i); });
                RowScale s = row_scale<V>(p.cols, p.centered, p.eps, scratch, [&](auto&& f) {
                    for_pieces<V, N>([&](int k, int n, int i) { if (4 * i < width) f(k, i, v[k][n]); });
                });
                for_pieces<V, N>([&](int k, int n, int i) {
                    // Beyond the end stay zeros.
                    if (4 * i < width) v[k][n] = cut(normed(v[k][n], s, w[k][n], bias(i), biased), width - 4 * i);
                });
            }
            for_pieces<V, N>([&](int k, int n, int i) { store(i, v[k][n]); });
            continue;
        }
        // Each thread reads what it wrote itself.
        auto sweep = [&](auto&& f) {
            for (int start = 0; start < pieces; start += ROW_THREADS) for_pieces<V, 1>([&](int k, int, int i) { f(k, start + i); });
        };
        sweep([&](int, int i) { if (i < room) slots[x_slot<TYPE>(i)] = row_piece(x, i, width, aligned); });
        RowScale s = {0.0f, 1.0f};
        if (norm) {
            s = row_scale<V>(p.cols, p.centered, p.eps, scratch, [&](auto&& f) {
                sweep([&](int k, int i) { if (4 * i < width) f(k, i, slots[x_slot<TYPE>(i)]); });
            });
        }
        sweep([&](int, int i) {
            float4 v = i < room ? slots[x_slot<TYPE>(i)] : float4{};
            if (norm && 4 * i < width) v = cut(normed(v, s, weight(i), bias(i), biased), width - 4 * i);
            store(i, v);
        });
    }
}

// How many steps of a warp are on their way, in a ring for each warp in shared memory.
template <int ROWS, bool SINGLE> struct Ring { static constexpr int STAGES = (SINGLE ? 6 : 4) / ROWS; };

// One block's tiles, for up to NT tokens. `expert`: of a group, else 0; `slots`: of a group, else null. SINGLE: of the kernel for
// one token.
template <int TYPE, int NT, int ROWS, bool SINGLE, class Shared>
__device__ __forceinline__ void multiply(
    const ProductParams& p, Shared& shared, char* dynamic, int tokens, int first_token, int64_t expert, const int32_t* slots
) {
    using O = Operand<TYPE>;
    constexpr int PARTS = Weights<TYPE>::VALUES / 4, LANES = Tile<TYPE>::LANES, TILE = Tile<TYPE>::ROWS;
    // Two steps a turn, of which one goes on where the other waits.
    constexpr int STAGES = Ring<ROWS, SINGLE>::STAGES, TURN = NT <= 2 && ROWS == 1 ? 2 : 1, STAGE_BYTES = ROWS * O::BYTES * WARP;
    int lane = threadIdx.x % WARP, g = lane / LANES, t = lane % LANES;
    int team = threadIdx.x / TEAM_THREADS, member = threadIdx.x % TEAM_THREADS, warp = member / WARP;
    bool combine = SINGLE && p.ending == COMBINE;
    char* ring = dynamic + threadIdx.x / WARP * STAGES * STAGE_BYTES;
    float4* xs = (float4*)(dynamic + ROW_WARPS * STAGES * STAGE_BYTES);

    int tiles = 0;
    for (int i = 0; i < (ROWS == 2 ? 1 : p.n_parts); i++) tiles += (p.parts[i].rows + TILE - 1) / TILE;
    int choices = combine ? p.choices : 1;
    // Steps of a warp for one tile, in whole turns.
    constexpr int STEP_CHUNKS = LANES * TEAM_WARPS;
    int steps = (p.chunks + STEP_CHUNKS * TURN - 1) / (STEP_CHUNKS * TURN) * TURN;
    // The part that a tile is of, and its first row there.
    auto locate = [&](int tile, int& part, int& row) {
        part = 0;
        while (ROWS == 1 && part + 1 < p.n_parts && tile >= (p.parts[part].rows + TILE - 1) / TILE) {
            tile -= (p.parts[part].rows + TILE - 1) / TILE;
            part++;
        }
        row = tile * TILE;
    };
    // The first chunk of a row of this lane.
    auto first_chunk = [&](const Part& q, int row, int choice) {
        int64_t e = combine ? (int64_t)shared.experts[choice] : expert;
        return (e * q.matrix_rows + q.first_row + min(row + g, q.rows - 1)) * p.chunks;
    };

    // Teams take tiles of their own, or of one tile the experts that are combined.
    int stride = combine ? gridDim.x : gridDim.x * TEAMS, tile = blockIdx.x + (combine ? 0 : gridDim.x * team);
    int first_choice = combine ? team : 0, choice_stride = combine ? TEAMS : 1;
    if (first_choice >= choices) tile = tiles;
    // Where fetching is.
    struct { Planes planes[ROWS]; int64_t base[ROWS]; int tile, choice, step, stage; } ahead;
    ahead.tile = tile, ahead.choice = first_choice, ahead.step = 0, ahead.stage = 0;
    auto aim = [&]() {
        int part, row;
        locate(ahead.tile, part, row);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            ahead.planes[r] = p.parts[part + r].weight;
            ahead.base[r] = first_chunk(p.parts[part + r], row, ahead.choice) + t;
        }
    };
    auto fetch = [&]() {
        if (ahead.tile < tiles) {
            int chunk = (ahead.step * TEAM_WARPS + warp) * LANES;
            bool real = chunk + t < p.chunks;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                char* stage = ring + (ahead.stage * ROWS + r) * O::BYTES * WARP;
                // Beyond the end, zeros from anywhere.
                O::fetch(ahead.planes[r], real ? ahead.base[r] + chunk : 0, stage, lane, real);
            }
            if (++ahead.step == steps) {
                ahead.step = 0;
                ahead.choice += choice_stride;
                if (ahead.choice >= choices) ahead.choice = first_choice, ahead.tile += stride;
                if (ahead.tile < tiles) aim();
            }
        }
        end_of_copies();
        ahead.stage = ahead.stage + 1 == STAGES ? 0 : ahead.stage + 1;
    };
    // Weights are there before the launch, and those of experts are known when they were chosen.
    bool early = !p.groups && !combine;
    if (!early) wait_for_previous();
    if (combine) {
        if (threadIdx.x < choices) {
            shared.experts[threadIdx.x] = __ldcg(p.experts + threadIdx.x);
            shared.shares[threadIdx.x] = __ldcg(p.shares + threadIdx.x);
        }
        __syncthreads();
    }
    if (tile < tiles) aim();
    for (int i = 0; i < STAGES; i++) fetch();
    if (early) wait_for_previous();
    launch_dependents();

    auto x_row = [&](int r) -> int64_t {
        if (combine) return r;
        if (slots) return slots[r] / p.slots_per_row;
        return p.x_rows ? (int64_t)__ldcg(p.x_rows + first_token + r) : first_token + r;
    };
    int rows = combine ? choices : tokens;
    // With one token, there are more rows only where they are combined.
    int slots_of_row = x_slots<TYPE>(p), chunks_of_row = x_chunks<TYPE>(p), stage = 0, buffer = 0;
    float* x_scales = (float*)(xs + (combine ? choices : NT) * slots_of_row);
    if (rows == 1) stage_rows<TYPE, 1, 2, true>(p, shared.scratch, xs, x_scales, rows, x_row);
    else stage_rows<TYPE, 4, 2, !SINGLE>(p, shared.scratch, xs, x_scales, rows, x_row);
    __syncthreads();

    bool diagonal = t == g / 2;
    for (; tile < tiles; tile += stride) {
        // What this thread writes in the end, if anything, and what it needs for that beside the sum.
        int part, first_row, n = member / TILE;
        locate(tile, part, first_row);
        int row = first_row + member % TILE;
        bool writes = n < (combine ? 1 : tokens) && row < p.parts[part].rows;
        float* out = p.out + p.parts[part].start + row;
        float old = 0.0f;
        if (writes) {
            out += (int64_t)(slots ? slots[n] : first_token + n) * p.out_stride;
            if (combine || p.ending == ADD) old = __ldcg(out);
        }
        for (int choice = first_choice; choice < choices; choice += choice_stride) {
            float bias[ROWS];
            uint32_t base[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const Part& q = p.parts[part + r];
                int64_t e = combine ? (int64_t)shared.experts[choice] : expert;
                bias[r] = writes && q.bias ? __ldg(q.bias + e * q.matrix_rows + q.first_row + row) : 0.0f;
                base[r] = (uint32_t)first_chunk(q, first_row, choice) + t;
            }
            float acc[ROWS][NT] = {};
            for (int step = 0; step < steps; step += TURN) {
                wait_for_copies<STAGES - TURN>();
                typename O::Raw raws[TURN][ROWS];
                int chunks[TURN];
#pragma unroll
                for (int u = 0; u < TURN; u++) {
                    chunks[u] = ((step + u) * TEAM_WARPS + warp) * LANES;
#pragma unroll
                    for (int r = 0; r < ROWS; r++) {
                        raws[u][r] = O::take(ring + ((stage + u) * ROWS + r) * O::BYTES * WARP, lane, base[r] + chunks[u]);
                    }
                }
#pragma unroll
                for (int u = 0; u < TURN; u++) {
                const typename O::Raw(&raw)[ROWS] = raws[u];
                // Beyond the end, weights are zeros, and x is whatever.
                int in_row = chunks[u] < p.chunks ? chunks[u] : 0;
                const float4* x = xs + choice * slots_of_row + in_row * PARTS;
                if constexpr (O::WIDE) {
                    for_parts<PARTS>([&](auto part) {
                        constexpr int J = decltype(part)::value;
#pragma unroll
                        for (int r = 0; r < ROWS; r++) {
                            float w[4];
                            Weights<TYPE>::template part<J>(raw[r], w);
#pragma unroll
                            for (int n = 0; n < NT; n++) {
                                float4 v = x[n * slots_of_row + J * LANES + t];
                                acc[r][n] = __fmaf_rn(w[0], v.x, acc[r][n]), acc[r][n] = __fmaf_rn(w[1], v.y, acc[r][n]);
                                acc[r][n] = __fmaf_rn(w[2], v.z, acc[r][n]), acc[r][n] = __fmaf_rn(w[3], v.w, acc[r][n]);
                            }
                        }
                    });
                } else {
                    constexpr int SETS = O::MINIMA ? ROWS : 1, SHARE = PARTS / O::SCALES;
                    for_parts<O::SCALES>([&](auto share) {
                        constexpr int S = decltype(share)::value;
                        float c[SETS][NT][4] = {};
                        for_parts<SHARE>([&](auto part) {
                            constexpr int J = S * SHARE + decltype(part)::value;
                            uint32_t a[ROWS][2];
#pragma unroll
                            for (int r = 0; r < ROWS; r++) O::template part<J>(raw[r], a[r]);
#pragma unroll
                            for (int n = 0; n < NT; n++) {
                                uint2 b = make_uint2(0, 0);
                                if (diagonal) b = *((const uint2*)(x + n * slots_of_row + J * LANES + t) + g % 2);
                                if constexpr (O::MINIMA) {
                                    // The other 8 rows of the operand are ones: they give the sum of x.
#pragma unroll
                                    for (int r = 0; r < ROWS; r++) {
                                        multiply_tile(c[r][n], a[r][0], 0x3c003c00u, a[r][1], 0x3c003c00u, b);
                                    }
                                } else if constexpr (ROWS == 2) {
                                    multiply_tile(c[0][n], a[0][0], a[1][0], a[0][1], a[1][1], b);
                                } else {
                                    multiply_tile(c[0][n], a[0][0], 0, a[0][1], 0, b);
                                }
                            }
                        });
#pragma unroll
                        for (int r = 0; r < ROWS; r++) {
                            float scale = O::template scale<S>(raw[r]);
#pragma unroll
                            for (int n = 0; n < NT; n++) {
                                const float(&d)[4] = c[O::MINIMA ? r : 0][n];
                                int at = O::MINIMA ? 0 : 2 * r;
                                float up = x_scales[(choice + n) * chunks_of_row + in_row + t], dot = d[at] + d[at + 1];
                                if constexpr (O::MINIMA) {
                                    dot = __fmaf_rn(scale, dot, -O::template minimum<S>(raw[r]) * (d[2] + d[3]));
                                    acc[r][n] = __fmaf_rn(up, dot, acc[r][n]);
                                } else {
                                    acc[r][n] = __fmaf_rn(up * scale, dot, acc[r][n]);
                                }
                            }
                        }
                    });
                }
                }
#pragma unroll
                for (int u = 0; u < TURN; u++) fetch();
                stage = stage + TURN == STAGES ? 0 : stage + TURN;
            }
            // Over the lanes of a row, then over the warps.
            float* sums = shared.sums[team][buffer];
            buffer ^= 1;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
#pragma unroll
                for (int n = 0; n < NT; n++) {
                    float v = acc[r][n];
#pragma unroll
                    for (int offset = 1; offset < LANES; offset *= 2) v += __shfl_xor_sync(ALL_LANES, v, offset);
                    if (t == 0) sums[((warp * ROWS + r) * NT + n) * TILE + g] = v;
                }
            }
            asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "n"(TEAM_THREADS) : "memory");
            if (!writes) continue;
            float v[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                v[r] = 0.0f;
#pragma unroll
                for (int w = 0; w < TEAM_WARPS; w++) v[r] += sums[((w * ROWS + r) * NT + n) * TILE + member % TILE];
                v[r] = __fadd_rn(v[r], bias[r]);
            }
            if constexpr (ROWS == 2) {
                *out = gated(v[0], v[1], p.activation, p.limit, p.alpha);
            } else if (combine) {
                shared.chosen[choice][row % TILE] = v[0];
            } else if (p.ending == ADD) {
                *out = old + v[0];
            } else {
                *out = p.ending == ACTIVATE ? activation(v[0], p.activation) : v[0];
            }
        }
        if (combine) {
            asm volatile("bar.sync %0, %1;" ::"n"(TEAMS + 1), "r"(min(TEAMS, choices) * TEAM_THREADS) : "memory");
            if (writes && team == 0) {
                float sum = 0.0f;
                for (int choice = 0; choice < choices; choice++) sum = __fmaf_rn(shared.shares[choice], shared.chosen[choice][row % TILE], sum);
                *out = old + sum;
            }
            // What was chosen is not written again before it was summed.
            asm volatile("bar.sync %0, %1;" ::"n"(TEAMS + 1), "r"(min(TEAMS, choices) * TEAM_THREADS) : "memory");
        }
    }
}

template <int TYPE, int TOKENS, int ROWS> __device__ __forceinline__ void matvec(const ProductParams& p) {
    __shared__ MatvecShared<TOKENS> shared;
    extern __shared__ __align__(16) char dynamic[];
    int first_token = blockIdx.y * p.at_once, tokens = min(p.at_once, p.tokens - first_token);
    int64_t expert = 0;
    const int32_t* slots = nullptr;
    if (p.groups) {
        wait_for_previous();
        if (threadIdx.x < GROUP_WORDS) shared.group[threadIdx.x] = __ldcg(p.groups + (int64_t)blockIdx.y * GROUP_WORDS + threadIdx.x);
        __syncthreads();
        expert = shared.group[0], tokens = shared.group[1], slots = shared.group + 2, first_token = 0;
        if (tokens == 0) return;
    }
    if (TOKENS == 1 || tokens == 1) multiply<TYPE, 1, ROWS, TOKENS == 1>(p, shared, dynamic, tokens, first_token, expert, slots);
    if constexpr (TOKENS > 1) {
        if (tokens == 2) multiply<TYPE, 2, ROWS, false>(p, shared, dynamic, tokens, first_token, expert, slots);
        else if (tokens > 2 && tokens <= 4) multiply<TYPE, 4, ROWS, false>(p, shared, dynamic, tokens, first_token, expert, slots);
        else if (tokens > 4) multiply<TYPE, 8, ROWS, false>(p, shared, dynamic, tokens, first_token, expert, slots);
    }
}

}  // namespace oxgpt

#define OXGPT_MATVEC_KERNEL(name, TYPE, TOKENS, ROWS)                                                                      \
    extern "C" __global__ void __launch_bounds__(512, TOKENS == 1 ? 2 : 1) matvec_##name##_##TOKENS##_##ROWS(               \
        const __grid_constant__ oxgpt::ProductParams p) {                                                                  \
        oxgpt::matvec<oxgpt::TYPE, TOKENS, ROWS>(p);                                                                       \
    }
#define OXGPT_MATVEC(name, TYPE)             \
    OXGPT_MATVEC_KERNEL(name, TYPE, 1, 1)    \
    OXGPT_MATVEC_KERNEL(name, TYPE, 1, 2)    \
    OXGPT_MATVEC_KERNEL(name, TYPE, 8, 1)    \
    OXGPT_MATVEC_KERNEL(name, TYPE, 8, 2)
