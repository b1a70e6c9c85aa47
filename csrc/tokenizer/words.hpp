// \w and \s as Hugging Face's search for added tokens has them (Rust's regex crate), which differ
// from those of its Split. The table of \w is generated from it: see generate_words.py.
#pragma once

#include <cstddef>
#include <string_view>

namespace omr {

bool is_word(char32_t code_point);        // \w
bool is_whitespace(char32_t code_point);  // \s

// Of valid UTF-8: the bytes of a character by its first one, where the character before `end`
// begins, and the character that begins at `at`.
std::size_t utf8_width(unsigned char first);
std::size_t previous_code_point(std::string_view text, std::size_t end);
char32_t code_point_at(std::string_view text, std::size_t at);

}  // namespace omr
