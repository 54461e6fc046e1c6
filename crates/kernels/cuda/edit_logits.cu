// What comes before a token is chosen: biases and penalties of single tokens, and masks of the tokens that may be chosen.
#include "sampling.cuh"

using namespace oxgpt;

// Grid: (ceil(count / 256)), blocks of 256 threads; a thread takes one edit. No choice has two of one token.
extern "C" __global__ void edit_logits(const __grid_constant__ EditParams p) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.count) return;
    LogitEdit edit = p.edits[i];
    const ChoiceOptions& o = p.options[edit.choice];
    float* logit = p.logits + (int64_t)o.row * p.width + edit.token;
    float l = *logit;
    if (edit.what & EDIT_BIAS) l = __fadd_rn(l, edit.bias);
    if (edit.what & EDIT_OCCURRED) {
        l = l > 0.0f ? __fdiv_rn(l, o.repeat_penalty) : __fmul_rn(l, o.repeat_penalty);
        if (edit.generated > 0) {
            l = __fsub_rn(l, __fmul_rn(o.frequency_penalty, __uint2float_rn(edit.generated)));
            l = __fsub_rn(l, o.presence_penalty);
        }
    }
    *logit = edit.what & EDIT_FORBIDDEN ? -CUDART_INF_F : l;
}

// Grid: (ceil(width / 256), masks), blocks of 256 threads.
extern "C" __global__ void mask_logits(const __grid_constant__ MaskParams p) {
    int token = blockIdx.x * blockDim.x + threadIdx.x;
    if (token >= p.width) return;
    uint32_t word = p.words[(int64_t)blockIdx.y * p.words_each + token / 32];
    if (!(word >> token % 32 & 1)) p.logits[(int64_t)p.rows[blockIdx.y] * p.width + token] = -CUDART_INF_F;
}
