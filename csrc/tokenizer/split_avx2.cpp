#if defined(__x86_64__)

#include <immintrin.h>

#define OMR_TARGET [[gnu::target("avx2,bmi,bmi2,lzcnt,popcnt")]]
#include "tokenizer/split_masks.hpp"
#include "tokenizer/split_sets.hpp"

namespace omr {
namespace {

struct Avx2 {
    OMR_INLINE Bits bits(__m256i low, __m256i high) {
        return static_cast<std::uint32_t>(_mm256_movemask_epi8(low)) |
               static_cast<Bits>(static_cast<std::uint32_t>(_mm256_movemask_epi8(high))) << 32;
    }

    OMR_INLINE __m256i equal(__m256i bytes, char value) {
        return _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(value));
    }

    // Bytes from `first` to `first + more`.
    OMR_INLINE __m256i range(__m256i bytes, char first, char more) {
        const __m256i moved = _mm256_sub_epi8(bytes, _mm256_set1_epi8(first));
        return _mm256_cmpeq_epi8(_mm256_min_epu8(moved, _mm256_set1_epi8(more)), moved);
    }

    OMR_INLINE __m256i letters(__m256i bytes) {
        return range(_mm256_or_si256(bytes, _mm256_set1_epi8(0x20)), 'a', 25);
    }

    OMR_INLINE __m256i lines(__m256i bytes) {
        return _mm256_or_si256(equal(bytes, '\n'), equal(bytes, '\r'));
    }

    OMR_INLINE Masks masks(const std::uint8_t* block) {
        const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block));
        const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + 32));
        Masks masks;
        masks.letter = bits(letters(low), letters(high));
        masks.number = bits(range(low, '0', 9), range(high, '0', 9));
        masks.line = bits(lines(low), lines(high));
        masks.space = bits(equal(low, ' '), equal(high, ' '));
        const Bits control = bits(range(low, '\t', 4), range(high, '\t', 4));
        masks.blank = masks.space | (control & ~masks.line);
        masks.apostrophe = bits(equal(low, '\''), equal(high, '\''));
        masks.wide = bits(low, high);
        return masks;
    }

    OMR_INLINE Bits tail(const std::uint8_t* block) {
        const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block));
        const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + 32));
        const __m256i lead = _mm256_set1_epi8('\xC0');
        return bits(_mm256_cmpgt_epi8(lead, low), _mm256_cmpgt_epi8(lead, high));
    }

    // First bytes of characters that are letters for sure: see split_masks.hpp.
    OMR_INLINE __m256i letters_beyond_ascii(__m256i lead, __m256i next) {
        const __m256i all =
            _mm256_or_si256(_mm256_or_si256(range(lead, '\xC4', 6), range(lead, '\xD0', 1)),
                            _mm256_or_si256(range(lead, '\xE5', 4), range(lead, '\xEB', 1)));
        const __m256i latin = _mm256_andnot_si256(
            equal(_mm256_and_si256(next, _mm256_set1_epi8('\xDF')), '\x97'), equal(lead, '\xC3'));
        const __m256i greek = _mm256_andnot_si256(
            equal(next, '\xA2'),
            _mm256_and_si256(range(next, '\x8E', 0xBF - 0x8E), equal(lead, '\xCE')));
        const __m256i greek_more = _mm256_andnot_si256(equal(next, '\xB6'), equal(lead, '\xCF'));
        const __m256i han = _mm256_andnot_si256(equal(next, '\xB7'), equal(lead, '\xE4'));
        return _mm256_or_si256(_mm256_or_si256(_mm256_or_si256(all, latin), han),
                               _mm256_or_si256(greek, greek_more));
    }

    OMR_INLINE Bits letters_beyond_ascii(const std::uint8_t* block) {
        const auto* at = reinterpret_cast<const __m256i*>(block);
        const auto* next = reinterpret_cast<const __m256i*>(block + 1);
        return bits(
            letters_beyond_ascii(_mm256_loadu_si256(at), _mm256_loadu_si256(next)),
            letters_beyond_ascii(_mm256_loadu_si256(at + 1), _mm256_loadu_si256(next + 1)));
    }

    // Unrolled, and in steps of 16: a loop that ends at the count costs a wrong guess a block.
    OMR_INLINE std::size_t write(Bits bits, std::uint32_t base, std::uint32_t* ends) {
        const auto count = static_cast<std::size_t>(std::popcount(bits));
        for (std::size_t done = 0; done < count; done += 16) {
#pragma GCC unroll 16
            for (std::size_t i = 0; i < 16; ++i) {
                ends[done + i] = base + static_cast<std::uint32_t>(_tzcnt_u64(bits));
                bits = _blsr_u64(bits);
            }
        }
        return count;
    }
};

}  // namespace

OMR_TARGET std::size_t split_avx2(Pattern pattern, std::string_view text, std::size_t start,
                                  std::uint32_t* ends, std::size_t capacity) {
    if (pattern == Pattern::llama3) {
        return split_blocks<Avx2, Pattern::llama3>(text, start, ends, capacity);
    }
    return split_blocks<Avx2, Pattern::qwen2>(text, start, ends, capacity);
}

}  // namespace omr

#endif
