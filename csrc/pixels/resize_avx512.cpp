// Sums of byte products (VPDPBUSD): a weight of 23 bits is three signed bytes,
// w = w2 * 2^16 + w1 * 2^8 + w0, and each product sum of four pixels is exact in 32 bits.
//
// Legend: a lane is one of the 16 32-bit sums of a register, a step four taps.
#if defined(__x86_64__)

// GCC 12 takes its own AVX-512 headers for uninitialised (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <vector>

#include "pixels/passes.hpp"

#define OMR_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")))

namespace omr {
namespace {

struct Digits {
    std::int8_t low, middle, high;
};

Digits digits(std::int32_t weight) {
    const auto low = static_cast<std::int8_t>(weight & 0xFF);
    const std::int32_t rest = (weight - low) >> 8;
    const auto middle = static_cast<std::int8_t>(rest & 0xFF);
    return {low, middle, static_cast<std::int8_t>((rest - middle) >> 8)};
}

OMR_AVX512 inline __m512i total(__m512i low, __m512i middle, __m512i high) {
    const __m512i upper = _mm512_add_epi32(_mm512_slli_epi32(high, 8), middle);
    const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(upper, 8), low);
    return _mm512_srai_epi32(_mm512_add_epi32(sum, _mm512_set1_epi32(half)), precision_bits);
}

struct RowStep {
    std::array<const std::uint8_t*, 4> lines;
    std::int32_t low, middle, high;  // four digits each, one a line
};

std::int32_t packed(const std::array<std::int8_t, 4>& bytes) {
    std::uint32_t word = 0;
    for (int i = 3; i >= 0; --i) word = word << 8 | static_cast<std::uint8_t>(bytes[static_cast<std::size_t>(i)]);
    return static_cast<std::int32_t>(word);
}

// The steps of output line y; lines beyond the last tap repeat it with weight 0.
void row_steps(const std::uint8_t* lines, std::size_t stride, const Coefficients& of, std::size_t y,
               std::vector<RowStep>& steps) {
    const std::size_t count = of.count[y];
    steps.resize((count + 3) / 4);
    for (std::size_t s = 0; s < steps.size(); ++s) {
        std::array<std::int8_t, 4> low{}, middle{}, high{};
        for (std::size_t i = 0; i < 4; ++i) {
            const std::size_t tap = s * 4 + i;
            steps[s].lines[i] = lines + std::min(tap, count - 1) * stride;
            if (tap >= count) continue;
            const Digits of_tap = digits(of.weights[y * of.taps + tap]);
            low[i] = of_tap.low, middle[i] = of_tap.middle, high[i] = of_tap.high;
        }
        steps[s].low = packed(low), steps[s].middle = packed(middle), steps[s].high = packed(high);
    }
}

// 64 bytes of an output row, from column x on; `mask` says which of them there are.
OMR_AVX512 inline __m512i row_block(const std::vector<RowStep>& steps, std::size_t x, __mmask64 mask) {
    __m512i low[4], middle[4], high[4];
    for (int i = 0; i < 4; ++i) low[i] = middle[i] = high[i] = _mm512_setzero_si512();
    for (const RowStep& step : steps) {
        const __m512i a = _mm512_maskz_loadu_epi8(mask, step.lines[0] + x);
        const __m512i b = _mm512_maskz_loadu_epi8(mask, step.lines[1] + x);
        const __m512i c = _mm512_maskz_loadu_epi8(mask, step.lines[2] + x);
        const __m512i d = _mm512_maskz_loadu_epi8(mask, step.lines[3] + x);
        const __m512i ab0 = _mm512_unpacklo_epi8(a, b), ab1 = _mm512_unpackhi_epi8(a, b);
        const __m512i cd0 = _mm512_unpacklo_epi8(c, d), cd1 = _mm512_unpackhi_epi8(c, d);
        // Of each 128-bit part: columns 0 to 3, 4 to 7, 8 to 11, 12 to 15, four rows each.
        const __m512i columns[4] = {
            _mm512_unpacklo_epi16(ab0, cd0), _mm512_unpackhi_epi16(ab0, cd0),
            _mm512_unpacklo_epi16(ab1, cd1), _mm512_unpackhi_epi16(ab1, cd1)};
        const __m512i w0 = _mm512_set1_epi32(step.low), w1 = _mm512_set1_epi32(step.middle),
                      w2 = _mm512_set1_epi32(step.high);
        for (int i = 0; i < 4; ++i) {
            low[i] = _mm512_dpbusd_epi32(low[i], columns[i], w0);
            middle[i] = _mm512_dpbusd_epi32(middle[i], columns[i], w1);
            high[i] = _mm512_dpbusd_epi32(high[i], columns[i], w2);
        }
    }
    __m512i sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = total(low[i], middle[i], high[i]);
    // Packing works within 128-bit parts, as unpacking did: the columns are in order again.
    return _mm512_packus_epi16(_mm512_packs_epi32(sums[0], sums[1]),
                               _mm512_packs_epi32(sums[2], sums[3]));
}

// Sixteen neighbouring output bytes of every line: where their pixels are, and their weights.
struct ColumnStep {
    alignas(64) std::array<std::uint8_t, 64> places;  // in the 64 bytes loaded, for each lane 4
    alignas(64) std::array<std::int8_t, 64> low, middle, high;
    std::uint32_t base;    // of the bytes loaded, in the line
    std::uint64_t loaded;  // which of them the line has
};

// Bytes may lie too far apart for one register (shrinking by more than 2.8): a step then becomes
// several, each with the places that its 64 bytes hold.
void column_steps(std::size_t line_bytes, const Coefficients& of, std::size_t group,
                  std::size_t out_bytes, std::vector<ColumnStep>& steps) {
    const std::size_t begin = group * 16, end = std::min(begin + 16, out_bytes);
    std::size_t taps = 0;
    for (std::size_t at = begin; at < end; ++at) taps = std::max<std::size_t>(taps, of.count[at / 3]);
    for (std::size_t tap = 0; tap < taps; tap += 4) {
        std::array<std::int64_t, 64> wanted;
        wanted.fill(-1);
        std::array<std::int32_t, 64> weights{};
        for (std::size_t at = begin; at < end; ++at) {
            const std::size_t x = at / 3, channel = at % 3;
            for (std::size_t i = 0; i < 4 && tap + i < of.count[x]; ++i) {
                const std::size_t place = (at - begin) * 4 + i;
                wanted[place] = static_cast<std::int64_t>((of.first[x] + tap + i) * 3 + channel);
                weights[place] = of.weights[x * of.taps + tap + i];
            }
        }
        for (;;) {
            std::int64_t base = -1;
            for (const std::int64_t byte : wanted) {
                if (byte >= 0 && (base < 0 || byte < base)) base = byte;
            }
            if (base < 0) break;
            ColumnStep step{};
            step.base = static_cast<std::uint32_t>(base);
            const std::size_t left = line_bytes - static_cast<std::size_t>(base);
            step.loaded = left >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << left) - 1;
            for (std::size_t place = 0; place < 64; ++place) {
                if (wanted[place] < 0 || wanted[place] >= base + 64) continue;
                step.places[place] = static_cast<std::uint8_t>(wanted[place] - base);
                const Digits of_tap = digits(weights[place]);
                step.low[place] = of_tap.low;
                step.middle[place] = of_tap.middle;
                step.high[place] = of_tap.high;
                wanted[place] = -1;
            }
            steps.push_back(step);
        }
    }
}

