// Parquet's hybrid of runs and packed bits, value by value: definition levels and places in a
// dictionary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace omr {

// Values of `bits` bits each (0 to 32). Looks into `data`, which must stay.
class HybridReader {
public:
    HybridReader() = default;
    HybridReader(std::span<const std::uint8_t> data, unsigned bits) : data_(data), bits_(bits) {}

    // The next value; false if there is none, or the bytes are malformed.
    [[nodiscard]] bool next(std::uint32_t& value) noexcept {
        if (left_ == 0 && !next_run()) {
            return false;
        }
        --left_;
        if (!packed_) {
            value = repeated_;
            return true;
        }
        return next_packed(value);
    }

private:
    bool next_run() noexcept;
    bool next_packed(std::uint32_t& value) noexcept;

    std::span<const std::uint8_t> data_;
    std::size_t at_ = 0;
    std::uint64_t bit_ = 0;   // of the next packed value, from `data_`'s beginning
    std::uint64_t left_ = 0;  // values of this run
    std::uint32_t repeated_ = 0;
    unsigned bits_ = 0;
    bool packed_ = false;
};

}  // namespace omr
