// Compiled without fused multiply-add (see CMakeLists.txt): a weight may lie at the edge of
// rounding, and Pillow's binaries do not fuse.
#include "pixels/coefficients.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace omr {
namespace {

struct Triangle {
    static constexpr double support = 1.0;

    static double weigh(double x) {
        x = std::abs(x);
        return x < 1.0 ? 1.0 - x : 0.0;
    }
};

struct Cubic {
    static constexpr double support = 2.0;

    static double weigh(double x) {
        constexpr double a = -0.5;
        x = std::abs(x);
        // Both pieces, since which one it is cannot be foreseen.
        const double inner = ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
        const double outer = (((x - 5) * x + 8) * x - 4) * a;
        return x < 1.0 ? inner : x < 2.0 ? outer : 0.0;
    }
};

struct Lanczos {
    static constexpr double support = 3.0;

    static double sinc(double x) {
        if (x == 0.0) return 1.0;
        x *= std::numbers::pi;
        return std::sin(x) / x;
    }

    static double weigh(double x) {
        return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
    }
};

std::int32_t fixed(double weight) {
    const double scaled = weight * (1 << precision_bits);
    return static_cast<std::int32_t>(weight < 0 ? -0.5 + scaled : 0.5 + scaled);
}

template <typename Kernel>
Coefficients made_of(std::size_t size_in, std::size_t size_out) {
    const double scale = static_cast<double>(size_in) / static_cast<double>(size_out);
    const double stretch = std::max(scale, 1.0);
    const double support = Kernel::support * stretch;
    const double step = 1.0 / stretch;
    const auto end = static_cast<std::int64_t>(size_in);
    const auto centre_of = [scale](std::size_t i) { return (static_cast<double>(i) + 0.5) * scale; };

    Coefficients made;
    made.first.resize(size_out);
    made.count.resize(size_out);
    for (std::size_t i = 0; i < size_out; ++i) {
        const double centre = centre_of(i);
        const auto first =
            std::max<std::int64_t>(static_cast<std::int64_t>(centre - support + 0.5), 0);
        const auto last =
            std::min<std::int64_t>(static_cast<std::int64_t>(centre + support + 0.5), end);
        made.first[i] = static_cast<std::uint32_t>(first);
        made.count[i] = static_cast<std::uint32_t>(last - first);
        made.taps = std::max<std::size_t>(made.taps, made.count[i]);
    }
    made.weights.resize(size_out * made.taps);
    std::vector<double> row(made.taps);
    for (std::size_t i = 0; i < size_out; ++i) {
        const double centre = centre_of(i);
        double total = 0.0;
        for (std::size_t t = 0; t < made.count[i]; ++t) {
            const double at = static_cast<double>(made.first[i] + t);
            row[t] = Kernel::weigh((at - centre + 0.5) * step);
            total += row[t];
        }
        std::int32_t* weights = made.weights.data() + i * made.taps;
        for (std::size_t t = 0; t < made.count[i]; ++t) {
            weights[t] = fixed(total != 0.0 ? row[t] / total : row[t]);
        }
    }
    return made;
}

}  // namespace

Coefficients coefficients(std::size_t size_in, std::size_t size_out, Filter filter) {
    switch (filter) {
        case Filter::bilinear: return made_of<Triangle>(size_in, size_out);
        case Filter::bicubic: return made_of<Cubic>(size_in, size_out);
        case Filter::lanczos: return made_of<Lanczos>(size_in, size_out);
    }
    return {};
}

}  // namespace omr
