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
#include <cstring>
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

// Sums of the products with each digit. Named and not in arrays, which GCC 12 keeps in memory: twice
// the time.
struct Sums {
    __m512i low, middle, high;
};

OMR_AVX512 inline Sums no_sums() {
    return {_mm512_set1_epi32(half), _mm512_setzero_si512(), _mm512_setzero_si512()};
}

OMR_AVX512 inline void add(Sums& sums, __m512i pixels, __m512i low, __m512i middle, __m512i high) {
    sums.low = _mm512_dpbusd_epi32(sums.low, pixels, low);
    sums.middle = _mm512_dpbusd_epi32(sums.middle, pixels, middle);
    sums.high = _mm512_dpbusd_epi32(sums.high, pixels, high);
}

OMR_AVX512 inline __m512i total(const Sums& sums) {
    const __m512i upper = _mm512_add_epi32(_mm512_slli_epi32(sums.high, 8), sums.middle);
    const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(upper, 8), sums.low);
    return _mm512_srai_epi32(sum, precision_bits);
}

std::int32_t packed(const std::array<std::int8_t, 4>& bytes) {
    std::uint32_t word = 0;
    for (int i = 3; i >= 0; --i) word = word << 8 | static_cast<std::uint8_t>(bytes[static_cast<std::size_t>(i)]);
    return static_cast<std::int32_t>(word);
}

// Four taps' digits, a byte each.
struct Packed {
    std::int32_t low, middle, high;
};

Packed packed_taps(const Coefficients& of, std::size_t i, std::size_t tap) {
    std::array<std::int8_t, 4> low{}, middle{}, high{};
    for (std::size_t t = 0; t < 4 && tap + t < of.count[i]; ++t) {
        const Digits of_tap = digits(of.weights[i * of.taps + tap + t]);
        low[t] = of_tap.low, middle[t] = of_tap.middle, high[t] = of_tap.high;
    }
    return {packed(low), packed(middle), packed(high)};
}

struct RowStep {
    std::array<const std::uint8_t*, 4> lines;
    Packed taps;
};

// The steps of output line y; lines beyond the last tap repeat it with weight 0.
void row_steps(const std::uint8_t* lines, std::size_t stride, const Coefficients& of, std::size_t y,
               std::vector<RowStep>& steps) {
    const std::size_t count = of.count[y];
    steps.resize((count + 3) / 4);
    for (std::size_t s = 0; s < steps.size(); ++s) {
        for (std::size_t i = 0; i < 4; ++i) {
            steps[s].lines[i] = lines + std::min(s * 4 + i, count - 1) * stride;
        }
        steps[s].taps = packed_taps(of, y, s * 4);
    }
}

// 64 bytes of an output row, from column x on; `mask` says which of them there are.
OMR_AVX512 inline __m512i row_block(const RowStep* begin, const RowStep* end, std::size_t x,
                                    __mmask64 mask) {
    // Of each 128-bit part: columns 0 to 3, 4 to 7, 8 to 11, 12 to 15, four rows each.
    Sums s0 = no_sums(), s1 = s0, s2 = s0, s3 = s0;
    for (const RowStep* step = begin; step != end; ++step) {
        const __m512i a = _mm512_maskz_loadu_epi8(mask, step->lines[0] + x);
        const __m512i b = _mm512_maskz_loadu_epi8(mask, step->lines[1] + x);
        const __m512i c = _mm512_maskz_loadu_epi8(mask, step->lines[2] + x);
        const __m512i d = _mm512_maskz_loadu_epi8(mask, step->lines[3] + x);
        const __m512i ab0 = _mm512_unpacklo_epi8(a, b), ab1 = _mm512_unpackhi_epi8(a, b);
        const __m512i cd0 = _mm512_unpacklo_epi8(c, d), cd1 = _mm512_unpackhi_epi8(c, d);
        const __m512i low = _mm512_set1_epi32(step->taps.low),
                      middle = _mm512_set1_epi32(step->taps.middle),
                      high = _mm512_set1_epi32(step->taps.high);
        add(s0, _mm512_unpacklo_epi16(ab0, cd0), low, middle, high);
        add(s1, _mm512_unpackhi_epi16(ab0, cd0), low, middle, high);
        add(s2, _mm512_unpacklo_epi16(ab1, cd1), low, middle, high);
        add(s3, _mm512_unpackhi_epi16(ab1, cd1), low, middle, high);
    }
    // Packing works within 128-bit parts, as unpacking did: the columns are in order again.
    return _mm512_packus_epi16(_mm512_packs_epi32(total(s0), total(s1)),
                               _mm512_packs_epi32(total(s2), total(s3)));
}

