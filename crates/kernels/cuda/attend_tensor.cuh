// out = softmax(scale * q * keys) * values as in attend.cu, with heads of up to 128 dimensions, on the tensor cores: as exactly as there,
// since queries and weights of values are the sums of two halves, 22 bits, and nothing else is rounded before it is summed in f32.
// attend_f16.cu has what a step does with keys and values in halves, attend_q8.cu with those in 8 bits.
//
// A block of threads takes up to eight query heads that share a KV head. They are the rows of the first operand, upper halves in
// rows 0 to 7 and lower ones in rows 8 to 15, so that one product has both. Keys and values go from memory straight into the
// registers that the second operand takes: which dimension or position a row of it stands for is free, as long as both operands have
// it in the same place, so each lane loads whole pieces. Keys of the next step are on their way while this one's values are
// weighed, and the other way around.
//
// A context is cut into chunks at fixed positions. In a chunk, warp w takes KV blocks w, w + 8, and so on, and carries the largest
// score, the sum and the weighted sum along; then the warps are merged in order, then the chunks of each SPAN, then these. Either a
// block does it all, one chunk after another (attend_tensor_*), or there is a block for each chunk, and those that end last of a span,
// and of the row, merge what the others left (attend_tensor_*_split). Both do the same arithmetic, so the bits of a row depend on
// nothing but its own context.
//
// With `fresh`, the rows are new: queries and keys are turned on the way, a block whose chunk has the row's own position stores its
// key and value, and takes them for that position in place of what it read there. So what it reads of positions, tables, keys and
// values is as the pass found it, and it does not wait for the launch before: a pass begins with launches that each wait for all before
// them.
//
// Grid: (rows, KV heads * ceil(heads per KV head / 8), 1 or chunks), blocks of 256 threads. DIM is padded_dim rounded up to 64 or
// 128, and equal to it if WHOLE.
#pragma once
#include "kv.cuh"
#include "mma.cuh"
#include "rotation.cuh"

