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
    struct Raw { typename W::Raw r[RAWS]; };

    // Fetches what steps 4 HALF to 4 HALF + 3 of a group need beside the other half, for lane c, of the row whose first piece is
    // `base` in the whole matrix, where each row has `pieces`. A piece that has both halves comes with the second.
    template <int HALF> __device__ static void load(Raw& raw, const Planes& planes, int64_t base, int group, int c, int pieces) {
#pragma unroll
        for (int i = HALF * RAWS / 2; i < (HALF + 1) * RAWS / 2; i++) {
            int piece = 4 * (group * RAWS + i) + c;
            if (piece < pieces) raw.r[i] = W::load(planes, base + piece);
        }
    }
    // Whether step s of a group is within the row.
    __device__ static bool there(int group, int s, int c, int pieces) { return 4 * (group * RAWS + s * RAWS / 8) + c < pieces; }

    // For the steps of one half.
    const Raw& raw;
    float factor;
    __device__ Halves(const Raw& raw, int, float factor) : raw(raw), factor(factor) {}
    template <int S> __device__ void step(uint32_t& even, uint32_t& odd) const {
        constexpr int PARTS = W::VALUES / 4;
        float w[4];
        W::template part<S % PARTS>(raw.r[S / PARTS], w);
        even = pack_halves(w[0] * factor, w[2] * factor), odd = pack_halves(w[1] * factor, w[3] * factor);
    }
};

template <int TYPE> struct HalvesOf : Halves<TYPE> {
    using Halves<TYPE>::Halves;
};
template <> struct HalvesOf<F16> : Halves<F16> {
    static constexpr bool KEPT = true;
    using Halves::Halves;
    template <int S> __device__ void step(uint32_t& even, uint32_t& odd) const {
        uint32_t a = word<2 * (S % 2)>(raw.r[S / 2]), b = word<2 * (S % 2) + 1>(raw.r[S / 2]);
        even = __byte_perm(a, b, 0x5410), odd = __byte_perm(a, b, 0x7632);
    }
};
template <> struct HalvesOf<Q8_0> : Halves<Q8_0> {
    static constexpr bool SMALL = true;
    __half2 scale;
    __device__ HalvesOf(const Raw& raw, int half, float factor) : Halves(raw, half, factor) {
        // A scale beyond all halves belongs to zeros.
        scale = __float2half2_rn(fminf(fmaxf(half_bits(raw.r[half].d) * factor, -65504.0f), 65504.0f));
    }
    template <int S> __device__ void step(uint32_t& even, uint32_t& odd) const {
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
    __half2 scale;
    __device__ HalvesOf(const Raw& raw, int half, float factor) : Halves(raw, half, factor) {
        uint32_t e = raw.r[0].e;
        float of_block = e == 0 ? __uint_as_float(0x00400000u) : __uint_as_float(e << 23);
        // A scale beyond that belongs to zeros.
        scale = __float2half2_rn(fminf(of_block * factor * 16384.0f, 32768.0f));
    }
    template <int S> __device__ void step(uint32_t& even, uint32_t& odd) const {
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
