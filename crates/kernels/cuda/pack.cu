// Rows of x as the right operand of gemm.cuh: halves in the order in which its threads meet weights.
//
// A row is multiplied with a power of two that brings its largest element to between 2^14 and 2^15, so that nothing becomes infinite
// and small rows keep their 11 bits; scales has what undoes it. Steps of 64 along K lie one after another, in each all places, 128
// bytes each. In step s of 128, lane c of gemm.cuh has four weights of a piece of V (halves.cuh): the first and the third meet elements 2 c
// and 2 c + 1 of the step, the others elements 2 c + 8 and 2 c + 9. Pieces of 16 bytes are placed as wgmma.cuh says.
// Beyond cols there are zeros up to a multiple of 128.
//
// Grid: (places), blocks of 256 threads.
#include "halves.cuh"
#include "params.cuh"

using namespace oxgpt;

extern "C" __global__ void __launch_bounds__(256) pack(const __grid_constant__ PackParams p) {
    __shared__ float maxima[8];
    int64_t place = blockIdx.x, row = place;
    if (p.order) {
        int slot = p.order[place];
        if (slot < 0) return;
        row = slot / p.slots_per_row;
    }
    const float* x = p.x + row * p.cols;
    float most = 0.0f;
    bool aligned = p.cols % 4 == 0;
    if (aligned) {
        for (int i = threadIdx.x; i < p.cols / 4; i += 256) {
            float4 v = ((const float4*)x)[i];
            most = fmaxf(fmaxf(fmaxf(most, fabsf(v.x)), fmaxf(fabsf(v.y), fabsf(v.z))), fabsf(v.w));
        }
    } else {
        for (int i = threadIdx.x; i < p.cols; i += 256) most = fmaxf(most, fabsf(x[i]));
    }
    most = warp_max(most);
    if (threadIdx.x % WARP == 0) maxima[threadIdx.x / WARP] = most;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 8; i++) most = fmaxf(most, maxima[i]);
    int exponent = min(max(14 - exponent_of(most), -126), 126);
    float scale = power_of_two(exponent);
    if (threadIdx.x == 0) p.scales[place] = power_of_two(-exponent);

    int steps = (p.cols + 127) / 128 * 8;
    for (int step = threadIdx.x; step < steps; step += 256) {
        int of_piece = p.piece / 4, k = step / 8 * 128 + step % 8 / of_piece * 4 * p.piece + step % of_piece * 4;
        float v[4][4];
#pragma unroll
        for (int c = 0; c < 4; c++) {
            int at = k + p.piece * c;
            if (aligned) {
                float4 four = at < p.cols ? *(const float4*)(x + at) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                v[c][0] = four.x, v[c][1] = four.y, v[c][2] = four.z, v[c][3] = four.w;
            } else {
#pragma unroll
                for (int i = 0; i < 4; i++) v[c][i] = at + i < p.cols ? x[at + i] : 0.0f;
            }
        }
        uint4 even, odd;
        even.x = pack_halves(v[0][0] * scale, v[0][2] * scale), odd.x = pack_halves(v[0][1] * scale, v[0][3] * scale);
        even.y = pack_halves(v[1][0] * scale, v[1][2] * scale), odd.y = pack_halves(v[1][1] * scale, v[1][3] * scale);
        even.z = pack_halves(v[2][0] * scale, v[2][2] * scale), odd.z = pack_halves(v[2][1] * scale, v[2][3] * scale);
        even.w = pack_halves(v[3][0] * scale, v[3][2] * scale), odd.w = pack_halves(v[3][1] * scale, v[3][3] * scale);
        uint4* to = (uint4*)p.tokens16 + ((int64_t)(step / 4) * p.places + place) * 8;
        int turn = (int)(place % 8), piece = step % 4 * 2;
        to[piece ^ turn] = even, to[(piece + 1) ^ turn] = odd;
    }
}
