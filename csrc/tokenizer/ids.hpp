// A growing array of token ids that does not zero what it grows by.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace omr {

class Ids {
public:
    const std::int32_t* data() const { return data_.get(); }
    std::int32_t* data() { return data_.get(); }
    std::size_t size() const { return size_; }
    void clear() { size_ = 0; }
    void truncate(std::size_t size) { size_ = size; }  // to less than there are

    // Room for `count` more ids; write them there, then `commit` how many they were.
    std::int32_t* reserve(std::size_t count) {
        if (size_ + count > capacity_) grow(size_ + count);
        return data_.get() + size_;
    }
    void commit(std::size_t count) { size_ += count; }
    void push(std::int32_t id) {
        *reserve(1) = id;
        commit(1);
    }

private:
    struct Free {
        void operator()(std::int32_t* data) const { std::free(data); }
    };

    void grow(std::size_t least) {
        std::size_t capacity = capacity_ < 512 ? 1024 : capacity_ * 2;
        if (capacity < least) capacity = least;
        void* moved = std::realloc(data_.get(), capacity * sizeof(std::int32_t));
        if (moved == nullptr) throw std::bad_alloc();
        static_cast<void>(data_.release());
        data_.reset(static_cast<std::int32_t*>(moved));
        capacity_ = capacity;
    }

    std::unique_ptr<std::int32_t, Free> data_;
    std::size_t size_ = 0;
    std::size_t capacity_ = 0;
};

}  // namespace omr
