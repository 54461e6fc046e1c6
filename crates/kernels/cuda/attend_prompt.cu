// out = softmax(scale * q * keys) * values as in attend.cu, for the rows of prompts, on the tensor cores: queries, weights of values,
// keys and values are halves, sums are f32.
//
// A block of four warps takes a tile of neighbouring rows and some of the query heads that share a KV head, together up to 16 TILES
// queries for each warp, and walks once over the positions that they see, POSITIONS at a time from a multiple of POSITIONS on. Of
// each query the largest score so far, the sum and the weighted sum of values are carried along. Positions that a query does not see
// leave them as they are, bit for bit, so its result depends on nothing but its own context. Rows of several sequences are taken one
// sequence after another.
//
// Keys and values in 8 bits become halves on the way to shared memory.
//
// Keys lie in shared memory as in their blocks; rows of values are 16 bytes further apart than they are long, so that the eight rows
// of a fragment are in different banks.
//
// Grid: (ceil(rows / tile_rows), KV heads * ceil(heads per KV head / tile_heads)), blocks of 128 threads.
#include "kv.cuh"
#include "mma.cuh"

namespace oxgpt {
namespace {

using Half = __half;
constexpr float LOG2_E = 1.4426950408889634f;

__device__ __forceinline__ float exp2_fast(float v) {
    float e;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(v));
    return e;
}

// DIM: dimensions of a head, rounded up.
template <class KV, int DIM, int TILES, int POSITIONS> struct AttendTile {
    static constexpr int THREADS = 128;
    static constexpr int STEPS = DIM / 16, PIECES = DIM / 8, COLUMNS = POSITIONS / 8;
    static constexpr int KEY_BYTES = POSITIONS * DIM * 2, VALUE_PITCH = DIM * 2 + 16;
    static constexpr int STAGE = KEY_BYTES + POSITIONS * VALUE_PITCH;
    // The queries of the widest heads do not fit into registers beside the sums.
    static constexpr bool QUERIES_SHARED = DIM > 128;

    const AttendPromptParams& p;
    uint8_t* shared;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int kv_head, first_head, heads;
    // Of rows l / 4 and l / 4 + 8 of each tile: row of the batch and head, and the position, -1 where there is no query.
    int row[TILES][2], head[TILES][2], position[TILES][2];
    uint32_t q[QUERIES_SHARED ? 1 : TILES][QUERIES_SHARED ? 1 : STEPS][4];
    // The largest score in units of ln 2, the sum of this lane's weights, and the weighted sum.
    float most[TILES][2], sum[TILES][2], out[TILES][PIECES][4];

    __device__ AttendTile(const AttendPromptParams& p, uint8_t* shared) : p(p), shared(shared) {
        int group = p.heads / p.kv_heads, pieces = (group + p.tile_heads - 1) / p.tile_heads;
        kv_head = blockIdx.y / pieces;
        first_head = kv_head * group + blockIdx.y % pieces * p.tile_heads;
        heads = min(p.tile_heads, (kv_head + 1) * group - first_head);
    }

    // Takes the rows from `begin` to before `end`, which are of one sequence.
    __device__ void run(int begin, int end) {
        int first_position = p.positions[begin], last_position = p.positions[end - 1];
#pragma unroll
        for (int m = 0; m < TILES; m++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int slot = (warp * TILES + m) * 16 + lane / 4 + 8 * i, r = begin + slot / p.tile_heads, h = slot % p.tile_heads;
                bool there = r < end && h < heads;
                row[m][i] = there ? r : begin, head[m][i] = first_head + (there ? h : 0);
                position[m][i] = there ? (int)p.positions[r] : -1;
                // A sink is a score without a value.
                most[m][i] = p.sinks ? p.sinks[head[m][i]] * LOG2_E : -CUDART_INF_F;
                sum[m][i] = p.sinks && lane % 4 == 0 ? 1.0f : 0.0f;
            }
#pragma unroll
            for (int n = 0; n < PIECES; n++) out[m][n][0] = out[m][n][1] = out[m][n][2] = out[m][n][3] = 0.0f;
        }
        load_queries();
        const uint32_t* table = p.blocks + p.table_offsets[p.sequences[begin]];
        int first = p.window ? max(first_position + 1 - p.window, 0) : 0;
        // From here on every row sees what is before it.
        int seen_from = p.window ? max(last_position + 1 - p.window, 0) : 0;
        int tile = first / POSITIONS, last = last_position / POSITIONS;
        // The sequence before may still be read.
        __syncthreads();
        load(table, tile, first, last_position);
        for (; tile <= last; tile++) {
            copy_wait<0>();
            // This tile is there, and nobody reads the one before any more.
            __syncthreads();
            if (tile < last) load(table, tile + 1, first, last_position);
            bool whole = tile * POSITIONS >= seen_from && (tile + 1) * POSITIONS - 1 <= first_position;
            step(shared_address(shared + (tile & 1) * STAGE), tile * POSITIONS, whole);
        }
        store();
    }

