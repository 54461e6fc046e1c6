// Choosing tokens: the parameters, which `src/sampling.rs` has too, and the arithmetic of docs/sampling.md. Every operation is
// rounded by itself, never fused, so that the bits are those of every other device.
#pragma once
#include "common.cuh"

namespace oxgpt {

// How one token is chosen.
struct ChoiceOptions {
    uint64_t seed;
    uint64_t position;
    uint64_t top_p;     // in units of 2^-32, rounded up; 2^32 is off
    float temperature;  // 0 takes the highest logit
    float floor;        // ln(min_p), the lowest scaled logit that is kept; -inf is off
    float repeat_penalty;
    float frequency_penalty;
    float presence_penalty;
    uint32_t top_k;     // 0 is off
    uint32_t choice;
    uint32_t row;       // of the logits
};
static_assert(sizeof(ChoiceOptions) == 56, "shared with src/sampling.rs");

// What happens to a logit before a token is chosen.
struct LogitEdit {
    uint32_t choice;     // which of the options it is for
    uint32_t token;
    float bias;
    uint32_t generated;  // how often the token is in the answer
    uint32_t what;       // bits of EDIT_*
};
static_assert(sizeof(LogitEdit) == 20, "shared with src/sampling.rs");
constexpr uint32_t EDIT_BIAS = 1, EDIT_OCCURRED = 2, EDIT_FORBIDDEN = 4;

struct EditParams {
    float* logits;  // (rows, width)
    const ChoiceOptions* options;
    const LogitEdit* edits;
    int32_t width;
    int32_t count;
};
static_assert(sizeof(EditParams) == 32, "shared with src/sampling.rs");

struct MaskParams {
    float* logits;         // (rows, width)
    const uint32_t* rows;  // the row of each mask
    const uint32_t* words; // (masks, words_each): bit t % 32 of word t / 32 allows token t
    int32_t width;
    int32_t words_each;
};
static_assert(sizeof(MaskParams) == 32, "shared with src/sampling.rs");

struct FollowParams {
    uint32_t* tokens;
    const uint32_t* follows;  // of each row the choice that its token is, or FOLLOWS_NONE
    const uint32_t* chosen;
    int32_t rows;
    int32_t vocab_size;
};
static_assert(sizeof(FollowParams) == 32, "shared with src/sampling.rs");
constexpr uint32_t FOLLOWS_NONE = 0xffffffffu;

struct ChooseParams {
    const float* logits;  // (rows, width)
    const ChoiceOptions* options;
    uint32_t* chosen;     // for each of the options a token, or what went wrong
    uint32_t* answers;    // the same in memory of the host
    uint64_t* scratch;    // CHOOSE_SCRATCH for each
    int32_t width;
    int32_t slice;        // logits of a block, a multiple of four
    int32_t keeps;        // whether a block has shared memory for its logits
    int32_t unused;
};
static_assert(sizeof(ChooseParams) == 56, "shared with src/sampling.rs");

// What `chosen` holds where there is no token: NOT_A_NUMBER with the first token whose logit is none, or NO_CANDIDATE.
constexpr uint32_t NOT_A_NUMBER = 0x80000000u, NO_CANDIDATE = 0xffffffffu;

// Bits of a token: a vocabulary has at most 2^22.
constexpr int TOKEN_BITS = 22;
// Bins of a digit, see choose.cu; blocks of a row at the most; words for each row.
constexpr int DIGIT_BITS = 11, BINS = 1 << DIGIT_BITS, MOST_SLICES = 8, CHOOSE_SCRATCH = 3 * BINS + 2 * MOST_SLICES;

constexpr float LN2_HIGH = 0.693359375f;  // ln 2 rounded to ten bits
constexpr float LN2_LOW = -2.12194440e-4f;

// P(x), the lowest power first.
template <int N> __device__ __forceinline__ float polynomial(const float (&coefficients)[N], float x) {
    float sum = coefficients[N - 1];
#pragma unroll
    for (int i = N - 2; i >= 0; i--) sum = __fadd_rn(__fmul_rn(sum, x), coefficients[i]);
    return sum;
}

// ln(2^exponent (1 + f)).
__device__ __forceinline__ float ln_reduced(float exponent, float f) {
    constexpr float LN[8] = {
        3.333333135e-1f, -2.500081956e-1f, 2.000122666e-1f, -1.662335694e-1f,
        1.420175582e-1f, -1.316018552e-1f, 1.276159436e-1f, -7.634509355e-2f,
    };
    float square = __fmul_rn(f, f);
    float tail = __fmul_rn(__fmul_rn(f, square), polynomial(LN, f));
    tail = __fadd_rn(tail, __fmul_rn(exponent, LN2_LOW));
    tail = __fsub_rn(tail, __fmul_rn(0.5f, square));
    return __fadd_rn(__fadd_rn(f, tail), __fmul_rn(exponent, LN2_HIGH));
}

// x = 2^exponent (1 + f) with 1 + f from the root of a half to that of two, for a positive normal x.
__device__ __forceinline__ void reduce(float x, float& exponent, float& f) {
    uint32_t bits = __float_as_uint(x);
    int e = (int)(bits - 0x3f3504f3u) >> 23;
    f = __fsub_rn(__uint_as_float(bits - ((uint32_t)e << 23)), 1.0f);
    exponent = __int2float_rn(e);
}

// floor(exp(z) 2^40) for z <= 0.
__device__ __forceinline__ uint64_t softmax_weight(float z) {
    constexpr float EXP[5] = {4.999999404e-1f, 1.666652113e-1f, 4.166838899e-2f, 8.368735202e-3f, 1.381456037e-3f};
    // Adding and subtracting it rounds to an integer.
    constexpr float ROUND = 12582912.0f;
    if (z < -30.0f) return 0;
    float n = __fsub_rn(__fadd_rn(__fmul_rn(z, 1.44269502f), ROUND), ROUND);
    float r = __fsub_rn(__fsub_rn(z, __fmul_rn(n, LN2_HIGH)), __fmul_rn(n, LN2_LOW));
    float fraction = __fadd_rn(1.0f, __fadd_rn(r, __fmul_rn(__fmul_rn(r, r), polynomial(EXP, r))));
    float scale = __uint_as_float((uint32_t)(__float2int_rz(n) + 40 + 127) << 23);
    return __float2ull_rz(__fmul_rn(fraction, scale));
}

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011) for the tokens 4 quad to 4 quad + 3.
__device__ __forceinline__ void noise_words(const ChoiceOptions& o, uint32_t quad, uint32_t (&words)[4]) {
    uint32_t key0 = (uint32_t)o.seed, key1 = (uint32_t)(o.seed >> 32);
    words[0] = quad, words[1] = (uint32_t)o.position, words[2] = (uint32_t)(o.position >> 32), words[3] = o.choice;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint64_t first = (uint64_t)0xd2511f53u * words[0], second = (uint64_t)0xcd9e8d57u * words[2];
        words[0] = (uint32_t)(second >> 32) ^ words[1] ^ key0;
        words[1] = (uint32_t)second;
        words[2] = (uint32_t)(first >> 32) ^ words[3] ^ key1;
        words[3] = (uint32_t)first;
        key0 += 0x9e3779b9u, key1 += 0xbb67ae85u;
    }
}

