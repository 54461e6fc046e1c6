// tokens[r] = chosen[follows[r]]: tokens that were chosen here and go on without the host.
//
// Grid: (ceil(rows / 128)), blocks of 128 threads.
#include "sampling.cuh"

extern "C" __global__ void follow_chosen(const __grid_constant__ oxgpt::FollowParams p) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= p.rows || p.follows[row] == oxgpt::FOLLOWS_NONE) return;
    // What went wrong in place of a token is above all tokens; the host finds it, and looks at nothing that comes of this row.
    uint32_t token = p.chosen[p.follows[row]];
    p.tokens[row] = token < (uint32_t)p.vocab_size ? token : 0;
}
