// The boundaries of pieces as bit logic: 64 bytes of text at a time, one bit a byte.
//
// Each instruction set's file defines OMR_TARGET (its target attribute) and a class that makes the
// masks of a block and writes the numbers of set bits, then includes this header; all of it has
// internal linkage, so that no code made for one processor is ever linked into another's path.
//
// All bytes of a character carry its class, so runs of characters are runs of bits, and what holds
// at a character's first byte is worked out from the byte before it. What crosses from one block
// into the next is in Carry. The rules, in the order of the expression's alternatives:
//
//   contraction  an apostrophe that begins a piece, then one of s t re ve m ll d (and U+017F, which
//                ignoring case is an s): rare, so looked for one by one
//   letters      begin a piece unless a blank, or an `other` that begins a piece, stands before
//   numbers      each begins a piece (qwen2), or every third of a run does (llama3)
//   others       a run begins a piece unless a plain space stands before; takes the line ends after
//   white space  what others have not taken: begins a piece at the run's start, after its last line
//                end, and at its last blank if something follows, which joins it if it may
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "tokenizer/code_points.hpp"
#include "tokenizer/split.hpp"

#define OMR_INLINE OMR_TARGET [[gnu::always_inline]] static inline

namespace omr {
namespace {

using Bits = std::uint64_t;

constexpr std::size_t block_size = 64;
constexpr std::size_t look_ahead = 3;  // bytes of a character that begins in a block's last byte
constexpr std::size_t most_ends = block_size + 1;  // of a block, and one left over from the former
constexpr Bits top = Bits{1} << 63;

// The classes of a block's bytes. Of a byte of 0x80 or more only `wide` knows at first.
struct Masks {
    Bits letter, number, blank, line;  // blank: white space but for line ends
    Bits space, apostrophe;            // U+0020; '
    Bits wide;
};

// What a block must know of those before it: 1 or 0 about their last byte, if not said otherwise.
struct Carry {
    Bits letter = 0, number = 0, blank = 0;
    Bits lone = 0;   // of an `other` that begins a piece
    Bits joins = 0;  // a letter goes on from it
    Bits holds = 0;  // an `other` goes on from it
    Bits takes = 0;  // a line end goes on from it
    Bits white = 0;  // white space that begins a piece or goes on in one of white space
    Bits line = 0;
    Bits late = 0;   // starts of pieces in the next block, after a contraction
    Bits open = 0;   // a blank that begins a piece if no white space follows; it is at open_at
    std::uint32_t open_at = 0;
    std::uint32_t digits = 0;  // llama3: numbers in the last byte's piece, if it is a number
};

// True if the blanks at `at` are followed by a line end. Long runs are read once: only a blank just
// behind a line end is asked about.
[[gnu::noinline]] bool line_follows(std::string_view text, std::size_t at) {
    const auto* data = reinterpret_cast<const std::uint8_t*>(text.data());
    while (at < text.size()) {
        const CodePoint next = read_code_point(data + at);
        const CharClass found = class_of(next.value);
        if (found != CharClass::space) return found == CharClass::line;
        at += next.bytes;
    }
    return false;
}

// The length of the contraction whose apostrophe is at `at`, or 0.
[[gnu::noinline]] std::size_t contraction(std::string_view text, std::size_t at) {
    if (text.size() - at < 2) return 0;
    const char first = static_cast<char>(text[at + 1] | 0x20);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
    if (text.size() - at < 3) return 0;
    const char second = static_cast<char>(text[at + 2] | 0x20);
    if ((first == 'r' || first == 'v') && second == 'e') return 3;
    if (first == 'l' && second == 'l') return 3;
    return text[at + 1] == '\xC5' && text[at + 2] == '\xBF' ? 3 : 0;  // U+017F
}

// Bits of characters' first bytes, spread over their other bytes (`tail`); before: whether the
// character that the former block ended in has its bit.
OMR_INLINE Bits spread(Bits first, Bits tail, Bits before) {
    const Bits begun = (first << 1 | before) & tail;
    return first | (tail & ~(tail + begun));
}

// Puts the classes of characters beyond ASCII into the masks. letters: first bytes of those that
// are letters for sure; the others are looked up one by one. Each set of instructions tells these
// by comparisons, which is 3 times as fast as looking them up:
//
//   all of  C4-CA   U+0100-02BF  Latin, phonetic
//           D0-D1   U+0400-047F  Cyrillic
//           E5-E9   U+5000-9FFF  Han
//           EB-EC   U+B000-CFFF  Hangul
//   most of C3      U+00C0-00FF  Latin: not x97, xB7 (multiplication, division)
//           CE, CF  U+0380-03FF  Greek: CE from x8E, not xA2; CF not xB6
//           E4      U+4000-4FFF  Han: not B7 (hexagrams)
OMR_INLINE void classify_wide(Masks& masks, Bits tail, Bits letters, const std::uint8_t* block,
                              const Carry& carry) {
    masks.letter |= letters;
    for (Bits rest = masks.wide & ~(tail | letters); rest != 0; rest &= rest - 1) {
        const int at = std::countr_zero(rest);
        const CharClass found = class_of(read_code_point(block + at).value);
        masks.letter |= Bits{found == CharClass::letter} << at;
        masks.number |= Bits{found == CharClass::number} << at;
        masks.blank |= Bits{found == CharClass::space} << at;
    }
    masks.letter = spread(masks.letter, tail, carry.letter);
    masks.number = spread(masks.number, tail, carry.number);
    masks.blank = spread(masks.blank, tail, carry.blank);
}

// Starts of pieces of up to three numbers each.
OMR_INLINE Bits by_three(const Masks& masks, Bits tail, Carry& carry) {
    const Bits number = masks.number;
    const Bits before = number << 1 | carry.number;
    Bits starts = number & ~before;
    if ((number & masks.wide) != 0) {  // bytes are no measure: count characters
        for (Bits rest = number & ~tail; rest != 0; rest &= rest - 1) {
            const int at = std::countr_zero(rest);
            if ((before >> at & 1) == 0 || carry.digits == 3) carry.digits = 0;
            if (carry.digits++ == 0) starts |= Bits{1} << at;
        }
        return starts;
    }
    if (carry.number != 0) {  // the piece from the former block goes on for some digits
        const std::uint32_t more = 3 - carry.digits;
        const Bits all = (Bits{2} << more) - 1;
        if ((number & all) == all) starts |= Bits{1} << more;
    }
    Bits run = number & number << 1 & number << 2;  // a start three before reaches these
    if ((run & number << 3) != 0) {  // four or more together
        for (int step = 3; step < 64; step *= 2) {  // 3, 6, 12, 24, 48: all multiples of 3
            starts |= starts << step & run;
            run &= run << step;
        }
    }
    carry.digits = static_cast<std::uint32_t>(std::countl_zero(starts)) + 1;
    return starts;
}

// Takes out of `behind` (blanks just behind a line end) those whose run ends in a line end.
OMR_INLINE Bits behind_last_line(Bits behind, const Masks& masks, std::string_view text,
                                 std::size_t base) {
    Bits after;  // the byte after each run that is asked about
    const bool beyond = __builtin_add_overflow(masks.blank, behind, &after);
    if (!beyond && (after & masks.line) == 0) return behind;
    for (Bits rest = behind; rest != 0; rest &= rest - 1) {
        const auto at = static_cast<std::size_t>(std::countr_zero(rest));
        if (line_follows(text, base + at)) behind ^= Bits{1} << at;
    }
    return behind;
}

// Marks the ends of contractions whose apostrophes are given.
OMR_INLINE Bits contractions(Bits apostrophes, std::string_view text, std::size_t base,
                             Carry& carry) {
    Bits starts = 0;
    for (; apostrophes != 0; apostrophes &= apostrophes - 1) {
        const auto at = static_cast<std::size_t>(std::countr_zero(apostrophes));
        const std::size_t length = contraction(text, base + at);
        if (length == 0) continue;
        const std::size_t end = at + length;
        if (end < block_size) {
            starts |= Bits{1} << end;
        } else {
            carry.late |= Bits{1} << (end - block_size);
        }
    }
    return starts;
}

// The last blanks before something else, at their first bytes. The block's last byte is left open.
OMR_INLINE Bits last_blanks(Bits blank, Bits white, Bits tail) {
    const Bits last = blank & ~(white >> 1 | top);
    const Bits once = (last & tail) >> 1;  // white space is at most three bytes long
    const Bits twice = (once & tail) >> 1;
    return (last | once | twice) & ~tail;
}

// The starts of pieces in a block. tail: bytes that are not the first of their character.
// open: set to 1 if the blank at carry.open_at, in the former block, begins a piece too.
template <Pattern pattern, bool wide>
OMR_INLINE Bits piece_starts(const Masks& masks, Bits tail, std::string_view text,
                             std::size_t base, Carry& carry, Bits& open, std::uint32_t& open_at) {
    const Bits letter = masks.letter, number = masks.number, blank = masks.blank;
    const Bits line = masks.line, white = blank | line;
    const Bits other = ~(letter | number | white);

    const int next = wide ? std::countr_one(tail) & 63 : 0;  // the first character of this block
    open = carry.open & ~(white >> next) & 1;
    open_at = carry.open_at;

    const Bits other_starts = other & ~((other | masks.space) << 1 | carry.holds);
    const Bits lone = wide ? spread(other_starts, tail, carry.lone) : other_starts;
    const Bits joins = letter | blank | lone;
    const Bits letter_starts = letter & ~(joins << 1 | carry.joins);

    const Bits first_taken = line & (other << 1 | carry.takes);
    const Bits taken = line & ~(line + first_taken);
    const Bits left = white & ~taken;
    const Bits white_starts = left & ~(left << 1 | carry.white);
    Bits behind = blank & (line << 1 | carry.line);
    if (behind != 0) behind = behind_last_line(behind, masks, text, base);

    Bits starts = letter_starts | other_starts | white_starts | behind | carry.late;
    starts |= last_blanks(blank, white, tail);
    if constexpr (pattern == Pattern::llama3) {
        starts |= by_three(masks, tail, carry);
    } else {
        starts |= number & ~tail;
    }
    carry.late = 0;
    const Bits apostrophes = other_starts & masks.apostrophe & (letter >> 1 | top);
    if (apostrophes != 0) starts |= contractions(apostrophes, text, base, carry);

    const int last = wide ? 63 - std::countl_one(tail) : 63;  // where the last character begins
    carry.letter = letter >> 63;
    carry.number = number >> 63;
    carry.blank = blank >> 63;
    carry.lone = lone >> 63;
    carry.joins = joins >> 63;
    carry.holds = (other | masks.space) >> 63;
    carry.takes = (other | taken) >> 63;
    carry.white = left >> 63;
    carry.line = line >> 63;
    carry.open = carry.blank & ~(starts >> (last & 63));
    carry.open_at = static_cast<std::uint32_t>(base) + static_cast<std::uint32_t>(last & 63);
    return starts;
}

// `split` by the given instruction set, which has masks(block), tail(block),
// letters_beyond_ascii(block), and write(bits, base, ends): it writes base + the number of each set
// bit and returns how many; behind them it may write others without meaning, up to 64 in all.
template <class Set, Pattern pattern>
OMR_INLINE std::size_t split_blocks(std::string_view text, std::size_t start, std::uint32_t* ends,
                                    std::size_t capacity) {
    const auto* data = reinterpret_cast<const std::uint8_t*>(text.data());
    const std::size_t size = text.size();
    if (start >= size) return 0;
    Carry carry;
    std::size_t count = 0;
    Bits keep = ~Bits{1};  // the first piece's start is no end
    std::uint8_t padded[block_size + look_ahead];
    for (std::size_t base = start; base < size; base += block_size) {
        const std::uint8_t* block = data + base;
        const std::size_t rest = size - base;
        if (rest < block_size + look_ahead) [[unlikely]] {
            // White space that is not there changes nothing: blanks at the end are one piece.
            std::memset(padded, ' ', sizeof padded);
            std::memcpy(padded, block, rest);
            block = padded;
            if (rest < block_size) keep &= (Bits{1} << rest) - 1;
        }
        Masks masks = Set::masks(block);
        Bits open, starts;
        std::uint32_t open_at;
        if (masks.wide == 0) {
            starts = piece_starts<pattern, false>(masks, 0, text, base, carry, open, open_at);
        } else {
            const Bits tail = Set::tail(block);
            classify_wide(masks, tail, Set::letters_beyond_ascii(block), block, carry);
            starts = piece_starts<pattern, true>(masks, tail, text, base, carry, open, open_at);
        }
        starts &= keep;
        keep = ~Bits{0};
        if (capacity - count >= most_ends) [[likely]] {
            ends[count] = open_at;
            count += open;
            count += Set::write(starts, static_cast<std::uint32_t>(base), ends + count);
        } else {
            std::uint32_t some[most_ends];
            some[0] = open_at;
            std::size_t found = open;
            found += Set::write(starts, static_cast<std::uint32_t>(base), some + found);
            if (found > capacity - count) found = capacity - count;
            std::memcpy(ends + count, some, found * sizeof *ends);
            count += found;
            if (count == capacity) return count;
        }
    }
    ends[count] = static_cast<std::uint32_t>(size);
    return count + 1;
}

}  // namespace
}  // namespace omr
