// Rotary positions.
//
// Pair i of a head turns by the angle position * frequencies[i], rounded to f32 as in the models' own code; sine and cosine
// are multiplied with the magnitude. Pair (a, b) becomes (a cos - b sin, b cos + a sin). A pair is elements i and i + pairs
// of a head, or 2 i and 2 i + 1 (interleaved).
#include "rotation.cuh"

using namespace oxgpt;

// out[r]: the cosines, then the sines of all pairs. Grid: (rows), blocks of 64 threads.
extern "C" __global__ void rotations(const __grid_constant__ RotationsParams p) {
    wait_for_previous();
    launch_dependents();
    int64_t row = blockIdx.x;
    const float* frequencies = p.long_frequencies && p.is_long[row] ? p.long_frequencies : p.frequencies;
    float* out = p.out + row * 2 * p.pairs;
    for (int i = threadIdx.x; i < p.pairs; i += blockDim.x) {
        float sine, cosine;
        sincosf((float)p.positions[row] * frequencies[i], &sine, &cosine);
        out[i] = cosine * p.magnitude;
        out[p.pairs + i] = sine * p.magnitude;
    }
}

// Turns the heads at the front of every row in place. Grid: (rows, ceil(heads * pairs / 256)), blocks of 256 threads.
extern "C" __global__ void rotate(const __grid_constant__ RotateParams p) {
    int64_t row = blockIdx.x;
    int i = blockIdx.y * blockDim.x + threadIdx.x, pair = i % p.pairs, head = i / p.pairs;
    if (head >= p.heads) return;
    float cosine = p.rotations[row * 2 * p.pairs + pair], sine = p.rotations[row * 2 * p.pairs + p.pairs + pair];
    float* start = p.qkv + row * p.stride + head * p.head_dim;
    float* first = start + (p.interleaved ? 2 * pair : pair);
    float* second = start + (p.interleaved ? 2 * pair + 1 : pair + p.pairs);
    float a = *first, b = *second;
    *first = rotated_first(a, b, cosine, sine);
    *second = rotated_second(a, b, cosine, sine);
}