// -ln(-ln u) for u = (word + 1/2) / 2^32: standard Gumbel noise, below NOISE_BOUND.
constexpr float NOISE_BOUND = 23.0f;
__device__ __forceinline__ float gumbel(uint32_t word) {
    constexpr float UNIT = 1.0f / 4294967296.0f;
    float exponent, f;
    reduce(__fmul_rn(__fadd_rn(__uint2float_rn(word), 0.5f), UNIT), exponent, f);
    // Above the root of a half, of 1 - (1 - u), where 1 - u comes from the complement of the word.
    if (word >= 0xb504f334u) exponent = 0.0f, f = -__fmul_rn(__fadd_rn(__uint2float_rn(~word), 0.5f), UNIT);
    reduce(-ln_reduced(exponent, f), exponent, f);
    return -ln_reduced(exponent, f);
}

// Floats in the order of unsigned integers, both zeros as one, NaN above all others.
__device__ __forceinline__ uint32_t ordered(float x) {
    if (x != x) return 0xffffffffu;
    uint32_t bits = __float_as_uint(__fadd_rn(x, 0.0f));
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered(uint32_t order) {
    return __uint_as_float(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}
// The largest of these is the highest value, and of equal ones that of the lowest token.
__device__ __forceinline__ uint64_t ranked(float value, uint32_t token) { return (uint64_t)ordered(value) << 32 | ~token; }
__device__ __forceinline__ uint32_t ranked_token(uint64_t ranked) { return ~(uint32_t)ranked; }

// A token in the order of the filters: the higher z first, then the lower token, ascending. z <= 0.
__device__ __forceinline__ uint64_t candidate(float z, uint32_t token) {
    return (uint64_t)(__float_as_uint(z) & 0x7fffffffu) << TOKEN_BITS | token;
}
__device__ __forceinline__ float candidate_z(uint64_t candidate) { return -__uint_as_float((uint32_t)(candidate >> TOKEN_BITS)); }

}  // namespace oxgpt
