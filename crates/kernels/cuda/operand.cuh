// How chunks of weights come to a warp, and become operands of the tensor cores: exact codes in half precision, and their
// scales apart.
//
// `Operand<TYPE>::fetch` sends a lane's chunk (see weights.cuh) on its way to shared memory, in BYTES bytes for each lane, and
// `take` has it when it is there. `part<J>` gives weights 4 J to 4 J + 3 as two pairs of halves, first (4 J, 4 J + 2), then
// (4 J + 1, 4 J + 3), or one after another with NATURAL. A weight is scale * code, or scale * code - minimum with
// MINIMA; a chunk has SCALES of them, each for as many weights in their order. No code is rounded: each is a whole number of
// up to 8 bits, a half, or 2^-14 of a number of MXFP4. WIDE types are not for the tensor cores, as their numbers are no halves.
#pragma once
#include "weights.cuh"

namespace oxgpt {

__device__ __forceinline__ uint32_t as_bits(__half2 v) { return *(uint32_t*)&v; }
__device__ __forceinline__ __half2 as_halves(uint32_t v) { return *(__half2*)&v; }
__device__ __forceinline__ __half2 both(float v) { return __float2half2_rn(v); }

// Bytes as halves less `offset`: 1024 + n has n in its last bits.
__device__ __forceinline__ void bytes_to_halves(uint32_t c, float offset, uint32_t* out) {
    out[0] = as_bits(__hsub2(as_halves(__byte_perm(c, 0x64646464u, 0x4240)), both(1024.0f + offset)));
    out[1] = as_bits(__hsub2(as_halves(__byte_perm(c, 0x64646464u, 0x4341)), both(1024.0f + offset)));
}
// The nibbles of part J as halves less `offset`.
template <int J> __device__ __forceinline__ void nibbles_to_halves(const uint4& q, float offset, uint32_t* out) {
    uint32_t w = word<J % 4>(q);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t v = i ? w >> 8 : w;
        if constexpr (J < 4) {
            out[i] = as_bits(__hsub2(as_halves((v & 0x000f000fu) | 0x64006400u), both(1024.0f + offset)));
        } else {
            // Sixteen times the nibble: 1024 + 16 n, of which a sixteenth is 64 + n.
            out[i] = as_bits(__hfma2(as_halves((v & 0x00f000f0u) | 0x64006400u), both(0.0625f), both(-64.0f - offset)));
        }
    }
}

// Copies SIZE bytes to shared memory while the thread goes on, or zeros if there is nothing to copy.
template <int SIZE> __device__ __forceinline__ void copy_async(void* to, const void* from, bool real) {
    uint32_t address = (uint32_t)__cvta_generic_to_shared(to);
    if constexpr (SIZE == 16) {
        asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(real ? 16 : 0) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(address), "l"(from), "r"(real ? SIZE : 0), "n"(SIZE) : "memory");
    }
}
__device__ __forceinline__ void end_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all but the latest N groups of copies are there.
template <int N> __device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// A warp's part of a ring, field after field: those of 16 bytes, of 8, of 4. `I` numbers fields of a size.
template <int WIDES, int PAIRS, int WORDS> struct Fields {
    static constexpr int BYTES = 16 * WIDES + 8 * PAIRS + 4 * WORDS;
    template <int I> __device__ static uint4* wide(char* stage, int lane) { return (uint4*)stage + I * WARP + lane; }
    template <int I> __device__ static uint2* pair(char* stage, int lane) { return (uint2*)(stage + 16 * WIDES * WARP) + I * WARP + lane; }
    template <int I> __device__ static uint32_t* word(char* stage, int lane) {
        return (uint32_t*)(stage + (16 * WIDES + 8 * PAIRS) * WARP) + I * WARP + lane;
    }
    // The word of a plane that has byte `offset`.
    template <int I> __device__ static void fetch_word(char* stage, int lane, const uint8_t* plane, int64_t offset, bool real) {
        copy_async<4>(word<I>(stage, lane), plane + (offset & ~(int64_t)3), real);
    }
    // The 16 bits at byte `offset`.
    template <int I> __device__ static uint32_t take_u16(char* stage, int lane, uint32_t offset) {
        return (*word<I>(stage, lane) >> (8 * (offset & 2))) & 0xffffu;
    }
};

// What most types have.
struct OperandTraits {
    static constexpr bool WIDE = false, NATURAL = false, MINIMA = false;
    static constexpr int SCALES = 1;
};

template <int TYPE> struct Operand;

