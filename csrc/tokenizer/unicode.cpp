#include "tokenizer/unicode.hpp"

#include "tokenizer/unicode_tables.hpp"

namespace omr {

CharClass char_class(char32_t code_point) {
    const std::uint32_t block = tables::class_index[code_point >> 7];
    return static_cast<CharClass>(tables::class_block[block * 128 + (code_point & 127)]);
}

}  // namespace omr
