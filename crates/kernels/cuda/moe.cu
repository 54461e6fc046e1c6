// Mixture of experts: which experts a row goes to, which rows meet an expert's weights, and the weighted sum at the end.
//
// A slot is one of the top_k choices of a row: slot = row * top_k + choice. The products between are matvec.cuh's, with
// groups; a group is (expert, count, up to 8 slots), GROUP_WORDS words.
#include "matvec.cuh"

using namespace oxgpt;

namespace {

// The top_k largest logits of a row, the lowest expert among equals, and their softmax, by one warp with n_experts floats of
// shared memory.
__device__ __forceinline__ void route_row(const RouteParams& p, int64_t row, float* logits) {
    int lane = threadIdx.x % WARP;
    float most = -CUDART_INF_F;
    for (int i = lane; i < p.n_experts; i += WARP) {
        logits[i] = __ldcg(p.logits + row * p.n_experts + i);
        most = fmaxf(most, logits[i]);
    }
    most = warp_max(most);
    __syncwarp();
    // The sum over all experts, where the softmax comes first.
    float all = 0.0f;
    if (p.softmax_before) {
        for (int i = lane; i < p.n_experts; i += WARP) all += expf(logits[i] - most);
        all = warp_sum(all);
    }
    float chosen_sum = 0.0f;
    for (int k = 0; k < p.top_k; k++) {
        float best = -CUDART_INF_F;
        int expert = p.n_experts;
        for (int i = lane; i < p.n_experts; i += WARP) {
            if (logits[i] > best) best = logits[i], expert = i;
        }
#pragma unroll
        for (int offset = WARP / 2; offset > 0; offset /= 2) {
            float other = __shfl_xor_sync(ALL_LANES, best, offset);
            int other_expert = __shfl_xor_sync(ALL_LANES, expert, offset);
            if (other > best || (other == best && other_expert < expert)) best = other, expert = other_expert;
        }
        // A row of NaN chooses nothing; it goes on with NaN, which shows in the logits.
        float weight = expert < p.n_experts ? expf(best - most) : CUDART_NAN_F;
        if (expert >= p.n_experts) expert = k;
        chosen_sum += weight;
        if (lane == 0) {
            p.experts[row * p.top_k + k] = expert;
            p.weights[row * p.top_k + k] = weight;
            logits[expert] = -CUDART_INF_F;
        }
        __syncwarp();
    }
    float sum = p.softmax_before && !p.renormalize ? all : chosen_sum;
    for (int k = lane; k < p.top_k; k += WARP) p.weights[row * p.top_k + k] /= sum;
}

// Groups of up to group_size slots of one expert, experts and slots ascending; unused groups have no slots. By a block,
// with n_experts + 1 ints of shared memory.
__device__ __forceinline__ void gather_slots(const GroupParams& p, int* first_group) {
    if (p.group_size == 1) {
        // Of one row, whose slots have an expert each: nothing to gather.
        for (int s = threadIdx.x; s < p.slots; s += blockDim.x) {
            int32_t* group = p.groups + (int64_t)s * GROUP_WORDS;
            group[0] = __ldcg(p.experts + s), group[1] = 1, group[2] = s;
        }
        return;
    }
    for (int e = threadIdx.x; e < p.n_experts; e += blockDim.x) {
        int count = 0;
        for (int s = 0; s < p.slots; s++) count += __ldcg(p.experts + s) == e;
        first_group[e + 1] = (count + p.group_size - 1) / p.group_size;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        first_group[0] = 0;
        for (int e = 0; e < p.n_experts; e++) first_group[e + 1] += first_group[e];
    }
    __syncthreads();
    for (int e = threadIdx.x; e < p.n_experts; e += blockDim.x) {
        int32_t* group = p.groups + (int64_t)first_group[e] * GROUP_WORDS;
        int count = 0;
        for (int s = 0; s < p.slots; s++) {
            if (__ldcg(p.experts + s) != e) continue;
            if (count == p.group_size) {
                group[0] = e, group[1] = count;
                group += GROUP_WORDS, count = 0;
            }
            group[2 + count++] = s;
        }
        if (count > 0) group[0] = e, group[1] = count;
    }
    for (int g = first_group[p.n_experts] + threadIdx.x; g < p.max_groups; g += blockDim.x) {
        p.groups[(int64_t)g * GROUP_WORDS] = 0;
        p.groups[(int64_t)g * GROUP_WORDS + 1] = 0;
    }
}

// The logits of experts as `matvec` computes them, then `route` and `group_slots` by the block that is the last to end.
template <int TYPE, int TOKENS> __device__ __forceinline__ void product_and_routes(const RouterParams& p) {
    extern __shared__ __align__(16) char dynamic[];
    __shared__ bool last;
    matvec<TYPE, TOKENS, 1>(p.product);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(p.arrived, 1) == gridDim.x * gridDim.y - 1;
    __syncthreads();
    if (!last) return;
    // For the next launch.
    if (threadIdx.x == 0) *p.arrived = 0;
    __threadfence();
    for (int row = threadIdx.x / WARP; row < p.route.rows; row += blockDim.x / WARP) {
        route_row(p.route, row, (float*)dynamic + row * p.route.n_experts);
    }
    __syncthreads();
    gather_slots(p.group, (int*)dynamic);
}

}  // namespace

// Grid: (rows), blocks of 32 threads, n_experts floats of shared memory.
extern "C" __global__ void __launch_bounds__(32) route(const __grid_constant__ RouteParams p) {
    extern __shared__ __align__(16) char dynamic[];
    wait_for_previous();
    launch_dependents();
    route_row(p, blockIdx.x, (float*)dynamic);
}

// Grid: (1), blocks of 256 threads, n_experts + 1 ints of shared memory.
extern "C" __global__ void __launch_bounds__(256) group_slots(const __grid_constant__ GroupParams p) {
    extern __shared__ __align__(16) char dynamic[];
    wait_for_previous();
    launch_dependents();
    gather_slots(p, (int*)dynamic);
}

// As the matvec kernels of one row or up to eight, with n_experts floats of shared memory for each row at least.
#define OXGPT_ROUTER(name, TYPE, TOKENS)                                                                                     \
    extern "C" __global__ void __launch_bounds__(512, TOKENS == 1 ? 2 : 1) router_##name##_##TOKENS(                         \
        const __grid_constant__ RouterParams p) {                                                                            \
        product_and_routes<TYPE, TOKENS>(p);                                                                                 \
    }
OXGPT_ROUTER(f32, F32, 1)
OXGPT_ROUTER(f32, F32, 8)
OXGPT_ROUTER(bf16, BF16, 1)
OXGPT_ROUTER(bf16, BF16, 8)
OXGPT_ROUTER(f16, F16, 1)
OXGPT_ROUTER(f16, F16, 8)

// out[r] += sum over k of weights[r][k] * x[r * top_k + k]. Grid: (ceil(width / 256), rows), blocks of 256 threads.
extern "C" __global__ void combine(const __grid_constant__ CombineParams p) {
    wait_for_previous();
    launch_dependents();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.width) return;
    int64_t row = blockIdx.y;
    float sum = 0.0f;
    for (int k = 0; k < p.top_k; k++) {
        int64_t slot = row * p.top_k + k;
        sum = __fmaf_rn(__ldcg(p.weights + slot), __ldcg(p.x + slot * p.width + i), sum);
    }
    p.out[row * p.width + i] += sum;
}
