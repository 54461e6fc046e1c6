// Rows of x, normed or as they are, as the right operand of gemm.cuh: halves in the order in which its threads meet weights.
//
// A row is multiplied with a power of two that brings its largest element to between 2^14 and 2^15, so that nothing becomes infinite
// and small rows keep their 11 bits; scales has what undoes it. Steps of 64 along K lie one after another, in each all places, 128
// bytes each. In step s of 128, lane c of gemm.cuh has four weights of a piece of V (halves.cuh): the first and the third meet elements 2 c
// and 2 c + 1 of the step, the others elements 2 c + 8 and 2 c + 9. Pieces of 16 bytes are placed as wgmma.cuh says.
// Beyond cols there are zeros up to a multiple of 128.
//
// Grid: (places), blocks of 256 threads, 16 bytes of shared memory for four elements of a padded row.
#include "halves.cuh"
#include "row.cuh"

using namespace oxgpt;

extern "C" __global__ void __launch_bounds__(256) pack(const __grid_constant__ PackParams p) {
    extern __shared__ float4 staged[];
    __shared__ float maxima[8];
    __shared__ __align__(16) float scratch[2 * ROW_WARPS];
    wait_for_previous();
    launch_dependents();
    int64_t place = blockIdx.x, row = place;
    if (p.order) {
        int slot = __ldcg(p.order + place);
        if (slot < 0) return;
        row = slot / p.slots_per_row;
    }
    const float* x = p.x + row * p.cols;
    bool aligned = p.cols % 4 == 0;
    int steps = (p.cols + 127) / 128 * 8;
    float most = 0.0f;
    for (int i = threadIdx.x; i < 4 * steps; i += 256) {
        float4 v = row_piece(x, i, p.cols, aligned);
        staged[i] = v, most = fmaxf(most, largest(v));
    }
    if (p.norm_weight) {
        // Each thread reads what it wrote itself.
        int pieces = (p.cols + 3) / 4;
        RowScale s = row_scale<2>(p.cols, p.centered, p.eps, scratch, [&](auto&& f) {
            for (int start = 0; start < pieces; start += ROW_THREADS) {
                for_pieces<2, 1>([&](int v, int, int i) {
                    if (start + i < pieces) f(v, start + i, staged[start + i]);
                });
            }
        });
        most = 0.0f;
        for (int i = threadIdx.x; i < pieces; i += 256) {
            float4 weight = row_piece(p.norm_weight, i, p.cols, aligned), bias = {};
            if (p.norm_bias) bias = row_piece(p.norm_bias, i, p.cols, aligned);
            float4 v = normed(staged[i], s, weight, bias, p.norm_bias);
            // Beyond the end stay zeros.
            int count = p.cols - 4 * i;
            if (count < 4) v = make_float4(v.x, count > 1 ? v.y : 0.0f, count > 2 ? v.z : 0.0f, 0.0f);
            staged[i] = v, most = fmaxf(most, largest(v));
        }
    }
    most = warp_max(most);
    if (threadIdx.x % WARP == 0) maxima[threadIdx.x / WARP] = most;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 8; i++) most = fmaxf(most, maxima[i]);
    int exponent = min(max(14 - exponent_of(most), -126), 126);
    float scale = power_of_two(exponent);
    if (threadIdx.x == 0) p.scales[place] = power_of_two(-exponent);

    for (int step = threadIdx.x; step < steps; step += 256) {
        int of_piece = p.piece / 4, first = step / 8 * 32 + step % 8 / of_piece * p.piece + step % of_piece;
        float4 v[4];
#pragma unroll
        for (int c = 0; c < 4; c++) v[c] = staged[first + of_piece * c];
        uint4 even, odd;
        even.x = pack_halves(v[0].x * scale, v[0].z * scale), odd.x = pack_halves(v[0].y * scale, v[0].w * scale);
        even.y = pack_halves(v[1].x * scale, v[1].z * scale), odd.y = pack_halves(v[1].y * scale, v[1].w * scale);
        even.z = pack_halves(v[2].x * scale, v[2].z * scale), odd.z = pack_halves(v[2].y * scale, v[2].w * scale);
        even.w = pack_halves(v[3].x * scale, v[3].z * scale), odd.w = pack_halves(v[3].y * scale, v[3].w * scale);
        uint4* to = (uint4*)p.tokens16 + ((int64_t)(step / 4) * p.places + place) * 8;
        int turn = (int)(place % 8), piece = step % 4 * 2;
        to[piece ^ turn] = even, to[(piece + 1) ^ turn] = odd;
    }
}
