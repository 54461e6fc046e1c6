// LayerNorm and RMSNorm of rows, or of segments of rows (the heads of queries and keys).
//
//   LayerNorm: (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias
//   RMSNorm:   x / sqrt(mean(x^2) + eps) * weight + bias
//
// Grid: (rows, segments), blocks of 256 threads. x and out may be the same. A row's sums run in an order of their own.
#include "params.cuh"

using namespace oxgpt;

extern "C" __global__ void __launch_bounds__(256) norm_rows(const __grid_constant__ NormParams p) {
    __shared__ float scratch[8];
    const float* x = p.x + (int64_t)blockIdx.x * p.x_stride + (int64_t)blockIdx.y * p.width;
    float* out = p.out + (int64_t)blockIdx.x * p.out_stride + (int64_t)blockIdx.y * p.width;
    float mean = 0.0f;
    if (p.centered) {
        float sum = 0.0f;
        for (int i = threadIdx.x; i < p.width; i += 256) sum += x[i];
        mean = block_sum<8>(sum, scratch) / (float)p.width;
    }
    float squares = 0.0f;
    for (int i = threadIdx.x; i < p.width; i += 256) {
        float v = x[i] - mean;
        squares = __fmaf_rn(v, v, squares);
    }
    float variance = block_sum<8>(squares, scratch) / (float)p.width;
    float scale = 1.0f / sqrtf(variance + p.eps);
    for (int i = threadIdx.x; i < p.width; i += 256) {
        float v = (x[i] - mean) * scale;
        out[i] = p.bias ? __fmaf_rn(v, p.weight[i], p.bias[i]) : v * p.weight[i];
    }
}
