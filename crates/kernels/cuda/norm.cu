// LayerNorm and RMSNorm of rows, or of segments of rows (the heads of queries and keys).
//
//   LayerNorm: (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias
//   RMSNorm:   x / sqrt(mean(x^2) + eps) * weight + bias
//
// Blocks of 512 threads take one segment (norm_rows) or four (norm_four): the same bits either way, and those of the products
// that norm their rows themselves (matvec.cuh). Grid: as many as there are segments, divided by one or four. x and out may be
// the same.
#include "row.cuh"

namespace oxgpt {
namespace {

template <int V> __device__ void norm(const NormParams& p) {
    __shared__ __align__(16) float scratch[V * ROW_WARPS];
    int64_t mine = (int64_t)blockIdx.x * V + threadIdx.x / (ROW_THREADS / V), row = mine / p.segments, segment = mine % p.segments;
    bool real = row < p.rows;
    const float* x = p.x + (real ? row * p.x_stride + segment * p.width : 0);
    float* out = p.out + (real ? row * p.out_stride + segment * p.width : 0);
    int width = real ? p.width : 0, pieces = (width + 3) / 4;
    bool aligned = p.width % 4 == 0 && p.x_stride % 4 == 0 && (uint64_t)p.x % 16 == 0;
    auto sweep = [&](auto&& f) {
        for (int start = 0; start < pieces; start += ROW_THREADS) {
            for_pieces<V, 1>([&](int v, int, int i) {
                if (start + i < pieces) f(v, start + i, row_piece(x, start + i, width, aligned));
            });
        }
    };
    launch_dependents();
    wait_for_previous();
    RowScale s = row_scale<V>(p.width, p.centered, p.eps, scratch, sweep);
    sweep([&](int, int i, const float4& v) {
        float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            int col = 4 * i + k;
            if (col < width) out[col] = normed(values[k], s, p.weight[col], p.bias ? p.bias[col] : 0.0f, p.bias);
        }
    });
}

}  // namespace
}  // namespace oxgpt

extern "C" __global__ void __launch_bounds__(512) norm_rows(const __grid_constant__ oxgpt::NormParams p) { oxgpt::norm<1>(p); }
extern "C" __global__ void __launch_bounds__(512) norm_four(const __grid_constant__ oxgpt::NormParams p) { oxgpt::norm<4>(p); }
