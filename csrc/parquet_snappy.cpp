#include "parquet_snappy.hpp"

#include <algorithm>
#include <cstring>

namespace omr {
namespace {

constexpr std::size_t kMaxTag = 5;
constexpr std::size_t kMaxCopy = 64;  // bytes of one copy
constexpr std::size_t kWord = 16;
constexpr std::size_t kRoom = std::size_t{32} << 10U;
constexpr std::size_t kMaxPiece = std::size_t{256} << 10U;  // of a literal, read at once

// A literal or a copy, as its tag says.
struct Element {
    std::size_t tag = 0;     // bytes of the tag; 0: there are too few
    std::size_t length = 0;  // bytes that it stands for
    std::size_t offset = 0;  // how far back a copy is from; 0: a literal
};

std::size_t little_endian(const std::uint8_t* at, std::size_t bytes) noexcept {
    std::size_t value = 0;
    for (std::size_t i = 0; i < bytes; ++i) {
        value |= std::size_t{at[i]} << (8 * i);
    }
    return value;
}

// `at` to `end` are not empty. A copy's offset of 0 gives SIZE_MAX, which is never there.
Element element_at(const std::uint8_t* at, const std::uint8_t* end) noexcept {
    const std::size_t tag = *at;
    const std::size_t high = tag >> 2U;
    const auto there = static_cast<std::size_t>(end - at);
    Element found;
    switch (tag & 3U) {
        case 0: {
            const std::size_t more = high < 60 ? 0 : high - 59;
            if (there < 1 + more) return {};
            found.length = (more == 0 ? high : little_endian(at + 1, more)) + 1;
            found.tag = 1 + more;
            return found;
        }
        case 1:
            if (there < 2) return {};
            found = {2, 4 + (high & 7U), tag >> 5U << 8U | at[1]};
            break;
        case 2:
            if (there < 3) return {};
            found = {3, high + 1, little_endian(at + 1, 2)};
            break;
        default:
            if (there < 5) return {};
            found = {5, high + 1, little_endian(at + 1, 4)};
    }
    found.offset = found.offset == 0 ? SIZE_MAX : found.offset;
    return found;
}

// There is room for kMaxCopy bytes from `out` on, whatever the length.
void copy_back(std::uint8_t* out, std::size_t offset, std::size_t length) noexcept {
    const std::uint8_t* from = out - offset;
    if (offset >= kWord) {
        for (std::size_t i = 0; i < length; i += kWord) {
            std::memcpy(out + i, from + i, kWord);  // all of it was written before
        }
        return;
    }
    for (std::size_t i = 0; i < length; ++i) {
        out[i] = from[i];
    }
}

}  // namespace

void Window::drop(std::size_t place) noexcept {
    if (place != 0) {
        std::memmove(data_.get(), data_.get() + place, end_ - place);
        end_ -= place;
    }
}

void Window::grow(std::size_t more) {
    const std::size_t capacity = std::max(end_ + more, capacity_ + capacity_ / 2);
    auto data = std::make_unique_for_overwrite<std::uint8_t[]>(capacity);
    if (end_ != 0) {
        std::memcpy(data.get(), data_.get(), end_);
    }
    data_ = std::move(data);
    capacity_ = capacity;
}

bool SnappyStream::begin(ChunkReader& reader, std::size_t compressed, std::size_t uncompressed) {
    *this = SnappyStream();
    const auto in = reader.peek(std::min(compressed, kMaxTag));
    std::uint64_t size = 0;
    std::size_t used = 0;
    for (;; ++used) {
        if (used == std::min({compressed, kMaxTag, in.size()})) {
            return false;
        }
        size |= std::uint64_t{in[used] & 0x7FU} << (7 * used);
        if ((in[used] & 0x80U) == 0) {
            break;
        }
    }
    reader.skip(used + 1);
    unread_ = compressed - used - 1;
    left_ = uncompressed;
    return size == uncompressed;
}

bool SnappyStream::decode(ChunkReader& reader, Window& window, std::size_t wanted) {
    for (std::size_t made = 0; made < wanted && left_ != 0;) {
        if (literal_ == 0) {
            if (!decode_elements(reader, window, made, wanted)) {
                return false;
            }
            continue;
        }
        const std::size_t size = std::min(literal_, kMaxPiece);
        if (!reader.read({window.room(size), size})) {
            return false;
        }
        window.add(size);
        unread_ -= size;
        literal_ -= size;
        left_ -= size;
        produced_ += size;
        made += size;
    }
    return true;
}

bool SnappyStream::decode_elements(ChunkReader& reader, Window& window, std::size_t& made,
                                   std::size_t wanted) {
    const auto in = reader.peek(std::min(unread_, kMaxTag));
    const std::uint8_t* at = in.data();
    const std::uint8_t* const end = at + std::min(in.size(), unread_);
    const std::uint8_t* const start = at;
    while (at != end && made < wanted && left_ != 0) {
        const Element element = element_at(at, end);
        if (element.tag == 0) {
            break;
        }
        const auto there = static_cast<std::size_t>(end - at) - element.tag;
        const bool is_literal = element.offset == 0;
        const std::size_t size = element.length;
        const std::size_t passed = static_cast<std::size_t>(at - start) + element.tag;
        if (size > left_ || (is_literal ? size > unread_ - passed
                                        : element.offset > std::min(produced_, window.end()))) {
            return false;
        }
        at += element.tag;
        if (is_literal && size > there) {
            literal_ = size;
            break;
        }
        std::uint8_t* const out = window.room(std::max(size, kRoom));
        if (!is_literal) {
            copy_back(out, element.offset, size);
        } else {
            if (size <= kWord && there >= kWord) {
                std::memcpy(out, at, kWord);
            } else {
                std::memcpy(out, at, size);
            }
            at += size;
        }
        window.add(size);
        left_ -= size;
        produced_ += size;
        made += size;
    }
    if (at == start) {
        return false;  // a tag that is cut short, or nothing
    }
    reader.skip(static_cast<std::size_t>(at - start));
    unread_ -= static_cast<std::size_t>(at - start);
    return true;
}

}  // namespace omr
