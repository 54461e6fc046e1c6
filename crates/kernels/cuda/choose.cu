// Chooses the token of each row of logits, as docs/sampling.md has it: the same token as the CPU's sampler.
//
// Up to MOST_SLICES blocks take a row, each a slice of it; on compute capability 9.0 they are a cluster, before that it is one.
// What they exchange are maxima and sums of integers, so the choice does not depend on how many they are.
//
// Top-k and top-p keep a prefix of one order (`candidate`), which is found digit by digit: candidates that agree with the digits
// found so far are sorted into bins by the next one, and the prefix ends in the first bin with which the sum reaches what is asked.
//
// Grid: (slices, choices), blocks of 1024 threads, slice floats of shared memory with `keeps`; scratch holds anything.
#include "sampling.cuh"

namespace oxgpt {
namespace {

constexpr int CHOOSE_THREADS = 1024, CHOOSE_WARPS = CHOOSE_THREADS / WARP, BINS_EACH = BINS / CHOOSE_THREADS;

// Waits for all threads of the blocks of a row; what they wrote before is seen after it.
__device__ __forceinline__ void row_barrier() {
#if __CUDA_ARCH__ >= 900
    if (gridDim.x > 1) {
        asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
        return;
    }
#endif
    __syncthreads();
}

struct Shared {
    uint64_t bins[BINS];
    uint64_t partials[CHOOSE_WARPS];
    // The bin in which the prefix ends: the sum before it, and its own.
    uint32_t bin;
    uint64_t before, inside;
};

// The largest of a row. `exchange` has MOST_SLICES words for this alone.
__device__ uint64_t row_largest(uint64_t value, Shared& s, uint64_t* exchange) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(ALL_LANES, value, offset));
    if (threadIdx.x % WARP == 0) s.partials[threadIdx.x / WARP] = value;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 0; i < CHOOSE_WARPS; i++) value = max(value, s.partials[i]);
        __stcg((unsigned long long*)exchange + blockIdx.x, value);
    }
    row_barrier();
    value = 0;
    for (int i = 0; i < gridDim.x; i++) value = max(value, (uint64_t)__ldcg((const unsigned long long*)exchange + i));
    return value;
}

// Adds each lane's value, below 2^41, to its bin, if it has one. All lanes of a warp take part.
__device__ __forceinline__ void add_to_bins(uint64_t* bins, bool there, uint32_t bin, uint64_t value) {
    // Bins are few where most values are: lanes of the same bin are summed first.
    unsigned left = __ballot_sync(ALL_LANES, there);
    while (left) {
        uint32_t first = __shfl_sync(ALL_LANES, bin, __ffs(left) - 1);
        unsigned same = __ballot_sync(ALL_LANES, there && bin == first);
        bool mine = same >> threadIdx.x % WARP & 1;
        uint32_t low = __reduce_add_sync(ALL_LANES, mine ? (uint32_t)value & 0xfffffu : 0);
        uint32_t high = __reduce_add_sync(ALL_LANES, mine ? (uint32_t)(value >> 20) : 0);
        if (threadIdx.x % WARP == 0) atomicAdd((unsigned long long*)bins + first, ((unsigned long long)high << 20) + low);
        left &= ~same;
    }
}

// Sums all bins, and finds the first with which the sum reaches `needed(sum of all)`.
template <class Needed> __device__ uint64_t find_bin(const uint64_t* bins, Shared& s, Needed&& needed) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    uint64_t mine[BINS_EACH], sum = 0;
#pragma unroll
    for (int i = 0; i < BINS_EACH; i++) {
        mine[i] = __ldcg((const unsigned long long*)bins + threadIdx.x * BINS_EACH + i);
        sum += mine[i];
    }
    uint64_t through = sum;  // of this thread and those before it
