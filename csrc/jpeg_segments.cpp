#include "jpeg_segments.hpp"

#include <array>
#include <cstdio>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace omr {
namespace {

constexpr std::uint8_t kSos = 0xDA;
constexpr std::uint8_t kEoi = 0xD9;
constexpr std::uint8_t kApp0 = 0xE0;
constexpr std::uint8_t kCom = 0xFE;

std::string hex(std::uint8_t marker) {
    std::array<char, 8> text{};
    std::snprintf(text.data(), text.size(), "0x%02X", static_cast<unsigned>(marker));
    return text.data();
}

std::uint8_t byte_at(std::span<const std::uint8_t> data, std::size_t at) {
    if (at >= data.size()) {
        throw JpegFormatError("the jpeg image ends within its own structure");
    }
    return data[at];
}

bool is_frame(std::uint8_t marker) {
    return (marker >= 0xC0 && marker <= 0xC2) || marker == 0xC9 || marker == 0xCA;
}

// DNL and DRI have a fixed length of 4 bytes, the length field included.
bool is_fixed(std::uint8_t marker) { return marker == 0xDC || marker == 0xDD; }

bool is_needed(std::uint8_t marker) {  // DHT, DAC, DQT
    return marker == 0xC4 || marker == 0xCC || marker == 0xDB;
}

bool is_known(std::uint8_t marker) {
    return is_needed(marker) || marker >= kApp0 || marker == kSos || is_frame(marker) ||
           is_fixed(marker);
}

// False when a segment is longer than what it says it holds, as libjpeg checks too.
bool fits(std::span<const std::uint8_t> data, std::uint8_t marker, std::size_t at,
          std::size_t length) {
    if (is_frame(marker)) {
        return length >= 8 && length == 8 + 3U * byte_at(data, at + 7);
    }
    if (marker == kSos) {
        return length >= 6 && length == 6 + 2U * byte_at(data, at + 2);
    }
    if (is_fixed(marker)) {
        return length == 4;
    }
    return marker < 0xF0 || marker == kCom;  // JPGn are reserved
}

#if defined(__x86_64__)

// How many bytes from the start begin no marker, in whole blocks; `data` goes on behind them.
//
// A search for each 0xFF, of which 50 KB of entropy-coded data hold some 200, took 4 us of them:
// the processor cannot foretell where they stand. This takes 1.
__attribute__((target("avx2"))) std::size_t bytes_without_marker(
    std::span<const std::uint8_t> data) {
    constexpr std::size_t kVector = 32;
    constexpr std::size_t kBlock = 8 * kVector;
    const __m256i all_ones = _mm256_set1_epi8(-1);
    const __m256i upper_five = _mm256_set1_epi8(static_cast<char>(0xF8));
    const __m256i restart = _mm256_set1_epi8(static_cast<char>(0xD0));
    std::size_t at = 0;
    for (; data.size() - at > kBlock; at += kBlock) {
        __m256i found = _mm256_setzero_si256();
        for (std::size_t i = at; i < at + kBlock; i += kVector) {
            const auto load = [&](std::size_t place) __attribute__((target("avx2"))) {
                return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data.data() + place));
            };
            const __m256i next = load(i + 1);
            const __m256i is_restart = _mm256_cmpeq_epi8(_mm256_and_si256(next, upper_five), restart);
            const __m256i is_zero = _mm256_cmpeq_epi8(next, _mm256_setzero_si256());
            const __m256i is_fill = _mm256_cmpeq_epi8(next, all_ones);
            const __m256i goes_on = _mm256_or_si256(_mm256_or_si256(is_restart, is_zero), is_fill);
            const __m256i is_ff = _mm256_cmpeq_epi8(load(i), all_ones);
            found = _mm256_or_si256(found, _mm256_andnot_si256(goes_on, is_ff));
        }
        if (_mm256_testz_si256(found, found) == 0) {
            break;
        }
    }
    return at;
}

#endif

// Where the marker stands that ends a scan's entropy-coded data, or the end of the file. There 0xFF
// is followed by 0 (it is a data byte), by a restart marker or by another 0xFF (it is fill);
// anything else is the marker.
std::size_t scan_end(std::span<const std::uint8_t> data, std::size_t at) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        at += bytes_without_marker(data.subspan(at));
    }
#endif
    while (at + 1 < data.size()) {
        const void* found = std::memchr(data.data() + at, 0xFF, data.size() - 1 - at);
        if (found == nullptr) {
            break;
        }
        at = static_cast<std::size_t>(static_cast<const std::uint8_t*>(found) - data.data());
        const std::uint8_t next = data[at + 1];
        if (next == 0xFF) {
            at += 1;
        } else if (next == 0 || (next & 0xF8U) == 0xD0) {
            at += 2;
        } else {
            return at;
        }
    }
    return data.size();
}

