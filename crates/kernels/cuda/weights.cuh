// How a weight type is read from its planes.
//
// `Weights<TYPE>` reads VALUES numbers at once, a chunk: `load` fetches its bytes, `part<J>` turns them into numbers 4 J to
// 4 J + 3, in the order of the row. `index` is the chunk's number in the whole matrix. The numbers are those of the engine's
// `quant` module, bit for bit, but where a product and a difference are rounded there, they are rounded once here.
#pragma once
#include "common.cuh"

namespace oxgpt {

enum Type { F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4, TYPES };

template <int I> __device__ __forceinline__ uint32_t word(const uint4& v) {
    if constexpr (I == 0) return v.x;
    else if constexpr (I == 1) return v.y;
    else if constexpr (I == 2) return v.z;
    else return v.w;
}
template <int I> __device__ __forceinline__ uint32_t word(const uint2& v) {
    if constexpr (I == 0) return v.x;
    else return v.y;
}
// The codes of elements 4 J to 4 J + 3 in the four bytes of a word, for the ways that a group of 32 is packed:
// nibbles, element j in the low nibble of byte j and j + 16 above it;
template <int J> __device__ __forceinline__ uint32_t nibbles(const uint4& v) {
    return (word<J % 4>(v) >> (J < 4 ? 0 : 4)) & 0x0f0f0f0fu;
}
// two bits each, elements j, j + 8, j + 16 and j + 24 in byte j from the lowest bits up;
template <int J> __device__ __forceinline__ uint32_t pairs(const uint2& v) {
    return (word<J % 2>(v) >> (2 * (J / 2))) & 0x03030303u;
}
// one bit each, element j in bit j.
template <int J> __device__ __forceinline__ uint32_t single_bits(uint32_t v) {
    return (((v >> (4 * J)) & 0xfu) * 0x00204081u) & 0x01010101u;
}

// Byte `I` of a word as a number: 2^23 + n has n in its last bits.
template <int I> __device__ __forceinline__ float number(uint32_t w) {
    return __uint_as_float(__byte_perm(w, 0x4b000000u, 0x7650 + I)) - 8388608.0f;
}
template <int I> __device__ __forceinline__ float signed_byte(uint32_t w) { return (float)(int8_t)(w >> (8 * I)); }

// w[i] = scale * (code - offset)
__device__ __forceinline__ void scaled(uint32_t c, float scale, float offset, float* w) {
    w[0] = scale * (number<0>(c) - offset);
    w[1] = scale * (number<1>(c) - offset);
    w[2] = scale * (number<2>(c) - offset);
    w[3] = scale * (number<3>(c) - offset);
}
// w[i] = scale * code + add
__device__ __forceinline__ void affine(uint32_t c, float scale, float add, float* w) {
    w[0] = __fmaf_rn(scale, number<0>(c), add);
    w[1] = __fmaf_rn(scale, number<1>(c), add);
    w[2] = __fmaf_rn(scale, number<2>(c), add);
    w[3] = __fmaf_rn(scale, number<3>(c), add);
}
// table[code] of each byte, of a table of sixteen signed bytes
__device__ __forceinline__ uint32_t looked_up(uint32_t c, const uint4& table) {
    // A byte permutation looks four codes up at once in eight bytes; bit 3 of a code says which eight.
    uint32_t selector = c | c >> 4;                                // codes of bytes 0, 1 | 2, 3 in nibbles 0, 1 | 4, 5
    selector = (selector & 0xffu) | ((selector >> 8) & 0xff00u);   // in nibbles 0 to 3
    uint32_t lower = __byte_perm(table.x, table.y, selector & 0x7777u);
    uint32_t upper = __byte_perm(table.z, table.w, selector & 0x7777u);
    // 0xff in the bytes whose code has bit 3.
    uint32_t mask = ((c >> 3) & 0x01010101u) * 0xffu;
    return (lower & ~mask) | (upper & mask);
}
// w[i] = scale * table[code]
__device__ __forceinline__ void looked_up(uint32_t c, const uint4& table, float scale, float* w) {
    uint32_t bytes = looked_up(c, table);
    w[0] = scale * signed_byte<0>(bytes);
    w[1] = scale * signed_byte<1>(bytes);
    w[2] = scale * signed_byte<2>(bytes);
    w[3] = scale * signed_byte<3>(bytes);
}
__device__ __forceinline__ uint4 iq4_table() {
    // -127 -104 -83 -65 | -49 -35 -22 -10 | 1 13 25 38 | 53 69 89 113
    return make_uint4(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);
}
__device__ __forceinline__ uint4 mxfp4_table() {
    // Doubled: 0 1 2 3 | 4 6 8 12 | 0 -1 -2 -3 | -4 -6 -8 -12
    return make_uint4(0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu);
}
// Loads of what lies together with that of neighbours, which stays in the first-level cache. Where they are written, they are issued.
__device__ __forceinline__ uint16_t u16(const uint8_t* plane, int64_t index) {
    uint16_t v;
    asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(plane + index * 2));
    return v;
}
__device__ __forceinline__ uint8_t u8(const uint8_t* plane, int64_t index) {
    uint16_t v;
    asm volatile("ld.global.nc.u8 %0, [%1];" : "=h"(v) : "l"(plane + index));
    return (uint8_t)v;
}

