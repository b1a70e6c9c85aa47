// What Hugging Face `tokenizers` takes code points for. The tables are generated from it: see
// generate_tables.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace omr {

enum class CharClass : std::uint8_t {
    other,    // none of the following: punctuation, symbols, marks, control characters
    letter,   // \p{L}
    number,   // \p{N}
    space,    // \s, but for the next two
    line,     // \r and \n
};

// The class of any code point below 0x110000.
CharClass char_class(char32_t code_point);

// True if the text may be in another form than NFC; false proves that it is in NFC. Valid UTF-8.
bool may_need_nfc(std::string_view text);

// The text in NFC, as Hugging Face makes it. Valid UTF-8.
void to_nfc(std::string_view text, std::string& out);

}  // namespace omr
