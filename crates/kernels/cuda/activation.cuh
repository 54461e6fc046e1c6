// The elementary functions of feed-forward parts.
#pragma once
#include "params.cuh"

namespace oxgpt {

// In the order of `Activation` in src/activate.rs.
enum Kind { GELU_ERF, GELU_TANH, GELU_SIGMOID, RELU, SILU, TANH, CLAMPED_SWIGLU };

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ __forceinline__ float activation(float x, int kind) {
    switch (kind) {
        case GELU_ERF: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
        // (1 + tanh(y)) / 2 = sigmoid(2 y), which loses nothing where they are small, and takes fewer instructions.
        case GELU_TANH: return x * sigmoid(1.59576912160573072f * (x + 0.044715f * x * x * x));
        case GELU_SIGMOID: return x * sigmoid(1.702f * x);
        case RELU: return fmaxf(x, 0.0f);
        case SILU: return x * sigmoid(x);
        default: return tanhf(x);
    }
}

// activation(gate) * up, or the clamped SwiGLU.
__device__ __forceinline__ float gated(float gate, float up, int kind, float limit, float alpha) {
    if (kind != CLAMPED_SWIGLU) return activation(gate, kind) * up;
    // gpt-oss: the gate is clamped from above alone, and one is added to the other factor.
    gate = fminf(gate, limit);
    up = fminf(fmaxf(up, -limit), limit);
    return gate * sigmoid(alpha * gate) * (up + 1.0f);
}

}  // namespace oxgpt
