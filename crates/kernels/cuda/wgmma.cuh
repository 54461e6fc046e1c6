// d += a * b on the tensor cores of Hopper, (64, N) = (64, 16) * (16, N): the four warps of a group together, asynchronously.
//
// Each warp has its sixteen rows of a, and of d, in registers as mma_f16 in mma.cuh has them, for as many columns. b lies in
// shared memory, rows of 64 halves along K in pieces of 16 bytes, piece i of row r at place i ^ r % 8; eight rows begin at a multiple
// of 1,024 bytes.
#pragma once
#include "mma.cuh"

namespace oxgpt {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// How an operand that begins there is described: 1,024 bytes from eight rows to the next, and the order of the pieces.
__device__ __forceinline__ uint64_t operand_descriptor(uint32_t address) {
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
// Registers that were written are seen by what is issued from here on.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until no more than N of the groups that were committed are under way.
template <int N> __device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

// The operands of the instruction: sums as registers, and their numbers in its text.
#define OXGPT_SUMS_8(i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define OXGPT_SUMS_16(i) OXGPT_SUMS_8(i), OXGPT_SUMS_8(i + 8)
#define OXGPT_SUMS_32(i) OXGPT_SUMS_8(i), OXGPT_SUMS_8(i + 8), OXGPT_SUMS_8(i + 16), OXGPT_SUMS_8(i + 24)
#define OXGPT_SUMS_64(i) OXGPT_SUMS_32(i), OXGPT_SUMS_32(i + 32)
#define OXGPT_SUMS_128(i) OXGPT_SUMS_64(i), OXGPT_SUMS_64(i + 64)
#define OXGPT_NUMBERS_8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define OXGPT_NUMBERS_16 OXGPT_NUMBERS_8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define OXGPT_NUMBERS_32 \
    OXGPT_NUMBERS_16 "," \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define OXGPT_NUMBERS_64 \
    OXGPT_NUMBERS_32 "," \
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
    "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define OXGPT_NUMBERS_128 \
    OXGPT_NUMBERS_64 "," \
    "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
    "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
    "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
    "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
// COLS columns, whose SUMS = COLS / 2 sums are operands 0 to SUMS - 1; the operands after them are a, and B, which is b.
#define OXGPT_WGMMA(COLS, SUMS, A, B)                                                                                      \
    template <> __device__ __forceinline__ void wgmma<COLS>(float (&d)[SUMS], const uint32_t (&a)[4], uint64_t b) {        \
        asm volatile("{.reg .pred yes; setp.eq.u32 yes, 0, 0;"                                                             \
                     "wgmma.mma_async.sync.aligned.m64n" #COLS "k16.f32.f16.f16 {" OXGPT_NUMBERS_##SUMS "}, {" A "}, " B   \
                     ", yes, 1, 1, 0;}"                                                                                    \
                     : OXGPT_SUMS_##SUMS(0)                                                                                \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                \
    }

template <int N> __device__ void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b);
OXGPT_WGMMA(16, 8, "%8,%9,%10,%11", "%12")
OXGPT_WGMMA(32, 16, "%16,%17,%18,%19", "%20")
OXGPT_WGMMA(64, 32, "%32,%33,%34,%35", "%36")
OXGPT_WGMMA(128, 64, "%64,%65,%66,%67", "%68")
OXGPT_WGMMA(256, 128, "%128,%129,%130,%131", "%132")
#endif

}  // namespace oxgpt
