// Code points read from UTF-8, and their class, inline for loops over text.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "tokenizer/unicode.hpp"
#include "tokenizer/unicode_tables.hpp"

namespace omr {

struct CodePoint {
    char32_t value;
    std::size_t bytes;  // 1 to 4
};

// The code point that begins at `at` in valid UTF-8; no byte beyond it is read.
inline CodePoint read_code_point(const unsigned char* at) {
    const char32_t lead = at[0];
    if (lead < 0x80) return {lead, 1};
    const char32_t second = at[1] & 0x3Fu;
    if (lead < 0xE0) return {(lead & 0x1F) << 6 | second, 2};
    const char32_t third = at[2] & 0x3Fu;
    if (lead < 0xF0) return {(lead & 0x0F) << 12 | second << 6 | third, 3};
    return {(lead & 0x07) << 18 | second << 12 | third << 6 | (at[3] & 0x3Fu), 4};
}

inline CharClass class_of(char32_t code_point) {
    const std::size_t block = tables::class_index[code_point >> 7];
    return static_cast<CharClass>(tables::class_block[block * 128 + (code_point & 127)]);
}

// How to_nfc and may_need_nfc see a code point: a set of the bits below.
inline std::uint8_t nfc_bits(char32_t code_point) {
    const std::size_t block = tables::nfc_index[code_point >> 7];
    return tables::nfc_block[block * 128 + (code_point & 127)];
}

inline constexpr std::uint8_t nfc_rank = 0x3F;        // order of combining marks; 0: a starter
inline constexpr std::uint8_t nfc_decomposes = 0x40;  // in the table of decompositions
inline constexpr std::uint8_t nfc_suspect = 0x80;     // not in NFC, or composes with what precedes

}  // namespace omr
