// Block types from the file's layout to planes.
//
// One thread takes one group of 32 values; 256 threads a block, ceil(groups / 256) blocks. The file's blocks have odd
// sizes, so they are read byte by byte; this runs once, while a model is loaded.
#include "params.cuh"
#include "weights.cuh"

namespace oxgpt {
namespace {

__device__ __forceinline__ void copy(uint8_t* to, const uint8_t* from, int bytes) {
    for (int i = 0; i < bytes; i++) to[i] = from[i];
}

// Packs codes of 32 values: the lower 4 (or 2) bits, and what is above them.
__device__ __forceinline__ void pack_nibbles(uint8_t* to, const uint8_t* c) {
    for (int i = 0; i < 16; i++) to[i] = (c[i] & 15) | (c[i + 16] & 15) << 4;
}
__device__ __forceinline__ void pack_pairs(uint8_t* to, const uint8_t* c) {
    for (int i = 0; i < 8; i++) to[i] = (c[i] & 3) | (c[i + 8] & 3) << 2 | (c[i + 16] & 3) << 4 | (c[i + 24] & 3) << 6;
}
__device__ __forceinline__ void pack_bits(uint8_t* to, const uint8_t* c) {
    for (int i = 0; i < 4; i++) {
        uint8_t byte = 0;
        for (int j = 0; j < 8; j++) byte |= (c[8 * i + j] & 1) << j;
        to[i] = byte;
    }
}

template <int TYPE> __device__ void repack(const RepackParams& p, int64_t group);

// Blocks of 32: `SCALE` bytes, `FIFTH` bytes, then 16 bytes of nibbles, or 32 of whole codes.
template <int SCALE, int FIFTH, int LOW> __device__ void group_block(const RepackParams& p, int64_t g) {
    const uint8_t* b = p.blocks + g * (SCALE + FIFTH + LOW);
    copy(p.scales + g * SCALE, b, SCALE);
    if (FIFTH) copy(p.high + g * FIFTH, b + SCALE, FIFTH);
    copy(p.low + g * LOW, b + SCALE + FIFTH, LOW);
}
template <> __device__ void repack<Q8_0>(const RepackParams& p, int64_t g) { group_block<2, 0, 32>(p, g); }
template <> __device__ void repack<Q4_0>(const RepackParams& p, int64_t g) { group_block<2, 0, 16>(p, g); }
template <> __device__ void repack<Q4_1>(const RepackParams& p, int64_t g) { group_block<4, 0, 16>(p, g); }
template <> __device__ void repack<Q5_0>(const RepackParams& p, int64_t g) { group_block<2, 4, 16>(p, g); }
template <> __device__ void repack<Q5_1>(const RepackParams& p, int64_t g) { group_block<4, 4, 16>(p, g); }
template <> __device__ void repack<IQ4_NL>(const RepackParams& p, int64_t g) { group_block<2, 0, 16>(p, g); }
template <> __device__ void repack<MXFP4>(const RepackParams& p, int64_t g) { group_block<1, 0, 16>(p, g); }

template <> __device__ void repack<Q4_K>(const RepackParams& p, int64_t g) {
    const uint8_t* b = p.blocks + g / 8 * 144;
    int i = g % 8;
    uint8_t c[32];
    for (int j = 0; j < 32; j++) c[j] = b[16 + i / 2 * 32 + j] >> (i % 2 * 4) & 15;
    pack_nibbles(p.low + g * 16, c);
    if (i == 0) copy(p.scales + g / 8 * 16, b, 16);
}
template <> __device__ void repack<Q5_K>(const RepackParams& p, int64_t g) {
    const uint8_t* b = p.blocks + g / 8 * 176;
    int i = g % 8;
    uint8_t c[32], fifth[32];
    for (int j = 0; j < 32; j++) {
        c[j] = b[48 + i / 2 * 32 + j] >> (i % 2 * 4) & 15;
        fifth[j] = b[16 + j] >> i & 1;
    }
    pack_nibbles(p.low + g * 16, c);
    pack_bits(p.high + g * 4, fifth);
    if (i == 0) copy(p.scales + g / 8 * 16, b, 16);
}
template <> __device__ void repack<Q6_K>(const RepackParams& p, int64_t g) {
    const uint8_t* b = p.blocks + g / 8 * 210;
    int i = g % 8, half = i / 4, quarter = i % 4;
    uint8_t c[32], upper[32];
    for (int j = 0; j < 32; j++) {
        c[j] = b[half * 64 + quarter % 2 * 32 + j] >> (quarter / 2 * 4) & 15;
        upper[j] = b[128 + half * 32 + j] >> (2 * quarter) & 3;
    }
    pack_nibbles(p.low + g * 16, c);
    pack_pairs(p.high + g * 8, upper);
    copy(p.scales + g * 2, b + 192 + 2 * i, 2);
    if (i == 0) copy(p.super + g / 8 * 2, b + 208, 2);
}
template <> __device__ void repack<Q2_K>(const RepackParams& p, int64_t g) {
    const uint8_t* b = p.blocks + g / 8 * 84;
    int i = g % 8;
    uint8_t c[32];
    for (int j = 0; j < 32; j++) c[j] = b[16 + i / 4 * 32 + j] >> (i % 4 * 2) & 3;
    pack_pairs(p.low + g * 8, c);
    copy(p.scales + g * 2, b + 2 * i, 2);
    if (i == 0) copy(p.super + g / 8 * 4, b + 80, 4);
}
template <> __device__ void repack<Q3_K>(const RepackParams& p, int64_t g) {
    const uint8_t* b = p.blocks + g / 8 * 110;
    int i = g % 8;
    uint8_t c[32], third[32];
    for (int j = 0; j < 32; j++) {
        c[j] = b[32 + i / 4 * 32 + j] >> (i % 4 * 2) & 3;
        third[j] = b[j] >> i & 1;
    }
    pack_pairs(p.low + g * 8, c);
    pack_bits(p.high + g * 4, third);
    if (i == 0) {
        copy(p.scales + g / 8 * 12, b + 96, 12);
        copy(p.super + g / 8 * 2, b + 108, 2);
    }
}
template <> __device__ void repack<IQ4_XS>(const RepackParams& p, int64_t g) {
    const uint8_t* b = p.blocks + g / 8 * 136;
    int i = g % 8;
    copy(p.low + g * 16, b + 8 + 16 * i, 16);
    if (i == 0) copy(p.scales + g / 8 * 8, b, 8);
}

template <int TYPE> __device__ void each_group(const RepackParams& p) {
    int64_t group = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (group < p.groups) repack<TYPE>(p, group);
}

}  // namespace
}  // namespace oxgpt

#define REPACK(name, TYPE) \
    extern "C" __global__ void repack_##name(const __grid_constant__ oxgpt::RepackParams p) { oxgpt::each_group<oxgpt::TYPE>(p); }
REPACK(q8_0, Q8_0)
OXGPT_GROUP_TYPES(REPACK)
OXGPT_SUPERBLOCK_TYPES(REPACK)
