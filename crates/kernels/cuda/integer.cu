#include "integer.cuh"

OXGPT_INTEGER(q8_0, Q8_0)
OXGPT_INTEGER(mxfp4, MXFP4)
