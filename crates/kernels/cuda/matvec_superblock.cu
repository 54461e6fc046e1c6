// Products of a few tokens, see matvec.cuh, for the weight types that have superblocks of 256
// (see weights.cuh); in a file of their own to compile beside the others.
#include "matvec.cuh"

OXGPT_SUPERBLOCK_TYPES(OXGPT_MATVEC)
