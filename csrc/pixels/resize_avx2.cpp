// Sums of 16-bit products (VPMADDWD): a weight of 23 bits is w = high * 2^12 + low, both within 16
// bits, and the sum of two products is exact in 32 bits.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "pixels/passes.hpp"

#define OMR_AVX2 __attribute__((target("avx2")))

namespace omr {
namespace {

constexpr int low_bits = 12;

struct Halves {
    std::int16_t low, high;
};

Halves halves(std::int32_t weight) {
    constexpr std::int32_t middle = 1 << (low_bits - 1);
    const std::int32_t high = (weight + middle) >> low_bits;
    return {static_cast<std::int16_t>(weight - (high << low_bits)),
            static_cast<std::int16_t>(high)};
}

std::int32_t pair(std::int16_t first, std::int16_t second) {
    return static_cast<std::int32_t>(static_cast<std::uint16_t>(first) |
                                     static_cast<std::uint32_t>(static_cast<std::uint16_t>(second))
                                         << 16);
}

struct Pair {
    const std::uint8_t *first, *second;
    std::int32_t low, high;
};

// Sums of the products with each half. Named and not in arrays, which GCC 12 keeps in memory.
struct Sums {
    __m256i low, high;
};

OMR_AVX2 inline Sums no_sums() { return {_mm256_set1_epi32(half), _mm256_setzero_si256()}; }

OMR_AVX2 inline void add(Sums& sums, __m256i pixels, __m256i low, __m256i high) {
    sums.low = _mm256_add_epi32(sums.low, _mm256_madd_epi16(pixels, low));
    sums.high = _mm256_add_epi32(sums.high, _mm256_madd_epi16(pixels, high));
}

OMR_AVX2 inline __m256i total(const Sums& sums) {
    return _mm256_add_epi32(_mm256_slli_epi32(sums.high, low_bits), sums.low);
}

OMR_AVX2 inline __m256i rounded(const Sums& sums) {
    return _mm256_srai_epi32(total(sums), precision_bits);
}

// 32 bytes of an output row, from column x on.
OMR_AVX2 inline __m256i row_block(const Pair* begin, const Pair* end, std::size_t x) {
    const __m256i zero = _mm256_setzero_si256();
    Sums s0 = no_sums(), s1 = s0, s2 = s0, s3 = s0;
    for (const Pair* lines = begin; lines != end; ++lines) {
        const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lines->first + x));
        const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lines->second + x));
        const __m256i ab0 = _mm256_unpacklo_epi8(a, b), ab1 = _mm256_unpackhi_epi8(a, b);
        const __m256i low = _mm256_set1_epi32(lines->low), high = _mm256_set1_epi32(lines->high);
        // 16-bit values a, b, a, b, ...: of each 128-bit part columns 0 to 3, 4 to 7, and so on.
        add(s0, _mm256_unpacklo_epi8(ab0, zero), low, high);
        add(s1, _mm256_unpackhi_epi8(ab0, zero), low, high);
        add(s2, _mm256_unpacklo_epi8(ab1, zero), low, high);
        add(s3, _mm256_unpackhi_epi8(ab1, zero), low, high);
    }
    return _mm256_packus_epi16(_mm256_packs_epi32(rounded(s0), rounded(s1)),
                               _mm256_packs_epi32(rounded(s2), rounded(s3)));
}

void row_pairs(const std::uint8_t* lines, std::size_t stride, const Coefficients& of, std::size_t y,
               std::vector<Pair>& pairs) {
    const std::size_t count = of.count[y];
    const std::int32_t* weights = of.weights.data() + y * of.taps;
    pairs.resize((count + 1) / 2);
    for (std::size_t i = 0; i < pairs.size(); ++i) {
        const std::size_t tap = i * 2;
        const bool both = tap + 1 < count;
        const Halves a = halves(weights[tap]), b = halves(both ? weights[tap + 1] : 0);
        const std::uint8_t* first = lines + tap * stride;
        pairs[i] = {first, both ? first + stride : first, pair(a.low, b.low),
                    pair(a.high, b.high)};
    }
}

// The weights of four taps, for the registers of `columns_avx2`: taps 0 and 1 four times (red,
// green, blue, nothing), then taps 2 and 3.
struct Quad {
    alignas(32) std::int32_t low[8], high[8];
};

std::vector<Quad> column_quads(const Coefficients& of, std::size_t width, std::size_t quads) {
    std::vector<Quad> made(width * quads);
    for (std::size_t x = 0; x < width; ++x) {
        for (std::size_t q = 0; q < quads; ++q) {
            Halves of_tap[4] = {};
            for (std::size_t i = 0; i < 4; ++i) {
                const std::size_t tap = q * 4 + i;
                if (tap < of.count[x]) of_tap[i] = halves(of.weights[x * of.taps + tap]);
            }
            for (std::size_t lane = 0; lane < 8; ++lane) {
                const Halves &a = of_tap[lane / 4 * 2], &b = of_tap[lane / 4 * 2 + 1];
                const bool used = lane % 4 != 3;
                made[x * quads + q].low[lane] = used ? pair(a.low, b.low) : 0;
                made[x * quads + q].high[lane] = used ? pair(a.high, b.high) : 0;
            }
        }
    }
    return made;
}

