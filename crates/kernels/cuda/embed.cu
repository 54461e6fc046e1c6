// out[r] = scale * table[rows[r]], or out[r] += it: the rows of a table of any weight type.
//
// Grid: (ceil(chunks / 128), rows of out), blocks of 128 threads; a thread takes one chunk.
#include "params.cuh"
#include "weights.cuh"

namespace oxgpt {
namespace {

template <int TYPE> __device__ void embed(const EmbedParams& p) {
    using W = Weights<TYPE>;
    wait_for_previous();
    launch_dependents();
    int chunk = blockIdx.x * blockDim.x + threadIdx.x;
    if (chunk >= p.chunks) return;
    int64_t row = p.rows[blockIdx.y];
    typename W::Raw raw = W::load(p.table, row * p.chunks + chunk);
    float* out = p.out + (int64_t)blockIdx.y * p.cols;
    for_parts<W::VALUES / 4>([&](auto part) {
        float w[4];
        W::template part<decltype(part)::value>(raw, w);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int col = chunk * W::VALUES + decltype(part)::value * 4 + i;
            // Rows of plain numbers are padded to whole chunks.
            if (col < p.cols) out[col] = p.add ? __fmaf_rn(p.scale, w[i], __ldcg(out + col)) : p.scale * w[i];
        }
    });
}

}  // namespace
}  // namespace oxgpt

#define EMBED(name, TYPE) \
    extern "C" __global__ void embed_##name(const __grid_constant__ oxgpt::EmbedParams p) { oxgpt::embed<oxgpt::TYPE>(p); }
OXGPT_PLAIN_TYPES(EMBED)
OXGPT_GROUP_TYPES(EMBED)
OXGPT_SUPERBLOCK_TYPES(EMBED)

// out[r] = x[rows[r]]. Grid: (ceil(width / 256), rows of out), blocks of 256 threads.
extern "C" __global__ void gather(const __grid_constant__ oxgpt::GatherParams p) {
    oxgpt::wait_for_previous();
    oxgpt::launch_dependents();
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.width) p.out[blockIdx.y * p.width + i] = __ldcg(p.x + p.rows[blockIdx.y] * p.width + i);
}
