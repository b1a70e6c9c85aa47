// Coefficients as a GPU's kernels take them: by tap, every tap within the input.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pixels/coefficients.hpp"

namespace omr {

// Output i is the sum over t < taps of weights[t * size_out + i] * input[first[i] + t], rounded;
// first[i] + taps <= size_in. Taps that an output has not weigh 0.
struct AxisWeights {
    std::size_t taps = 0;
    std::vector<std::int32_t> first;
    std::vector<std::int32_t> weights;
};

// size_in, size_out: pixels, at least 1. Equal sizes are a pass that is skipped: one tap of weight
// one.
AxisWeights axis_weights(std::size_t size_in, std::size_t size_out, Filter filter);

}  // namespace omr
