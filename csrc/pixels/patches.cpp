#include "pixels/patches.hpp"

#include <cstring>
#include <vector>

namespace omr {
namespace {

// One line of one patch, channel by channel: `plane` values lie between the channels.
template <typename Value>
void spread(const std::uint8_t* from, std::size_t count,
            const std::array<std::span<const Value, 256>, 3>& tables, std::size_t plane,
            Value* out) {
    for (std::size_t x = 0; x < count; ++x, from += 3, ++out) {
        out[0] = tables[0][from[0]];
        out[plane] = tables[1][from[1]];
        out[2 * plane] = tables[2][from[2]];
    }
}

template <typename Value>
void spread_last(const std::uint8_t* from, std::size_t count,
                 const std::array<std::span<const Value, 256>, 3>& tables, Value* out) {
    for (std::size_t x = 0; x < count; ++x, from += 3, out += 3) {
        out[0] = tables[0][from[0]];
        out[1] = tables[1][from[1]];
        out[2] = tables[2][from[2]];
    }
}

// One patch, whose first byte is `from`, of lines `stride` bytes apart.
template <typename Value>
void patch(const std::uint8_t* from, std::size_t stride, const PatchLayout& layout,
           const std::array<std::span<const Value, 256>, 3>& tables, Value* out) {
    const std::size_t side = layout.patch, plane = side * side;
    if (layout.channels_last) {
        for (std::size_t y = 0; y < side; ++y) {
            spread_last(from + y * stride, side, tables, out + y * side * 3);
        }
        for (std::size_t frame = 1; frame < layout.frames; ++frame) {
            std::memcpy(out + frame * plane * 3, out, plane * 3 * sizeof(Value));
        }
        return;
    }
    for (std::size_t y = 0; y < side; ++y) {
        spread(from + y * stride, side, tables, plane * layout.frames, out + y * side);
    }
    for (std::size_t channel = 0; channel < 3; ++channel) {
        Value* first = out + channel * plane * layout.frames;
        for (std::size_t frame = 1; frame < layout.frames; ++frame) {
            std::memcpy(first + frame * plane, first, plane * sizeof(Value));
        }
    }
}

}  // namespace

template <typename Value>
void to_patches(ConstPixels in, const PatchTarget& target,
                const std::array<std::span<const Value, 256>, 3>& tables, Value* out,
                PixelInstructions with) {
    const PatchLayout& layout = target.layout;
    const std::size_t group = layout.patch * layout.merge, stride = target.width * 3;
    const std::size_t width = layout.patch * layout.patch * 3 * layout.frames;
    Resize resize(in, target.height, target.width, target.filter, target.vertical_first, with);
    std::vector<std::uint8_t> strip(group * stride);
    for (std::size_t top = 0; top < target.height; top += group) {
        resize.strip(top, top + group, strip.data());
        for (std::size_t left = 0; left < target.width; left += group) {
            for (std::size_t row = 0; row < layout.merge; ++row) {
                for (std::size_t column = 0; column < layout.merge; ++column, out += width) {
                    const std::size_t at = row * layout.patch * stride +
                                           (left + column * layout.patch) * std::size_t{3};
                    patch(strip.data() + at, stride, layout, tables, out);
                }
            }
        }
    }
}

template void to_patches(ConstPixels, const PatchTarget&,
                         const std::array<std::span<const std::uint32_t, 256>, 3>&, std::uint32_t*,
                         PixelInstructions);
template void to_patches(ConstPixels, const PatchTarget&,
                         const std::array<std::span<const std::uint16_t, 256>, 3>&, std::uint16_t*,
                         PixelInstructions);

}  // namespace omr
