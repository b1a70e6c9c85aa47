// CRC-32C (Castagnoli, RFC 3720), as the index has it of every part.
//
// Plain C++ without Python. Its oracle is google_crc32c.
#pragma once

#include <cstdint>
#include <span>

namespace omr {

[[nodiscard]] std::uint32_t crc32c(std::span<const std::uint8_t> data) noexcept;

// The form for processors without an instruction for it; for tests.
[[nodiscard]] std::uint32_t crc32c_by_table(std::span<const std::uint8_t> data) noexcept;

}  // namespace omr
