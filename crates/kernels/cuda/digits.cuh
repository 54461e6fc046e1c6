// Operands of the tensor cores for a few rows of activations: how weights are read from shared memory, and what x becomes there.
#pragma once
#include "matvec.cuh"

namespace oxgpt {

// Warps that multiply, in teams, beside one that fetches weights and one that writes outputs.
constexpr int RING_TEAMS = 2, RING_TEAM_WARPS = 8, MULTIPLIER_WARPS = RING_TEAMS * RING_TEAM_WARPS, MULTIPLIERS = MULTIPLIER_WARPS * WARP;
constexpr int FETCHER = MULTIPLIER_WARPS, FINISHER = FETCHER + 1, RING_THREADS = MULTIPLIERS + 2 * WARP;
// Weights of a row that meet the same scale of x. Two blocks are multiplied at once.
constexpr int BLOCK = 32;

// The bytes of a table of eight that the lower four nibbles of `select` name, or 0 where a nibble's upper bit is set: `prmt`
// gives a byte's sign there, and none is negative. (`__byte_perm` ignores that bit.)
__device__ __forceinline__ uint32_t look_up(uint32_t low, uint32_t high, uint32_t select) {
    uint32_t v;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(v) : "r"(low), "r"(high), "r"(select));
    return v;
}

// MXFP4's numbers that are not negative, doubled.
struct Table {
    uint32_t low, high;
    // `zero` is 0, which the compiler does not know: it would bring a constant to a register anew for each look-up.
    __device__ explicit Table(uint32_t zero) : low(0x03020100u | zero), high(0x0c080604u | zero) {}
};

// How a lane, of four that share a row, reads its eight weights of a block, and the block's scale.
//
// LOW are a block's bytes in the plane of that name, LANE those of a lane, SCALES a block's bytes of scales (an eighth of what eight
// have in common). PAD are bytes between rows in shared memory, so that rows are in different banks. Scales of x are multiplied with
// UNIT. With SIGNS_APART, codes come as those of positive and of negative weights. ORDER says which the eight weights of lane t are:
// EIGHT, 8 t to 8 t + 7; else 4 t to 4 t + 3 and 16 + 4 t to 16 + 4 t + 3, one four after another (FOURS) or in turn (NIBBLES). With
// MINIMA, a minimum times the sum of x is taken off.
enum Order { EIGHT, FOURS, NIBBLES };
template <int TYPE> struct Codes;
template <> struct Codes<Q8_0> {
    static constexpr int LOW = 32, SCALES = 2, PAD = 32, LANE = 8, ORDER = EIGHT;
    static constexpr float UNIT = 1.0f;
    static constexpr bool SIGNS_APART = false, MINIMA = false;
    __device__ static int scales_before(int block) { return block * SCALES; }
    __device__ static void codes(const Table&, const char* at, uint32_t (&a)[2], uint32_t (&)[2]) {
        uint2 q = *(const uint2*)at;
        a[0] = q.x, a[1] = q.y;
    }
    __device__ static void scale(const char* at, int, float& scale, float&) { scale = half_bits(*(const uint16_t*)at); }
};
template <> struct Codes<MXFP4> {
    static constexpr int LOW = 16, SCALES = 1, PAD = 16, LANE = 4, ORDER = NIBBLES;
    static constexpr float UNIT = 0.5f;
    static constexpr bool SIGNS_APART = true, MINIMA = false;
    __device__ static int scales_before(int block) { return block * SCALES; }
    __device__ static void codes(const Table& table, const char* at, uint32_t (&a)[2], uint32_t (&n)[2]) {
        uint32_t q = *(const uint32_t*)at, x = q ^ 0x88888888u;
        a[0] = look_up(table.low, table.high, q), a[1] = look_up(table.low, table.high, q >> 16);
        n[0] = look_up(table.low, table.high, x), n[1] = look_up(table.low, table.high, x >> 16);
    }
    // 2^(e - 127), of which the smallest is denormal. (`max` becomes a comparison and a choice.)
    __device__ static void scale(const char* at, int, float& scale, float&) {
        uint32_t bits = (uint32_t)*(const uint8_t*)at << 23;
        asm("max.u32 %0, %0, 0x00400000;" : "+r"(bits));
        scale = __uint_as_float(bits);
    }
};
template <> struct Codes<Q4_K> {
    static constexpr int LOW = 16, SCALES = 2, PAD = 16, LANE = 4, ORDER = FOURS;
    static constexpr float UNIT = 1.0f;
    static constexpr bool SIGNS_APART = false, MINIMA = true;
    // Of the eight blocks of a superblock.
    __device__ static int scales_before(int block) { return block / 8 * 16; }
    __device__ static void codes(const Table&, const char* at, uint32_t (&a)[2], uint32_t (&)[2]) {
        uint32_t q = *(const uint32_t*)at;
        a[0] = q & 0x0f0f0f0fu, a[1] = (q >> 4) & 0x0f0f0f0fu;
    }
    __device__ static void scale(const char* at, int block, float& scale, float& minimum) {
        scale_and_min(*(const uint4*)at, block % 8, scale, minimum);
    }
};
// Numbers as they are: two steps of sixteen.
template <> struct Codes<F16> {
    static constexpr int LOW = 64, SCALES = 0, PAD = 64, LANE = 16, ORDER = EIGHT;
    static constexpr float UNIT = 1.0f;
    static constexpr bool SIGNS_APART = false, MINIMA = false;
    __device__ static int scales_before(int) { return 0; }
};

