// Canonical composition (NFC: UAX #15) with Hugging Face's tables, which are not one Unicode
// version's. Text is cut before every starter that can neither change nor compose with what stands
// before it, and only the parts that may change are worked on; the rest is copied.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/code_points.hpp"

namespace omr {
namespace {

using Byte = unsigned char;

// Code points below U+0300 are starters in NFC; in UTF-8 they are bytes below this one.
constexpr Byte first_of_interest = 0xCC;
constexpr std::ptrdiff_t block = 64;

constexpr char32_t hangul = 0xAC00, hangul_end = 0xD7A4;
constexpr char32_t leads = 0x1100, vowels = 0x1161, trails = 0x11A7;  // a trail of 0 is none
constexpr char32_t lead_count = 19, vowel_count = 21, trail_count = 28;

// A loop that the compiler turns into vector instructions: 64 bytes in 2 ns.
inline bool all_plain(const Byte* at) {
    Byte most = 0;
    for (std::ptrdiff_t i = 0; i < block; ++i) most = std::max(most, at[i]);
    return most < first_of_interest;
}

// Goes forward from `at` as long as what is read is in NFC, and stops on the first code point that
// may not be. `boundary` is then the start of the last one before which text can be cut.
const Byte* skip_nfc(const Byte* at, const Byte* end, const Byte*& boundary) {
    std::uint8_t rank = 0;
    boundary = at;
    while (at < end) {
        if (end - at >= block && all_plain(at)) {
            at += block;
            rank = 0;
            boundary = at - 1;  // perhaps within a character: mended below
            continue;
        }
        const Byte* const stop = end - at > block ? at + block : end;
        while (at < stop) {
            if (*at < first_of_interest) {
                boundary = at++;
                rank = 0;
                continue;
            }
            const CodePoint point = read_code_point(at);
            const std::uint8_t bits = nfc_bits(point.value);
            const std::uint8_t next = bits & nfc_rank;
            if ((bits & nfc_suspect) != 0 || (next != 0 && next < rank)) {
                while ((*boundary & 0xC0) == 0x80) --boundary;
                return at;
            }
            if (next == 0) boundary = at;
            rank = next;
            at += point.bytes;
        }
    }
    boundary = end;
    return end;
}

struct Ranked {
    char32_t value;
    std::uint8_t bits;
};

void decompose(char32_t value, std::vector<Ranked>& out) {
    const std::uint8_t bits = nfc_bits(value);
    if (value >= hangul && value < hangul_end) {
        const char32_t n = value - hangul;
        out.push_back({leads + n / (vowel_count * trail_count), 0});
        out.push_back({vowels + n / trail_count % vowel_count, nfc_suspect});
        if (n % trail_count != 0) out.push_back({trails + n % trail_count, nfc_suspect});
    } else if ((bits & nfc_decomposes) == 0) {
        out.push_back({value, bits});
    } else {
        const char32_t* const found =
            std::lower_bound(std::begin(tables::decomposed), std::end(tables::decomposed), value);
        const std::uint16_t* const range = tables::decomposition_begin + (found - tables::decomposed);
        for (std::size_t i = range[0]; i < range[1]; ++i) {
            const char32_t part = tables::decomposition[i];
            out.push_back({part, nfc_bits(part)});
        }
    }
}

// Each run of combining marks in the order of their ranks; equal ones keep theirs.
void reorder(std::vector<Ranked>& text) {
    const auto less = [](const Ranked& a, const Ranked& b) {
        return (a.bits & nfc_rank) < (b.bits & nfc_rank);
    };
    for (auto at = text.begin(); at != text.end();) {
        if ((at->bits & nfc_rank) == 0) {
            ++at;
            continue;
        }
        const auto stop = std::find_if(
            at, text.end(), [](const Ranked& next) { return (next.bits & nfc_rank) == 0; });
        if (!std::is_sorted(at, stop, less)) std::stable_sort(at, stop, less);
        at = stop;
    }
}

// What the two become, or 0. `second` is suspect: nothing else composes with what precedes it.
char32_t compose(char32_t first, char32_t second) {
    if (first >= leads && first < leads + lead_count && second >= vowels &&
        second < vowels + vowel_count) {
        return hangul + ((first - leads) * vowel_count + (second - vowels)) * trail_count;
    }
    if (first >= hangul && first < hangul_end && (first - hangul) % trail_count == 0 &&
        second > trails && second < trails + trail_count) {
        return first + (second - trails);
    }
    const std::uint64_t pair = std::uint64_t{first} << 32 | second;
    const auto found = std::lower_bound(std::begin(tables::composition_pair),
                                        std::end(tables::composition_pair), pair);
    if (found == std::end(tables::composition_pair) || *found != pair) return 0;
    return tables::composition[found - tables::composition_pair];
}

// A mark composes with the starter before it unless one of equal or greater rank stands between;
// a starter only if it stands right behind.
void recompose(std::vector<Ranked>& text) {
    std::size_t starter = text.size();  // none yet
    std::size_t written = 0;
    for (const Ranked next : text) {
        const std::uint8_t rank = next.bits & nfc_rank;
        if (starter < written && (next.bits & nfc_suspect) != 0) {
            const bool adjacent = starter + 1 == written;
            const std::uint8_t before = text[written - 1].bits & nfc_rank;
            if (adjacent || before < rank) {
                if (const char32_t whole = compose(text[starter].value, next.value)) {
                    text[starter].value = whole;
                    continue;
                }
            }
        }
        if (rank == 0) starter = written;
        text[written++] = next;
    }
    text.resize(written);
}

void append(char32_t value, std::string& out) {
    const auto put = [&out](char32_t byte) { out.push_back(static_cast<char>(byte)); };
    if (value < 0x80) {
        put(value);
        return;
    }
    if (value < 0x800) {
        put(0xC0 | value >> 6);
    } else {
        if (value < 0x10000) {
            put(0xE0 | value >> 12);
        } else {
            put(0xF0 | value >> 18);
            put(0x80 | (value >> 12 & 0x3F));
        }
        put(0x80 | (value >> 6 & 0x3F));
    }
    put(0x80 | (value & 0x3F));
}

// From a boundary to the next one behind `suspect`: where that is. The NFC of it is appended.
const Byte* normalise(const Byte* at, const Byte* suspect, const Byte* end,
                      std::vector<Ranked>& buffer, std::string& out) {
    buffer.clear();
    while (at < end) {
        const CodePoint point = read_code_point(at);
        if (at > suspect && (nfc_bits(point.value) & (nfc_suspect | nfc_rank)) == 0) break;
        decompose(point.value, buffer);
        at += point.bytes;
    }
    reorder(buffer);
    recompose(buffer);
    for (const Ranked& next : buffer) append(next.value, out);
    return at;
}

}  // namespace

bool may_need_nfc(std::string_view text) {
    const Byte* const begin = reinterpret_cast<const Byte*>(text.data());
    const Byte* boundary = nullptr;
    return skip_nfc(begin, begin + text.size(), boundary) != begin + text.size();
}

void to_nfc(std::string_view text, std::string& out) {
    const Byte* at = reinterpret_cast<const Byte*>(text.data());
    const Byte* const end = at + text.size();
    std::vector<Ranked> buffer;
    out.clear();
    out.reserve(text.size());
    while (at < end) {
        const Byte* boundary = nullptr;
        const Byte* const suspect = skip_nfc(at, end, boundary);
        out.append(reinterpret_cast<const char*>(at), static_cast<std::size_t>(boundary - at));
        at = suspect == end ? end : normalise(boundary, suspect, end, buffer, out);
    }
}

}  // namespace omr
