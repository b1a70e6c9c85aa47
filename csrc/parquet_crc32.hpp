// CRC-32 (that of gzip and zlib), which Parquet's pages may carry.
#pragma once

#include <cstdint>
#include <span>

namespace omr {

// Of bytes that go on from those whose CRC-32 is `before`.
[[nodiscard]] std::uint32_t crc32(std::span<const std::uint8_t> data,
                                  std::uint32_t before = 0) noexcept;

}  // namespace omr