__device__ __forceinline__ void multipliers_meet() { asm volatile("bar.sync 1, %0;" ::"n"(MULTIPLIERS) : "memory"); }

// As `row_sum<1>`, for each of R rows, with `scratch` that nobody reads any more.
static_assert(MULTIPLIER_WARPS == ROW_WARPS, "a row's sums are those of row.cuh");
template <int R> __device__ __forceinline__ void multipliers_sum(float (&sums)[R], float* scratch) {
#pragma unroll
    for (int r = 0; r < R; r++) {
        sums[r] = warp_sum(sums[r]);
        if (threadIdx.x % WARP == 0) scratch[r * ROW_WARPS + threadIdx.x / WARP] = sums[r];
    }
    multipliers_meet();
#pragma unroll
    for (int r = 0; r < R; r++) {
        sums[r] = 0.0f;
#pragma unroll
        for (int i = 0; i < ROW_WARPS; i += 4) {
            float4 part = *(const float4*)(scratch + r * ROW_WARPS + i);
            sums[r] += (part.x + part.y) + (part.z + part.w);
        }
    }
}

// Four elements of x, number `i` of fours, as digits: 16 bytes in 4 places. All lanes of a warp call this together; the
// eight of a block are side by side. Of a block, digit k of lane t's weights is in words 8 k + 2 t and 8 k + 2 t + 1.
template <int TYPE> __device__ __forceinline__ void store_digits(uint32_t* digits, float* scales, int i, bool real, const float4& v) {
    float most = largest(v);
#pragma unroll
    for (int offset = 1; offset < 8; offset *= 2) most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, offset));
    // A power of two that brings the largest to 2^29 or just below twice that.
    int exponent = (int)((__float_as_uint(most) >> 23) & 0xffu) - 127;
    exponent = most == 0.0f || exponent == 128 ? 0 : max(exponent - 29, -126);
    float up = __uint_as_float((uint32_t)(127 - exponent) << 23);
    // The lower three digits are from -128 to 127.
    auto number = [&](float e) { return (uint32_t)((__float2int_rn(e * up) + 0x00808080) ^ 0x00808080); };
    uint32_t a = number(v.x), b = number(v.y), c = number(v.z), d = number(v.w);
    uint32_t ab = __byte_perm(a, b, 0x5140), cd = __byte_perm(c, d, 0x5140);
    uint32_t ab_upper = __byte_perm(a, b, 0x7362), cd_upper = __byte_perm(c, d, 0x7362);
    uint32_t w[4] = {__byte_perm(ab, cd, 0x5410), __byte_perm(ab, cd, 0x7632), __byte_perm(ab_upper, cd_upper, 0x5410),
                     __byte_perm(ab_upper, cd_upper, 0x7632)};
    int block = i / 8, part = i % 8, place = Codes<TYPE>::ORDER == EIGHT ? part : part % 4 * 2 + part / 4;
    if constexpr (Codes<TYPE>::ORDER == NIBBLES) {
        // Those of lower and upper nibbles alternate.
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t other = __shfl_xor_sync(ALL_LANES, w[k], 4);
            w[k] = part < 4 ? __byte_perm(w[k], other, 0x5140) : __byte_perm(other, w[k], 0x7362);
        }
    }
    float sum = (v.x + v.y) + (v.z + v.w);
    if constexpr (Codes<TYPE>::MINIMA) {
#pragma unroll
        for (int offset = 1; offset < 8; offset *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    }
    if (!real) return;
    float scale = Codes<TYPE>::UNIT * __uint_as_float((uint32_t)(127 + exponent) << 23);
    if (part == 0 && Codes<TYPE>::MINIMA) ((float2*)scales)[block] = make_float2(scale, sum);
    else if (part == 0) scales[block] = scale;
#pragma unroll
    for (int k = 0; k < 4; k++) digits[block * 32 + k * 8 + place] = w[k];
}

