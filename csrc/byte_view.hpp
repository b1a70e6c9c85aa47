// A value of a column of texts or bytes, where it lies.
#pragma once

#include <cstddef>
#include <cstdint>

namespace omr {

// `data` is null for a null, and for nothing else.
struct ByteView {
    const std::uint8_t* data = nullptr;
    std::size_t size = 0;
};

}  // namespace omr
