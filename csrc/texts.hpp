// Texts of a sample as UTF-8: are they printable, and as JSON.
//
// Plain C++ without Python. The twins are `_CONTROL` of omr_io/corpus/schemas/answers.py and
// Python's json.JSONEncoder(ensure_ascii=False).
#pragma once

#include <string>
#include <string_view>

namespace omr {

// False if the text holds a control character: U+0000 to U+001F but tab, LF and CR, or U+007F.
[[nodiscard]] bool is_printable(std::string_view utf8) noexcept;

// Appends the text as a JSON string, its quotes included. Escaped are " and \ and U+0000 to U+001F,
// the shortest way; everything else is copied.
void append_json_string(std::string& out, std::string_view utf8);

}  // namespace omr
