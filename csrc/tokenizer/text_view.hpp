// A str as CPython holds it, and its way to UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string_view>

namespace omr {

// A str as CPython holds it: `kind` bytes a code point (1: Latin-1 or ASCII, 2, 4).
struct TextView {
    const void* data;
    std::size_t length;  // code points
    std::uint8_t kind;
    bool ascii;
};

// A text that cannot be encoded.
class TextError : public std::runtime_error {
public:
    enum class Kind : std::uint8_t {
        surrogate,     // value: the lone surrogate; position: its index in the text
        too_long,      // value: how many bytes it has, or more than it may have
        control_text,  // value: the id of the control token that is spelt; position: where
        control_id,    // value: the id of the control token that the vocabulary itself yields
    };

    TextError(Kind kind, std::size_t position, std::size_t value);

    Kind kind() const { return kind_; }
    std::size_t position() const { return position_; }  // code points from the text's start
    std::size_t value() const { return value_; }

private:
    Kind kind_;
    std::size_t position_, value_;
};

// Bytes that are not zeroed when room is made for them.
class Buffer {
public:
    char* room(std::size_t size) {
        if (size > capacity_) grow(size);
        return data_.get();
    }
    // Gives back what one unusually large text needed.
    void shrink() {
        if (capacity_ > kept) {
            data_.reset();
            capacity_ = 0;
        }
    }

private:
    static constexpr std::size_t kept = std::size_t{4} << 20;

    struct Free {
        void operator()(char* data) const { std::free(data); }
    };

    void grow(std::size_t size) {
        const std::size_t capacity = size < 4096 ? 4096 : size + size / 4;
        data_.reset();
        capacity_ = 0;
        data_.reset(static_cast<char*>(std::malloc(capacity)));
        if (data_ == nullptr) throw std::bad_alloc();
        capacity_ = capacity;
    }

    std::unique_ptr<char, Free> data_;
    std::size_t capacity_ = 0;
};

// The text in UTF-8: its own bytes where it is ASCII, else made in `buffer`.
// Throws TextError: a lone surrogate, or more than `max_text` bytes.
std::string_view to_utf8(const TextView& text, Buffer& buffer);

}  // namespace omr
