// Pixels to the patches that a vision tower takes: resize, look up values, lay out.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "pixels/resize.hpp"

namespace omr {

// How patches lie in the output, and the values within one.
struct PatchLayout {
    std::size_t patch;   // side in pixels
    std::size_t merge;   // patches go by groups of merge x merge; 1: by rows
    std::size_t frames;  // how often an image is repeated within a patch
    bool channels_last;  // (row, column, channel) instead of (channel, frame, row, column)
};

struct PatchTarget {
    std::size_t height, width;  // in pixels; multiples of patch * merge
    Filter filter;
    bool vertical_first;
    PatchLayout layout;
};

// Value is what a value's bits are kept in: std::uint32_t for float32, std::uint16_t for bfloat16
// and float16. tables: for each channel the value of each byte. out: height * width * 3 * frames
// values.
template <typename Value>
void to_patches(ConstPixels in, const PatchTarget& target,
                const std::array<std::span<const Value, 256>, 3>& tables, Value* out,
                PixelInstructions with);

}  // namespace omr