#pragma unroll
    for (int offset = 1; offset < WARP; offset *= 2) {
        uint64_t other = __shfl_up_sync(ALL_LANES, through, offset);
        if (lane >= offset) through += other;
    }
    if (lane == WARP - 1) s.partials[warp] = through;
    __syncthreads();
    uint64_t before = through - sum, total = 0;
    for (int i = 0; i < CHOOSE_WARPS; i++) {
        if (i < warp) before += s.partials[i];
        total += s.partials[i];
    }
    uint64_t asked = needed(total);
#pragma unroll
    for (int i = 0; i < BINS_EACH; i++) {
        if (before < asked && before + mine[i] >= asked) {
            s.bin = threadIdx.x * BINS_EACH + i;
            s.before = before, s.inside = mine[i];
        }
        before += mine[i];
    }
    __syncthreads();
    return asked;
}

// The slice that a block has of a row.
struct Slice {
    const float* logits;
    const float* kept;  // the same scaled, or null
    uint64_t* bins;     // of the row, three times BINS
    float most, temperature;
    uint32_t first;  // token
    int count;
    int passes;  // that bins were filled in

    __device__ __forceinline__ float scale(float logit) const {
        return logit == most ? 0.0f : __fdiv_rn(__fsub_rn(logit, most), temperature);
    }
    __device__ __forceinline__ float z(int i) const { return kept ? kept[i] : scale(__ldcg(logits + i)); }
};

// The last candidate of the shortest prefix whose measures sum to `needed(sum of all)`, which is at least 1 and at most that sum.
// Candidates of one z have one measure, or none.
template <class Measure, class Needed>
__device__ uint64_t last_of_prefix(Slice& row, Shared& s, Measure&& measure, Needed&& needed) {
    // The bits of z but for its sign, then those of the token.
    constexpr int SHIFTS[] = {42, 32, 22, 11, 0}, WIDTHS[] = {11, 10, 10, 11, 11};
    uint64_t prefix = 0, asked = 0;
    for (int digit = 0; digit < 5; digit++) {
        int shift = SHIFTS[digit], width = WIDTHS[digit];
        for (int i = threadIdx.x; i < BINS; i += CHOOSE_THREADS) s.bins[i] = 0;
        __syncthreads();
        for (int start = 0; start < row.count; start += CHOOSE_THREADS) {
            int i = start + threadIdx.x;
            uint64_t c = i < row.count ? candidate(row.z(i), row.first + i) : 0;
            uint64_t value = i < row.count && c >> (shift + width) == prefix ? measure(c) : 0;
            add_to_bins(s.bins, value > 0, (uint32_t)(c >> shift) & ((1 << width) - 1), value);
        }
        __syncthreads();
        // Bins of three passes take turns: these are filled, those of the pass before may still be read, and the next become zeros.
        uint64_t* now = row.bins + row.passes % 3 * BINS;
        uint64_t* next = row.bins + (row.passes + 1) % 3 * BINS;
        for (int i = threadIdx.x; i < BINS; i += CHOOSE_THREADS) {
            if (s.bins[i]) atomicAdd((unsigned long long*)now + i, (unsigned long long)s.bins[i]);
            if (blockIdx.x == 0) __stcg((unsigned long long*)next + i, 0ull);
        }
        row.passes++;
        row_barrier();
        asked = find_bin(now, s, [&](uint64_t sum) { return digit == 0 ? needed(sum) : asked; });
        prefix = prefix << width | s.bin;
        asked -= s.before;
        if (shift == TOKEN_BITS) {
            // All of one z, so of one measure: often it is one candidate, or all of them are needed.
            uint64_t each = measure(prefix << TOKEN_BITS);
            if ((asked + each - 1) / each * each == s.inside) return prefix << TOKEN_BITS | ((1u << TOKEN_BITS) - 1);
        }
    }
    return prefix;
}

}  // namespace
}  // namespace oxgpt

