// What each input pixel contributes to each output pixel of a resize: Pillow's 8-bit resampling.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace omr {

// Named after Pillow's: triangle, Keys' cubic with a = -0.5, sinc with three lobes.
enum class Filter : std::uint8_t { bilinear, bicubic, lanczos };

// Bits behind the point of a weight: 8 bits of a pixel and 2 of overshoot leave 22 of 32.
inline constexpr int precision_bits = 22;

// One direction of a resize. Output i is the sum over t < taps of
// weights[i * taps + t] * input[first[i] + t], rounded; weights beyond count[i] are 0.
struct Coefficients {
    std::size_t taps = 0;  // the largest count
    std::vector<std::uint32_t> first;
    std::vector<std::uint32_t> count;
    std::vector<std::int32_t> weights;
};

// size_in, size_out: pixels, at least 1.
Coefficients coefficients(std::size_t size_in, std::size_t size_out, Filter filter);

}  // namespace omr
