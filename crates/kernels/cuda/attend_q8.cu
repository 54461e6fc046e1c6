// What a step of attend_tensor.cuh does with 16 positions of keys and values in 8 bits.
//
// Codes are halves without rounding. Scores are summed for each 32 dimensions by themselves, and then meet the scales of the keys. The
// scale of a value is a number from 1 to 2 that its weight is multiplied with, and a power of two that its codes are.
#include "attend_tensor.cuh"

namespace oxgpt {
namespace {

template <int DIM_, bool WHOLE> struct CodeStep {
    using KV = Q8;
    static constexpr int DIM = DIM_, POSITIONS = 16, TILES = 2, GROUPS = DIM / 32;
    // Weights are up to 1, and up to 2 times that when they have met a scale.
    static constexpr float WEIGHT_SCALE = 16384.0f;
    // The row's own key and value.
    struct Own {
        alignas(8) int8_t codes[2][DIM];
        __half scales[2][GROUPS];
    };

    uint2 k[TILES][GROUPS];
    uint32_t v[4][GROUPS];
    // Of two neighbouring positions each.
    uint32_t key_scales[TILES][GROUPS], value_scales[TILES][GROUPS];
    float out[4 * GROUPS][4];

    __device__ static int dim(const AttendParams& p) { return WHOLE ? DIM : p.padded_dim; }
    __device__ static int row() { return threadIdx.x % WARP / 4; }
    __device__ static int column() { return threadIdx.x % 4; }

    __device__ static uint32_t load_4(const Q8* from, bool there) {
        uint32_t v;
        asm volatile("{.reg .pred there; setp.ne.b32 there, %2, 0; mov.b32 %0, 0; @there ld.global.L1::no_allocate.L2::256B.u32 %0, [%1];}"
                     : "=r"(v) : "l"(from), "r"((int)(WHOLE || there)));
        return v;
    }
    __device__ static uint2 load_8(const Q8* from, bool there) {
        uint2 v;
        asm volatile("{.reg .pred there; setp.ne.b32 there, %3, 0; mov.b32 %0, 0; mov.b32 %1, 0;"
                     "@there ld.global.L1::no_allocate.L2::256B.v2.u32 {%0,%1}, [%2];}"
                     : "=r"(v.x), "=r"(v.y) : "l"(from), "r"((int)(WHOLE || there)));
        return v;
    }
    __device__ static void load_scales(uint32_t (&scales)[TILES][GROUPS], const Q8* block, int step, int dim) {
#pragma unroll
        for (int t = 0; t < TILES; t++) {
#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                scales[t][g] = load_4(block + scale_at(POSITIONS * step + 8 * t + 2 * column(), 32 * g, dim), 32 * g < dim);
            }
        }
    }
    // Of keys, lane l takes position l / 4 of each eight, and of each 32 dimensions piece l % 4 of eight.
    __device__ void load_keys(const AttendParams& p, int64_t start, int step) {
        const Q8* block = (const Q8*)p.keys + start;
        const Q8* from = block + (column() * BLOCK_POSITIONS + row() + POSITIONS * step) * 8;
#pragma unroll
        for (int t = 0; t < TILES; t++) {
#pragma unroll
            for (int g = 0; g < GROUPS; g++) k[t][g] = load_8(from + (4 * g * BLOCK_POSITIONS + 8 * t) * 8, 8 * (4 * g + column()) < dim(p));
        }
        load_scales(key_scales, block, step, dim(p));
    }
    // Of values, lane l takes positions 2 (l % 4) and the one after it of each eight, and of each 32 dimensions piece l / 4 of four: those
    // of one product share their scales.
    __device__ static int value_position(int i) { return i / 2 * 8 + 2 * column() + i % 2; }
    __device__ void load_values(const AttendParams& p, int64_t start, int step) {
        const Q8* block = (const Q8*)p.values + start;
        const Q8* from = block + (POSITIONS * step + 2 * column()) * dim(p) + row() * 4;
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int g = 0; g < GROUPS; g++) v[i][g] = load_4(from + (i / 2 * 8 + i % 2) * dim(p) + 32 * g, 32 * g + 4 * row() < dim(p));
        }
        load_scales(value_scales, block, step, dim(p));
    }

    // By the warp that has the 32 elements from d - lane on.
    __device__ void keep_own(Own& own, int d, float x, bool is_value) const {
        __half scale = scale_of(x);
        own.codes[is_value][d] = code_of(x, scale);
        if (d % SCALED_TOGETHER == 0) own.scales[is_value][d / SCALED_TOGETHER] = scale;
    }
    // Replaces the scale of one position, if this lane has it.
    __device__ static void put_scales(uint32_t (&scales)[TILES][GROUPS], int at, const __half* own) {
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            int in_pair = at - 8 * t - 2 * column();
            if (in_pair != 0 && in_pair != 1) continue;
#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                uint32_t scale = own ? __half_as_ushort(own[g]) : 0;
                scales[t][g] = __byte_perm(scales[t][g], scale, in_pair ? 0x5410 : 0x3254);
            }
        }
    }
    // Puts the key of the row in its place, `at` in this step.
    __device__ void take_own_key(const Own& own, int at) {
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            if (at != 8 * t + row()) continue;
#pragma unroll
            for (int g = 0; g < GROUPS; g++) k[t][g] = *(const uint2*)&own.codes[0][8 * (4 * g + column())];
        }
        put_scales(key_scales, at, own.scales[0]);
    }
    // With `is_own`, puts the value of the row in its place, and zeros beyond it: nothing times what was never written may be NaN.
    __device__ void take_own_value(const Own& own, int at, bool is_own) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (value_position(i) > at) put_scales(value_scales, value_position(i), nullptr);
