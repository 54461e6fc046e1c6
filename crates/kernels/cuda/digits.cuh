// Operands of the integer tensor cores: codes of weights as bytes, and x as four digits of 256.
#pragma once
#include "matvec.cuh"

namespace oxgpt {

// Warps that multiply, beside one that fetches weights.
constexpr int MULTIPLIER_WARPS = 8, MULTIPLIERS = MULTIPLIER_WARPS * WARP, INTEGER_THREADS = MULTIPLIERS + WARP;
// Weights of a row that share a scale.
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
// LOW and SCALES are a block's bytes in those planes, LANE a lane's bytes of LOW. PAD are bytes between rows in shared memory, so that
// eight rows are in different banks. Scales of x are multiplied with UNIT. With SIGNS_APART, codes come as those of
// positive and of negative weights. With MIXED, the eight are 4 t to 4 t + 3 and 16 + 4 t to 16 + 4 t + 3, in the order of
// the nibbles of a word; else 8 t to 8 t + 7.
template <int TYPE> struct Codes;
template <> struct Codes<Q8_0> {
    static constexpr int LOW = 32, SCALES = 2, PAD = 32, LANE = 8;
    static constexpr float UNIT = 1.0f;
    static constexpr bool SIGNS_APART = false, MIXED = false;
    __device__ static void codes(const Table&, const char* at, uint32_t (&a)[2], uint32_t (&)[2]) {
        uint2 q = *(const uint2*)at;
        a[0] = q.x, a[1] = q.y;
    }
    __device__ static float scale(const char* at) { return half_bits(*(const uint16_t*)at); }
};
template <> struct Codes<MXFP4> {
    static constexpr int LOW = 16, SCALES = 1, PAD = 16, LANE = 4;
    static constexpr float UNIT = 0.5f;
    static constexpr bool SIGNS_APART = true, MIXED = true;
    __device__ static void codes(const Table& table, const char* at, uint32_t (&a)[2], uint32_t (&n)[2]) {
        uint32_t q = *(const uint32_t*)at, x = q ^ 0x88888888u;
        a[0] = look_up(table.low, table.high, q), a[1] = look_up(table.low, table.high, q >> 16);
        n[0] = look_up(table.low, table.high, x), n[1] = look_up(table.low, table.high, x >> 16);
    }
    // 2^(e - 127), of which the smallest is denormal. (`max` becomes a comparison and a choice.)
    __device__ static float scale(const char* at) {
        uint32_t bits = (uint32_t)*(const uint8_t*)at << 23;
        asm("max.u32 %0, %0, 0x00400000;" : "+r"(bits));
        return __uint_as_float(bits);
    }
};

__device__ __forceinline__ void multipliers_meet() { asm volatile("bar.sync 1, %0;" ::"n"(MULTIPLIERS) : "memory"); }

// As `row_sum<2>`, with `scratch` that nobody reads any more.
__device__ __forceinline__ float multipliers_sum(float (&sums)[2], float* scratch) {
#pragma unroll
    for (int v = 0; v < 2; v++) {
        float sum = warp_sum(sums[v]);
        if (threadIdx.x % WARP == 0) scratch[v * MULTIPLIER_WARPS + threadIdx.x / WARP] = sum;
    }
    multipliers_meet();
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < ROW_WARPS; i += 4) {
        float4 part = *(const float4*)(scratch + i);
        sum += (part.x + part.y) + (part.z + part.w);
    }
    return sum;
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
    int block = i / 8, part = i % 8, place = part;
    if constexpr (Codes<TYPE>::MIXED) {
        // Those of lower and upper nibbles alternate.
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t other = __shfl_xor_sync(ALL_LANES, w[k], 4);
            w[k] = part < 4 ? __byte_perm(w[k], other, 0x5140) : __byte_perm(other, w[k], 0x7362);
        }
        place = part % 4 * 2 + part / 4;
    }
    if (!real) return;
    if (part == 0) scales[block] = Codes<TYPE>::UNIT * __uint_as_float((uint32_t)(127 + exponent) << 23);
#pragma unroll
    for (int k = 0; k < 4; k++) digits[block * 32 + k * 8 + place] = w[k];
}

// The scale of a row, of which each thread has a piece of four for `piece(k)`, k < count; the sums are row.cuh's.
template <class Piece>
__device__ __forceinline__ RowScale multipliers_scale(const ProductParams& p, float* scratch, int count, int pieces, Piece&& piece) {
    float mean = 0.0f, sums[2] = {};
    if (p.centered) {
#pragma unroll
        for (int k = 0; k < count; k++) {
            float4 v = piece(k);
            sums[k % 2] += (v.x + v.y) + (v.z + v.w);
        }
        mean = multipliers_sum(sums, scratch) / (float)p.cols;
        sums[0] = sums[1] = 0.0f;
    }
#pragma unroll
    for (int k = 0; k < count; k++) {
        bool real = (int)threadIdx.x + k * MULTIPLIERS < pieces;
        float4 v = piece(k);
        auto add = [&](float e) {
            float d = real ? __fsub_rn(e, mean) : 0.0f;
            sums[k % 2] = __fmaf_rn(d, d, sums[k % 2]);
        };
        add(v.x), add(v.y), add(v.z), add(v.w);
    }
    return {mean, 1.0f / sqrtf(multipliers_sum(sums, scratch + ROW_WARPS) / (float)p.cols + p.eps)};
}

// Brings `width` elements of x to shared memory; with NORM they are a row, normed if the product asks for it. N, which is
// even: fours of a thread that are on their way at once. Longer rows are read again for their scale.
template <int TYPE, int N, bool NORM>
__device__ __forceinline__ void stage_digits(const ProductParams& p, float* scratch, uint32_t* digits, float* scales, const float* x, int width) {
    int pieces = width / 4;
    bool norm = NORM && p.norm_weight, longer = pieces > N * MULTIPLIERS;
    RowScale s = {0.0f, 1.0f};
    if (norm && longer) {
        int count = (pieces + 2 * MULTIPLIERS - 1) / (2 * MULTIPLIERS) * 2;
        s = multipliers_scale(p, scratch, count, pieces, [&](int k) { return row_piece(x, threadIdx.x + k * MULTIPLIERS, width, true); });
    }
    // All warps take part in the first round, where they meet for the scale.
#pragma unroll 1
    for (int start = threadIdx.x; start < MULTIPLIERS || start / WARP * WARP < pieces; start += N * MULTIPLIERS) {
        float4 v[N];
#pragma unroll
        for (int k = 0; k < N; k++) v[k] = row_piece(x, start + k * MULTIPLIERS, width, true);
        if (norm) {
            float4 w[N];
#pragma unroll
            for (int k = 0; k < N; k++) w[k] = row_piece(p.norm_weight, start + k * MULTIPLIERS, width, true);
            if (!longer) s = multipliers_scale(p, scratch, N, pieces, [&](int k) { return v[k]; });
#pragma unroll
            for (int k = 0; k < N; k++) {
                float4 bias = p.norm_bias ? row_piece(p.norm_bias, start + k * MULTIPLIERS, width, true) : float4{};
                v[k] = normed(v[k], s, w[k], bias, p.norm_bias);
            }
        }
#pragma unroll
        for (int k = 0; k < N; k++) {
            int i = start + k * MULTIPLIERS;
            if (i / WARP * WARP < pieces) store_digits<TYPE>(digits, scales, i, i < pieces, v[k]);
        }
    }
}

}  // namespace oxgpt
