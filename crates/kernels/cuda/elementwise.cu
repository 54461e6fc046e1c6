// Sums and soft caps, element by element. Grid: (ceil(count / 256)), blocks of 256 threads.
#include "params.cuh"

using namespace oxgpt;

// out += x
extern "C" __global__ void add(const __grid_constant__ ElementwiseParams p) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.count) p.out[i] += p.x[i];
}

// out = cap * tanh(x / cap)
extern "C" __global__ void soft_cap(const __grid_constant__ ElementwiseParams p) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.count) p.out[i] = p.cap * tanhf(p.x[i] / p.cap);
}
