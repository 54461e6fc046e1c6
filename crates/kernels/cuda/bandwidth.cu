// Reads memory and nothing else, to measure how fast it delivers.
//
// Grid: any, blocks of 512 threads; each thread keeps eight reads of 16 bytes on their way.
#include "params.cuh"

using namespace oxgpt;

extern "C" __global__ void __launch_bounds__(512) read_all(const __grid_constant__ BandwidthParams p) {
    constexpr int AHEAD = 8;
    int64_t stride = (int64_t)gridDim.x * blockDim.x, i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t all = 0;
    for (; i + (AHEAD - 1) * stride < p.pieces; i += AHEAD * stride) {
        uint4 v[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) v[k] = stream_16(p.data + (i + k * stride) * 16);
#pragma unroll
        for (int k = 0; k < AHEAD; k++) all ^= v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
    }
    for (; i < p.pieces; i += stride) {
        uint4 v = stream_16(p.data + i * 16);
        all ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    // Keeps the compiler from dropping the reads, and lets a test see that nothing was left out.
    atomicXor(p.out, all);
}