// Types whose chunks are 16 bytes and nothing else.
template <int TYPE> struct Bare : OperandTraits, Fields<1, 0, 0> {
    using Raw = uint4;
    __device__ static void fetch(const Planes& p, int64_t index, char* stage, int lane, bool real) {
        copy_async<16>(wide<0>(stage, lane), p.low + index * 16, real);
    }
    __device__ static Raw take(char* stage, int lane, uint32_t) { return *wide<0>(stage, lane); }
};
template <> struct Operand<F32> : Bare<F32> { static constexpr bool WIDE = true; };
template <> struct Operand<BF16> : Bare<BF16> { static constexpr bool WIDE = true; };
template <> struct Operand<F16> : Bare<F16> {
    static constexpr bool NATURAL = true;
    template <int J> __device__ static void part(const Raw& r, uint32_t* out) { out[0] = oxgpt::word<2 * J>(r), out[1] = oxgpt::word<2 * J + 1>(r); }
    template <int S> __device__ static float scale(const Raw&) { return 1.0f; }
};

// Types of 16 bytes and a scale in half precision for each CHUNKS chunks.
template <int CHUNKS> struct Scaled : OperandTraits, Fields<1, 0, 1> {
    struct Raw { uint4 q; uint32_t d; };
    __device__ static void fetch(const Planes& p, int64_t index, char* stage, int lane, bool real) {
        copy_async<16>(wide<0>(stage, lane), p.low + index * 16, real);
        fetch_word<0>(stage, lane, p.scales, index / CHUNKS * 2, real);
    }
    __device__ static Raw take(char* stage, int lane, uint32_t index) {
        return {*wide<0>(stage, lane), take_u16<0>(stage, lane, index / CHUNKS * 2)};
    }
    template <int S> __device__ static float scale(const Raw& r) { return half_bits(r.d); }
};
template <> struct Operand<Q8_0> : Scaled<2> {
    template <int J> __device__ static void part(const Raw& r, uint32_t* out) { bytes_to_halves(oxgpt::word<J>(r.q) ^ 0x80808080u, 128.0f, out); }
};
template <> struct Operand<Q4_0> : Scaled<1> {
    template <int J> __device__ static void part(const Raw& r, uint32_t* out) { nibbles_to_halves<J>(r.q, 8.0f, out); }
};
template <> struct Operand<IQ4_NL> : Scaled<1> {
    template <int J> __device__ static void part(const Raw& r, uint32_t* out) {
        bytes_to_halves(looked_up(nibbles<J>(r.q), iq4_table()) ^ 0x80808080u, 128.0f, out);
    }
};
template <> struct Operand<MXFP4> : OperandTraits, Fields<1, 0, 1> {
    struct Raw { uint4 q; uint32_t e; };
    __device__ static void fetch(const Planes& p, int64_t index, char* stage, int lane, bool real) {
        copy_async<16>(wide<0>(stage, lane), p.low + index * 16, real);
        fetch_word<0>(stage, lane, p.scales, index, real);
    }
    __device__ static Raw take(char* stage, int lane, uint32_t index) {
        return {*wide<0>(stage, lane), (*word<0>(stage, lane) >> (8 * (index & 3))) & 0xffu};
    }
    // A code is a sign and three bits that mean in the lowest bits of a half's exponent what they mean in four bits, but for
    // 2^14; the smallest is a subnormal number in both.
    template <int J> __device__ static void part(const Raw& r, uint32_t* out) {
        uint32_t w = oxgpt::word<J % 4>(r.q);
        if constexpr (J < 4) {
            out[0] = ((w << 9) & 0x0e000e00u) | ((w << 12) & 0x80008000u);
            out[1] = ((w << 1) & 0x0e000e00u) | ((w << 4) & 0x80008000u);
        } else {
            out[0] = ((w << 5) & 0x0e000e00u) | ((w << 8) & 0x80008000u);
            out[1] = ((w >> 3) & 0x0e000e00u) | (w & 0x80008000u);
        }
    }
    template <int S> __device__ static float scale(const Raw& r) {
        // 2^14 times 2^(e - 127), of which the smallest is denormal.
        return 16384.0f * (r.e == 0 ? __uint_as_float(0x00400000u) : __uint_as_float(r.e << 23));
    }
};
template <> struct Operand<Q5_0> : OperandTraits, Fields<1, 0, 2> {
    struct Raw { uint4 q; uint32_t fifth, d; };
    __device__ static void fetch(const Planes& p, int64_t index, char* stage, int lane, bool real) {
        copy_async<16>(wide<0>(stage, lane), p.low + index * 16, real);
        fetch_word<0>(stage, lane, p.high, index * 4, real);
        fetch_word<1>(stage, lane, p.scales, index * 2, real);
    }
    __device__ static Raw take(char* stage, int lane, uint32_t index) {
        return {*wide<0>(stage, lane), *word<0>(stage, lane), take_u16<1>(stage, lane, index * 2)};
    }
    template <int J> __device__ static void part(const Raw& r, uint32_t* out) {
        bytes_to_halves(nibbles<J>(r.q) | single_bits<J>(r.fifth) << 4, 16.0f, out);
    }
    template <int S> __device__ static float scale(const Raw& r) { return half_bits(r.d); }
};

