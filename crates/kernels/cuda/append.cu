// Stores keys and values at their positions.
//
// Grid: (rows), blocks of 256 threads.
#include "kv.cuh"

namespace oxgpt {
namespace {

template <class KV> __device__ void append(const AppendParams& p) {
    int64_t row = blockIdx.x;
    uint32_t position = p.positions[row];
    const float* k = p.qkv + row * p.stride + p.heads * p.head_dim;
    const float* v = k + p.kv_heads * p.head_dim;
    uint32_t block = p.blocks[p.table_offsets[p.sequences[row]] + position / BLOCK_POSITIONS];
    int in_block = position % BLOCK_POSITIONS;
    for (int i = threadIdx.x; i < p.kv_heads * p.padded_dim; i += blockDim.x) {
        int head = i / p.padded_dim, d = i % p.padded_dim;
        int64_t start = kv_block(block, p.kv_heads, head, p.padded_dim);
        bool real = d < p.head_dim;
        store((KV*)p.keys + start + key_element(in_block, d), real ? k[head * p.head_dim + d] : 0.0f);
        store((KV*)p.values + start + value_element(in_block, d, p.padded_dim), real ? v[head * p.head_dim + d] : 0.0f);
    }
}

}  // namespace
}  // namespace oxgpt

extern "C" __global__ void __launch_bounds__(256) append_f32(const __grid_constant__ oxgpt::AppendParams p) { oxgpt::append<float>(p); }
extern "C" __global__ void __launch_bounds__(256) append_f16(const __grid_constant__ oxgpt::AppendParams p) { oxgpt::append<__half>(p); }
