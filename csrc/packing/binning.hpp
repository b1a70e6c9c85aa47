// Lengths into the fewest bins, and the orders that a plan is made of. Integers only; equal to
// omr_io/reference/binning.py, which says each rule in the fewest words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace omr {

// So that room x samples fits 64 bits; a pack of 2^24 tokens is beyond any model.
inline constexpr std::int64_t kMaxCapacity = std::int64_t{1} << 24;
inline constexpr std::size_t kMaxSamples = std::size_t{1} << 31;

// The bin of each length, bins numbered from 0 without a gap, and how many there are.
struct Bins {
    std::vector<std::int32_t> bin_of;
    std::int32_t count = 0;
};

// All take lengths of 1 (best_fit: 0) to capacity, at most kMaxSamples of them, and throw std::invalid_argument
// for others.

// Best fit: each length goes into the fullest bin that takes it, of equally full ones the one that
// came to that room last, else into a new one.
Bins best_fit(std::span<const std::int64_t> lengths, std::int64_t capacity);

// Bins drawn in the order of `lengths`, which should be random, until the room left is at most
// `halves` / 2 of the mean length left; then one or two lengths end the bin exactly.
Bins drawn_fill(std::span<const std::int64_t> lengths, std::int64_t capacity, std::int64_t halves);

// The best of drawn_fill and of best_fit on decreasing lengths.
Bins fewest_bins(std::span<const std::int64_t> lengths, std::int64_t capacity);

// A random order of 0 to words.size() - 1 (Fisher and Yates, Durstenfeld's form): from the last
// place down, place i is swapped with place floor(words[i] (i + 1) / 2^64).
void shuffle(std::span<const std::uint64_t> words, std::span<std::int64_t> order);

// The indices of `group_of` by group, equal groups in index order, and the size of each group.
// Throws std::invalid_argument for a group outside 0 to sizes.size() - 1.
void group(std::span<const std::int32_t> group_of, std::span<std::int64_t> indices,
           std::span<std::int64_t> sizes);

}  // namespace omr