template <int TYPE> struct Weights;

template <> struct Weights<F32> {
    static constexpr int VALUES = 4;
    using Raw = uint4;
    __device__ static Raw load(const Planes& p, int64_t index) { return stream_16(p.low + index * 16); }
    template <int J> __device__ static void part(const Raw& r, float* w) {
        w[0] = __uint_as_float(r.x), w[1] = __uint_as_float(r.y), w[2] = __uint_as_float(r.z), w[3] = __uint_as_float(r.w);
    }
};
template <> struct Weights<F16> {
    static constexpr int VALUES = 8;
    using Raw = uint4;
    __device__ static Raw load(const Planes& p, int64_t index) { return stream_16(p.low + index * 16); }
    template <int J> __device__ static void part(const Raw& r, float* w) {
        uint32_t a = word<2 * J>(r), b = word<2 * J + 1>(r);
        w[0] = half_bits(a & 0xffffu), w[1] = half_bits(a >> 16), w[2] = half_bits(b & 0xffffu), w[3] = half_bits(b >> 16);
    }
};
template <> struct Weights<BF16> {
    static constexpr int VALUES = 8;
    using Raw = uint4;
    __device__ static Raw load(const Planes& p, int64_t index) { return stream_16(p.low + index * 16); }
    template <int J> __device__ static void part(const Raw& r, float* w) {
        uint32_t a = word<2 * J>(r), b = word<2 * J + 1>(r);
        w[0] = __uint_as_float(a << 16), w[1] = __uint_as_float(a & 0xffff0000u);
        w[2] = __uint_as_float(b << 16), w[3] = __uint_as_float(b & 0xffff0000u);
    }
};
template <> struct Weights<Q8_0> {
    static constexpr int VALUES = 16;
    struct Raw { uint4 q; uint16_t d; };
    __device__ static Raw load(const Planes& p, int64_t index) { return {stream_16(p.low + index * 16), u16(p.scales, index / 2)}; }
    template <int J> __device__ static void part(const Raw& r, float* w) {
        // With its sign bit turned over, a signed byte is its value plus 128.
        scaled(word<J>(r.q) ^ 0x80808080u, half_bits(r.d), 128.0f, w);
    }
};
template <> struct Weights<Q4_0> {
    static constexpr int VALUES = 32;
    struct Raw { uint4 q; uint16_t d; };
    __device__ static Raw load(const Planes& p, int64_t index) { return {stream_16(p.low + index * 16), u16(p.scales, index)}; }
    template <int J> __device__ static void part(const Raw& r, float* w) { scaled(nibbles<J>(r.q), half_bits(r.d), 8.0f, w); }
};
template <> struct Weights<Q4_1> {
    static constexpr int VALUES = 32;
    struct Raw { uint4 q; uint32_t dm; };
    __device__ static Raw load(const Planes& p, int64_t index) { return {stream_16(p.low + index * 16), stream_4(p.scales + index * 4)}; }
    template <int J> __device__ static void part(const Raw& r, float* w) {
        affine(nibbles<J>(r.q), half_bits(r.dm & 0xffffu), half_bits(r.dm >> 16), w);
    }
};
template <> struct Weights<Q5_0> {
    static constexpr int VALUES = 32;
    struct Raw { uint4 q; uint32_t fifth; uint16_t d; };
    __device__ static Raw load(const Planes& p, int64_t index) {
        return {stream_16(p.low + index * 16), stream_4(p.high + index * 4), u16(p.scales, index)};
    }
    template <int J> __device__ static void part(const Raw& r, float* w) {
        scaled(nibbles<J>(r.q) | single_bits<J>(r.fifth) << 4, half_bits(r.d), 16.0f, w);
    }
};
template <> struct Weights<Q5_1> {
    static constexpr int VALUES = 32;
    struct Raw { uint4 q; uint32_t fifth, dm; };
    __device__ static Raw load(const Planes& p, int64_t index) {
        return {stream_16(p.low + index * 16), stream_4(p.high + index * 4), stream_4(p.scales + index * 4)};
    }
    template <int J> __device__ static void part(const Raw& r, float* w) {
        affine(nibbles<J>(r.q) | single_bits<J>(r.fifth) << 4, half_bits(r.dm & 0xffffu), half_bits(r.dm >> 16), w);
    }
};
template <> struct Weights<IQ4_NL> {
    static constexpr int VALUES = 32;
    struct Raw { uint4 q; uint16_t d; };
    __device__ static Raw load(const Planes& p, int64_t index) { return {stream_16(p.low + index * 16), u16(p.scales, index)}; }
    template <int J> __device__ static void part(const Raw& r, float* w) { looked_up(nibbles<J>(r.q), iq4_table(), half_bits(r.d), w); }
};
template <> struct Weights<MXFP4> {
    static constexpr int VALUES = 32;
    struct Raw { uint4 q; uint8_t e; };
    __device__ static Raw load(const Planes& p, int64_t index) { return {stream_16(p.low + index * 16), u8(p.scales, index)}; }
    template <int J> __device__ static void part(const Raw& r, float* w) {
        // Half of 2^(e - 127), since the table is doubled; the two smallest are denormal.
        float half = r.e < 2 ? __uint_as_float(0x00200000u << r.e) : __uint_as_float((uint32_t)(r.e - 1) << 23);
        looked_up(nibbles<J>(r.q), mxfp4_table(), half, w);
    }
};

