// A growing array of token ids that does not zero what it grows by.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "tokenizer/pages.hpp"

namespace omr {

class Ids {
public:
    Ids() = default;
    Ids(Ids&& other) noexcept { *this = std::move(other); }
    Ids& operator=(Ids&& other) noexcept {
        memory_ = std::move(other.memory_);
        size_ = std::exchange(other.size_, 0);
        capacity_ = std::exchange(other.capacity_, 0);
        return *this;
    }

    const std::int32_t* data() const { return at(); }
    std::int32_t* data() { return at(); }
    std::size_t size() const { return size_; }
    void clear() { size_ = 0; }
    void truncate(std::size_t size) { size_ = size; }  // to less than there are

    // Room for `count` more ids; write them there, then `commit` how many they were.
    std::int32_t* reserve(std::size_t count) {
        if (size_ + count > capacity_) grow(size_ + count);
        return at() + size_;
    }
    void commit(std::size_t count) { size_ += count; }
    void push(std::int32_t id) {
        *reserve(1) = id;
        commit(1);
    }

private:
    std::int32_t* at() const { return reinterpret_cast<std::int32_t*>(memory_.data()); }

    void grow(std::size_t least) {
        const std::size_t capacity = std::max({least, capacity_ * 2, std::size_t{1024}});
        Pages larger(capacity * sizeof(std::int32_t), false);
        if (size_ != 0) std::memcpy(larger.data(), memory_.data(), size_ * sizeof(std::int32_t));
        memory_ = std::move(larger);
        capacity_ = capacity;
    }

    Pages memory_;
    std::size_t size_ = 0;
    std::size_t capacity_ = 0;
};

}  // namespace omr
