// Arrays that the host left in page-locked memory, to where they belong, all of a round at once: one launch takes less time than the
// copies of the driver. Grid: (blocks for each array, arrays), blocks of 256 threads.
#include <stdint.h>

namespace oxgpt {

struct StagedArray {
    const uint32_t* from;  // rows one after another
    uint32_t* to;
    int32_t rows;
    int32_t words;   // of a row
    int32_t stride;  // words from row to row
    int32_t unused;
};
static_assert(sizeof(StagedArray) == 32, "shared with src/staging.rs");

struct UnstageParams { StagedArray arrays[8]; };
static_assert(sizeof(UnstageParams) == 256, "shared with src/staging.rs");

}  // namespace oxgpt

extern "C" __global__ void __launch_bounds__(256) unstage(const __grid_constant__ oxgpt::UnstageParams p) {
    const oxgpt::StagedArray& a = p.arrays[blockIdx.y];
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < a.rows * a.words; i += gridDim.x * blockDim.x) {
        // Not from a cache, which may have what was there before.
        a.to[(int64_t)(i / a.words) * a.stride + i % a.words] = __ldcv(a.from + i);
    }
}