class Rows final : public RowPass {
public:
    using RowPass::RowPass;

    OMR_AVX512 void line(const std::uint8_t* lines, std::size_t stride, std::size_t bytes,
                         std::size_t y, std::uint8_t* out) override {
        row_steps(lines, stride, of_, y, steps_);
        for (std::size_t x = 0; x < bytes; x += 64) {
            const std::size_t left = bytes - x;
            const __mmask64 mask = left >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << left) - 1;
            _mm512_mask_storeu_epi8(out + x, mask, row_block(steps_, x, mask));
        }
    }

private:
    std::vector<RowStep> steps_;
};

class Columns final : public ColumnPass {
public:
    Columns(const Coefficients& of, std::size_t width_in) : out_bytes_(of.first.size() * 3) {
        for (std::size_t group = 0; group * 16 < out_bytes_; ++group) {
            begins_.push_back(steps_.size());
            column_steps(width_in * 3, of, group, out_bytes_, steps_);
        }
        begins_.push_back(steps_.size());
    }

    void lines(const std::uint8_t* in, std::size_t stride, std::size_t count,
               std::uint8_t* out) override {
        // A group's weights are loaded once for a block of lines, and the lines stay in the cache
        // from group to group.
        constexpr std::size_t block = 16;
        for (; count > 0; in += block * stride, out += block * out_bytes_) {
            const std::size_t some = std::min(count, block);
            for (std::size_t group = 0; group + 1 < begins_.size(); ++group) {
                column(in, stride, some, group, out);
            }
            count -= some;
        }
    }

private:
    OMR_AVX512 void column(const std::uint8_t* in, std::size_t stride, std::size_t count,
                           std::size_t group, std::uint8_t* out) const {
        const ColumnStep* begin = steps_.data() + begins_[group];
        const ColumnStep* end = steps_.data() + begins_[group + 1];
        const std::size_t left = out_bytes_ - group * 16;
        const auto mask = static_cast<__mmask16>(left >= 16 ? 0xFFFF : (1U << left) - 1);
        out += group * 16;
        for (; count > 0; --count, in += stride, out += out_bytes_) {
            __m512i low = _mm512_setzero_si512(), middle = low, high = low;
            for (const ColumnStep* step = begin; step != end; ++step) {
                const __m512i loaded = _mm512_maskz_loadu_epi8(step->loaded, in + step->base);
                // A place without a tap has weight 0, whatever it picks.
                const __m512i picked =
                    _mm512_permutexvar_epi8(_mm512_load_si512(step->places.data()), loaded);
                low = _mm512_dpbusd_epi32(low, picked, _mm512_load_si512(step->low.data()));
                middle = _mm512_dpbusd_epi32(middle, picked, _mm512_load_si512(step->middle.data()));
                high = _mm512_dpbusd_epi32(high, picked, _mm512_load_si512(step->high.data()));
            }
            const __m512i sum = _mm512_max_epi32(total(low, middle, high), _mm512_setzero_si512());
            _mm_mask_storeu_epi8(out, mask, _mm512_cvtusepi32_epi8(sum));
        }
    }

    std::size_t out_bytes_;
    std::vector<ColumnStep> steps_;
    std::vector<std::size_t> begins_;  // of each group's steps, and their end
};

}  // namespace

std::unique_ptr<RowPass> row_pass_avx512(Coefficients of) {
    return std::make_unique<Rows>(std::move(of));
}

std::unique_ptr<ColumnPass> column_pass_avx512(Coefficients of, std::size_t width_in) {
    return std::make_unique<Columns>(of, width_in);
}

}  // namespace omr

#endif
