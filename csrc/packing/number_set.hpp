// A set of small numbers that answers "the next one from here up, or down" in a few steps.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace omr {

// Level 0 has a bit a number, each level above a bit for each word below that is not 0.
class NumberSet {
public:
    static constexpr std::size_t none = static_cast<std::size_t>(-1);

    // For numbers below `size`.
    explicit NumberSet(std::size_t size) {
        do {
            size = (size + 63) / 64;
            levels_.emplace_back(size, 0);
        } while (size > 1);
    }

    void insert(std::size_t number) {
        for (auto& level : levels_) {
            level[number / 64] |= bit(number);
            number /= 64;
        }
    }

    void erase(std::size_t number) {
        for (auto& level : levels_) {
            level[number / 64] &= ~bit(number);
            if (level[number / 64] != 0) return;
            number /= 64;
        }
    }

    // The least number that is at least `number`; none if there is none.
    [[nodiscard]] std::size_t at_least(std::size_t number) const {
        for (std::size_t height = 0; height < levels_.size(); ++height) {
            const std::size_t word = number / 64;
            if (word >= levels_[height].size()) return none;
            const std::uint64_t found = levels_[height][word] & (~std::uint64_t{0} << number % 64);
            if (found != 0) {
                return lowest_below(height, word * 64 + trailing(found));
            }
            number = word + 1;
        }
        return none;
    }

    // The greatest number that is at most `number`; none if there is none.
    [[nodiscard]] std::size_t at_most(std::size_t number) const {
        for (std::size_t height = 0; height < levels_.size(); ++height) {
            const std::size_t word = number / 64;
            const std::uint64_t found =
                levels_[height][word] & (~std::uint64_t{0} >> (63 - number % 64));
            if (found != 0) {
                return highest_below(height, word * 64 + leading(found));
            }
            if (word == 0) return none;
            number = word - 1;
        }
        return none;
    }

private:
    static std::uint64_t bit(std::size_t number) { return std::uint64_t{1} << number % 64; }
    static std::size_t trailing(std::uint64_t word) {
        return static_cast<std::size_t>(std::countr_zero(word));
    }
    static std::size_t leading(std::uint64_t word) {
        return static_cast<std::size_t>(63 - std::countl_zero(word));
    }

    [[nodiscard]] std::size_t lowest_below(std::size_t height, std::size_t number) const {
        for (; height > 0; --height) {
            number = number * 64 + trailing(levels_[height - 1][number]);
        }
        return number;
    }
    [[nodiscard]] std::size_t highest_below(std::size_t height, std::size_t number) const {
        for (; height > 0; --height) {
            number = number * 64 + leading(levels_[height - 1][number]);
        }
        return number;
    }

    std::vector<std::vector<std::uint64_t>> levels_;
};

}  // namespace omr
