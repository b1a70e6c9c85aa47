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

OMR_AVX2 inline __m256i total(__m256i low, __m256i high) {
    const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(high, low_bits), low);
    return _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(half)), precision_bits);
}

// 32 bytes of an output row, from column x on.
OMR_AVX2 inline __m256i row_block(const std::vector<Pair>& pairs, std::size_t x) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i low[4] = {zero, zero, zero, zero}, high[4] = {zero, zero, zero, zero};
    for (const Pair& lines : pairs) {
        const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lines.first + x));
        const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lines.second + x));
        const __m256i ab0 = _mm256_unpacklo_epi8(a, b), ab1 = _mm256_unpackhi_epi8(a, b);
        // 16-bit values a, b, a, b, ...: of each 128-bit part columns 0 to 3, 4 to 7, and so on.
        const __m256i columns[4] = {
            _mm256_unpacklo_epi8(ab0, zero), _mm256_unpackhi_epi8(ab0, zero),
            _mm256_unpacklo_epi8(ab1, zero), _mm256_unpackhi_epi8(ab1, zero)};
        const __m256i w0 = _mm256_set1_epi32(lines.low), w1 = _mm256_set1_epi32(lines.high);
        for (int i = 0; i < 4; ++i) {
            low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(columns[i], w0));
            high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(columns[i], w1));
        }
    }
    __m256i sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = total(low[i], high[i]);
    return _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]),
                               _mm256_packs_epi32(sums[2], sums[3]));
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
        const std::size_t whole = bytes / 32 * 32;
        for (std::size_t x = 0; x < whole; x += 32) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + x), row_block(pairs_, x));
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
          // Sixteen bytes are loaded for four pixels: a copy of the line has room behind its end.
          padded_(bytes_ + quads_ * 12 + 16) {}

    void lines(const std::uint8_t* in, std::size_t stride, std::size_t count,
               std::uint8_t* out) override {
        for (; count > 0; --count, in += stride, out += first_.size() * 3) {
            std::memcpy(padded_.data(), in, bytes_);
            line(out);
        }
    }

private:
    OMR_AVX2 void line(std::uint8_t* out) const {
        const __m256i pick =
            _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                             6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
        const Quad* quad = weights_.data();
        for (std::size_t x = 0; x < first_.size(); ++x, out += 3) {
            const std::uint8_t* from = padded_.data() + first_[x] * std::size_t{3};
            __m256i low = _mm256_setzero_si256(), high = low;
            for (std::size_t q = 0; q < quads_; ++q, ++quad, from += 12) {
                const __m128i loaded = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
                const __m256i picked =
                    _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(loaded), pick);
                const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(quad->low));
                const __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(quad->high));
                low = _mm256_add_epi32(low, _mm256_madd_epi16(picked, w0));
                high = _mm256_add_epi32(high, _mm256_madd_epi16(picked, w1));
            }
            const __m256i both = _mm256_add_epi32(_mm256_slli_epi32(high, low_bits), low);
            __m128i sum =
                _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
            sum = _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(half)), precision_bits);
            sum = _mm_packus_epi16(_mm_packs_epi32(sum, sum), sum);
            const auto pixel = static_cast<std::uint32_t>(_mm_cvtsi128_si32(sum));
            out[0] = static_cast<std::uint8_t>(pixel);
            out[1] = static_cast<std::uint8_t>(pixel >> 8);
            out[2] = static_cast<std::uint8_t>(pixel >> 16);
        }
    }

    std::vector<std::uint32_t> first_;
    std::size_t quads_;
    std::vector<Quad> weights_;
    std::size_t bytes_;
    std::vector<std::uint8_t> padded_;
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
