// Products of a few tokens, see matvec.cuh, for the weight types that are plain numbers or bytes
// (see weights.cuh); in a file of their own to compile beside the others.
#include "matvec.cuh"

OXGPT_PLAIN_TYPES(OXGPT_MATVEC)
