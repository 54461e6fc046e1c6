// Products of many tokens, see gemm.cuh, for the types of one file each of matvec_*.cu.
#include "gemm.cuh"

OXGPT_PLAIN_TYPES(OXGPT_GEMM)
