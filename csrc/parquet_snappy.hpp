// Snappy's raw format, decoded as it is read: a page need not be in memory as a whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "parquet_raw.hpp"

namespace omr {

// Bytes that were decoded, one after the other; not set to zero first, and kept between uses.
// A place is counted from the beginning, and holds until `drop`.
class Window {
public:
    // Where to write up to `size` bytes behind the last one; `add` says how many were.
    [[nodiscard]] std::uint8_t* room(std::size_t size) {
        if (size > capacity_ - end_) {
            grow(size);
        }
        return data_.get() + end_;
    }
    void add(std::size_t size) noexcept { end_ += size; }

    [[nodiscard]] const std::uint8_t* data() const noexcept { return data_.get(); }
    [[nodiscard]] std::size_t end() const noexcept { return end_; }
    // Forgets all before a place, which becomes 0.
    void drop(std::size_t place) noexcept;

private:
    void grow(std::size_t more);

    std::unique_ptr<std::uint8_t[]> data_;
    std::size_t end_ = 0;
    std::size_t capacity_ = 0;
};

// A block, decoded into a window.
class SnappyStream {
public:
    // What a block's copies look back at, as all known writers make them; a copy from further back
    // than the window has is refused.
    static constexpr std::size_t kHistory = std::size_t{64} << 10U;

    // Begins a block of so many bytes; false if it is malformed.
    [[nodiscard]] bool begin(ChunkReader& reader, std::size_t compressed, std::size_t uncompressed);
    // Decodes `wanted` bytes or more, as far as the block goes; false if it is malformed.
    [[nodiscard]] bool decode(ChunkReader& reader, Window& window, std::size_t wanted);
    // Whether all was decoded and read.
    [[nodiscard]] bool is_done() const noexcept { return left_ == 0 && unread_ == 0; }

private:
    [[nodiscard]] bool decode_elements(ChunkReader& reader, Window& window, std::size_t& made,
                                       std::size_t wanted);

    std::size_t unread_ = 0;    // compressed bytes
    std::size_t left_ = 0;      // bytes still to be decoded
    std::size_t produced_ = 0;  // bytes decoded
    std::size_t literal_ = 0;   // bytes of these that come next, as they are
};

}  // namespace omr
