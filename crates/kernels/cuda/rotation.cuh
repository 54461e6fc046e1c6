// The turn of a pair of elements of a head.
#pragma once
#include "params.cuh"

namespace oxgpt {

__device__ __forceinline__ float rotated_first(float a, float b, float cosine, float sine) {
    return __fmaf_rn(a, cosine, -__fmul_rn(b, sine));
}
__device__ __forceinline__ float rotated_second(float a, float b, float cosine, float sine) {
    return __fmaf_rn(b, cosine, __fmul_rn(a, sine));
}

// Element d of a head, turned. `rotations` has the cosines of the row's pairs, then their sines; null: as it is.
__device__ __forceinline__ float rotated(const float* head, int d, const float* rotations, int pairs, bool interleaved) {
    float x = __ldcg(head + d);
    if (!rotations || d >= 2 * pairs) return x;
    int pair = interleaved ? d / 2 : d % pairs;
    bool first = interleaved ? d % 2 == 0 : d < pairs;
    float other = __ldcg(head + (interleaved ? d ^ 1 : first ? d + pairs : d - pairs));
    float cosine = __ldcg(rotations + pair), sine = __ldcg(rotations + pairs + pair);
    return first ? rotated_first(x, other, cosine, sine) : rotated_second(other, x, cosine, sine);
}

}  // namespace oxgpt
