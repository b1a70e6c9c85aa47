#include "tokenizer/text_view.hpp"

#include <cstring>
#include <string>

#include "tokenizer/split.hpp"

namespace omr {

namespace {

const char* describe(TextError::Kind kind) {
    switch (kind) {
        case TextError::Kind::surrogate: return "a lone surrogate";
        case TextError::Kind::too_long: return "a text of more than 4 GiB";
        case TextError::Kind::control_text: return "a text that spells a control token";
        case TextError::Kind::control_id: return "a text that yields a control token";
    }
    return "";
}

constexpr std::size_t block = 16;

// Copies 16 ASCII code points at once, as long as there are such; how many were copied. The two
// loops become vector instructions (a fifth of the time of one code point after the other).
template <typename Unit>
std::size_t copy_ascii(const Unit* from, std::size_t count, char* to) {
    std::size_t done = 0;
    for (; done + block <= count; done += block) {
        Unit all = 0;
        for (std::size_t i = 0; i < block; ++i) all = static_cast<Unit>(all | from[done + i]);
        if (all >= 0x80) break;
        for (std::size_t i = 0; i < block; ++i) to[done + i] = static_cast<char>(from[done + i]);
    }
    return done;
}

char byte(std::uint32_t value) { return static_cast<char>(static_cast<unsigned char>(value)); }

// Writes one code point; returns how many bytes.
inline std::size_t put(std::uint32_t c, char* to) {
    if (c < 0x80) {
        to[0] = byte(c);
        return 1;
    }
    if (c < 0x800) {
        to[0] = byte(0xC0 | (c >> 6));
        to[1] = byte(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        to[0] = byte(0xE0 | (c >> 12));
        to[1] = byte(0x80 | ((c >> 6) & 0x3F));
        to[2] = byte(0x80 | (c & 0x3F));
        return 3;
    }
    to[0] = byte(0xF0 | (c >> 18));
    to[1] = byte(0x80 | ((c >> 12) & 0x3F));
    to[2] = byte(0x80 | ((c >> 6) & 0x3F));
    to[3] = byte(0x80 | (c & 0x3F));
    return 4;
}

template <typename Unit>
std::size_t transcode(const Unit* from, std::size_t count, char* const to) {
    char* at = to;
    std::size_t i = 0;
    while (i < count) {
        const std::size_t copied = copy_ascii(from + i, count - i, at);
        i += copied;
        at += copied;
        const std::size_t stop = count - i < block ? count : i + block;
        for (; i < stop; ++i) {
            const std::uint32_t c = from[i];
            if constexpr (sizeof(Unit) > 1) {
                if (c >= 0xD800 && c < 0xE000) throw TextError(TextError::Kind::surrogate, i, c);
            }
            at += put(c, at);
        }
    }
    return static_cast<std::size_t>(at - to);
}

}  // namespace

TextError::TextError(Kind kind, std::size_t position, std::size_t value)
    : std::runtime_error(describe(kind)), kind_(kind), position_(position), value_(value) {}

std::string_view to_utf8(const TextView& text, Buffer& buffer) {
    if (text.length > max_text) throw TextError(TextError::Kind::too_long, 0, text.length);
    if (text.ascii) return {static_cast<const char*>(text.data), text.length};
    // At most 2, 3 and 4 bytes a code point; what is not written to costs no memory.
    const std::size_t widest = text.kind == 1 ? 2 : text.kind == 2 ? 3 : 4;
    char* const to = buffer.room(text.length * widest);
    std::size_t size = 0;
    if (text.kind == 1) {
        size = transcode(static_cast<const std::uint8_t*>(text.data), text.length, to);
    } else if (text.kind == 2) {
        size = transcode(static_cast<const std::uint16_t*>(text.data), text.length, to);
    } else {
        size = transcode(static_cast<const std::uint32_t*>(text.data), text.length, to);
    }
    if (size > max_text) throw TextError(TextError::Kind::too_long, 0, size);
    return {to, size};
}

}  // namespace omr
