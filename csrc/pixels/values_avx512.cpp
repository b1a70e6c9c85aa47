// A table of 256 values is four registers for each byte of a value, so 64 values are looked up by two
// permutations a byte (VPERMI2B), without touching memory: 12 times as many as by single loads.
#if defined(__x86_64__)

// GCC 12 takes its own AVX-512 headers for uninitialised (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <algorithm>

#include "pixels/values.hpp"

#define OMR_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi")))

namespace omr {
namespace {

// Where the bytes of 16 pixels go: a channel to each 128-bit part.
constexpr std::array<std::uint8_t, 64> channel_places() {
    std::array<std::uint8_t, 64> places{};
    for (std::size_t i = 0; i < 48; ++i) places[i] = static_cast<std::uint8_t>(i % 16 * 3 + i / 16);
    return places;
}

// One byte of each of 64 values.
OMR_AVX512 inline __m512i byte_of(const __m512i (&table)[4], __m512i at, __mmask64 upper) {
    return _mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(table[0], at, table[1]),
                                  _mm512_permutex2var_epi8(table[2], at, table[3]));
}

OMR_AVX512 inline void load(const std::array<std::uint8_t, 256>& plane, __m512i (&table)[4]) {
    for (std::size_t i = 0; i < 4; ++i) table[i] = _mm512_load_si512(plane.data() + i * 64);
}

// 64 values in registers of sixteen.
struct Words {
    __m512i table[4][4];
    __m512i order;
    static constexpr std::size_t registers = 4, lanes = 16;

    OMR_AVX512 explicit Words(const ValueTables<std::uint32_t>::Planes& planes) {
        for (std::size_t i = 0; i < 4; ++i) load(planes[i], table[i]);
        // Interleaving works within 128-bit parts: each register takes 4 bytes of each part.
        order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    }

    OMR_AVX512 void look_up(__m512i bytes, __m512i (&values)[4]) const {
        const __m512i at = _mm512_permutexvar_epi32(order, bytes);
        const __mmask64 upper = _mm512_movepi8_mask(at);
        const __m512i b0 = byte_of(table[0], at, upper), b1 = byte_of(table[1], at, upper);
        const __m512i b2 = byte_of(table[2], at, upper), b3 = byte_of(table[3], at, upper);
        const __m512i low01 = _mm512_unpacklo_epi8(b0, b1), high01 = _mm512_unpackhi_epi8(b0, b1);
        const __m512i low23 = _mm512_unpacklo_epi8(b2, b3), high23 = _mm512_unpackhi_epi8(b2, b3);
        values[0] = _mm512_unpacklo_epi16(low01, low23);
        values[1] = _mm512_unpackhi_epi16(low01, low23);
        values[2] = _mm512_unpacklo_epi16(high01, high23);
        values[3] = _mm512_unpackhi_epi16(high01, high23);
    }
};

// 64 values in registers of 32.
struct Halves {
    __m512i table[2][4];
    __m512i order;
    static constexpr std::size_t registers = 2, lanes = 32;

    OMR_AVX512 explicit Halves(const ValueTables<std::uint16_t>::Planes& planes) {
        for (std::size_t i = 0; i < 2; ++i) load(planes[i], table[i]);
        order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    }

    OMR_AVX512 void look_up(__m512i bytes, __m512i (&values)[2]) const {
        const __m512i at = _mm512_permutexvar_epi64(order, bytes);
        const __mmask64 upper = _mm512_movepi8_mask(at);
        const __m512i b0 = byte_of(table[0], at, upper), b1 = byte_of(table[1], at, upper);
        values[0] = _mm512_unpacklo_epi8(b0, b1);
        values[1] = _mm512_unpackhi_epi8(b0, b1);
    }
};

// The first `bytes` bytes of a register.
OMR_AVX512 inline void store(void* out, __m512i values, std::size_t bytes) {
    if (bytes >= 64) return _mm512_storeu_si512(out, values);
    _mm512_mask_storeu_epi8(out, (std::uint64_t{1} << bytes) - 1, values);
}

template <typename Value, typename Lookup>
OMR_AVX512 void look_up_all(const std::uint8_t* bytes,
                            const typename ValueTables<Value>::Planes& planes,
                            const Runs<Value>& runs) {
    const Lookup table(planes);
    __m512i values[Lookup::registers];
    for (Value* patch : runs.patches) {
        Value* out = patch + runs.at;
        std::size_t i = 0;
        for (; i + 64 <= runs.length; i += 64) {
            table.look_up(_mm512_loadu_si512(bytes + i), values);
            Value* to = out + i;
            for (std::size_t frame = 0; frame < runs.frames; ++frame, to += runs.frame_stride) {
                for (std::size_t r = 0; r < Lookup::registers; ++r) {
                    _mm512_storeu_si512(to + r * Lookup::lanes, values[r]);
                }
            }
        }
        if (i < runs.length) {
            table.look_up(_mm512_loadu_si512(bytes + i), values);
            Value* to = out + i;
            for (std::size_t frame = 0; frame < runs.frames; ++frame, to += runs.frame_stride) {
                for (std::size_t r = 0; i + r * Lookup::lanes < runs.length; ++r) {
                    const std::size_t left = runs.length - i - r * Lookup::lanes;
                    store(to + r * Lookup::lanes, values[r], left * sizeof(Value));
                }
            }
        }
        bytes += runs.length;
    }
}

}  // namespace

OMR_AVX512 void split_channels_avx512(const std::uint8_t* pixels, std::size_t count,
                                      std::size_t plane, std::uint8_t* out) {
    alignas(64) static constexpr std::array<std::uint8_t, 64> places = channel_places();
    const __m512i order = _mm512_load_si512(places.data());
    for (std::size_t x = 0; x < count; x += 16) {
        const std::size_t some = std::min<std::size_t>(count - x, 16);
        const auto mask = static_cast<__mmask16>((1U << some) - 1);
        const __m512i loaded =
            _mm512_maskz_loadu_epi8((std::uint64_t{1} << some * 3) - 1, pixels + x * 3);
        const __m512i split = _mm512_permutexvar_epi8(order, loaded);
        _mm_mask_storeu_epi8(out + x, mask, _mm512_castsi512_si128(split));
        _mm_mask_storeu_epi8(out + plane + x, mask, _mm512_extracti32x4_epi32(split, 1));
        _mm_mask_storeu_epi8(out + 2 * plane + x, mask, _mm512_extracti32x4_epi32(split, 2));
    }
}

template <>
OMR_AVX512 void look_up_avx512(const std::uint8_t* bytes, const ValueTables<std::uint32_t>& tables,
                               std::size_t channel, const Runs<std::uint32_t>& runs) {
    look_up_all<std::uint32_t, Words>(bytes, tables.planes[channel], runs);
}

template <>
OMR_AVX512 void look_up_avx512(const std::uint8_t* bytes, const ValueTables<std::uint16_t>& tables,
                               std::size_t channel, const Runs<std::uint16_t>& runs) {
    look_up_all<std::uint16_t, Halves>(bytes, tables.planes[channel], runs);
}

}  // namespace omr

#endif
