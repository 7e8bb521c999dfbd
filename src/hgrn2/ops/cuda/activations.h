// Activations of inputs and output gates, and their slopes, with the fast exponential.
#pragma once
#include "device.h"

enum { NONE = 0, SILU = 1, SIGMOID = 2 };

DEVICE float sigmoid(float x) { return reciprocal(1.0f + exp2_fast(-1.4426950408889634f * x)); }
DEVICE float activate(float x, int kind) { return kind == NONE ? x : kind == SILU ? x * sigmoid(x) : sigmoid(x); }
DEVICE float activation_slope(float x, int kind) {
    if (kind == NONE) return 1.0f;
    float y = sigmoid(x), other = sigmoid(-x);
    return kind == SILU ? y * (1.0f + x * other) : y * other;
}
