// Compiled without fused multiply-add (see CMakeLists.txt): a weight may lie at the edge of
// rounding, and Pillow's binaries do not fuse.
#include "pixels/coefficients.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace omr {
namespace {

double triangle(double x) {
    x = std::abs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

double cubic(double x) {
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

double sinc(double x) {
    if (x == 0.0) return 1.0;
    x *= std::numbers::pi;
    return std::sin(x) / x;
}

double lanczos(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

double weigh(Filter filter, double x) {
    switch (filter) {
        case Filter::bilinear: return triangle(x);
        case Filter::bicubic: return cubic(x);
        case Filter::lanczos: return lanczos(x);
    }
    return 0.0;
}

double support_of(Filter filter) {
    switch (filter) {
        case Filter::bilinear: return 1.0;
        case Filter::bicubic: return 2.0;
        case Filter::lanczos: return 3.0;
    }
    return 0.0;
}

std::int32_t fixed(double weight) {
    const double scaled = weight * (1 << precision_bits);
    return static_cast<std::int32_t>(weight < 0 ? -0.5 + scaled : 0.5 + scaled);
}

}  // namespace

Coefficients coefficients(std::size_t size_in, std::size_t size_out, Filter filter) {
    const double scale = static_cast<double>(size_in) / static_cast<double>(size_out);
    const double stretch = std::max(scale, 1.0);
    const double support = support_of(filter) * stretch;
    const double step = 1.0 / stretch;
    const auto end = static_cast<std::int64_t>(size_in);

    Coefficients made;
    made.first.resize(size_out);
    made.count.resize(size_out);
    const std::size_t room = static_cast<std::size_t>(std::ceil(support)) * 2 + 1;
    std::vector<double> weights(size_out * room);
    for (std::size_t i = 0; i < size_out; ++i) {
        const double centre = (static_cast<double>(i) + 0.5) * scale;
        const auto first =
            std::max<std::int64_t>(static_cast<std::int64_t>(centre - support + 0.5), 0);
        const auto last = std::min<std::int64_t>(static_cast<std::int64_t>(centre + support + 0.5), end);
        const auto count = static_cast<std::size_t>(last - first);
        double* row = weights.data() + i * room;
        double total = 0.0;
        for (std::size_t t = 0; t < count; ++t) {
            const double at = static_cast<double>(static_cast<std::int64_t>(t) + first);
            row[t] = weigh(filter, (at - centre + 0.5) * step);
            total += row[t];
        }
        if (total != 0.0) {
            for (std::size_t t = 0; t < count; ++t) row[t] /= total;
        }
        made.first[i] = static_cast<std::uint32_t>(first);
        made.count[i] = static_cast<std::uint32_t>(count);
        made.taps = std::max(made.taps, count);
    }
    made.weights.resize(size_out * made.taps);
    for (std::size_t i = 0; i < size_out; ++i) {
        for (std::size_t t = 0; t < made.count[i]; ++t) {
            made.weights[i * made.taps + t] = fixed(weights[i * room + t]);
        }
    }
    return made;
}

}  // namespace omr
