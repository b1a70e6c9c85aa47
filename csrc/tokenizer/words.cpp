#include "tokenizer/words.hpp"

#include <algorithm>
#include <cstdint>
#include <iterator>

namespace omr {

namespace {

struct Range {
    std::uint32_t first, last;
};

constexpr Range words[] = {
#include "tokenizer/words_table.inc"
};

}  // namespace

bool is_word(char32_t code_point) {
    const auto* const after =
        std::upper_bound(std::begin(words), std::end(words), code_point,
                         [](char32_t one, const Range& range) { return one < range.first; });
    return after != std::begin(words) && code_point <= std::prev(after)->last;
}

bool is_whitespace(char32_t code_point) {
    switch (code_point) {
        case 0x20: case 0x85: case 0xA0: case 0x1680: case 0x2028: case 0x2029: case 0x202F:
        case 0x205F: case 0x3000:
            return true;
        default:
            return (code_point >= 0x09 && code_point <= 0x0D) ||
                   (code_point >= 0x2000 && code_point <= 0x200A);
    }
}

std::size_t utf8_width(unsigned char first) {
    return first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
}

std::size_t previous_code_point(std::string_view text, std::size_t end) {
    do {
        --end;
    } while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80);
    return end;
}

char32_t code_point_at(std::string_view text, std::size_t at) {
    const auto first = static_cast<unsigned char>(text[at]);
    const std::size_t width = utf8_width(first);
    if (width == 1) return first;
    char32_t made = first & (0x7Fu >> width);
    for (std::size_t i = 1; i < width && at + i < text.size(); ++i) {
        made = (made << 6) | (static_cast<unsigned char>(text[at + i]) & 0x3Fu);
    }
    return made;
}

}  // namespace omr
