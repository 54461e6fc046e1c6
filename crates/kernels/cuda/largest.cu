// The largest magnitude of a matrix of weights, by which gemm.cuh scales them. Rows are padded with zeros.
//
// Grid: any, blocks of 256 threads; largest starts as 0.
#include "params.cuh"
#include "weights.cuh"

namespace oxgpt {
namespace {

template <int TYPE> __device__ void largest(const LargestParams& p) {
    using W = Weights<TYPE>;
    float most = 0.0f;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < p.pieces; i += (int64_t)gridDim.x * blockDim.x) {
        typename W::Raw raw = W::load(p.weight, i);
        for_parts<W::VALUES / 4>([&](auto part) {
            float w[4];
            W::template part<decltype(part)::value>(raw, w);
            most = fmaxf(fmaxf(fmaxf(most, fabsf(w[0])), fmaxf(fabsf(w[1]), fabsf(w[2]))), fabsf(w[3]));
        });
    }
    most = warp_max(most);
    // Numbers that are not negative are ordered as their bits are.
    if (threadIdx.x % WARP == 0) atomicMax(p.largest, __float_as_uint(most));
}

}  // namespace
}  // namespace oxgpt

#define LARGEST(name, TYPE) \
    extern "C" __global__ void __launch_bounds__(256) largest_##name(const __grid_constant__ oxgpt::LargestParams p) { \
        oxgpt::largest<oxgpt::TYPE>(p);                                                                              \
    }
OXGPT_PLAIN_TYPES(LARGEST)
OXGPT_GROUP_TYPES(LARGEST)
OXGPT_SUPERBLOCK_TYPES(LARGEST)