// Scale and minimum `i` of the 8 of a Q4_K or Q5_K superblock, from its 16 bytes: d, dmin, 12 bytes of 6-bit fields.
__device__ __forceinline__ void scale_and_min(const uint4& h, int i, float& scale, float& min) {
    uint32_t a = h.y >> (8 * (i & 3)), b = h.z >> (8 * (i & 3)), c = h.w >> (8 * (i & 3));
    uint32_t s = i < 4 ? a & 63u : (c & 15u) | ((a >> 6) & 3u) << 4;
    uint32_t m = i < 4 ? b & 63u : ((c >> 4) & 15u) | ((b >> 6) & 3u) << 4;
    scale = half_bits(h.x & 0xffffu) * (float)s;
    min = half_bits(h.x >> 16) * (float)m;
}
template <> struct Weights<Q4_K> {
    static constexpr int VALUES = 32;
    struct Raw { uint4 q, header; int group; };
    __device__ static Raw load(const Planes& p, int64_t index) {
        return {stream_16(p.low + index * 16), __ldg((const uint4*)p.scales + index / 8), (int)(index & 7)};
    }
    template <int J> __device__ static void part(const Raw& r, float* w) {
        float scale, min;
        scale_and_min(r.header, r.group, scale, min);
        affine(nibbles<J>(r.q), scale, -min, w);
    }
};
template <> struct Weights<Q5_K> {
    static constexpr int VALUES = 32;
    struct Raw { uint4 q, header; uint32_t fifth; int group; };
    __device__ static Raw load(const Planes& p, int64_t index) {
        return {stream_16(p.low + index * 16), __ldg((const uint4*)p.scales + index / 8), stream_4(p.high + index * 4), (int)(index & 7)};
    }
    template <int J> __device__ static void part(const Raw& r, float* w) {
        float scale, min;
        scale_and_min(r.header, r.group, scale, min);
        affine(nibbles<J>(r.q) | single_bits<J>(r.fifth) << 4, scale, -min, w);
    }
};
template <> struct Weights<Q6_K> {
    static constexpr int VALUES = 32;
    struct Raw { uint4 q; uint2 upper; uint16_t scales, d; };
    __device__ static Raw load(const Planes& p, int64_t index) {
        return {stream_16(p.low + index * 16), stream_8(p.high + index * 8), u16(p.scales, index), u16(p.super, index / 8)};
    }
    template <int J> __device__ static void part(const Raw& r, float* w) {
        float scale = half_bits(r.d) * (float)(int8_t)(J < 4 ? r.scales & 0xff : r.scales >> 8);
        scaled(nibbles<J>(r.q) | pairs<J>(r.upper) << 4, scale, 32.0f, w);
    }
};
template <> struct Weights<Q2_K> {
    static constexpr int VALUES = 32;
    struct Raw { uint2 q; uint32_t super; uint16_t scales; };
    __device__ static Raw load(const Planes& p, int64_t index) {
        return {stream_8(p.low + index * 8), __ldg((const uint32_t*)p.super + index / 8), u16(p.scales, index)};
    }
    template <int J> __device__ static void part(const Raw& r, float* w) {
        uint32_t levels = J < 4 ? r.scales & 0xff : r.scales >> 8;
        float scale = half_bits(r.super & 0xffffu) * (float)(levels & 15u), min = half_bits(r.super >> 16) * (float)(levels >> 4);
        affine(pairs<J>(r.q), scale, -min, w);
    }
};
// Scale `i` of the 16 of a Q3_K superblock.
template <class Raw> __device__ __forceinline__ float q3_scale(const Raw& r, int i) {
    uint32_t low = (r.low >> (8 * (i & 3) + 4 * (i / 8))) & 15u, high = (r.high >> (8 * (i & 3) + 2 * (i / 4))) & 3u;
    return half_bits(r.d) * (float)((int)(low | high << 4) - 32);
}
template <> struct Weights<Q3_K> {
    static constexpr int VALUES = 32;
    struct Raw { uint2 q; uint32_t third; uint32_t low, high; uint16_t d; int group; };
    __device__ static Raw load(const Planes& p, int64_t index) {
        // Of the 12 bytes of scales: 8 with the lower nibbles, scales 0 to 7 low and 8 to 15 above, and 4 with the upper
        // two bits, scales 0 to 3 in bits 0 and 1 of each, and so on.
        int group = (int)(index & 7);
        const uint32_t* s = (const uint32_t*)p.scales + index / 8 * 3;
        return {stream_8(p.low + index * 8), stream_4(p.high + index * 4), __ldg(s + (group & 3) / 2), __ldg(s + 2),
                u16(p.super, index / 8), group};
    }
    template <int J> __device__ static void part(const Raw& r, float* w) {
        float scale = q3_scale(r, 2 * r.group + J / 4);
        scaled(pairs<J>(r.q) | single_bits<J>(r.third) << 2, scale, 4.0f, w);
    }
};
// The scale of a group of an IQ4_XS superblock.
template <class Raw> __device__ __forceinline__ float iq4_xs_scale(const Raw& r) {
    uint32_t low = (r.header.y >> (4 * r.group)) & 15u, high = (r.header.x >> (16 + 2 * r.group)) & 3u;
    return half_bits(r.header.x & 0xffffu) * (float)((int)(low | high << 4) - 32);
}
template <> struct Weights<IQ4_XS> {
    static constexpr int VALUES = 32;
    struct Raw { uint4 q; uint2 header; int group; };
    __device__ static Raw load(const Planes& p, int64_t index) {
        return {stream_16(p.low + index * 16), __ldg((const uint2*)p.scales + index / 8), (int)(index & 7)};
    }
    template <int J> __device__ static void part(const Raw& r, float* w) {
        looked_up(nibbles<J>(r.q), iq4_table(), iq4_xs_scale(r), w);
    }
};

// Calls `f` with a constant for each part of a chunk.
template <int N> struct Index { static constexpr int value = N; };
template <int N, int I = 0, class F> __device__ __forceinline__ void for_parts(F&& f) {
    if constexpr (I < N) {
        f(Index<I>{});
        for_parts<N, I + 1>(f);
    }
}

}  // namespace oxgpt

// Calls EACH(name, TYPE) for the weight types of one file each, so that they compile side by side.
#define OXGPT_PLAIN_TYPES(EACH) EACH(f32, F32) EACH(f16, F16) EACH(bf16, BF16) EACH(q8_0, Q8_0)
#define OXGPT_GROUP_TYPES(EACH) \
    EACH(q4_0, Q4_0) EACH(q4_1, Q4_1) EACH(q5_0, Q5_0) EACH(q5_1, Q5_1) EACH(iq4_nl, IQ4_NL) EACH(mxfp4, MXFP4)
#define OXGPT_SUPERBLOCK_TYPES(EACH) \
    EACH(q2_k, Q2_K) EACH(q3_k, Q3_K) EACH(q4_k, Q4_K) EACH(q5_k, Q5_K) EACH(q6_k, Q6_K) EACH(iq4_xs, IQ4_XS)
