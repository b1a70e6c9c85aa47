#include "pixels/axis_weights.hpp"

#include <algorithm>
#include <numeric>

namespace omr {

AxisWeights axis_weights(std::size_t size_in, std::size_t size_out, Filter filter) {
    AxisWeights made;
    made.first.resize(size_out);
    if (size_in == size_out) {
        made.taps = 1;
        std::iota(made.first.begin(), made.first.end(), 0);
        made.weights.assign(size_out, std::int32_t{1} << precision_bits);
        return made;
    }
    const Coefficients by_output = coefficients(size_in, size_out, filter);
    const std::size_t taps = by_output.taps;
    made.taps = taps;
    made.weights.resize(taps * size_out);
    for (std::size_t i = 0; i < size_out; ++i) {
        // A window of `taps` that ends within the input: what lies before the first tap weighs 0.
        const std::size_t start = std::min<std::size_t>(by_output.first[i], size_in - taps);
        const std::size_t skipped = by_output.first[i] - start;
        made.first[i] = static_cast<std::int32_t>(start);
        for (std::size_t t = 0; t < by_output.count[i]; ++t) {
            made.weights[(t + skipped) * size_out + i] = by_output.weights[i * taps + t];
        }
    }
    return made;
}

}  // namespace omr