class Rows final : public RowPass {
public:
    using RowPass::RowPass;

    OMR_AVX2 void line(const std::uint8_t* lines, std::size_t stride, std::size_t bytes,
                       std::size_t y, std::uint8_t* out) override {
        row_pairs(lines, stride, of_, y, pairs_);
        const Pair *begin = pairs_.data(), *end = begin + pairs_.size();
        const std::size_t whole = bytes / 32 * 32;
        for (std::size_t x = 0; x < whole; x += 32) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + x), row_block(begin, end, x));
        }
        for (std::size_t x = whole; x < bytes; ++x) {  // fewer than a register holds
            std::int32_t sum = half;
            for (std::size_t t = 0; t < of_.count[y]; ++t) {
                sum += of_.weights[y * of_.taps + t] * lines[t * stride + x];
            }
            out[x] = clip(sum);
        }
    }

private:
    std::vector<Pair> pairs_;
};

class Columns final : public ColumnPass {
public:
    Columns(const Coefficients& of, std::size_t width_in)
        : first_(of.first),
          quads_((of.taps + 3) / 4),
          weights_(column_quads(of, of.first.size(), quads_)),
          bytes_(width_in * 3),
          // Sixteen bytes are loaded for four pixels: copies of lines have room behind their ends.
          room_(bytes_ + quads_ * 12 + 16),
          padded_(room_ * 4) {}

    void lines(const std::uint8_t* in, std::size_t stride, std::size_t count,
               std::uint8_t* out) override {
        const std::size_t out_bytes = first_.size() * 3;
        for (std::size_t some = 0; count > 0; count -= some, out += some * out_bytes) {
            some = std::min<std::size_t>(count, 4);
            for (std::size_t i = 0; i < some; ++i, in += stride) {
                std::memcpy(padded_.data() + i * room_, in, bytes_);
            }
            four_lines(some, out);
        }
    }

private:
    // Four taps of a line: of each 128-bit part red, green, blue and nothing.
    OMR_AVX2 static inline void add_taps(Sums& sums, const std::uint8_t* from, __m256i pick,
                                         __m256i low, __m256i high) {
        const __m128i loaded = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        add(sums, _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(loaded), pick), low, high);
    }

    // The taps' two halves added up, of two lines: a part each.
    OMR_AVX2 static inline __m256i joined(const Sums& a, const Sums& b) {
        const __m256i first = total(a), second = total(b);
        const __m256i sum = _mm256_add_epi32(_mm256_permute2x128_si256(first, second, 0x20),
                                             _mm256_permute2x128_si256(first, second, 0x31));
        return _mm256_srai_epi32(sum, precision_bits);
    }

    // Four lines at a time, so that what comes after the sums is done for all at once; the first
    // `some` of them are written.
    OMR_AVX2 void four_lines(std::size_t some, std::uint8_t* out) const {
        const __m256i pick =
            _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                             6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
        // The rounding half is added once, in the first part.
        const Sums none{_mm256_setr_epi32(half, half, half, 0, 0, 0, 0, 0), _mm256_setzero_si256()};
        const std::size_t width = first_.size(), out_bytes = width * 3;
        const Quad* quad = weights_.data();
        for (std::size_t x = 0; x < width; ++x, out += 3) {
            const std::uint8_t* from = padded_.data() + first_[x] * std::size_t{3};
            Sums s0 = none, s1 = none, s2 = none, s3 = none;
            for (std::size_t q = 0; q < quads_; ++q, ++quad, from += 12) {
                const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(quad->low));
                const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(quad->high));
                add_taps(s0, from, pick, low, high);
                add_taps(s1, from + room_, pick, low, high);
                add_taps(s2, from + 2 * room_, pick, low, high);
                add_taps(s3, from + 3 * room_, pick, low, high);
            }
            const __m256i words = _mm256_packs_epi32(joined(s0, s1), joined(s2, s3));
            alignas(32) std::uint8_t pixels[32];
            _mm256_store_si256(reinterpret_cast<__m256i*>(pixels),
                               _mm256_packus_epi16(words, words));
            // Lines 0 and 2 are in the first part, 1 and 3 in the second.
            constexpr std::size_t places[4] = {0, 16, 4, 20};
            if (some == 4 && x + 1 < width) {  // the fourth byte is overwritten by the next pixel
                for (std::size_t i = 0; i < 4; ++i) {
                    std::memcpy(out + i * out_bytes, pixels + places[i], 4);
                }
                continue;
            }
            for (std::size_t i = 0; i < some; ++i) {
                std::memcpy(out + i * out_bytes, pixels + places[i], 3);
            }
        }
    }

    std::vector<std::uint32_t> first_;
    std::size_t quads_;
    std::vector<Quad> weights_;
    std::size_t bytes_, room_;
    std::vector<std::uint8_t> padded_;  // four lines
};

}  // namespace

std::unique_ptr<RowPass> row_pass_avx2(Coefficients of) {
    return std::make_unique<Rows>(std::move(of));
}

std::unique_ptr<ColumnPass> column_pass_avx2(Coefficients of, std::size_t width_in) {
    return std::make_unique<Columns>(of, width_in);
}

}  // namespace omr

#endif
