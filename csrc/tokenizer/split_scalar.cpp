// The patterns of split.hpp, alternative by alternative. Each piece depends only on the text from
// its start on (no look-behind), every character is matched by some alternative, and a run is
// read at most twice, so time is linear.
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "tokenizer/code_points.hpp"
#include "tokenizer/split.hpp"

namespace omr {
namespace {

using Byte = unsigned char;

constexpr std::array<CharClass, 128> make_ascii() {
    std::array<CharClass, 128> out{};
    for (std::size_t c = 0; c < 128; ++c) {
        const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        out[c] = letter                                  ? CharClass::letter
                 : c >= '0' && c <= '9'                  ? CharClass::number
                 : c == '\r' || c == '\n'                ? CharClass::line
                 : c == ' ' || (c >= '\t' && c <= '\f')  ? CharClass::space
                                                         : CharClass::other;
    }
    return out;
}
constexpr std::array<CharClass, 128> ascii = make_ascii();

struct Character {
    CharClass kind;
    std::size_t bytes;
};

inline Character read(const Byte* at) {
    if (*at < 0x80) return {ascii[*at], 1};
    const CodePoint point = read_code_point(at);
    return {class_of(point.value), point.bytes};
}

// The end of a run of one class that goes on at `at`, of at most `most` characters.
inline const Byte* run(const Byte* at, const Byte* end, CharClass kind, std::size_t most) {
    for (; at < end && most > 0; --most) {
        const Character next = read(at);
        if (next.kind != kind) break;
        at += next.bytes;
    }
    return at;
}

constexpr std::size_t any = SIZE_MAX;

// (?i:'s|'t|'re|'ve|'m|'ll|'d): its end, or `at`, where an apostrophe is, if there is none.
// Of all code points only U+017F (long s) equals one of these letters but for its case.
inline const Byte* contraction(const Byte* at, const Byte* end) {
    const std::ptrdiff_t left = end - at;
    if (left < 2) return at;
    const int one = at[1] | 0x20;
    if (at[1] >= 0x80) return left >= 3 && at[1] == 0xC5 && at[2] == 0xBF ? at + 3 : at;
    if (one == 's' || one == 't' || one == 'm' || one == 'd') return at + 2;
    if (left < 3 || at[2] >= 0x80) return at;
    const int two = at[2] | 0x20;
    const bool found = (two == 'e' && (one == 'r' || one == 'v')) || (two == 'l' && one == 'l');
    return found ? at + 3 : at;
}

// [^\s\p{L}\p{N}]+[\r\n]* from the first of the marks on.
inline const Byte* marks(const Byte* at, const Byte* end) {
    at = run(at, end, CharClass::other, any);
    while (at < end && (*at == '\r' || *at == '\n')) ++at;
    return at;
}

// \s*[\r\n]+|\s+(?!\S)|\s+ : up to the run's last line break; or all but its last character, which
// is left to what follows; or all of it, at the end of the text or where it is one character.
const Byte* whitespace(const Byte* begin, const Byte* end) {
    const Byte* at = begin;
    const Byte* after_line = nullptr;
    const Byte* last = begin;
    while (at < end) {
        const Character next = read(at);
        if (next.kind != CharClass::space && next.kind != CharClass::line) break;
        last = at;
        at += next.bytes;
        if (next.kind == CharClass::line) after_line = at;
    }
    if (after_line != nullptr) return after_line;
    return at == end || last == begin ? at : last;
}

template <std::size_t digits>
const Byte* piece_end(const Byte* at, const Byte* end) {
    const Character first = read(at);
    const Byte* next = at + first.bytes;
    if (first.kind == CharClass::letter) return run(next, end, CharClass::letter, any);
    if (first.kind == CharClass::number) return run(next, end, CharClass::number, digits - 1);
    if (*at == '\'') {
        if (const Byte* found = contraction(at, end); found != at) return found;
    }
    if (first.kind != CharClass::line && next < end) {
        const Character second = read(next);
        if (second.kind == CharClass::letter) {
            return run(next + second.bytes, end, CharClass::letter, any);
        }
        if (*at == ' ' && second.kind == CharClass::other) return marks(next, end);
    }
    return first.kind == CharClass::other ? marks(next, end) : whitespace(at, end);
}

template <std::size_t digits>
std::size_t split_all(std::string_view text, std::size_t start, std::uint32_t* ends,
                      std::size_t capacity) {
    const Byte* const begin = reinterpret_cast<const Byte*>(text.data());
    const Byte* const end = begin + text.size();
    const Byte* at = begin + start;
    std::size_t count = 0;
    while (at < end && count < capacity) {
        at = piece_end<digits>(at, end);
        ends[count++] = static_cast<std::uint32_t>(at - begin);
    }
    return count;
}

}  // namespace

std::size_t split_scalar(Pattern pattern, std::string_view text, std::size_t start,
                         std::uint32_t* ends, std::size_t capacity) {
    return pattern == Pattern::qwen2 ? split_all<1>(text, start, ends, capacity)
                                     : split_all<3>(text, start, ends, capacity);
}

}  // namespace omr