#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                if (is_own && value_position(i) == at) v[i][g] = *(const uint32_t*)&own.codes[1][32 * g + 4 * row()];
            }
        }
        if (is_own) put_scales(value_scales, at, own.scales[1]);
    }

    // Of each eight positions, the scores of two.
    __device__ void score(float (&scores)[TILES][2], const __half* upper, const __half* lower) const {
#pragma unroll
        for (int t = 0; t < TILES; t++) scores[t][0] = scores[t][1] = 0.0f;
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            uint32_t first[4], second[4];
            query_operands(upper + 32 * g, lower + 32 * g, first, second);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                __half2 b[4];
                codes_to_halves(k[t][g].x, b[0], b[1]);
                codes_to_halves(k[t][g].y, b[2], b[3]);
                float c[4] = {};
                mma_f16(c, first, half2_bits(b[0]), half2_bits(b[1]));
                mma_f16(c, second, half2_bits(b[2]), half2_bits(b[3]));
                float2 scale = __half22float2(*(const __half2*)&key_scales[t][g]);
                scores[t][0] = __fmaf_rn(c[0] + c[2], scale.x, scores[t][0]);
                scores[t][1] = __fmaf_rn(c[1] + c[3], scale.y, scores[t][1]);
            }
        }
    }
    __device__ void weigh(const float (&weight)[TILES][2]) {
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            float x[4];
            uint32_t a[4], low[4], high[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float scale = half_bits(value_scales[i / 2][g] >> 16 * (i % 2) & 0xffffu);
                // Nothing, if the scale is zero.
                __half2 power = __float2half2_rn(__uint_as_float(__float_as_uint(scale) & 0x7f800000u));
                x[i] = weight[i / 2][i % 2] * WEIGHT_SCALE * __uint_as_float(__float_as_uint(scale) & 0x7fffffu | 0x3f800000u);
                __half2 b0, b1;
                codes_to_halves(v[i][g], b0, b1);
                low[i] = half2_bits(__hmul2(b0, power)), high[i] = half2_bits(__hmul2(b1, power));
            }
            weight_operand(x, a);
            weigh_two(out[4 * g], out[4 * g + 1], a, low[0], low[1], low[2], low[3]);
            weigh_two(out[4 * g + 2], out[4 * g + 3], a, high[0], high[1], high[2], high[3]);
        }
    }
    // Leaves what was summed for a head. Column n of a product is piece n of 32 dimensions, so each lane has 8 neighbouring ones.
    __device__ void leave(float* to) const {
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float(*c)[4] = out + 4 * g;
                *(float4*)(to + 32 * g + 8 * column() + 4 * i) =
                    make_float4(c[0][i] + c[0][2 + i], c[1][i] + c[1][2 + i], c[2][i] + c[2][2 + i], c[3][i] + c[3][2 + i]);
            }
        }
    }
};
using Code64 = CodeStep<64, true>;
using Code64Padded = CodeStep<64, false>;
using Code128 = CodeStep<128, true>;
using Code128Padded = CodeStep<128, false>;

}  // namespace
}  // namespace oxgpt

ATTEND_TENSOR(q8_64, Code64, 2)
ATTEND_TENSOR(q8_64_padded, Code64Padded, 2)
ATTEND_TENSOR(q8_128, Code128, 1)
ATTEND_TENSOR(q8_128_padded, Code128Padded, 1)
