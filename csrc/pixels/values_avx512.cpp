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

// A byte of each of 256 values. Named and not in arrays, which GCC 12 keeps in memory.
struct Plane {
    __m512i t0, t1, t2, t3;

    OMR_AVX512 explicit Plane(const std::array<std::uint8_t, 256>& bytes)
        : t0(_mm512_load_si512(bytes.data())),
          t1(_mm512_load_si512(bytes.data() + 64)),
          t2(_mm512_load_si512(bytes.data() + 128)),
          t3(_mm512_load_si512(bytes.data() + 192)) {}

    // That byte of the values of 64 bytes; `upper`: which of them are above 127.
    OMR_AVX512 __m512i of(__m512i at, __mmask64 upper) const {
        return _mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(t0, at, t1),
                                      _mm512_permutex2var_epi8(t2, at, t3));
    }
};

// 64 values of four bytes, in four registers.
struct Words {
    Plane p0, p1, p2, p3;
    __m512i order;
    static constexpr std::size_t lanes = 16;

    OMR_AVX512 explicit Words(const ValueTables<std::uint32_t>::Planes& planes)
        : p0(planes[0]),
          p1(planes[1]),
          p2(planes[2]),
          p3(planes[3]),
          // Interleaving works within 128-bit parts: each register takes 4 bytes of each part.
          order(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)) {}

    template <typename Store>
    OMR_AVX512 void look_up(__m512i bytes, const Store& store) const {
        const __m512i at = _mm512_permutexvar_epi32(order, bytes);
        const __mmask64 upper = _mm512_movepi8_mask(at);
        const __m512i b0 = p0.of(at, upper), b1 = p1.of(at, upper);
        const __m512i b2 = p2.of(at, upper), b3 = p3.of(at, upper);
        const __m512i low01 = _mm512_unpacklo_epi8(b0, b1), high01 = _mm512_unpackhi_epi8(b0, b1);
        const __m512i low23 = _mm512_unpacklo_epi8(b2, b3), high23 = _mm512_unpackhi_epi8(b2, b3);
        store(0, _mm512_unpacklo_epi16(low01, low23));
        store(1, _mm512_unpackhi_epi16(low01, low23));
        store(2, _mm512_unpacklo_epi16(high01, high23));
        store(3, _mm512_unpackhi_epi16(high01, high23));
    }
};

// 64 values of two bytes, in two registers.
struct Halves {
    Plane p0, p1;
    __m512i order;
    static constexpr std::size_t lanes = 32;

    OMR_AVX512 explicit Halves(const ValueTables<std::uint16_t>::Planes& planes)
        : p0(planes[0]), p1(planes[1]), order(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7)) {}

    template <typename Store>
    OMR_AVX512 void look_up(__m512i bytes, const Store& store) const {
        const __m512i at = _mm512_permutexvar_epi64(order, bytes);
        const __mmask64 upper = _mm512_movepi8_mask(at);
        const __m512i b0 = p0.of(at, upper), b1 = p1.of(at, upper);
        store(0, _mm512_unpacklo_epi8(b0, b1));
        store(1, _mm512_unpackhi_epi8(b0, b1));
    }
};

// Writes a register of values to every frame; only the first `left` values of the run where it ends.
template <typename Value, std::size_t lanes>
struct Store {
    Value* out;
    std::size_t left, frames, frame_stride;

    OMR_AVX512 void operator()(std::size_t place, __m512i values) const {
        const std::size_t begin = place * lanes;
        if (begin >= left) return;
        const std::size_t bytes = (left - begin) * sizeof(Value);
        const __mmask64 mask = bytes >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << bytes) - 1;
        Value* to = out + begin;
        for (std::size_t frame = 0; frame < frames; ++frame, to += frame_stride) {
            _mm512_mask_storeu_epi8(to, mask, values);
        }
    }
};

// Writes whole registers, the address being a multiple of 64, without reading what was there.
template <typename Value, std::size_t lanes>
struct Stream {
    Value* out;

    OMR_AVX512 void operator()(std::size_t place, __m512i values) const {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(out + place * lanes), values);
    }
};

template <typename Value, std::size_t lanes>
struct WholeStore {
    Value* out;
    std::size_t frames, frame_stride;

    OMR_AVX512 void operator()(std::size_t place, __m512i values) const {
        Value* to = out + place * lanes;
        for (std::size_t frame = 0; frame < frames; ++frame, to += frame_stride) {
            _mm512_storeu_si512(to, values);
        }
    }
};

template <typename Value, typename Lookup>
OMR_AVX512 void stream_all(const std::uint8_t* bytes,
                           const typename ValueTables<Value>::Planes& planes,
                           const Runs<Value>& runs) {
    const Lookup table(planes);
    const std::size_t length = runs.length;
    for (Value* patch : runs.patches) {
        Value* out = patch + runs.at;
        // Frames may be aligned otherwise than the first, so each is looked up by itself.
        for (std::size_t frame = 0; frame < runs.frames; ++frame, out += runs.frame_stride) {
            const std::size_t over = reinterpret_cast<std::uintptr_t>(out) % 64 / sizeof(Value);
            std::size_t i = over == 0 ? 0 : std::min(64 / sizeof(Value) - over, length);
            if (i > 0) {
                const Store<Value, Lookup::lanes> store{out, i, 1, 0};
                table.look_up(_mm512_loadu_si512(bytes), store);
            }
            for (; i + 64 <= length; i += 64) {
                const Stream<Value, Lookup::lanes> store{out + i};
                table.look_up(_mm512_loadu_si512(bytes + i), store);
            }
            if (i < length) {
                const Store<Value, Lookup::lanes> store{out + i, length - i, 1, 0};
                table.look_up(_mm512_loadu_si512(bytes + i), store);
            }
        }
        bytes += length;
    }
}

template <typename Value, typename Lookup>
OMR_AVX512 void look_up_all(const std::uint8_t* bytes,
                            const typename ValueTables<Value>::Planes& planes,
                            const Runs<Value>& runs) {
    if (runs.stream) return stream_all<Value, Lookup>(bytes, planes, runs);
    const Lookup table(planes);
    const std::size_t length = runs.length, frames = runs.frames, stride = runs.frame_stride;
    for (Value* patch : runs.patches) {
        Value* out = patch + runs.at;
        std::size_t i = 0;
        for (; i + 64 <= length; i += 64) {
            const WholeStore<Value, Lookup::lanes> store{out + i, frames, stride};
            table.look_up(_mm512_loadu_si512(bytes + i), store);
        }
        if (i < length) {
            const Store<Value, Lookup::lanes> store{out + i, length - i, frames, stride};
            table.look_up(_mm512_loadu_si512(bytes + i), store);
        }
        bytes += length;
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

void stream_end() { _mm_sfence(); }

}  // namespace omr

#endif