// An APPn or COM segment that stands in a plain JPEG; `segment` begins with its marker.
bool is_plain(std::span<const std::uint8_t> segment) {
    const auto begins = [&](const char* text, std::size_t size) {
        return std::memcmp(segment.data(), text, size) == 0;
    };
    if (segment.size() == 18) {  // JFIF: its last two bytes are the thumbnail's size
        return begins("\xFF\xE0\0\x10JFIF", 9) && segment[16] == 0 && segment[17] == 0;
    }
    return segment.size() == 16 && begins("\xFF\xEE\0\x0E" "Adobe", 9);
}

// The frame header of a plain JPEG; `segment` begins with its marker and has the right length.
std::optional<PlainJpeg> plain_frame(std::span<const std::uint8_t> segment) {
    const auto two_bytes = [&](std::size_t at) {
        return static_cast<std::uint16_t>(segment[at] << 8U | segment[at + 1]);
    };
    const PlainJpeg frame{two_bytes(7), two_bytes(5), segment[9],
                          segment[1] == 0xC2 || segment[1] == 0xCA};
    const bool known = frame.components == 1 || frame.components == 3 || frame.components == 4;
    if (segment[4] != 8 || frame.width == 0 || frame.height == 0 || !known) {
        return std::nullopt;
    }
    return frame;
}

}  // namespace

std::vector<JpegSegment> jpeg_segments(std::span<const std::uint8_t> data, bool tables) {
    std::vector<JpegSegment> segments;
    bool has_scan = false;
    std::size_t at = 2;
    while (true) {
        const std::size_t start = at;
        if (byte_at(data, at) != 0xFF) {
            throw JpegFormatError("bytes that belong to no segment, at byte " +
                                  std::to_string(at) + " of the JPEG");
        }
        while (byte_at(data, at) == 0xFF) {
            ++at;
        }
        const std::uint8_t marker = data[at];
        ++at;
        if (marker == kEoi) {
            if (!has_scan && !tables) {
                throw JpegFormatError("the JPEG ends before any scan");
            }
            segments.push_back({start, at, marker});
            return segments;
        }
        if (!is_known(marker)) {
            throw JpegFormatError("the marker " + hex(marker) + " at byte " +
                                  std::to_string(start) + " of the JPEG");
        }
        const std::size_t length =
            static_cast<std::size_t>(byte_at(data, at)) << 8U | byte_at(data, at + 1);
        if (length < 2 || at + length > data.size() || !fits(data, marker, at, length)) {
            throw JpegFormatError("a segment " + hex(marker) + " of a wrong length at byte " +
                                  std::to_string(start));
        }
        at += length;
        if (marker == kSos) {
            has_scan = true;
            at = scan_end(data, at);
            if (at == data.size()) {
                throw JpegFormatError("the JPEG has no end marker");
            }
        }
        segments.push_back({start, at, marker});
    }
}

std::optional<PlainJpeg> plain_jpeg(std::span<const std::uint8_t> data) {
    if (data.size() < 4 || data[0] != 0xFF || data[1] != 0xD8) {
        return std::nullopt;
    }
    std::optional<PlainJpeg> frame;
    bool has_scan = false;
    std::size_t at = 2;
    while (data.size() - at >= 4 && data[at] == 0xFF) {
        const std::uint8_t marker = data[at + 1];
        const std::size_t length = static_cast<std::size_t>(data[at + 2]) << 8U | data[at + 3];
        if (!is_known(marker) || length < 2 || length > data.size() - at - 2 ||
            !fits(data, marker, at + 2, length)) {
            return std::nullopt;
        }
        const auto segment = data.subspan(at, length + 2);
        if (marker >= kApp0 && (has_scan || !is_plain(segment))) {
            return std::nullopt;
        }
        at += segment.size();
        if (is_frame(marker)) {
            if (frame) {
                return std::nullopt;
            }
            frame = plain_frame(segment);
            if (!frame) {
                return std::nullopt;
            }
        } else if (marker == kSos) {
            if (!frame) {
                return std::nullopt;
            }
            has_scan = true;
            at = scan_end(data, at);
        }
    }
    const bool ends = has_scan && data.size() - at == 2 && data[at] == 0xFF && data[at + 1] == kEoi;
    return ends ? frame : std::nullopt;
}

}  // namespace omr
