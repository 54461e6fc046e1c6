// Weights as pairs of halves, the way tensor cores take them.
//
// Four neighbouring lanes share 128 weights of a row, a group, in pieces of V = 8 to 32 that are loaded at once: of four pieces that
// follow each other, lane c takes the one with number c. `step<S>` gives its numbers 4 S to 4 S + 3: the first and the third in
// `even`, the second and the fourth in `odd`. They are rounded to 11 significant bits, after they were multiplied with a power of two
// that brings the largest weight of the matrix to the top of what a half can be, so that the small ones keep theirs.
#pragma once
#include "mma.cuh"
#include "weights.cuh"

namespace oxgpt {

// 2^exponent, which is kept within what is neither denormal nor infinite.
__device__ __forceinline__ float power_of_two(int exponent) {
    return __uint_as_float((uint32_t)(min(max(exponent, -126), 127) + 127) << 23);
}
// The exponent of a number: 2^e <= |v| < 2^(e + 1).
__device__ __forceinline__ int exponent_of(float v) { return (int)(__float_as_uint(v) >> 23 & 255u) - 127; }

template <int TYPE> struct Halves {
    using W = Weights<TYPE>;
    static constexpr int RAWS = 32 / W::VALUES;
    // Weights are multiplied so that they are less than 2^TOP; not at all with `KEPT`.
    static constexpr int TOP = 15;
    static constexpr bool KEPT = false;
    // Whether two chunks take few registers.
    static constexpr bool SMALL = false;
    // Until something was loaded, numbers that are none must not come out of it.
    struct Raw { typename W::Raw r[RAWS] = {}; };

    // Fetches what steps 4 HALF to 4 HALF + 3 of a group need beside the other half, for one lane: `index` is its first piece of the
    // group in the whole matrix, and `left` says how many pieces are to come from there to the end. A piece that has both halves comes
    // with the second. What is beyond the end stays as it was.
    template <int HALF> __device__ static void load(Raw& raw, const Planes& planes, int64_t index, int left) {
#pragma unroll
        for (int i = HALF * RAWS / 2; i < (HALF + 1) * RAWS / 2; i++) {
            if (4 * i < left) raw.r[i] = W::load(planes, index + 4 * i);
        }
    }

    // What the numbers of one half have in common; of both, where they are of one piece.
    using Scale = float;
    __device__ static Scale scale(const Raw&, int, float factor) { return factor; }
    // Pieces of `raw` as numbers.
    template <int S> __device__ static void step(const Raw& raw, Scale scale, uint32_t& even, uint32_t& odd) {
        constexpr int PARTS = W::VALUES / 4;
        float w[4];
        W::template part<S % PARTS>(raw.r[S / PARTS], w);
        even = pack_halves(w[0] * scale, w[2] * scale), odd = pack_halves(w[1] * scale, w[3] * scale);
    }
};

template <int TYPE> struct HalvesOf : Halves<TYPE> {};
template <> struct HalvesOf<F16> : Halves<F16> {
    static constexpr bool KEPT = true;
    template <int S> __device__ static void step(const Raw& raw, float, uint32_t& even, uint32_t& odd) {
        uint32_t a = word<2 * (S % 2)>(raw.r[S / 2]), b = word<2 * (S % 2) + 1>(raw.r[S / 2]);
        even = __byte_perm(a, b, 0x5410), odd = __byte_perm(a, b, 0x7632);
    }
};
template <> struct HalvesOf<Q8_0> : Halves<Q8_0> {
    static constexpr bool SMALL = true;
    using Scale = __half2;
    __device__ static Scale scale(const Raw& raw, int half, float factor) {
        // A scale beyond all halves belongs to zeros.
        return __float2half2_rn(fminf(fmaxf(half_bits(raw.r[half].d) * factor, -65504.0f), 65504.0f));
    }
    template <int S> __device__ static void step(const Raw& raw, Scale scale, uint32_t& even, uint32_t& odd) {
        // 1024 + n has n in its last bits; with its sign bit turned over, a signed byte is its value plus 128.
        uint32_t w = word<S % 4>(raw.r[S / 4].q) ^ 0x80808080u;
        uint32_t a = (w & 0x00ff00ffu) | 0x64006400u, b = (w >> 8 & 0x00ff00ffu) | 0x64006400u;
        __half2 offset = __float2half2_rn(1152.0f);
        even = half2_bits(__hmul2(__hsub2(*(__half2*)&a, offset), scale));
        odd = half2_bits(__hmul2(__hsub2(*(__half2*)&b, offset), scale));
    }
};
template <> struct HalvesOf<MXFP4> : Halves<MXFP4> {
    // A code is a sign, two bits of exponent and one of mantissa. Put where a half has them, it is 2^-14 of its value; what makes up
    // for that must be a half itself, up to 2^15.
    static constexpr int TOP = 0;
    static constexpr bool SMALL = true;
    using Scale = __half2;
    __device__ static Scale scale(const Raw& raw, int, float factor) {
        uint32_t e = raw.r[0].e;
        float of_block = e == 0 ? __uint_as_float(0x00400000u) : __uint_as_float(e << 23);
        // A scale beyond that belongs to zeros.
        return __float2half2_rn(fminf(of_block * factor * 16384.0f, 32768.0f));
    }
    template <int S> __device__ static void step(const Raw& raw, Scale scale, uint32_t& even, uint32_t& odd) {
        uint32_t w = word<S % 4>(raw.r[0].q), a, b;
        if constexpr (S < 4) {
            a = (w << 12 & 0x80008000u) | (w << 9 & 0x0e000e00u);
            b = (w << 4 & 0x80008000u) | (w << 1 & 0x0e000e00u);
        } else {
            a = (w << 8 & 0x80008000u) | (w << 5 & 0x0e000e00u);
            b = (w & 0x80008000u) | (w >> 3 & 0x0e000e00u);
        }
        even = half2_bits(__hmul2(*(__half2*)&a, scale)), odd = half2_bits(__hmul2(*(__half2*)&b, scale));
    }
};

}  // namespace oxgpt
