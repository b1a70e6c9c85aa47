#include "crc32c.hpp"

#include <array>
#include <cstddef>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace omr {
namespace {

constexpr std::uint32_t kPolynomial = 0x82F63B78;  // bits reversed

using Table = std::array<std::uint32_t, 256>;

constexpr Table make_table() {
    Table table{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t crc = byte;
        for (int bit = 0; bit < 8; ++bit) {
            crc = (crc >> 1U) ^ ((crc & 1U) != 0 ? kPolynomial : 0);
        }
        table[byte] = crc;
    }
    return table;
}
constexpr Table kTable = make_table();

std::uint32_t step_by_table(std::uint32_t crc, std::span<const std::uint8_t> data) noexcept {
    for (const std::uint8_t byte : data) {
        crc = (crc >> 8U) ^ kTable[(crc ^ byte) & 0xFFU];
    }
    return crc;
}

#if defined(__x86_64__)

// The instruction takes 3 cycles and one can begin every cycle: so three lanes of the data go side
// by side. A lane's register is carried over the bytes of the lanes behind it by a table, since a
// CRC is linear: that of zeros after a register is a matrix times it.
constexpr std::size_t kLane = 2048;
using Shift = std::array<Table, 4>;  // by the register's bytes

constexpr std::uint32_t after_zeros(std::uint32_t crc, std::size_t count) {
    for (; count > 0; --count) {
        crc = (crc >> 8U) ^ kTable[crc & 0xFFU];
    }
    return crc;
}

Shift make_shift() {
    std::array<std::uint32_t, 32> bits{};
    for (std::size_t bit = 0; bit < bits.size(); ++bit) {
        bits[bit] = after_zeros(1U << bit, kLane);
    }
    Shift shift{};
    for (std::size_t place = 0; place < 4; ++place) {
        for (std::uint32_t byte = 0; byte < 256; ++byte) {
            for (std::size_t bit = 0; bit < 8; ++bit) {
                if ((byte >> bit & 1U) != 0) {
                    shift[place][byte] ^= bits[8 * place + bit];
                }
            }
        }
    }
    return shift;
}

std::uint64_t word_at(const std::uint8_t* data) noexcept {
    std::uint64_t word = 0;
    std::memcpy(&word, data, sizeof word);
    return word;
}

__attribute__((target("sse4.2"))) std::uint32_t step_by_instruction(
    std::uint32_t start, std::span<const std::uint8_t> data) noexcept {
    static const Shift shift = make_shift();
    const auto moved = [](std::uint64_t crc) noexcept {
        return shift[0][crc & 0xFFU] ^ shift[1][crc >> 8U & 0xFFU] ^ shift[2][crc >> 16U & 0xFFU] ^
               shift[3][crc >> 24U & 0xFFU];
    };
    std::uint64_t crc = start;
    const std::uint8_t* at = data.data();
    std::size_t left = data.size();
    for (; left >= 3 * kLane; left -= 3 * kLane, at += 3 * kLane) {
        std::uint64_t second = 0;
        std::uint64_t third = 0;
        for (std::size_t i = 0; i < kLane; i += 8) {
            crc = _mm_crc32_u64(crc, word_at(at + i));
            second = _mm_crc32_u64(second, word_at(at + kLane + i));
            third = _mm_crc32_u64(third, word_at(at + 2 * kLane + i));
        }
        crc = moved(moved(crc) ^ second) ^ third;
    }
    for (; left >= 8; left -= 8, at += 8) {
        crc = _mm_crc32_u64(crc, word_at(at));
    }
    auto narrow = static_cast<std::uint32_t>(crc);
    for (; left > 0; --left, ++at) {
        narrow = _mm_crc32_u8(narrow, *at);
    }
    return narrow;
}

#endif

}  // namespace

std::uint32_t crc32c_by_table(std::span<const std::uint8_t> data) noexcept {
    return ~step_by_table(~0U, data);
}

std::uint32_t crc32c(std::span<const std::uint8_t> data) noexcept {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) {
        return ~step_by_instruction(~0U, data);
    }
#endif
    return crc32c_by_table(data);
}

}  // namespace omr
