#include "plain_question.hpp"

#include <algorithm>
#include <cstddef>

#include "texts.hpp"

namespace omr {
namespace {

constexpr std::string_view kSpaces = " \t\n\r";  // with the control characters refused

constexpr bool is_upper(char c) { return c >= 'A' && c <= 'Z'; }
constexpr bool ends_label(char c) { return c == '.' || c == ')' || c == ':'; }
constexpr bool is_space(char c) { return kSpaces.find(c) != kSpaces.npos; }

std::string_view stripped_left(std::string_view text) {
    text.remove_prefix(std::min(text.find_first_not_of(kSpaces), text.size()));
    return text;
}

std::string_view stripped_right(std::string_view text) {
    return text.substr(0, text.find_last_not_of(kSpaces) + 1);  // npos + 1 is 0
}

std::string_view stripped(std::string_view text) { return stripped_left(stripped_right(text)); }

// A label with or without white space before it: "A.", "A)", "A:" or "(A)".
bool has_label(std::string_view line) {
    line = stripped_left(line);
    if (line.size() >= 3 && line[0] == '(') {
        return is_upper(line[1]) && line[2] == ')';
    }
    return line.size() >= 2 && is_upper(line[0]) && ends_label(line[1]);
}

bool is_ascii(std::string_view text) {
    return std::all_of(text.begin(), text.end(),
                       [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

bool is_unicode_space(char32_t c) {
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
           c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

// One character beyond ASCII at the start of the text, and its size in bytes; size 0 if it is
// malformed (Unicode 16, table 3-7).
struct Decoded {
    char32_t character;
    std::size_t size;
};

Decoded decode(std::string_view text) {
    const auto lead = static_cast<unsigned char>(text[0]);
    const std::size_t size = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (lead < 0xC2 || lead > 0xF4 || text.size() < size) {
        return {0, 0};
    }
    char32_t character = lead & (0xFFU >> (size + 1));
    for (std::size_t i = 1; i < size; ++i) {
        const auto next = static_cast<unsigned char>(text[i]);
        if ((next & 0xC0U) != 0x80) {
            return {0, 0};
        }
        character = character << 6U | (next & 0x3FU);
    }
    const bool is_short = (size == 3 && character < 0x800) || (size == 4 && character < 0x10000);
    const bool is_half = character >= 0xD800 && character <= 0xDFFF;
    return is_short || is_half || character > 0x10FFFF ? Decoded{0, 0} : Decoded{character, size};
}

bool any_high(std::string_view text) {
    unsigned char found = 0;  // without leaving early: vector instructions
    for (const char c : text) {
        found = static_cast<unsigned char>(found | static_cast<unsigned char>(c));
    }
    return (found & 0x80U) != 0;
}

}  // namespace

TextKind text_kind(std::string_view text) noexcept {
    if (!is_printable(text)) {
        return TextKind::refused;
    }
    if (!any_high(text)) {
        return TextKind::ascii;
    }
    TextKind kind = TextKind::unicode;
    for (std::size_t at = 0; at < text.size();) {
        if (static_cast<unsigned char>(text[at]) < 0x80) {
            ++at;
            continue;
        }
        const Decoded found = decode(text.substr(at));
        if (found.size == 0) {
            return TextKind::refused;
        }
        if (is_unicode_space(found.character)) {
            kind = TextKind::spaced;
        }
        at += found.size;
    }
    return kind;
}

bool plain_options(std::string_view question, std::vector<std::string_view>& texts) {
    texts.clear();
    if (question.find('\r') != question.npos) {
        return false;
    }
    std::string_view rest = stripped_right(question);
    std::string_view line;
    char letter = 0;  // of the line below
    while (true) {
        const std::size_t start = rest.rfind('\n') + 1;  // npos + 1 is 0
        line = rest.substr(start);
        if (line.size() < 2 || !is_upper(line[0]) || !ends_label(line[1])) {
            break;
        }
        const std::string_view text = stripped(line.substr(2));
        if (text.empty() || (letter != 0 && line[0] != letter - 1) || start == 0) {
            return false;
        }
        letter = line[0];
        texts.push_back(text);
        rest = rest.substr(0, start - 1);
    }
    std::reverse(texts.begin(), texts.end());
    return letter == 'A' && texts.size() >= 2 && !stripped(line).empty() && !has_label(line);
}

char plain_letter(std::string_view text) noexcept {
    text = stripped(text);
    if (text.size() == 3) {
        return text[0] == '(' && is_upper(text[1]) && text[2] == ')' ? text[1] : '\0';
    }
    const bool labelled = text.size() == 1 || (text.size() == 2 && ends_label(text[1]));
    return labelled && is_upper(text[0]) ? text[0] : '\0';
}

std::optional<char> plain_trace_letter(std::string_view trace) noexcept {
    constexpr std::string_view kOpen = "<answer>";
    const std::size_t end = trace.rfind("</answer>");
    if (end == trace.npos) {
        return '\0';
    }
    const std::size_t start = trace.substr(0, end).rfind(kOpen);
    if (start == trace.npos) {
        return '\0';
    }
    const std::string_view text = stripped(trace.substr(start + kOpen.size(), end - start - kOpen.size()));
    if (!is_ascii(text)) {
        return std::nullopt;
    }
    if (text.size() >= 4 && text[0] == '(' && is_upper(text[1]) && text[2] == ')' &&
        is_space(text[3])) {
        return text[1];
    }
    if (text.size() >= 3 && is_upper(text[0]) && ends_label(text[1]) && is_space(text[2])) {
        return text[0];
    }
    return plain_letter(text);
}

}  // namespace omr