extern "C" __global__ void __launch_bounds__(1024) choose(const __grid_constant__ oxgpt::ChooseParams p) {
    using namespace oxgpt;
    extern __shared__ float kept[];
    __shared__ Shared s;
    const ChoiceOptions o = p.options[blockIdx.y];
    uint64_t* bins = p.scratch + (int64_t)blockIdx.y * CHOOSE_SCRATCH;
    uint64_t* exchange = bins + 3 * BINS;
    auto answer = [&](uint32_t chosen) {
        if (blockIdx.x == 0 && threadIdx.x == 0) p.chosen[blockIdx.y] = chosen, p.answers[blockIdx.y] = chosen;
    };

    Slice slice;
    slice.first = blockIdx.x * p.slice;
    slice.count = max(0, min(p.slice, p.width - (int)slice.first));
    slice.logits = p.logits + (int64_t)o.row * p.width + slice.first;
    uint64_t best = 0;
#pragma unroll 8
    for (int i = threadIdx.x; i < slice.count; i += CHOOSE_THREADS) {
        float logit = __ldcg(slice.logits + i);
        if (p.keeps) kept[i] = logit;
        best = max(best, ranked(logit, slice.first + i));
    }
    if (blockIdx.x == 0) {
        for (int i = threadIdx.x; i < BINS; i += CHOOSE_THREADS) __stcg((unsigned long long*)bins + i, 0ull);
    }
    best = row_largest(best, s, exchange);
    uint32_t order = (uint32_t)(best >> 32);
    if (order == ordered(CUDART_NAN_F)) return answer(NOT_A_NUMBER | ranked_token(best));
    if (order == ordered(-CUDART_INF_F)) return answer(NO_CANDIDATE);
    if (o.temperature == 0.0f) return answer(ranked_token(best));

    slice.bins = bins, slice.passes = 0, slice.kept = nullptr;
    slice.most = from_ordered(order), slice.temperature = o.temperature;
    if (p.keeps) {
        // Each thread its own, and others look at them only after a barrier.
        for (int i = threadIdx.x; i < slice.count; i += CHOOSE_THREADS) kept[i] = slice.scale(kept[i]);
        slice.kept = kept;
        __syncthreads();
    }
    uint64_t last = ~0ull;
    if (o.top_k > 0 && o.top_k < (uint32_t)p.width) {
        last = last_of_prefix(slice, s, [](uint64_t) { return (uint64_t)1; }, [&](uint64_t) { return (uint64_t)o.top_k; });
    }
    if (o.top_p < 1ull << 32) {
        auto weight = [&](uint64_t c) { return c <= last ? softmax_weight(candidate_z(c)) : 0; };
        // The part of the sum, rounded up.
        auto needed = [&](uint64_t sum) {
            uint64_t high = __umul64hi(sum, o.top_p), low = sum * o.top_p;
            return max((uint64_t)1, (high << 32) + (low >> 32) + ((uint32_t)low != 0));
        };
        uint64_t last_of_sum = last_of_prefix(slice, s, weight, needed);
        last = min(last, last_of_sum);
    }

    // The highest sum of scaled logit and noise. Where the highest noise would not do, none is computed.
    uint32_t words[4], token = ranked_token(best);
    noise_words(o, token / 4, words);
    float bound = gumbel(words[token % 4]);
    uint64_t winner = ranked(bound, token);
    for (int i = 4 * threadIdx.x; i < slice.count; i += 4 * CHOOSE_THREADS) {
        float z[4];
        bool any = false;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            z[k] = i + k < slice.count ? slice.z(i + k) : -CUDART_INF_F;
            bool drawn = z[k] >= o.floor && candidate(z[k], slice.first + i + k) <= last && __fadd_rn(z[k], NOISE_BOUND) >= bound;
            if (!drawn) z[k] = -CUDART_INF_F;
            any |= drawn;
        }
        if (!any) continue;
        noise_words(o, (slice.first + i) / 4, words);
#pragma unroll
        for (int k = 0; k < 4; k++) winner = max(winner, ranked(__fadd_rn(z[k], gumbel(words[k])), slice.first + i + k));
    }
    answer(ranked_token(row_largest(winner, s, exchange + MOST_SLICES)));
}
