// Many texts at once, by several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <span>
#include <utility>

#include "tokenizer/encoder.hpp"

namespace omr {

struct BatchOptions {
    // At most so many; fewer where there is not enough text to pay for starting one (256 KiB).
    std::size_t threads = 1;
    // Asked by the calling thread about every 50 ms; true stops the work.
    std::function<bool()> interrupted;
};

// The first text that fails: the same one for any number of threads.
class BatchError : public std::exception {
public:
    BatchError(std::size_t index, TextError cause) : index_(index), cause_(std::move(cause)) {}

    const char* what() const noexcept override { return cause_.what(); }
    std::size_t index() const { return index_; }
    const TextError& cause() const { return cause_; }

private:
    std::size_t index_;
    TextError cause_;
};

class Interrupted : public std::exception {};

// Ids of all texts, one after the other: in the caller's room, or in memory of their own. If the
// room is too small only `size` is true.
struct BatchIds {
    std::size_t size = 0;
    Ids own;  // empty if there is room
};

// room: where the ids go; data() == nullptr for memory of their own.
// offsets: texts.size() + 1 numbers; text i's ids are [offsets[i], offsets[i + 1]).
// Throws BatchError, Interrupted, std::bad_alloc.
BatchIds encode_batch(const Encoder& encoder, std::span<const TextView> texts,
                      const BatchOptions& options, std::span<std::int32_t> room,
                      std::int64_t* offsets);

// counts: texts.size() numbers. Throws as encode_batch.
void count_batch(const Encoder& encoder, std::span<const TextView> texts,
                 const BatchOptions& options, std::int64_t* counts);

}  // namespace omr
