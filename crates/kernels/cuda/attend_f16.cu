// What a step of attend_tensor.cuh does with 16 positions of keys and values in halves.
#include "attend_tensor.cuh"

namespace oxgpt {
namespace {

template <int DIM_, bool WHOLE> struct HalfStep {
    using KV = __half;
    static constexpr int DIM = DIM_, POSITIONS = 16, TILES = 2, GROUPS = DIM / 32, WIDTHS = DIM / 64;
    // Weights are up to 1, and multiplied with this before they become halves.
    static constexpr float WEIGHT_SCALE = 32768.0f;
    // The row's own key and value.
    struct Own {
        alignas(16) __half elements[2][DIM];
    };

    uint4 k[TILES][GROUPS], v[4][WIDTHS];
    float out[8 * WIDTHS][4];

    __device__ static int dim(const AttendParams& p) { return WHOLE ? DIM : p.padded_dim; }
    __device__ static int row() { return threadIdx.x % WARP / 4; }
    __device__ static int column() { return threadIdx.x % 4; }

    __device__ static uint4 load(const __half* from, bool there) {
        uint4 v;
        if constexpr (WHOLE) {
            asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
                         : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
        } else {
            asm volatile("{.reg .pred there; setp.ne.b32 there, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;"
                         "@there ld.global.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];}"
                         : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from), "r"((int)there));
        }
        return v;
    }
    // Of keys, lane l takes position l / 4 of each eight, and of each 32 dimensions piece l % 4.
    __device__ void load_keys(const AttendParams& p, int64_t start, int step) {
        const __half* from = (const __half*)p.keys + start + (column() * BLOCK_POSITIONS + row() + POSITIONS * step) * 8;
#pragma unroll
        for (int t = 0; t < TILES; t++) {
#pragma unroll
            for (int g = 0; g < GROUPS; g++) k[t][g] = load(from + (4 * g * BLOCK_POSITIONS + 8 * t) * 8, 8 * (4 * g + column()) < dim(p));
        }
    }
    // Of values, lane l takes positions 2 (l % 4) and the one after it of each eight, and of each 64 dimensions piece l / 4.
    __device__ static int value_position(int i) { return i / 2 * 8 + 2 * column() + i % 2; }
    __device__ void load_values(const AttendParams& p, int64_t start, int step) {
        const __half* from = (const __half*)p.values + start + (int64_t)(POSITIONS * step + 2 * column()) * dim(p) + row() * 8;
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int w = 0; w < WIDTHS; w++) v[i][w] = load(from + (i / 2 * 8 + i % 2) * dim(p) + 64 * w, 64 * w + 8 * row() < dim(p));
        }
    }

    // By the warp that has the 32 elements from d - lane on.
    __device__ void keep_own(Own& own, int d, float x, bool is_value) const { store(&own.elements[is_value][d], x); }
    // Puts the key of the row in its place, `at` in this step.
    __device__ void take_own_key(const Own& own, int at) {
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            if (at != 8 * t + row()) continue;
#pragma unroll
            for (int g = 0; g < GROUPS; g++) k[t][g] = *(const uint4*)&own.elements[0][8 * (4 * g + column())];
        }
    }
    // With `is_own`, puts the value of the row in its place, and zeros beyond it: nothing times what was never written may be NaN.
    __device__ void take_own_value(const Own& own, int at, bool is_own) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int w = 0; w < WIDTHS; w++) {
                if (value_position(i) > at) v[i][w] = make_uint4(0, 0, 0, 0);
                if (is_own && value_position(i) == at) v[i][w] = *(const uint4*)&own.elements[1][64 * w + 8 * row()];
            }
        }
    }

    // Of each eight positions, the scores of two.
    __device__ void score(float (&scores)[TILES][2], const __half* upper, const __half* lower) const {
        float c[TILES][4] = {};
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            uint32_t first[4], second[4];
            query_operands(upper + 32 * g, lower + 32 * g, first, second);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                mma_f16(c[t], first, k[t][g].x, k[t][g].y);
                mma_f16(c[t], second, k[t][g].z, k[t][g].w);
            }
        }
#pragma unroll
        for (int t = 0; t < TILES; t++) scores[t][0] = c[t][0] + c[t][2], scores[t][1] = c[t][1] + c[t][3];
    }
    __device__ void weigh(const float (&weight)[TILES][2]) {
        float x[4];
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = weight[i / 2][i % 2] * WEIGHT_SCALE;
        weight_operand(x, a);
#pragma unroll
        for (int w = 0; w < WIDTHS; w++) {
            weigh_two(out[8 * w], out[8 * w + 1], a, v[0][w].x, v[1][w].x, v[2][w].x, v[3][w].x);
            weigh_two(out[8 * w + 2], out[8 * w + 3], a, v[0][w].y, v[1][w].y, v[2][w].y, v[3][w].y);
            weigh_two(out[8 * w + 4], out[8 * w + 5], a, v[0][w].z, v[1][w].z, v[2][w].z, v[3][w].z);
            weigh_two(out[8 * w + 6], out[8 * w + 7], a, v[0][w].w, v[1][w].w, v[2][w].w, v[3][w].w);
        }
    }
    // Leaves what was summed for a head. Column n of a product is piece n of 64 dimensions, so each lane has 16 neighbouring ones.
    __device__ void leave(float* to) const {
#pragma unroll
        for (int w = 0; w < WIDTHS; w++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
                for (int y = 0; y < 8; y += 4) {
                    const float(*c)[4] = out + 8 * w + y;
                    *(float4*)(to + 64 * w + 16 * column() + 8 * i + y) =
                        make_float4(c[0][i] + c[0][2 + i], c[1][i] + c[1][2 + i], c[2][i] + c[2][2 + i], c[3][i] + c[3][2 + i]);
                }
            }
        }
    }
};
using Half64 = HalfStep<64, true>;
using Half64Padded = HalfStep<64, false>;
using Half128 = HalfStep<128, true>;
using Half128Padded = HalfStep<128, false>;

}  // namespace
}  // namespace oxgpt

ATTEND_TENSOR(f16_64, Half64, 2)
ATTEND_TENSOR(f16_64_padded, Half64Padded, 2)
ATTEND_TENSOR(f16_128, Half128, 1)
ATTEND_TENSOR(f16_128_padded, Half128Padded, 1)