    __device__ uint4* shared_query(int m, int k) {
        return (uint4*)(shared + 2 * STAGE) + ((warp * TILES + m) * STEPS + k) * WARP + lane;
    }
    __device__ float query(int m, int i, int d) const {
        if (d >= p.head_dim) return 0.0f;
        float v = p.qkv[(int64_t)row[m][i] * p.qkv_stride + head[m][i] * p.head_dim + d];
        return copysignf(1.0f, p.scale) * fminf(fmaxf(v, -65504.0f), 65504.0f);
    }
    __device__ void load_queries() {
#pragma unroll
        for (int m = 0; m < TILES; m++) {
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                uint32_t a[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int d = 16 * k + i / 2 * 8 + lane % 4 * 2;
                    a[i] = pack_halves(query(m, i % 2, d), query(m, i % 2, d + 1));
                }
                // Each thread reads what it wrote itself.
                if constexpr (QUERIES_SHARED) {
                    *shared_query(m, k) = make_uint4(a[0], a[1], a[2], a[3]);
                } else {
                    q[m][k][0] = a[0], q[m][k][1] = a[1], q[m][k][2] = a[2], q[m][k][3] = a[3];
                }
            }
        }
    }

    // Brings the keys and values of a tile of positions to shared memory. What is not between `first` and `last` may be anything, or
    // nowhere.
    __device__ void load(const uint32_t* table, int tile, int first, int last) {
        uint32_t keys = shared_address(shared + (tile & 1) * STAGE), values = keys + KEY_BYTES;
        if constexpr (sizeof(KV) == 1) {
            load_codes<false>(table, tile, first, last, keys);
            load_codes<true>(table, tile, first, last, values);
            return;
        }
#pragma unroll
        for (int b = 0; b < POSITIONS / BLOCK_POSITIONS; b++) {
            int start = tile * POSITIONS + b * BLOCK_POSITIONS, pieces = p.padded_dim / 8;
            bool there = start + BLOCK_POSITIONS > first && start <= last;
            int64_t from = there ? kv_block<KV>(table[start / BLOCK_POSITIONS], p.kv_heads, kv_head, p.padded_dim) : 0;
            for (int i = threadIdx.x; i < BLOCK_POSITIONS * PIECES; i += THREADS) {
                int at = i % BLOCK_POSITIONS, piece = i / BLOCK_POSITIONS;
                bool real = there && piece < pieces;
                uint32_t to = keys + (b * BLOCK_POSITIONS * PIECES + i) * 16;
                copy_16(to, real ? (const __half*)p.keys + from + key_element(at, 8 * piece) : p.keys, real);
            }
            for (int i = threadIdx.x; i < BLOCK_POSITIONS * PIECES; i += THREADS) {
                int at = i / PIECES, piece = i % PIECES;
                bool real = there && piece < pieces && start + at >= first && start + at <= last;
                uint32_t to = values + (b * BLOCK_POSITIONS + at) * VALUE_PITCH + piece * 16;
                copy_16(to, real ? (const __half*)p.values + from + value_element(at, 8 * piece, p.padded_dim) : p.values, real);
            }
        }
        copy_commit();
    }

    // Of one kind, in 8 bits: all codes are on their way before the first becomes halves.
    template <bool VALUES> __device__ void load_codes(const uint32_t* table, int tile, int first, int last, uint32_t to) {
        constexpr int MINE = POSITIONS * PIECES / THREADS;
        uint2 codes[MINE];
        __half scales[MINE];
#pragma unroll
        for (int m = 0; m < MINE; m++) {
            int i = (threadIdx.x + m * THREADS) % (BLOCK_POSITIONS * PIECES), b = (threadIdx.x + m * THREADS) / (BLOCK_POSITIONS * PIECES);
            int start = tile * POSITIONS + b * BLOCK_POSITIONS;
            int at = VALUES ? i / PIECES : i % BLOCK_POSITIONS, piece = VALUES ? i % PIECES : i / BLOCK_POSITIONS;
            bool there = start + at >= first && start + at <= last && 8 * piece < p.padded_dim;
            codes[m] = make_uint2(0, 0), scales[m] = __ushort_as_half(0);
            if (!there) continue;
            const Q8* block = (const Q8*)(VALUES ? p.values : p.keys) + kv_block<Q8>(table[start / BLOCK_POSITIONS], p.kv_heads, kv_head, p.padded_dim);
            codes[m] = *(const uint2*)(block + (VALUES ? value_element(at, 8 * piece, p.padded_dim) : key_element(at, 8 * piece)));
            scales[m] = *(const __half*)(block + scale_at(at, 8 * piece, p.padded_dim));
        }
#pragma unroll
        for (int m = 0; m < MINE; m++) {
            int i = (threadIdx.x + m * THREADS) % (BLOCK_POSITIONS * PIECES), b = (threadIdx.x + m * THREADS) / (BLOCK_POSITIONS * PIECES);
            __half2 halves[4], scale = __half2half2(scales[m]);
            codes_to_halves(codes[m].x, halves[0], halves[1]);
            codes_to_halves(codes[m].y, halves[2], halves[3]);
#pragma unroll
            for (int j = 0; j < 4; j++) halves[j] = __hmul2(halves[j], scale);
            int place = VALUES ? (b * BLOCK_POSITIONS + i / PIECES) * VALUE_PITCH + i % PIECES * 16 : (b * BLOCK_POSITIONS * PIECES + i) * 16;
            asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(to + place), "r"(half2_bits(halves[0])), "r"(half2_bits(halves[1])),
                         "r"(half2_bits(halves[2])), "r"(half2_bits(halves[3])) : "memory");
        }
    }

    // Adds the positions of one tile, of which every query sees all if `whole`.
    __device__ void step(uint32_t keys, int start, bool whole) {
        uint32_t values = keys + KEY_BYTES;
        float score[TILES][COLUMNS][4] = {};
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            uint32_t a[TILES][4];
#pragma unroll
            for (int m = 0; m < TILES; m++) {
                if constexpr (QUERIES_SHARED) {
                    uint4 v = *shared_query(m, k);
                    a[m][0] = v.x, a[m][1] = v.y, a[m][2] = v.z, a[m][3] = v.w;
                } else {
                    a[m][0] = q[m][k][0], a[m][1] = q[m][k][1], a[m][2] = q[m][k][2], a[m][3] = q[m][k][3];
                }
            }
#pragma unroll
            for (int n = 0; n < COLUMNS; n += 2) {
                // Both halves of the step, for eight positions and the next eight.
                int piece = 2 * k + lane / 8 % 2, at = 8 * n % BLOCK_POSITIONS + lane / 16 * 8 + lane % 8;
                uint32_t b[4];
                load_matrices(b, keys + ((8 * n / BLOCK_POSITIONS * PIECES + piece) * BLOCK_POSITIONS + at) * 16);
#pragma unroll
                for (int m = 0; m < TILES; m++) {
                    mma_f16(score[m][n], a[m], b[0], b[1]);
                    mma_f16(score[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
#pragma unroll
        for (int m = 0; m < TILES; m++) weigh(m, score[m], start, whole);
#pragma unroll
        for (int k = 0; k < POSITIONS / 16; k++) {
            uint32_t a[TILES][4];
#pragma unroll
            for (int m = 0; m < TILES; m++) {
#pragma unroll
                for (int i = 0; i < 4; i++) a[m][i] = pack_halves(score[m][2 * k + i / 2][i % 2 * 2], score[m][2 * k + i / 2][i % 2 * 2 + 1]);
            }
#pragma unroll
            for (int n = 0; n < PIECES; n += 2) {
                uint32_t b[4];
                load_matrices_turned(b, values + (16 * k + lane / 8 % 2 * 8 + lane % 8) * VALUE_PITCH + (n + lane / 16) * 16);
#pragma unroll
                for (int m = 0; m < TILES; m++) {
                    mma_f16(out[m][n], a[m], b[0], b[1]);
                    mma_f16(out[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    // Turns scores into weights, and brings what was summed before to the same maximum.
    __device__ void weigh(int m, float (&score)[COLUMNS][4], int start, bool whole) {
        // Queries have the sign of the scale.
        float scale = fmaxf(fabsf(p.scale), 1e-30f) * LOG2_E;
        if (p.soft_cap > 0.0f) {
            scale = p.soft_cap * LOG2_E;
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) score[n][i] = tanhf(score[n][i] * fabsf(p.scale) / p.soft_cap);
            }
        }
        float old[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (!whole) {
                int end = position[m][i], begin = p.window ? end + 1 - p.window : 0;
#pragma unroll
                for (int n = 0; n < COLUMNS; n++) {
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        int at = start + 8 * n + lane % 4 * 2 + j;
                        if (at > end || at < begin) score[n][2 * i + j] = -CUDART_INF_F;
                    }
                }
            }
            float best = -CUDART_INF_F;
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) best = fmaxf(best, fmaxf(score[n][2 * i], score[n][2 * i + 1]));
            best = fmaxf(most[m][i], quad_max(best) * scale);
            // Without anything seen so far, there is nothing to be weighed.
            float zero = best == -CUDART_INF_F ? 0.0f : best;
            old[i] = exp2_fast(most[m][i] - zero);
            most[m][i] = best;
            float all = 0.0f;
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) {
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    float& s = score[n][2 * i + j];
                    s = exp2_fast(__fmaf_rn(s, scale, -zero));
                    all += s;
                }
            }
            sum[m][i] = __fmaf_rn(sum[m][i], old[i], all);
        }
        // Most often no maximum changes; then there is nothing to multiply.
        if (__any_sync(ALL_LANES, old[0] != 1.0f || old[1] != 1.0f)) {
#pragma unroll
            for (int n = 0; n < PIECES; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) out[m][n][i] *= old[i / 2];
            }
        }
    }

    __device__ void store() {
#pragma unroll
        for (int m = 0; m < TILES; m++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float all = quad_sum(sum[m][i]);
                if (position[m][i] < 0) continue;
                float* to = p.out + (int64_t)row[m][i] * p.out_stride + head[m][i] * p.head_dim;
#pragma unroll
                for (int n = 0; n < PIECES; n++) {
                    int d = 8 * n + lane % 4 * 2;
                    if (d < p.head_dim) to[d] = out[m][n][2 * i] / all;
                    if (d + 1 < p.head_dim) to[d + 1] = out[m][n][2 * i + 1] / all;
                }
            }
        }
    }
};

template <class KV, int DIM, int TILES, int POSITIONS> __device__ void attend_prompt(const AttendPromptParams& p) {
    extern __shared__ uint4 shared[];
    AttendTile<KV, DIM, TILES, POSITIONS> tile(p, (uint8_t*)shared);
    // The longest contexts first.
    int begin = (int)(gridDim.x - 1 - blockIdx.x) * p.tile_rows, end = min(begin + p.tile_rows, p.rows);
    while (begin < end) {
        int next = begin + 1;
        while (next < end && p.sequences[next] == p.sequences[begin]) next++;
        tile.run(begin, next);
        begin = next;
    }
}

}  // namespace
}  // namespace oxgpt

#define ATTEND_PROMPT(name, KV, DIM, TILES, POSITIONS)                                                                             \
    extern "C" __global__ void __launch_bounds__(128) attend_prompt_##name##_##DIM(const __grid_constant__ oxgpt::AttendPromptParams p) { \
        oxgpt::attend_prompt<oxgpt::KV, DIM, TILES, POSITIONS>(p);                                                                 \
    }
#define ATTEND_PROMPTS(name, KV)                                                                                                   \
    ATTEND_PROMPT(name, KV, 64, 2, 64) ATTEND_PROMPT(name, KV, 80, 1, 64) ATTEND_PROMPT(name, KV, 96, 1, 64)                       \
    ATTEND_PROMPT(name, KV, 128, 1, 64) ATTEND_PROMPT(name, KV, 256, 1, 32)
ATTEND_PROMPTS(f16, Half)
ATTEND_PROMPTS(q8, Q8)