// Sixteen neighbouring output bytes of every line: where their pixels are, and their weights.
struct ColumnStep {
    alignas(64) std::array<std::uint8_t, 64> places;  // in the 64 bytes loaded, for each lane 4
    alignas(64) std::array<std::int8_t, 64> low, middle, high;
    std::uint32_t base;    // of the bytes loaded, in the line
    std::uint64_t loaded;  // which of them the line has
};

// Bytes `base` to `base + 63` of a line, as many as it has.
ColumnStep step_at(std::size_t base, std::size_t line_bytes) {
    ColumnStep step{};
    step.base = static_cast<std::uint32_t>(base);
    const std::size_t left = line_bytes - base;
    step.loaded = left >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << left) - 1;
    return step;
}

// Taps tap to tap + 3 of output bytes begin to end - 1, if they lie within 64 bytes from `base` on.
void near_step(std::size_t base, std::size_t line_bytes, const Coefficients& of,
               std::size_t begin, std::size_t end, std::size_t tap,
               std::vector<ColumnStep>& steps) {
    ColumnStep step = step_at(base, line_bytes);
    for (std::size_t at = begin; at < end;) {
        const std::size_t x = at / 3;
        const Packed taps = packed_taps(of, x, tap);
        for (; at < end && at / 3 == x; ++at) {
            const std::size_t place = (of.first[x] + tap) * 3 + at % 3 - base, lane = at - begin;
            // What lies beyond the last tap has weight 0, whatever it picks.
            for (std::size_t i = 0; i < 4; ++i) {
                step.places[lane * 4 + i] = static_cast<std::uint8_t>(place + i * 3);
            }
            std::memcpy(step.low.data() + lane * 4, &taps.low, 4);
            std::memcpy(step.middle.data() + lane * 4, &taps.middle, 4);
            std::memcpy(step.high.data() + lane * 4, &taps.high, 4);
        }
    }
    steps.push_back(step);
}

