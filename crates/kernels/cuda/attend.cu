// out = softmax(scale * q * keys) * values for each row and head, over the positions that the row sees.
//
// Scores may be capped (soft_cap * tanh(score / soft_cap)), positions limited to a window of the latest, and a head may
// have a sink: a logit that only adds to the denominator.
//
// A context is cut at multiples of 256 positions. A block of threads computes one such split for up to HEADS query heads
// that share a KV head: warp w takes the w-th KV block of the split, each lane one of its positions for the scores, then
// pairs of dimensions for the values. Splits are merged in their order, either by the block itself (attend_*), one after
// another, or by attend_merge from partials that a block for each split wrote (attend_*_split). Both do the same arithmetic,
// so the bits of a row depend on nothing but its own context.
//
// With `fresh`, the rows are new: queries and keys are turned on the way, and a block whose split has the row's own position
// stores its key and value first.
//
// Grid: (rows, KV heads * ceil(heads per KV head / HEADS), 1 or splits), blocks of 256 threads; attend_merge: (rows, heads),
// blocks of 128. PAIRS is the number of pairs of dimensions for each lane: padded_dim <= 64 PAIRS.
#include "kv.cuh"
#include "rotation.cuh"

namespace oxgpt {
namespace {

constexpr int SPLIT = 256, WARPS = SPLIT / BLOCK_POSITIONS;

// What is known of a row's softmax: the largest score, the sum of exponentials and one element of the weighted sum.
struct Merged {
    float max, sum, value;
    __device__ static Merged start(const float* sinks, int head) {
        // A sink is a score without a value.
        if (sinks) return {sinks[head], 1.0f, 0.0f};
        return {-CUDART_INF_F, 0.0f, 0.0f};
    }
    __device__ void add(float m, float s, float v) {
        float both = fmaxf(max, m);
        float old_weight = expf(max - both), new_weight = expf(m - both);
        sum = __fmaf_rn(s, new_weight, sum * old_weight);
        value = __fmaf_rn(v, new_weight, value * old_weight);
        max = both;
    }
};

__device__ __forceinline__ int first_visible(const AttendParams& p, int position) {
    return p.window ? max(position + 1 - p.window, 0) : 0;
}

template <class KV, int HEADS, int PAIRS, bool ONE_SPLIT> __device__ void attend(const AttendParams& p) {
    extern __shared__ float shared[];
    int dim = p.padded_dim;
    float* q = shared;                         // (HEADS, dim)
    float* weights = q + HEADS * dim;          // (WARPS, HEADS, 32)
    float* sums = weights + WARPS * HEADS * BLOCK_POSITIONS;  // (WARPS, HEADS, dim)
    float* warp_maxima = sums + WARPS * HEADS * dim;          // (WARPS, HEADS)
    float* warp_sums = warp_maxima + WARPS * HEADS;           // (WARPS, HEADS)

    wait_for_previous();
    launch_dependents();
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int64_t row = blockIdx.x;
    int group = p.heads / p.kv_heads, pieces = (group + HEADS - 1) / HEADS;
    int kv_head = blockIdx.y / pieces, first_head = kv_head * group + blockIdx.y % pieces * HEADS;
    int heads = min(HEADS, (kv_head + 1) * group - first_head);
    int position = p.positions[row], first = first_visible(p, position);
    int begin = first / SPLIT, end = position / SPLIT + 1;
    if (ONE_SPLIT) {
        if ((int)blockIdx.z < begin || (int)blockIdx.z >= end) return;
        begin = blockIdx.z, end = begin + 1;
    }
    const uint32_t* table = p.blocks + p.table_offsets[p.sequences[row]];

    const float* qkv = p.qkv + row * p.qkv_stride;
    const float* rotations = p.rotations ? p.rotations + row * 2 * p.pairs : nullptr;
    for (int i = threadIdx.x; i < HEADS * dim; i += blockDim.x) {
        int head = i / dim, d = i % dim;
        bool real = head < heads && d < p.head_dim;
        q[i] = real ? rotated(qkv + (first_head + head) * p.head_dim, d, rotations, p.pairs, p.interleaved) : 0.0f;
    }
    if (p.fresh && position / SPLIT < end) {
        int64_t start = kv_block<KV>(table[position / BLOCK_POSITIONS], p.kv_heads, kv_head, dim);
        const float* k = qkv + (p.heads + kv_head) * p.head_dim;
        const float* v = k + p.kv_heads * p.head_dim;
        int pieces = (dim + WARP - 1) / WARP;
        for (int i = warp; i < 2 * pieces; i += WARPS) {
            bool is_value = i >= pieces;
            int d = i % pieces * WARP + lane;
            float x = 0.0f;
            if (d < p.head_dim) x = is_value ? __ldcg(v + d) : rotated(k, d, rotations, p.pairs, p.interleaved);
            store_32((KV*)(is_value ? p.values : p.keys) + start, position % BLOCK_POSITIONS, d, x, is_value, dim);
        }
    }
    // Each thread carries these elements of (HEADS, dim) through the splits.
    constexpr int MINE = (HEADS * PAIRS * 64 + 255) / 256;
    Merged merged[MINE];
#pragma unroll
    for (int i = 0; i < MINE; i++) {
        int head = (threadIdx.x + i * 256) / dim;
        merged[i] = Merged::start(head < heads ? p.sinks : nullptr, first_head + head);
    }
    __syncthreads();

    for (int split = begin; split < end; split++) {
        int block = split * WARPS + warp, block_start = block * BLOCK_POSITIONS;
        bool active = block_start <= position && block_start + BLOCK_POSITIONS > first;
        int64_t start = active ? kv_block<KV>(table[block], p.kv_heads, kv_head, dim) : 0;
        float score[HEADS] = {};
        if (active) {
            const KV* keys = (const KV*)p.keys + start;
#pragma unroll 4
            for (int d = 0; d < dim; d += 8) {
                float k[8];
                key_8(keys, lane, d, dim, k);
#pragma unroll
                for (int h = 0; h < HEADS; h++) {
                    float4 a = *(const float4*)(q + h * dim + d), b = *(const float4*)(q + h * dim + d + 4);
                    score[h] = __fmaf_rn(a.x, k[0], score[h]), score[h] = __fmaf_rn(a.y, k[1], score[h]);
                    score[h] = __fmaf_rn(a.z, k[2], score[h]), score[h] = __fmaf_rn(a.w, k[3], score[h]);
                    score[h] = __fmaf_rn(b.x, k[4], score[h]), score[h] = __fmaf_rn(b.y, k[5], score[h]);
                    score[h] = __fmaf_rn(b.z, k[6], score[h]), score[h] = __fmaf_rn(b.w, k[7], score[h]);
                }
            }
        }
        int mine = block_start + lane;
        bool visible = active && mine >= first && mine <= position;
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            score[h] *= p.scale;
            if (p.soft_cap > 0.0f) score[h] = p.soft_cap * tanhf(score[h] / p.soft_cap);
            // What lies beyond the sequence was never written and may be anything.
            if (!visible) score[h] = -CUDART_INF_F;
            float most = warp_max(score[h]);
            if (lane == 0) warp_maxima[warp * HEADS + h] = most;
        }
        __syncthreads();
        float acc[HEADS][2 * PAIRS] = {};
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float most = warp_maxima[h];
#pragma unroll
            for (int w = 1; w < WARPS; w++) most = fmaxf(most, warp_maxima[w * HEADS + h]);
            float weight = visible ? expf(score[h] - most) : 0.0f;
            weights[(warp * HEADS + h) * BLOCK_POSITIONS + lane] = weight;
            float sum = warp_sum(weight);
            if (lane == 0) warp_sums[warp * HEADS + h] = sum;
        }
        __syncwarp();
        if (active) {
            const KV* values = (const KV*)p.values + start;
            int count = min(BLOCK_POSITIONS, position - block_start + 1);
#pragma unroll 8
            for (int i = 0; i < count; i++) {
                float2 v[PAIRS];
#pragma unroll
                for (int k = 0; k < PAIRS; k++) {
                    int d = 2 * (lane + WARP * k);
                    v[k] = d < dim ? value_2(values, i, d, dim) : make_float2(0.0f, 0.0f);
                }
#pragma unroll
                for (int h = 0; h < HEADS; h++) {
                    float weight = weights[(warp * HEADS + h) * BLOCK_POSITIONS + i];
#pragma unroll
                    for (int k = 0; k < PAIRS; k++) {
                        acc[h][2 * k] = __fmaf_rn(weight, v[k].x, acc[h][2 * k]);
                        acc[h][2 * k + 1] = __fmaf_rn(weight, v[k].y, acc[h][2 * k + 1]);
                    }
                }
            }
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
#pragma unroll
            for (int k = 0; k < PAIRS; k++) {
                int d = 2 * (lane + WARP * k);
                if (d < dim) *(float2*)(sums + (warp * HEADS + h) * dim + d) = make_float2(acc[h][2 * k], acc[h][2 * k + 1]);
            }
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < MINE; i++) {
            int element = threadIdx.x + i * 256, head = element / dim, d = element % dim;
            if (head >= heads) continue;
            float most = -CUDART_INF_F, sum = 0.0f, value = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                most = fmaxf(most, warp_maxima[w * HEADS + head]);
                sum += warp_sums[w * HEADS + head];
                value += sums[(w * HEADS + head) * dim + d];
            }
            if (ONE_SPLIT) {
                float* partial = p.partials + ((row * p.heads + first_head + head) * p.splits + split) * (dim + 2);
                partial[d] = value;
                if (d == 0) partial[dim] = most, partial[dim + 1] = sum;
            } else {
                merged[i].add(most, sum, value);
            }
        }
        __syncthreads();
    }
    if constexpr (!ONE_SPLIT) {
#pragma unroll
        for (int i = 0; i < MINE; i++) {
            int element = threadIdx.x + i * 256, head = element / dim, d = element % dim;
            if (head < heads && d < p.head_dim) {
                p.out[row * p.out_stride + (first_head + head) * p.head_dim + d] = merged[i].value / merged[i].sum;
            }
        }
    }
}

}  // namespace
}  // namespace oxgpt

