// Bytes to values: pixels by channels first, then a look-up for long runs of one channel.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace omr {

// The value of each byte of each channel.
template <typename Value>
struct ValueTables {
    using Planes = std::array<std::array<std::uint8_t, 256>, sizeof(Value)>;

    // values: (3, 256).
    explicit ValueTables(std::span<const Value, 768> values);

    std::array<std::array<Value, 256>, 3> of;
    alignas(64) std::array<Planes, 3> planes;  // of the same values: byte 0 of all, byte 1, ...
    bool equal;                                // the channels have one table
};

// Where the values of runs go. Run r has `length` values, which are written to patches[r] + at, and
// again `frame_stride` values further for each frame. `stream`: past the cache, if that can be done;
// `stream_end` must follow before another thread reads them. The values must then be aligned.
template <typename Value>
struct Runs {
    std::span<Value* const> patches;
    std::size_t length, at, frames, frame_stride;
    bool stream;
};

// Bytes behind the last run that a look-up may read.
inline constexpr std::size_t run_slack = 64;

// The channels of `count` pixels, 3 bytes each: byte x of channel c goes to out[c * plane + x].
void split_channels(const std::uint8_t* pixels, std::size_t count, std::size_t plane,
                    std::uint8_t* out);

// Look up runs of channel `channel`, `bytes` holding one after the other.
template <typename Value>
void look_up(const std::uint8_t* bytes, const ValueTables<Value>& tables, std::size_t channel,
             const Runs<Value>& runs);

#if defined(__x86_64__)
void split_channels_avx512(const std::uint8_t* pixels, std::size_t count, std::size_t plane,
                           std::uint8_t* out);
template <typename Value>
void look_up_avx512(const std::uint8_t* bytes, const ValueTables<Value>& tables,
                    std::size_t channel, const Runs<Value>& runs);
void stream_end();
#endif

}  // namespace omr
