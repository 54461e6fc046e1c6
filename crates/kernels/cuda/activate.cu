// out = activation(gate), or out = activation(gate) * up, element by element.
//
// Grid: (ceil(width / 256), rows), blocks of 256 threads. out may be neither gate nor up, unless the strides agree.
#include "params.cuh"

namespace oxgpt {
namespace {

// In the order of `Activation` in src/activate.rs.
enum Kind { GELU_ERF, GELU_TANH, GELU_SIGMOID, RELU, SILU, TANH, CLAMPED_SWIGLU };

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ __forceinline__ float activation(float x, int kind) {
    switch (kind) {
        case GELU_ERF: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
        case GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
        case GELU_SIGMOID: return x * sigmoid(1.702f * x);
        case RELU: return fmaxf(x, 0.0f);
        case SILU: return x * sigmoid(x);
        default: return tanhf(x);
    }
}

}  // namespace
}  // namespace oxgpt

using namespace oxgpt;

extern "C" __global__ void activate(const __grid_constant__ ActivateParams p) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.width) return;
    int64_t row = blockIdx.y;
    float gate = p.gate[row * p.gate_stride + i];
    float* out = p.out + row * p.out_stride + i;
    if (!p.up) {
        *out = activation(gate, p.kind);
        return;
    }
    float up = p.up[row * p.up_stride + i];
    if (p.kind == CLAMPED_SWIGLU) {
        // gpt-oss: the gate is clamped from above alone, and one is added to the other factor.
        gate = fminf(gate, p.limit);
        up = fminf(fmaxf(up, -p.limit), p.limit);
        *out = gate * sigmoid(p.alpha * gate) * (up + 1.0f);
    } else {
        *out = activation(gate, p.kind) * up;
    }
}
