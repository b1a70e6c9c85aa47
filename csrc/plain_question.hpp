// Texts of a row as a corpus mostly has them: the question with a line for each option, the letter
// of an answer, the letter that a trace ends in.
//
// Plain C++ without Python. The definition is omr_io/corpus/options.py: what is found here is what
// that finds, and for any text that is less than plain nothing is found here.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace omr {

enum class TextKind : std::uint8_t {
    refused,  // not UTF-8, or with control characters other than tab, LF and CR
    ascii,
    unicode,
    spaced,  // unicode with white space beyond ASCII's, which Python's strip takes away too
};

[[nodiscard]] TextKind text_kind(std::string_view text) noexcept;

// Fills `texts` with the options' texts, in order: option i has the letter 'A' + i, 2 to 26 of them.
// False unless the lines end in LF, the options stand one a line at the very end, "A. text" or
// "A) text" or "A: text" at the start of the line, and a stem stands above them of which the last
// line is not blank and has no label.
[[nodiscard]] bool plain_options(std::string_view question, std::vector<std::string_view>& texts);

// "B", "B.", "B)", "B:" or "(B)", ASCII white space around it ignored; 0 for anything else.
[[nodiscard]] char plain_letter(std::string_view text) noexcept;

// The letter in the last <answer>…</answer>; 0 if there is no such element, or no letter in it.
// Nothing if that cannot be said without Unicode.
[[nodiscard]] std::optional<char> plain_trace_letter(std::string_view trace) noexcept;

}  // namespace omr
