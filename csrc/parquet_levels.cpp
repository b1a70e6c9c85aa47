#include "parquet_levels.hpp"

namespace omr {

bool HybridReader::next_run() noexcept {
    std::uint64_t head = 0;
    for (unsigned shift = 0;; shift += 7) {
        if (at_ == data_.size() || shift > 28) {
            return false;
        }
        const std::uint8_t next = data_[at_++];
        head |= std::uint64_t{next & 0x7FU} << shift;
        if ((next & 0x80U) == 0) {
            break;
        }
    }
    packed_ = (head & 1U) != 0;
    if (packed_) {
        // Whole groups of 8 values; what fills up the last one is never asked for.
        left_ = (head >> 1U) * 8;
        bit_ = std::uint64_t{at_} * 8;
        const std::uint64_t size = (head >> 1U) * bits_;
        if (size > data_.size() - at_) {
            return false;
        }
        at_ += static_cast<std::size_t>(size);
        return left_ != 0;
    }
    left_ = head >> 1U;
    repeated_ = 0;
    for (unsigned byte = 0; byte < (bits_ + 7) / 8; ++byte) {
        if (at_ == data_.size()) {
            return false;
        }
        repeated_ |= std::uint32_t{data_[at_++]} << (8 * byte);
    }
    return left_ != 0 && (bits_ == 32 || repeated_ >> bits_ == 0);
}

bool HybridReader::next_packed(std::uint32_t& value) noexcept {
    const std::uint64_t end = bit_ + bits_;
    if (end > std::uint64_t{data_.size()} * 8) {
        return false;
    }
    std::uint64_t word = 0;
    const auto first = static_cast<std::size_t>(bit_ / 8);
    for (std::size_t byte = 0; first + byte < (end + 7) / 8; ++byte) {
        word |= std::uint64_t{data_[first + byte]} << (8 * byte);
    }
    value = static_cast<std::uint32_t>(word >> bit_ % 8 & ((std::uint64_t{1} << bits_) - 1));
    bit_ = end;
    return true;
}

}  // namespace omr
