// Pixels to the patches that a vision tower takes: resize, look up values, lay out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "pixels/resize.hpp"
#include "pixels/values.hpp"

namespace omr {

// How patches lie in the output, and the values within one.
struct PatchLayout {
    std::size_t height, width;  // in pixels; a patch may be a whole image
    std::size_t merge;          // patches go by groups of merge x merge; 1: by rows
    std::size_t frames;         // how often an image is repeated within a patch
    bool channels_last;  // (frame, row, column, channel), else (channel, frame, row, column)

    std::size_t values() const { return height * width * 3 * frames; }
};

struct PatchTarget {
    std::size_t height, width;  // in pixels; multiples of the patch's side * merge
    Filter filter;
    bool vertical_first;
};

struct PatchJob {
    ConstPixels in;
    PatchTarget target;
};

// The patches of all jobs, one job after the other: each height * width * 3 * frames values. Value
// is what a value's bits are kept in: std::uint32_t for float32, std::uint16_t for bfloat16 and
// float16. `whole_bytes`: the size of what `out` is a part of, if that is filled call by call: what is
// large goes past the cache. Jobs are shared by `threads` threads, the calling one among them; none
// outlives the call.
template <typename Value>
void to_patches(std::span<const PatchJob> jobs, const PatchLayout& layout,
                const ValueTables<Value>& tables, Value* out, PixelInstructions with,
                std::size_t threads, std::size_t whole_bytes = 0);

}  // namespace omr
