// A Parquet file's footer, as far as it takes to find the pages of columns of texts and bytes.
//
// Plain C++ without Python. (pyarrow has it all too, but some of its accessors end the process where
// a damaged footer makes Arrow throw.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace omr {

// A column that holds values, in the order in which row groups have them.
struct ParquetLeaf {
    std::vector<std::string> path;
    std::uint32_t max_level = 0;  // definition level of a value that is there
    bool is_flat_bytes = false;   // BYTE_ARRAY, and neither it nor what it is in is repeated
};

// A leaf's pages in a row group, of a kind that parquet_pages.hpp may read.
struct LeafChunk {
    std::uint64_t offset = 0;
    std::uint64_t size = 0;
    bool snappy = false;
};

struct ParquetRowGroup {
    std::uint64_t num_rows = 0;
    std::vector<std::optional<LeafChunk>> chunks;  // of each leaf; none: not of such a kind
};

struct ParquetFooter {
    std::vector<ParquetLeaf> leaves;
    std::vector<ParquetRowGroup> row_groups;
};

// Nothing if it is malformed, or of an encrypted file. `data` is the footer alone, without its
// length and the magic bytes; chunks lie within the `file_size` bytes of the file.
[[nodiscard]] std::optional<ParquetFooter> parquet_footer(std::span<const std::uint8_t> data,
                                                          std::uint64_t file_size);

}  // namespace omr