// The same as halves: what is nearest, and what is left then. Of a block, lane t's part k is in words 16 k + 4 t to 16 k + 4 t + 3.
template <> __device__ __forceinline__ void store_digits<F16>(uint32_t* digits, float* scales, int i, bool real, const float4& v) {
    float most = largest(v);
#pragma unroll
    for (int offset = 1; offset < 8; offset *= 2) most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, offset));
    if (!real) return;
    // A power of two that brings the largest to 2^14 or just below twice that.
    int exponent = (int)((__float_as_uint(most) >> 23) & 0xffu) - 127;
    exponent = most == 0.0f || exponent == 128 ? 0 : max(exponent - 14, -126);
    float up = __uint_as_float((uint32_t)(127 - exponent) << 23);
    int block = i / 8, part = i % 8;
    if (part == 0) scales[block] = __uint_as_float((uint32_t)(127 + exponent) << 23);
    float x[4] = {v.x * up, v.y * up, v.z * up, v.w * up};
    __half2 near[2] = {__floats2half2_rn(x[0], x[1]), __floats2half2_rn(x[2], x[3])};
    float2 a = __half22float2(near[0]), b = __half22float2(near[1]);
    __half2 left[2] = {__floats2half2_rn(x[0] - a.x, x[1] - a.y), __floats2half2_rn(x[2] - b.x, x[3] - b.y)};
    uint32_t* to = digits + block * 32 + part * 2;
    *(uint2*)to = *(const uint2*)near;
    *(uint2*)(to + 16) = *(const uint2*)left;
}

// The scales of R rows, of which each thread has pieces of four for `piece(r, k)`, k < count; the sums are row.cuh's.
template <int R, class Piece>
__device__ __forceinline__ void multipliers_scale(
    const ProductParams& p, RowScale (&scales)[R], float* scratch, int count, int pieces, Piece&& piece
) {
    float sums[R] = {};
    if (p.centered) {
#pragma unroll
        for (int r = 0; r < R; r++) {
#pragma unroll
            for (int k = 0; k < count; k++) {
                float4 v = piece(r, k);
                sums[r] += (v.x + v.y) + (v.z + v.w);
            }
        }
        multipliers_sum(sums, scratch);
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
        float mean = p.centered ? sums[r] / (float)p.cols : 0.0f;
        scales[r].mean = mean, sums[r] = 0.0f;
#pragma unroll
        for (int k = 0; k < count; k++) {
            bool real = (int)threadIdx.x + k * MULTIPLIERS < pieces;
            float4 v = piece(r, k);
            auto add = [&](float e) {
                float d = real ? __fsub_rn(e, mean) : 0.0f;
                sums[r] = __fmaf_rn(d, d, sums[r]);
            };
            add(v.x), add(v.y), add(v.z), add(v.w);
        }
    }
    multipliers_sum(sums, scratch + R * ROW_WARPS);
#pragma unroll
    for (int r = 0; r < R; r++) scales[r].scale = 1.0f / sqrtf(sums[r] / (float)p.cols + p.eps);
}

// Floats of scratch that rows need which are normed together.
constexpr int ROWS_AT_ONCE = 2, STAGE_SCRATCH = 2 * ROWS_AT_ONCE * ROW_WARPS;

// Brings R rows of `width` elements to shared memory; with NORM they are normed if the product asks for it. `row(r)` is where one
// lies, `stride` the scales of one there. N: fours of a row that a thread has on their way at once. Longer rows are read again for
// their scale.
template <int TYPE, int N, int R, bool NORM, class Row>
__device__ __forceinline__ void stage_digits(
    const ProductParams& p, float* scratch, uint32_t* digits, float* scales, int stride, int width, Row&& row
) {
    int pieces = width / 4;
    bool norm = NORM && p.norm_weight, longer = pieces > N * MULTIPLIERS;
    RowScale s[R];
    const float* x[R];
#pragma unroll
    for (int r = 0; r < R; r++) x[r] = row(r);
    if (norm && longer) {
        int count = (pieces + MULTIPLIERS - 1) / MULTIPLIERS;
        multipliers_scale(p, s, scratch, count, pieces, [&](int r, int k) { return row_piece(x[r], threadIdx.x + k * MULTIPLIERS, width, true); });
    }
    // All warps take part in the first round, where they meet for the scale.
#pragma unroll 1
    for (int start = threadIdx.x; start < MULTIPLIERS || start / WARP * WARP < pieces; start += N * MULTIPLIERS) {
        float4 v[R][N];
#pragma unroll
        for (int r = 0; r < R; r++) {
#pragma unroll
            for (int k = 0; k < N; k++) v[r][k] = row_piece(x[r], start + k * MULTIPLIERS, width, true);
        }
        if (norm) {
            float4 w[N], bias[N];
#pragma unroll
            for (int k = 0; k < N; k++) {
                w[k] = row_piece(p.norm_weight, start + k * MULTIPLIERS, width, true);
                bias[k] = p.norm_bias ? row_piece(p.norm_bias, start + k * MULTIPLIERS, width, true) : float4{};
            }
            if (!longer) multipliers_scale(p, s, scratch, N, pieces, [&](int r, int k) { return v[r][k]; });
#pragma unroll
            for (int r = 0; r < R; r++) {
#pragma unroll
                for (int k = 0; k < N; k++) v[r][k] = normed(v[r][k], s[r], w[k], bias[k], p.norm_bias);
            }
        }
#pragma unroll
        for (int r = 0; r < R; r++) {
#pragma unroll
            for (int k = 0; k < N; k++) {
                int i = start + k * MULTIPLIERS;
                if (i / WARP * WARP < pieces) store_digits<TYPE>(digits + r * p.cols, scales + r * stride, i, i < pieces, v[r][k]);
            }
        }
    }
}

}  // namespace oxgpt