namespace oxgpt {

// `src/params.rs` has the same structure.
struct AttendTensorParams {
    AttendParams attend;
    uint32_t* arrived;  // blocks whose partials are there, for each row and piece of heads; zero between launches
};
static_assert(sizeof(AttendTensorParams) == 152, "shared with src/params.rs");

namespace {

constexpr int STRANDS = 8, HEADS = 8;

// Chunks are short at first, so that multiprocessors share what there is of a short context, and then longer, so that there is less
// to merge. The positions where one begins are multiples of 32 STRANDS.
constexpr int SHORT_CHUNK = 512, SHORT_CHUNKS = 8, LONG_CHUNK = 1024;
// Chunks that are merged before they are merged with others.
constexpr int SPAN = 8;
__device__ __forceinline__ int chunk_of(int position) {
    int beyond = position - SHORT_CHUNKS * SHORT_CHUNK;
    return beyond < 0 ? position / SHORT_CHUNK : SHORT_CHUNKS + beyond / LONG_CHUNK;
}
// The first KV block of a chunk.
__device__ __forceinline__ int chunk_block(int chunk) {
    int beyond = chunk - SHORT_CHUNKS;
    int position = beyond < 0 ? chunk * SHORT_CHUNK : SHORT_CHUNKS * SHORT_CHUNK + beyond * LONG_CHUNK;
    return position / BLOCK_POSITIONS;
}

// What is known of a softmax: the largest score, the sum of exponentials and N elements of the weighted sum.
template <int N> struct Softmax {
    float max, sum, value[N];
    __device__ void start(bool sink, float score) {
        // A sink is a score without a value.
        max = sink ? score : -CUDART_INF_F, sum = sink ? 1.0f : 0.0f;
#pragma unroll
        for (int i = 0; i < N; i++) value[i] = 0.0f;
    }
    __device__ void add(const Softmax& other) {
        float both = fmaxf(max, other.max), zero = both == -CUDART_INF_F ? 0.0f : both;
        float old_weight = expf(max - zero), new_weight = expf(other.max - zero);
        max = both;
        sum = __fmaf_rn(other.sum, new_weight, sum * old_weight);
#pragma unroll
        for (int i = 0; i < N; i++) value[i] = __fmaf_rn(other.value[i], new_weight, value[i] * old_weight);
    }
};

template <class Step> struct AttendShared {
    static constexpr int DIM = Step::DIM;
    // Upper and lower halves of queries, rows 64 bytes further apart than they are long, for the banks.
    alignas(16) __half queries[2][HEADS][DIM + 32];
    typename Step::Own own;
    float factors[HEADS];
    float most[STRANDS][HEADS], sums[STRANDS][HEADS];
    alignas(16) float values[STRANDS][HEADS][DIM];
    bool last;
};

// Of a query, the operands of the two products with eight neighbouring dimensions for each four lanes, from d on.
__device__ __forceinline__ void query_operands(const __half* upper, const __half* lower, uint32_t (&first)[4], uint32_t (&second)[4]) {
    uint4 u = *(const uint4*)upper, l = *(const uint4*)lower;
    first[0] = u.x, first[1] = l.x, first[2] = u.y, first[3] = l.y;
    second[0] = u.z, second[1] = l.z, second[2] = u.w, second[3] = l.w;
}
// Two neighbouring weights of each eight positions, as the operand of upper and lower halves.
__device__ __forceinline__ void weight_operand(float (&x)[4], uint32_t (&a)[4]) {
#pragma unroll
    for (int t = 0; t < 2; t++) {
        __half2 upper = __floats2half2_rn(x[2 * t], x[2 * t + 1]);
        float2 rounded = __half22float2(upper);
        a[2 * t] = half2_bits(upper), a[2 * t + 1] = pack_halves(x[2 * t] - rounded.x, x[2 * t + 1] - rounded.y);
    }
}
// Adds the weighted values of 16 positions, of which a lane has four, in two neighbouring dimensions.
__device__ __forceinline__ void weigh_two(float (&even)[4], float (&odd)[4], const uint32_t (&a)[4], uint32_t v0, uint32_t v1, uint32_t v2, uint32_t v3) {
    mma_f16(even, a, __byte_perm(v0, v1, 0x5410), __byte_perm(v2, v3, 0x5410));
    mma_f16(odd, a, __byte_perm(v0, v1, 0x7632), __byte_perm(v2, v3, 0x7632));
}

template <class Step, bool SPLIT> struct Attend {
    using KV = typename Step::KV;
    static constexpr int DIM = Step::DIM, POSITIONS = Step::POSITIONS;
    static constexpr int STEPS = BLOCK_POSITIONS / POSITIONS, TILES = POSITIONS / 8, MINE = DIM / 32;
    // Of a partial result: the weighted sum, the largest score and the sum.
    static constexpr int STRIDE = DIM + 4;

    const AttendParams& p;
    uint32_t* arrived;
    AttendShared<Step>& shared;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, row_of_8 = lane / 4, column = lane % 4;
    int kv_head, first_head, heads, position, first, end_block;
    int64_t row = blockIdx.x;
    // What this lane has of keys and values, and of the weighted sum.
    Step lanes;

    __device__ Attend(const AttendTensorParams& p, AttendShared<Step>& shared) : p(p.attend), arrived(p.arrived), shared(shared) {}

    __device__ int dim() const { return Step::dim(p); }

    __device__ void run() {
        if (!p.fresh) wait_for_previous();
        int group = p.heads / p.kv_heads, pieces = (group + HEADS - 1) / HEADS;
        kv_head = blockIdx.y / pieces, first_head = kv_head * group + blockIdx.y % pieces * HEADS;
        heads = min(HEADS, (kv_head + 1) * group - first_head);
        position = p.positions[row], first = p.window ? max(position + 1 - p.window, 0) : 0;
        int last_block = position / BLOCK_POSITIONS, first_block = first / BLOCK_POSITIONS;
        int first_chunk = chunk_of(first), chunks = chunk_of(position) + 1 - first_chunk, chunk = first_chunk;
        int begin = first_block;
        end_block = last_block + 1;
        if (SPLIT) {
            chunk = blockIdx.z;
            if (chunk < first_chunk || chunk >= first_chunk + chunks) {
                if (p.fresh) wait_for_previous();
                launch_dependents();
                return;
            }
            begin = max(begin, chunk_block(chunk)), end_block = min(end_block, chunk_block(chunk + 1));
        }
        int last_chunk = SPLIT ? chunk : first_chunk + chunks - 1;
        const uint32_t* table = p.blocks + p.table_offsets[p.sequences[row]];

        // Of the blocks of this warp, each lane knows where one of the next 32 is.
        int block = begin + (warp - begin & STRANDS - 1), known = block;
        uint32_t places = known + STRANDS * lane < end_block ? table[known + STRANDS * lane] : 0;
        auto start_of = [&](int b) {
            if (b >= known + STRANDS * WARP) {
                known = b;
                places = known + STRANDS * lane < end_block ? table[known + STRANDS * lane] : 0;
            }
            return kv_block<KV>(__shfl_sync(ALL_LANES, places, (b - known) / STRANDS), p.kv_heads, kv_head, dim());
        };
        int64_t start = 0;
        if (block < end_block) start = start_of(block), lanes.load_keys(p, start, 0), lanes.load_values(p, start, 0);

        if (p.fresh) wait_for_previous();
        launch_dependents();
        bool own = p.fresh && position < end_block * BLOCK_POSITIONS;
        take_row(own, table);
        __syncthreads();

        // Thread by thread, head `warp` of those of the block, and MINE dimensions.
        Softmax<MINE> all, span, part;
        all.start(p.sinks && warp < heads, p.sinks && warp < heads ? p.sinks[first_head + warp] : 0.0f);
        span.start(false, 0.0f);
        for (; chunk <= last_chunk; chunk++) {
            strand(block, start, min(end_block, chunk_block(chunk + 1)), last_block, first_block, own, start_of);
            __syncthreads();
            part = merge_strands();
            if (SPLIT) break;
            span.add(part);
            if (chunk == last_chunk || chunk % SPAN == SPAN - 1) all.add(span), span.start(false, 0.0f);
            if (chunk < last_chunk) __syncthreads();
        }
        if (SPLIT) {
            int first_span = first_chunk / SPAN, spans = (first_chunk + chunks - 1) / SPAN + 1 - first_span, my_span = chunk / SPAN;
            int all_spans = (p.splits + SPAN - 1) / SPAN;
            int begin_chunk = max(first_chunk, my_span * SPAN), in_span = min(first_chunk + chunks, (my_span + 1) * SPAN) - begin_chunk;
            float* partials = p.partials + (row * p.heads + first_head + warp) * (p.splits + all_spans) * STRIDE;
            uint32_t* here = arrived + (row * gridDim.y + blockIdx.y) * (all_spans + 1);
            if (!gather(part, span, partials + begin_chunk * STRIDE, chunk - begin_chunk, in_span, here + 1 + my_span)) return;
            if (!gather(span, all, partials + (p.splits + first_span) * STRIDE, my_span - first_span, spans, here)) return;
        }
        if (warp < heads) {
            float* to = p.out + row * p.out_stride + (first_head + warp) * p.head_dim + lane * MINE;
#pragma unroll
            for (int i = 0; i < MINE; i++) {
                if (lane * MINE + i < p.head_dim) to[i] = all.value[i] / all.sum;
            }
        }
    }

    // Brings the queries to shared memory, by a warp for each head, each multiplied with a power of two so that its largest element is
    // between 2^14 and 2^15. With `own`, stores the key and the value of the row, and keeps them in shared memory too.
    __device__ void take_row(bool own, const uint32_t* table) {
        const float* qkv = p.qkv + row * p.qkv_stride;
        const float* rotations = p.rotations ? p.rotations + row * 2 * p.pairs : nullptr;
        float q[MINE], most = 0.0f;
#pragma unroll
        for (int i = 0; i < MINE; i++) {
            int d = lane + WARP * i;
            bool real = warp < heads && d < p.head_dim;
            q[i] = real ? rotated(qkv + (first_head + warp) * p.head_dim, d, rotations, p.pairs, p.interleaved) : 0.0f;
            most = fmaxf(most, fabsf(q[i]));
        }
        if (own && threadIdx.x < 2 * DIM) {
            bool is_value = threadIdx.x >= DIM;
            int d = threadIdx.x % DIM;
            const float* from = qkv + (p.heads + (is_value ? p.kv_heads : 0) + kv_head) * p.head_dim;
            float x = d < p.head_dim ? rotated(from, d, is_value ? nullptr : rotations, p.pairs, p.interleaved) : 0.0f;
            int64_t start = kv_block<KV>(table[position / BLOCK_POSITIONS], p.kv_heads, kv_head, dim());
            store_32((KV*)(is_value ? p.values : p.keys) + start, position % BLOCK_POSITIONS, d, x, is_value, dim());
            lanes.keep_own(shared.own, d, x, is_value);
        }
        most = warp_max(most);
        int exponent = min(max((int)(__float_as_uint(most) >> 23), 16), 253);
        float factor = __uint_as_float((uint32_t)(268 - exponent) << 23);
#pragma unroll
        for (int i = 0; i < MINE; i++) {
            __half upper = __float2half_rn(q[i] * factor);
            shared.queries[0][warp][lane + WARP * i] = upper;
            shared.queries[1][warp][lane + WARP * i] = __float2half_rn(q[i] * factor - __half2float(upper));
        }
        if (lane == 0) shared.factors[warp] = p.scale * __uint_as_float((uint32_t)(exponent - 14) << 23);
    }

    // Goes through this warp's blocks of a chunk, from `block` to before `end`, and leaves the result in shared memory. The keys and
    // values of the first step, which begin at `start`, are on their way, and so are those of the first of the next chunk in the end.
    template <class StartOf>
    __device__ void strand(int& block, int64_t& start, int end, int last_block, int first_block, bool own, StartOf& start_of) {
        float most = -CUDART_INF_F, sum = 0.0f, factor = shared.factors[row_of_8];
#pragma unroll
        for (int i = 0; i < DIM / 2; i++) lanes.out[i / 4][i % 4] = 0.0f;
        for (; block < end; block += STRANDS) {
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                bool is_last = block == last_block, more = step < STEPS - 1 || block + STRANDS < end_block;
                int next = (step + 1) % STEPS, start_position = block * BLOCK_POSITIONS + step * POSITIONS;
                if (is_last && own) lanes.take_own_key(shared.own, position - start_position);
                float weight[TILES][2];
                lanes.score(weight, &shared.queries[0][row_of_8][8 * column], &shared.queries[1][row_of_8][8 * column]);
                int64_t next_start = start;
                if (more) {
                    if (next == 0) next_start = start_of(block + STRANDS);
                    lanes.load_keys(p, next_start, next);
                }
                float best = -CUDART_INF_F;
#pragma unroll
                for (int t = 0; t < TILES; t++) {
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        weight[t][i] *= factor;
                        if (p.soft_cap > 0.0f) weight[t][i] = p.soft_cap * tanhf(weight[t][i] / p.soft_cap);
                    }
                }
                if (is_last || block == first_block) {
#pragma unroll
                    for (int t = 0; t < TILES; t++) {
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            // What lies beyond the sequence was never written and may be anything.
                            int at = start_position + 8 * t + 2 * column + i;
                            if (at < first || at > position) weight[t][i] = -CUDART_INF_F;
                        }
                    }
                }
#pragma unroll
                for (int t = 0; t < TILES; t++) best = fmaxf(best, fmaxf(weight[t][0], weight[t][1]));
                best = fmaxf(most, quad_max(best));
                float zero = best == -CUDART_INF_F ? 0.0f : best, old = expf(most - zero), added = 0.0f;
                most = best;
#pragma unroll
                for (int t = 0; t < TILES; t++) {
#pragma unroll
                    for (int i = 0; i < 2; i++) weight[t][i] = expf(weight[t][i] - zero), added += weight[t][i];
                }
                sum = __fmaf_rn(sum, old, added);
                // Most often no maximum changes; then there is nothing to multiply.
                if (__any_sync(ALL_LANES, old != 1.0f)) {
#pragma unroll
                    for (int i = 0; i < DIM / 2; i++) lanes.out[i / 4][i % 4] *= old;
                }
                if (is_last) lanes.take_own_value(shared.own, position - start_position, own);
                lanes.weigh(weight);
                if (more) lanes.load_values(p, next_start, next);
                start = next_start;
            }
        }
        sum = quad_sum(sum);
        if (column == 0) shared.most[warp][row_of_8] = most, shared.sums[warp][row_of_8] = sum;
        lanes.leave(shared.values[warp][row_of_8]);
    }

    __device__ Softmax<MINE> merge_strands() const {
        Softmax<MINE> part;
        part.start(false, 0.0f);
        float weights[STRANDS];
#pragma unroll
        for (int s = 0; s < STRANDS; s++) part.max = fmaxf(part.max, shared.most[s][warp]);
        float zero = part.max == -CUDART_INF_F ? 0.0f : part.max;
#pragma unroll
        for (int s = 0; s < STRANDS; s++) weights[s] = expf(shared.most[s][warp] - zero);
#pragma unroll
        for (int s = 0; s < STRANDS; s++) {
            part.sum = __fmaf_rn(shared.sums[s][warp], weights[s], part.sum);
            float value[MINE];
            if constexpr (MINE == 2) *(float2*)value = *(const float2*)&shared.values[s][warp][lane * MINE];
            if constexpr (MINE == 4) *(float4*)value = *(const float4*)&shared.values[s][warp][lane * MINE];
#pragma unroll
            for (int i = 0; i < MINE; i++) part.value[i] = __fmaf_rn(value[i], weights[s], part.value[i]);
        }
#pragma unroll
        for (int i = 0; i < MINE; i++) part.value[i] *= 1.0f / Step::WEIGHT_SCALE;
        return part;
    }

    // Adds `part`, the one of this block among `count`, and all others to `to`, in order, if this block is the last that comes here.
    // False for the others. `counter` has how many did.
    __device__ bool gather(const Softmax<MINE>& part, Softmax<MINE>& to, float* partials, int mine, int count, uint32_t* counter) {
        if (count == 1) {
            to.add(part);
            return true;
        }
        if (warp < heads) {
            float* at = partials + mine * STRIDE;
            if constexpr (MINE == 2) *(float2*)(at + lane * 2) = *(const float2*)part.value;
            if constexpr (MINE == 4) *(float4*)(at + lane * 4) = *(const float4*)part.value;
            if (lane == 0) *(float2*)(at + DIM) = make_float2(part.max, part.sum);
        }
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) shared.last = atomicAdd(counter, 1) == count - 1;
        __syncthreads();
        if (!shared.last) return false;
        // For the next launch.
        if (threadIdx.x == 0) *counter = 0;
        __threadfence();
        if (warp >= heads) return true;
        for (int c = 0; c < count; c += SPAN) {
            Softmax<MINE> some[SPAN];
#pragma unroll
            for (int i = 0; i < SPAN; i++) {
                const float* from = partials + min(c + i, count - 1) * STRIDE;
                if constexpr (MINE == 2) *(float2*)some[i].value = __ldcg((const float2*)from + lane);
                if constexpr (MINE == 4) *(float4*)some[i].value = __ldcg((const float4*)from + lane);
                float2 rest = __ldcg((const float2*)(from + DIM));
                some[i].max = rest.x, some[i].sum = rest.y;
            }
#pragma unroll
            for (int i = 0; i < SPAN; i++) {
                if (c + i < count) to.add(some[i]);
            }
        }
        return true;
    }
};

template <class Step, bool SPLIT> __device__ void attend_tensor(const AttendTensorParams& p) {
    __shared__ AttendShared<Step> shared;
    Attend<Step, SPLIT> attend(p, shared);
    attend.run();
}

}  // namespace
}  // namespace oxgpt

#define ATTEND_TENSOR(name, STEP, BLOCKS)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) attend_tensor_##name(const __grid_constant__ oxgpt::AttendTensorParams p) { \
        oxgpt::attend_tensor<oxgpt::STEP, false>(p);                                                                                \
    }                                                                                                                               \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) attend_tensor_##name##_split(                                         \
        const __grid_constant__ oxgpt::AttendTensorParams p) {                                                                      \
        oxgpt::attend_tensor<oxgpt::STEP, true>(p);                                                                                 \
    }