using namespace oxgpt;

extern "C" __global__ void __launch_bounds__(128) attend_merge(const __grid_constant__ AttendParams p) {
    wait_for_previous();
    launch_dependents();
    int64_t row = blockIdx.x;
    int head = blockIdx.y, dim = p.padded_dim, position = p.positions[row];
    int begin = first_visible(p, position) / SPLIT, end = position / SPLIT + 1;
    for (int d = threadIdx.x; d < p.head_dim; d += blockDim.x) {
        Merged merged = Merged::start(p.sinks, head);
        for (int split = begin; split < end; split++) {
            const float* partial = p.partials + ((row * p.heads + head) * p.splits + split) * (dim + 2);
            merged.add(__ldcg(partial + dim), __ldcg(partial + dim + 1), __ldcg(partial + d));
        }
        p.out[row * p.out_stride + head * p.head_dim + d] = merged.value / merged.sum;
    }
}

#define ATTEND(name, KV, HEADS, PAIRS)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256) attend_##name##_##HEADS##_##PAIRS(const __grid_constant__ AttendParams p) { \
        attend<KV, HEADS, PAIRS, false>(p);                                                                                \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(256) attend_##name##_##HEADS##_##PAIRS##_split(                           \
        const __grid_constant__ AttendParams p) {                                                                          \
        attend<KV, HEADS, PAIRS, true>(p);                                                                                 \
    }
ATTEND(f32, float, 1, 1)
ATTEND(f32, float, 1, 2)
ATTEND(f32, float, 1, 4)
ATTEND(f32, float, 4, 1)
ATTEND(f32, float, 4, 2)
ATTEND(f32, float, 4, 4)
ATTEND(f32, float, 8, 1)
ATTEND(f32, float, 8, 2)
// Narrower heads in halves and in 8 bits are in attend_tensor.cuh.
ATTEND(f16, __half, 1, 4)
ATTEND(f16, __half, 4, 4)
ATTEND(q8, Q8, 1, 4)
ATTEND(q8, Q8, 4, 4)
