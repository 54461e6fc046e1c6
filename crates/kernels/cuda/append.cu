// Stores keys and values at their positions.
//
// Grid: (rows), blocks of 256 threads.
#include "kv.cuh"

namespace oxgpt {
namespace {

template <class KV> __device__ void append(const AppendParams& p) {
    int64_t row = blockIdx.x;
    uint32_t position = p.positions[row];
    uint32_t block = p.blocks[p.table_offsets[p.sequences[row]] + position / BLOCK_POSITIONS];
    int lane = threadIdx.x % WARP, pieces = (p.padded_dim + WARP - 1) / WARP;
    // A warp takes 32 elements of a key or a value.
    for (int i = threadIdx.x / WARP; i < 2 * p.kv_heads * pieces; i += blockDim.x / WARP) {
        int d = i % pieces * WARP + lane, head = i / pieces % p.kv_heads, is_value = i / pieces / p.kv_heads;
        const float* x = p.qkv + row * p.stride + (p.heads + is_value * p.kv_heads + head) * p.head_dim;
        KV* to = (KV*)(is_value ? p.values : p.keys) + kv_block<KV>(block, p.kv_heads, head, p.padded_dim);
        store_32(to, position % BLOCK_POSITIONS, d, d < p.head_dim ? x[d] : 0.0f, is_value, p.padded_dim);
    }
}

}  // namespace
}  // namespace oxgpt

extern "C" __global__ void __launch_bounds__(256) append_f32(const __grid_constant__ oxgpt::AppendParams p) { oxgpt::append<float>(p); }
extern "C" __global__ void __launch_bounds__(256) append_f16(const __grid_constant__ oxgpt::AppendParams p) { oxgpt::append<__half>(p); }
extern "C" __global__ void __launch_bounds__(256) append_q8(const __grid_constant__ oxgpt::AppendParams p) { oxgpt::append<oxgpt::Q8>(p); }
