// out = activation(gate), or out = activation(gate) * up, element by element.
//
// Grid: (ceil(width / 256), rows), blocks of 256 threads. out may be neither gate nor up, unless the strides agree.
#include "activation.cuh"

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
    *out = gated(gate, p.up[row * p.up_stride + i], p.kind, p.limit, p.alpha);
}
