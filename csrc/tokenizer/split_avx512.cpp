#if defined(__x86_64__)

// gcc 12 takes the undefined parts of its own intrinsics for variables that were forgotten.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#define OMR_TARGET [[gnu::target("avx2,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512vbmi2")]]
#include "tokenizer/split_masks.hpp"
#include "tokenizer/split_sets.hpp"

namespace omr {
namespace {

struct Avx512 {
    OMR_INLINE Bits equal(__m512i bytes, char value) {
        return _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(value));
    }

    // Bytes from `first` to `first + more`.
    OMR_INLINE Bits range(__m512i bytes, char first, char more) {
        return _mm512_cmple_epu8_mask(_mm512_sub_epi8(bytes, _mm512_set1_epi8(first)),
                                      _mm512_set1_epi8(more));
    }

    OMR_INLINE Masks masks(const std::uint8_t* block) {
        const __m512i bytes = _mm512_loadu_si512(block);
        Masks masks;
        masks.letter = range(_mm512_or_si512(bytes, _mm512_set1_epi8(0x20)), 'a', 25);
        masks.number = range(bytes, '0', 9);
        masks.line = equal(bytes, '\n') | equal(bytes, '\r');
        masks.space = equal(bytes, ' ');
        masks.blank = masks.space | (range(bytes, '\t', 4) & ~masks.line);
        masks.apostrophe = equal(bytes, '\'');
        masks.wide = _mm512_movepi8_mask(bytes);
        return masks;
    }

    OMR_INLINE Bits tail(const std::uint8_t* block) {
        return _mm512_cmplt_epi8_mask(_mm512_loadu_si512(block),
                                      _mm512_set1_epi8('\xC0'));
    }

    // First bytes of characters that are letters for sure: see split_masks.hpp.
    OMR_INLINE Bits letters_beyond_ascii(const std::uint8_t* block) {
        const __m512i lead = _mm512_loadu_si512(block);
        const __m512i next = _mm512_loadu_si512(block + 1);
        const Bits all = range(lead, '\xC4', 6) | range(lead, '\xD0', 1) |
                         range(lead, '\xE5', 4) | range(lead, '\xEB', 1);
        const Bits latin = ~equal(_mm512_and_si512(next, _mm512_set1_epi8('\xDF')), '\x97');
        const Bits greek = range(next, '\x8E', 0xBF - 0x8E) & ~equal(next, '\xA2');
        return all | (equal(lead, '\xC3') & latin) | (equal(lead, '\xCE') & greek) |
               (equal(lead, '\xCF') & ~equal(next, '\xB6')) |
               (equal(lead, '\xE4') & ~equal(next, '\xB7'));
    }

    OMR_INLINE void store(__m128i numbers, std::uint32_t base, std::uint32_t* ends) {
        _mm512_storeu_si512(ends, _mm512_add_epi32(_mm512_cvtepu8_epi32(numbers),
                                                   _mm512_set1_epi32(static_cast<int>(base))));
    }

    OMR_INLINE std::size_t write(Bits bits, std::uint32_t base, std::uint32_t* ends) {
        const auto count = static_cast<std::size_t>(std::popcount(bits));
        const __m512i bytes = _mm512_maskz_compress_epi8(bits, _mm512_load_si512(numbers));
        // Two thirds of the blocks of English text hold at most 16 starts, nearly all at most 32.
        store(_mm512_castsi512_si128(bytes), base, ends);
        store(_mm512_extracti32x4_epi32(bytes, 1), base, ends + 16);
        if (count > 32) [[unlikely]] {
            store(_mm512_extracti32x4_epi32(bytes, 2), base, ends + 32);
            store(_mm512_extracti32x4_epi32(bytes, 3), base, ends + 48);
        }
        return count;
    }

    alignas(64) static constexpr std::uint8_t numbers[64] = {
        0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
        22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
        44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
};

}  // namespace

OMR_TARGET std::size_t split_avx512(Pattern pattern, std::string_view text, std::size_t start,
                                    std::uint32_t* ends, std::size_t capacity) {
    if (pattern == Pattern::llama3) {
        return split_blocks<Avx512, Pattern::llama3>(text, start, ends, capacity);
    }
    return split_blocks<Avx512, Pattern::qwen2>(text, start, ends, capacity);
}

}  // namespace omr

#endif