// Q4_1 and Q5_1: a scale and what is added.
struct ScaledAndShifted : OperandTraits {
    static constexpr bool MINIMA = true;
    template <int S, class Raw> __device__ static float scale(const Raw& r) { return half_bits(r.dm & 0xffffu); }
    template <int S, class Raw> __device__ static float minimum(const Raw& r) { return -half_bits(r.dm >> 16); }
};
template <> struct Operand<Q4_1> : ScaledAndShifted, Fields<1, 0, 1> {
    struct Raw { uint4 q; uint32_t dm; };
    __device__ static void fetch(const Planes& p, int64_t index, char* stage, int lane, bool real) {
        copy_async<16>(wide<0>(stage, lane), p.low + index * 16, real);
        fetch_word<0>(stage, lane, p.scales, index * 4, real);
    }
    __device__ static Raw take(char* stage, int lane, uint32_t) { return {*wide<0>(stage, lane), *word<0>(stage, lane)}; }
    template <int J> __device__ static void part(const Raw& r, uint32_t* out) { nibbles_to_halves<J>(r.q, 0.0f, out); }
};
template <> struct Operand<Q5_1> : ScaledAndShifted, Fields<1, 0, 2> {
    struct Raw { uint4 q; uint32_t fifth, dm; };
    __device__ static void fetch(const Planes& p, int64_t index, char* stage, int lane, bool real) {
        copy_async<16>(wide<0>(stage, lane), p.low + index * 16, real);
        fetch_word<0>(stage, lane, p.high, index * 4, real);
        fetch_word<1>(stage, lane, p.scales, index * 4, real);
    }
    __device__ static Raw take(char* stage, int lane, uint32_t) {
        return {*wide<0>(stage, lane), *word<0>(stage, lane), *word<1>(stage, lane)};
    }
    template <int J> __device__ static void part(const Raw& r, uint32_t* out) {
        bytes_to_halves(nibbles<J>(r.q) | single_bits<J>(r.fifth) << 4, 0.0f, out);
    }
};