// The same taps where they lie further apart (shrinking by more than 2.8): several steps, each with
// the places that its 64 bytes hold.
void far_steps(std::size_t line_bytes, const Coefficients& of, std::size_t begin, std::size_t end,
               std::size_t tap, std::vector<ColumnStep>& steps) {
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
        ColumnStep step = step_at(static_cast<std::size_t>(base), line_bytes);
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

// The steps of the sixteen output bytes of a group.
void column_steps(std::size_t line_bytes, const Coefficients& of, std::size_t group,
                  std::size_t out_bytes, std::vector<ColumnStep>& steps) {
    const std::size_t begin = group * 16, end = std::min(begin + 16, out_bytes);
    const std::size_t x0 = begin / 3, x1 = (end - 1) / 3;
    std::size_t taps = 0;
    for (std::size_t x = x0; x <= x1; ++x) taps = std::max<std::size_t>(taps, of.count[x]);
    // `first` never falls from output to output.
    const bool near = (of.first[x1] - of.first[x0] + 4) * std::size_t{3} <= 64;
    for (std::size_t tap = 0; tap < taps; tap += 4) {
        const std::size_t base = (of.first[x0] + tap) * std::size_t{3};
        if (near && base < line_bytes) near_step(base, line_bytes, of, begin, end, tap, steps);
        else far_steps(line_bytes, of, begin, end, tap, steps);
    }
}

class Rows final : public RowPass {
public:
    using RowPass::RowPass;

    OMR_AVX512 void line(const std::uint8_t* lines, std::size_t stride, std::size_t bytes,
                         std::size_t y, std::uint8_t* out) override {
        row_steps(lines, stride, of_, y, steps_);
        const RowStep *begin = steps_.data(), *end = begin + steps_.size();
        for (std::size_t x = 0; x < bytes; x += 64) {
            const std::size_t left = bytes - x;
            const __mmask64 mask = left >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << left) - 1;
            _mm512_mask_storeu_epi8(out + x, mask, row_block(begin, end, x, mask));
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
    void column(const std::uint8_t* in, std::size_t stride, std::size_t count, std::size_t group,
                std::uint8_t* out) const {
        const std::size_t left = out_bytes_ - group * 16;
        const auto mask = static_cast<__mmask16>(left >= 16 ? 0xFFFF : (1U << left) - 1);
        const ColumnStep* begin = steps_.data() + begins_[group];
        const std::size_t steps = begins_[group + 1] - begins_[group];
        out += group * 16;
        switch (steps) {
            case 1: return column_of<1>(in, stride, count, begin, out, mask);
            case 2: return column_of<2>(in, stride, count, begin, out, mask);
            case 3: return column_of<3>(in, stride, count, begin, out, mask);
            case 4: return column_of<4>(in, stride, count, begin, out, mask);
            default: return column_of(in, stride, count, begin, begin + steps, out, mask);
        }
    }

    // Weights stay in registers from line to line.
    template <int steps>
    OMR_AVX512 void column_of(const std::uint8_t* in, std::size_t stride, std::size_t count,
                              const ColumnStep* begin, std::uint8_t* out, __mmask16 mask) const {
        const LoadedStep s0 = load(begin[0]), s1 = load(begin[steps > 1 ? 1 : 0]),
                         s2 = load(begin[steps > 2 ? 2 : 0]), s3 = load(begin[steps > 3 ? 3 : 0]);
        for (; count > 0; --count, in += stride, out += out_bytes_) {
            Sums sums = no_sums();
            add(sums, in, s0);
            if constexpr (steps > 1) add(sums, in, s1);
            if constexpr (steps > 2) add(sums, in, s2);
            if constexpr (steps > 3) add(sums, in, s3);
            store(out, mask, sums);
        }
    }

    OMR_AVX512 void column_of(const std::uint8_t* in, std::size_t stride, std::size_t count,
                              const ColumnStep* begin, const ColumnStep* end, std::uint8_t* out,
                              __mmask16 mask) const {
        for (; count > 0; --count, in += stride, out += out_bytes_) {
            Sums sums = no_sums();
            for (const ColumnStep* step = begin; step != end; ++step) add(sums, in, load(*step));
            store(out, mask, sums);
        }
    }

    struct LoadedStep {
        __m512i places, low, middle, high;
        __mmask64 loaded;
        std::size_t base;
    };

    OMR_AVX512 static inline LoadedStep load(const ColumnStep& step) {
        return {_mm512_load_si512(step.places.data()), _mm512_load_si512(step.low.data()),
                _mm512_load_si512(step.middle.data()), _mm512_load_si512(step.high.data()),
                step.loaded, step.base};
    }

    OMR_AVX512 static inline void add(Sums& sums, const std::uint8_t* line, const LoadedStep& step) {
        const __m512i loaded = _mm512_maskz_loadu_epi8(step.loaded, line + step.base);
        // A place without a tap has weight 0, whatever it picks.
        const __m512i picked = _mm512_permutexvar_epi8(step.places, loaded);
        omr::add(sums, picked, step.low, step.middle, step.high);
    }

    OMR_AVX512 static inline void store(std::uint8_t* out, __mmask16 mask, const Sums& sums) {
        const __m512i sum = _mm512_max_epi32(total(sums), _mm512_setzero_si512());
        _mm_mask_storeu_epi8(out, mask, _mm512_cvtusepi32_epi8(sum));
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
