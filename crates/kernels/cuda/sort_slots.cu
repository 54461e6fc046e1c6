// The slots of a mixture of experts by expert, and the tiles of tokens that gemm.cuh takes of them.
#include "params.cuh"

using namespace oxgpt;

// order: the slots from first_slot on, experts and slots ascending; the slots of an expert start at a multiple of eight, and places
// without a slot have -1. tiles: (expert, first place in order, count) for up to tile_slots slots of one expert; unused tiles have no
// slots.
//
// Each warp takes a run of the slots: first it counts them by expert, and when all places are known it writes them there.
// Grid: (1), blocks of whole warps, (warps + 1) * n_experts ints of shared memory.
extern "C" __global__ void __launch_bounds__(1024) sort_slots(const __grid_constant__ SortParams p) {
    extern __shared__ int shared[];
    wait_for_previous();
    launch_dependents();
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    int* counts = shared;  // (warps, n_experts), later places
    int* totals = counts + warps * p.n_experts;
    for (int i = threadIdx.x; i < (warps + 1) * p.n_experts; i += blockDim.x) shared[i] = 0;
    for (int i = threadIdx.x; i < p.places; i += blockDim.x) p.order[i] = -1;
    __syncthreads();
    int each = ((p.slots - p.first_slot + warps - 1) / warps + WARP - 1) / WARP * WARP;
    int begin = p.first_slot + warp * each, end = min(begin + each, p.slots);
    int* mine = counts + warp * p.n_experts;
    // Adds the slots to `mine`, and calls `f` with each and what its expert had there before.
    auto for_slots = [&](auto f) {
        for (int s = begin; s < end; s += WARP) {
            bool there = s + lane < end;
            int expert = there ? __ldcg(p.experts + s + lane) : -1;
            unsigned same = __match_any_sync(ALL_LANES, expert);
            int before = there ? mine[expert] : 0, rank = __popc(same & ((1u << lane) - 1));
            __syncwarp();
            if (there) f(s + lane, before + rank);
            if (there && rank == 0) mine[expert] = before + __popc(same);
            __syncwarp();
        }
    };
    for_slots([](int, int) {});
    __syncthreads();
    for (int e = threadIdx.x; e < p.n_experts; e += blockDim.x) {
        int sum = 0;
        for (int w = 0; w < warps; w++) {
            int count = counts[w * p.n_experts + e];
            counts[w * p.n_experts + e] = sum;
            sum += count;
        }
        totals[e] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        int start = 0, tile = 0;
        for (int e = 0; e < p.n_experts; e++) {
            int count = totals[e];
            for (int done = 0; done < count; done += p.tile_slots, tile++) {
                int32_t* words = p.tiles + (int64_t)tile * TILE_WORDS;
                words[0] = e, words[1] = start + done, words[2] = min(p.tile_slots, count - done);
            }
            totals[e] = start;
            start += (count + 7) / 8 * 8;
        }
        for (; tile < p.max_tiles; tile++) p.tiles[(int64_t)tile * TILE_WORDS + 2] = 0;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < warps * p.n_experts; i += blockDim.x) counts[i] += totals[i % p.n_experts];
    __syncthreads();
    for_slots([&](int slot, int place) { p.order[place] = slot; });
}
