#include "pixels/values.hpp"

#include <algorithm>
#include <cstring>

namespace omr {

template <typename Value>
ValueTables<Value>::ValueTables(std::span<const Value, 768> values) {
    for (std::size_t channel = 0; channel < 3; ++channel) {
        for (std::size_t byte = 0; byte < 256; ++byte) {
            const Value value = values[channel * 256 + byte];
            of[channel][byte] = value;
            for (std::size_t i = 0; i < sizeof(Value); ++i) {
                planes[channel][i][byte] = static_cast<std::uint8_t>(value >> (8 * i));
            }
        }
    }
    equal = of[0] == of[1] && of[1] == of[2];
}

void split_channels(const std::uint8_t* pixels, std::size_t count, std::size_t plane,
                    std::uint8_t* out) {
    for (std::size_t x = 0; x < count; ++x, pixels += 3, ++out) {
        out[0] = pixels[0];
        out[plane] = pixels[1];
        out[2 * plane] = pixels[2];
    }
}

template <typename Value>
void look_up(const std::uint8_t* bytes, const ValueTables<Value>& tables, std::size_t channel,
             const Runs<Value>& runs) {
    const std::array<Value, 256>& table = tables.of[channel];
    for (Value* patch : runs.patches) {
        Value* out = patch + runs.at;
        for (std::size_t i = 0; i < runs.length; ++i) out[i] = table[bytes[i]];
        bytes += runs.length;
        for (std::size_t frame = 1; frame < runs.frames; ++frame) {
            std::memcpy(out + frame * runs.frame_stride, out, runs.length * sizeof(Value));
        }
    }
}

template struct ValueTables<std::uint32_t>;
template struct ValueTables<std::uint16_t>;
template void look_up(const std::uint8_t*, const ValueTables<std::uint32_t>&, std::size_t,
                      const Runs<std::uint32_t>&);
template void look_up(const std::uint8_t*, const ValueTables<std::uint16_t>&, std::size_t,
                      const Runs<std::uint16_t>&);

}  // namespace omr
