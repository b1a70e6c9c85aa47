// Headers of Parquet's pages of values.
//
// Plain C++ without Python. What is unknown or malformed is no header: the caller leaves such a
// file to a reader that says what is wrong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "parquet_thrift.hpp"

namespace omr {

enum class PageKind : std::uint8_t { data, dictionary, data_v2 };

// Parquet's numbers for encodings.
constexpr std::int32_t kPlainEncoding = 0;
constexpr std::int32_t kPlainDictionaryEncoding = 2;
constexpr std::int32_t kRleEncoding = 3;
constexpr std::int32_t kRleDictionaryEncoding = 8;

struct PageHeader {
    PageKind kind = PageKind::data;
    std::size_t uncompressed_size = 0;
    std::size_t compressed_size = 0;  // of the bytes after the header
    std::optional<std::uint32_t> crc;
    std::size_t num_values = 0;
    std::int32_t encoding = 0;
    std::int32_t level_encoding = 0;  // of definition levels; kind data only
    // kind data_v2 only.
    std::size_t definition_bytes = 0;
    std::size_t repetition_bytes = 0;
    bool is_compressed = true;
};

struct FoundHeader {
    ThriftState state = ThriftState::malformed;
    PageHeader header;
    std::size_t size = 0;  // of the header itself, in bytes
};

// The header that `data` begins with.
[[nodiscard]] FoundHeader page_header(std::span<const std::uint8_t> data) noexcept;

}  // namespace omr
