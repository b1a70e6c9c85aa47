// Pieces of up to 15 bytes as 128-bit keys, and the hashes of pieces.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace omr {

static_assert(std::endian::native == std::endian::little, "keys are read as little-endian words");

inline constexpr std::size_t kKeyBytes = 15;  // the longest piece that is a key

// The product's two halves, folded: a good hash of two words on any processor.
inline std::uint64_t fold_multiply(std::uint64_t a, std::uint64_t b) {
    __extension__ using Wide = unsigned __int128;
    const Wide product = static_cast<Wide>(a) * b;
    return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64U);
}

// The piece's bytes, zeros, and in the last byte its length (1 to 15), so that equal keys are
// equal pieces. Bits 60 to 63 are always zero: tables keep a count there.
struct PieceKey {
    std::uint64_t low, high;

    bool is_long() const { return high >> 56U == 0; }
    std::size_t length() const { return high >> 56U; }
    // Whether four or more of its bytes are beyond ASCII: more than a word with an accent has.
    bool is_foreign() const {
        constexpr std::uint64_t kTops = 0x8080'8080'8080'8080U;
        return std::popcount(low & kTops) + std::popcount(high & kTops) >= 4;
    }
    std::string_view view() const { return {reinterpret_cast<const char*>(this), length()}; }
    std::uint64_t hash() const {
        return fold_multiply(low ^ 0x9E37'79B9'7F4A'7C15U, high ^ 0xD1B5'4A32'D192'ED03U);
    }
};

namespace detail {

struct KeyMask {
    std::uint64_t low, high, length;
};

// By length; 16 stands for all that is longer, and makes a key that no piece of 1 to 15 bytes has.
inline constexpr std::array<KeyMask, 17> kKeyMasks = [] {
    std::array<KeyMask, 17> masks{};
    for (std::size_t length = 0; length < 16; ++length) {
        for (std::size_t byte = 0; byte < length; ++byte) {
            (byte < 8 ? masks[length].low : masks[length].high) |= 0xFFULL << (byte % 8 * 8);
        }
        masks[length].length = static_cast<std::uint64_t>(length) << 56U;
    }
    masks[16].length = 1;
    return masks;
}();

}  // namespace detail

// 16 bytes must be readable at `piece`, whatever its length.
inline PieceKey load_key(const char* piece, std::size_t length) {
    const detail::KeyMask& mask = detail::kKeyMasks[std::min<std::size_t>(length, 16)];
    std::uint64_t low;
    std::uint64_t high;
    std::memcpy(&low, piece, 8);
    std::memcpy(&high, piece + 8, 8);
    return {low & mask.low, (high & mask.high) | mask.length};
}

// The same where only the piece itself may be read.
inline PieceKey copy_key(const char* piece, std::size_t length) {
    char bytes[16] = {};
    std::memcpy(bytes, piece, std::min<std::size_t>(length, 16));
    return load_key(bytes, length);
}

// Hash of a piece of any length; no byte beyond it is read.
inline std::uint64_t hash_piece(std::string_view piece) {
    std::uint64_t hash = 0xA076'1D64'78BD'642FU ^ piece.size();
    const char* at = piece.data();
    std::size_t left = piece.size();
    for (; left >= 8; at += 8, left -= 8) {
        std::uint64_t word;
        std::memcpy(&word, at, 8);
        hash = fold_multiply(hash ^ word, 0xE703'7ED1'A0B4'28DBU);
    }
    std::uint64_t word = 0;
    std::memcpy(&word, at, left);
    return fold_multiply(hash ^ word, 0x8EBC'6AF0'9C88'C6E3U);
}

// A number below `count` from a hash's low half.
inline std::uint32_t below(std::uint64_t hash, std::uint32_t count) {
    return static_cast<std::uint32_t>((hash & 0xFFFF'FFFFU) * count >> 32U);
}

}  // namespace omr