// Q4_K and Q5_K: the header of a superblock is 16 bytes.
struct ScalesAndMinima : OperandTraits {
    static constexpr bool MINIMA = true;
    template <int S, class Raw> __device__ static float scale(const Raw& r) {
        float scale, min;
        scale_and_min(r.header, r.group, scale, min);
        return scale;
    }
    template <int S, class Raw> __device__ static float minimum(const Raw& r) {
        float scale, min;
        scale_and_min(r.header, r.group, scale, min);
        return min;
    }
};
template <> struct Operand<Q4_K> : ScalesAndMinima, Fields<2, 0, 0> {
    struct Raw { uint4 q, header; int group; };
    __device__ static void fetch(const Planes& p, int64_t index, char* stage, int lane, bool real) {
        copy_async<16>(wide<0>(stage, lane), p.low + index * 16, real);
        copy_async<16>(wide<1>(stage, lane), p.scales + index / 8 * 16, real);
    }
    __device__ static Raw take(char* stage, int lane, uint32_t index) {
        return {*wide<0>(stage, lane), *wide<1>(stage, lane), (int)(index & 7)};
    }
    template <int J> __device__ static void part(const Raw& r, uint32_t* out) { nibbles_to_halves<J>(r.q, 0.0f, out); }
};
template <> struct Operand<Q5_K> : ScalesAndMinima, Fields<2, 0, 1> {
    struct Raw { uint4 q, header; uint32_t fifth; int group; };
    __device__ static void fetch(const Planes& p, int64_t index, char* stage, int lane, bool real) {
        copy_async<16>(wide<0>(stage, lane), p.low + index * 16, real);
        copy_async<16>(wide<1>(stage, lane), p.scales + index / 8 * 16, real);
        fetch_word<0>(stage, lane, p.high, index * 4, real);
    }
    __device__ static Raw take(char* stage, int lane, uint32_t index) {
        return {*wide<0>(stage, lane), *wide<1>(stage, lane), *word<0>(stage, lane), (int)(index & 7)};
    }
    template <int J> __device__ static void part(const Raw& r, uint32_t* out) {
        bytes_to_halves(nibbles<J>(r.q) | single_bits<J>(r.fifth) << 4, 0.0f, out);
    }
};
template <> struct Operand<Q6_K> : OperandTraits, Fields<1, 1, 2> {
    static constexpr int SCALES = 2;
    struct Raw { uint4 q; uint2 upper; uint32_t scales, d; };
    __device__ static void fetch(const Planes& p, int64_t index, char* stage, int lane, bool real) {
        copy_async<16>(wide<0>(stage, lane), p.low + index * 16, real);
        copy_async<8>(pair<0>(stage, lane), p.high + index * 8, real);
        fetch_word<0>(stage, lane, p.scales, index * 2, real);
        fetch_word<1>(stage, lane, p.super, index / 8 * 2, real);
    }
    __device__ static Raw take(char* stage, int lane, uint32_t index) {
        return {*wide<0>(stage, lane), *pair<0>(stage, lane), take_u16<0>(stage, lane, index * 2), take_u16<1>(stage, lane, index / 8 * 2)};
    }
    template <int J> __device__ static void part(const Raw& r, uint32_t* out) {
        bytes_to_halves(nibbles<J>(r.q) | pairs<J>(r.upper) << 4, 32.0f, out);
    }
    template <int S> __device__ static float scale(const Raw& r) { return half_bits(r.d) * (float)(int8_t)(r.scales >> (8 * S)); }
};
template <> struct Operand<Q2_K> : OperandTraits, Fields<0, 1, 2> {
    static constexpr bool MINIMA = true;
    static constexpr int SCALES = 2;
    struct Raw { uint2 q; uint32_t scales, super; };
    __device__ static void fetch(const Planes& p, int64_t index, char* stage, int lane, bool real) {
        copy_async<8>(pair<0>(stage, lane), p.low + index * 8, real);
        fetch_word<0>(stage, lane, p.scales, index * 2, real);
        fetch_word<1>(stage, lane, p.super, index / 8 * 4, real);
    }
    __device__ static Raw take(char* stage, int lane, uint32_t index) {
        return {*pair<0>(stage, lane), take_u16<0>(stage, lane, index * 2), *word<1>(stage, lane)};
    }
    template <int J> __device__ static void part(const Raw& r, uint32_t* out) { bytes_to_halves(pairs<J>(r.q), 0.0f, out); }
    template <int S> __device__ static float scale(const Raw& r) {
        return half_bits(r.super & 0xffffu) * (float)((r.scales >> (8 * S)) & 15u);
    }
    template <int S> __device__ static float minimum(const Raw& r) {
        return half_bits(r.super >> 16) * (float)((r.scales >> (8 * S + 4)) & 15u);
    }
};
template <> struct Operand<Q3_K> : OperandTraits, Fields<0, 1, 4> {
    static constexpr int SCALES = 2;
    struct Raw { uint2 q; uint32_t third, low, high, d; int group; };
    __device__ static void fetch(const Planes& p, int64_t index, char* stage, int lane, bool real) {
        int group = (int)(index & 7);
        copy_async<8>(pair<0>(stage, lane), p.low + index * 8, real);
        fetch_word<0>(stage, lane, p.high, index * 4, real);
        // See `Weights<Q3_K>`.
        fetch_word<1>(stage, lane, p.scales, index / 8 * 12 + (group & 3) / 2 * 4, real);
        fetch_word<2>(stage, lane, p.scales, index / 8 * 12 + 8, real);
        fetch_word<3>(stage, lane, p.super, index / 8 * 2, real);
    }
    __device__ static Raw take(char* stage, int lane, uint32_t index) {
        return {*pair<0>(stage, lane), *word<0>(stage, lane), *word<1>(stage, lane), *word<2>(stage, lane),
                take_u16<3>(stage, lane, index / 8 * 2), (int)(index & 7)};
    }
    template <int J> __device__ static void part(const Raw& r, uint32_t* out) {
        bytes_to_halves(pairs<J>(r.q) | single_bits<J>(r.third) << 2, 4.0f, out);
    }
    template <int S> __device__ static float scale(const Raw& r) { return q3_scale(r, 2 * r.group + S); }
};
template <> struct Operand<IQ4_XS> : OperandTraits, Fields<1, 1, 0> {
    struct Raw { uint4 q; uint2 header; int group; };
    __device__ static void fetch(const Planes& p, int64_t index, char* stage, int lane, bool real) {
        copy_async<16>(wide<0>(stage, lane), p.low + index * 16, real);
        copy_async<8>(pair<0>(stage, lane), p.scales + index / 8 * 8, real);
    }
    __device__ static Raw take(char* stage, int lane, uint32_t index) { return {*wide<0>(stage, lane), *pair<0>(stage, lane), (int)(index & 7)}; }
    template <int J> __device__ static void part(const Raw& r, uint32_t* out) {
        bytes_to_halves(looked_up(nibbles<J>(r.q), iq4_table()) ^ 0x80808080u, 128.0f, out);
    }
    template <int S> __device__ static float scale(const Raw& r) { return iq4_xs_scale(r); }
};

}  // namespace oxgpt
