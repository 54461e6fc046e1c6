// Products of a few tokens, see matvec.cuh, for the weight types that have a scale for each group of 32
// (see weights.cuh); in a file of their own to compile beside the others.
#include "matvec.cuh"

OXGPT_GROUP_TYPES(OXGPT_MATVEC)
