#include "ring.cuh"

OXGPT_RING(f16, F16)
OXGPT_RING(q8_0, Q8_0)
OXGPT_RING(q4_k, Q4_K)
OXGPT_RING(mxfp4, MXFP4)
