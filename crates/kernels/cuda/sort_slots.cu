// The slots of a mixture of experts by expert, and the tiles of tokens that gemm.cuh takes of them.
#include "params.cuh"

using namespace oxgpt;

// order: the slots from first_slot on, experts and slots ascending. tiles: (expert, first place in order, count) for up to
// tile_slots slots of one expert; unused tiles have no slots.
// Grid: (1), blocks of 1024 threads, 2 n_experts ints of shared memory.
extern "C" __global__ void __launch_bounds__(1024) sort_slots(const __grid_constant__ SortParams p) {
    extern __shared__ int counts[];
    int* starts = counts + p.n_experts;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    // Calls `f(slot, rank)` for each slot of an expert, in order; returns how many there are.
    auto for_slots = [&](int expert, auto f) {
        int count = 0;
        for (int s = p.first_slot; s < p.slots; s += WARP) {
            bool mine = s + lane < p.slots && p.experts[s + lane] == expert;
            unsigned all = __ballot_sync(ALL_LANES, mine);
            if (mine) f(s + lane, count + __popc(all & ((1u << lane) - 1)));
            count += __popc(all);
        }
        return count;
    };
    for (int e = warp; e < p.n_experts; e += warps) {
        int count = for_slots(e, [](int, int) {});
        if (lane == 0) counts[e] = count;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        int start = 0, tile = 0;
        for (int e = 0; e < p.n_experts; e++) {
            starts[e] = start;
            for (int done = 0; done < counts[e]; done += p.tile_slots, tile++) {
                int32_t* words = p.tiles + (int64_t)tile * TILE_WORDS;
                words[0] = e, words[1] = start + done, words[2] = min(p.tile_slots, counts[e] - done);
            }
            start += counts[e];
        }
        for (; tile < p.max_tiles; tile++) p.tiles[(int64_t)tile * TILE_WORDS + 2] = 0;
    }
    __syncthreads();
    for (int e = warp; e < p.n_experts; e += warps) {
        int start = starts[e];
        for_slots(e, [&](int slot, int rank) { p.order[start + rank] = slot; });
    }
}
