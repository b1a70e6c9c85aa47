// Columns of texts and bytes of a Parquet row group, page by page, without Arrow: values lie where
// their page was decoded, in memory that is used again for the next rows.
//
// Plain C++ without Python. It reads what writers usually make: no repetition, data pages of both
// versions, plain or by a dictionary, not compressed or by Snappy, with or without a CRC-32 (which
// is checked before a page's values are given). At anything else, and at any doubt, it stops: Arrow
// is the definition of what such a file holds, and says what is wrong with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "byte_view.hpp"
#include "parquet_headers.hpp"
#include "parquet_levels.hpp"
#include "parquet_raw.hpp"
#include "parquet_snappy.hpp"

namespace omr {

struct ColumnChunk {
    std::uint64_t offset = 0;  // of its first page
    std::uint64_t size = 0;    // of all its pages, headers included
    std::uint64_t num_rows = 0;
    std::uint32_t max_level = 0;  // definition level of a value that is there; at most 255
    bool snappy = false;
    // Of a field of a struct: the definition level of a struct that is there, and the place of the
    // struct's first field among the columns.
    std::uint32_t struct_level = 0;
    std::size_t first_field = 0;
};

// One column chunk, forwards.
class ChunkColumn {
public:
    ChunkColumn(ByteSource& source, const ColumnChunk& chunk);

    // Reads the next rows: at most `max_rows`, fewer if their values take `max_bytes`, but at least
    // one. False: the bytes are malformed or unusual, or end; nothing can be read after that.
    [[nodiscard]] bool read(std::size_t max_rows, std::size_t max_bytes);
    // Of the rows that were read last; until the next `read`.
    [[nodiscard]] std::span<const ByteView> values() const noexcept { return values_; }
    // Their definition levels.
    [[nodiscard]] std::span<const std::uint8_t> levels() const noexcept { return levels_; }

private:
    enum class Values : std::uint8_t { plain, dictionary };

    void forget_rows();
    [[nodiscard]] bool read_row(std::size_t& num_bytes);
    [[nodiscard]] bool next_page();
    [[nodiscard]] bool read_header(PageHeader& header);
    [[nodiscard]] bool begin_page(const PageHeader& header);
    [[nodiscard]] bool begin_values(const PageHeader& header);
    [[nodiscard]] bool read_dictionary(const PageHeader& header);
    [[nodiscard]] bool begin_body(std::size_t compressed, std::size_t uncompressed, bool snappy);
    // Whether so many bytes of the page's body wait in the window.
    [[nodiscard]] bool need(std::size_t size);
    // The same, taken out of the window.
    [[nodiscard]] bool take(std::size_t size, std::vector<std::uint8_t>& out);
    [[nodiscard]] bool is_body_done() const noexcept;
    [[nodiscard]] std::size_t waiting() const noexcept { return window_.end() - begin_; }

    ColumnChunk chunk_;
    ChunkReader reader_;
    std::uint64_t rows_left_;   // of the chunk, that are in no page yet
    bool is_first_page_ = true;
    bool has_dictionary_ = false;

    // The page.
    std::size_t values_left_ = 0;
    Values kind_ = Values::plain;
    bool snappy_ = false;
    SnappyStream stream_;
    std::size_t body_left_ = 0;    // of the uncompressed body: bytes not yet consumed
    std::size_t body_unread_ = 0;  // where it is not compressed: bytes not yet in the window
    std::vector<std::uint8_t> level_bytes_, index_bytes_;
    HybridReader level_reader_, index_reader_;

    std::vector<std::uint8_t> dictionary_;
    std::vector<ByteView> entries_;

    Window window_;
    std::size_t begin_ = 0;  // place of the first byte that waits
    std::vector<ByteView> values_;
    // Rows whose values are in the window, and their places there: it may move while it grows.
    std::vector<std::pair<std::size_t, std::size_t>> places_;
    std::vector<std::uint8_t> levels_;
};

// Columns of one row group, by batches of rows.
class RowGroup {
public:
    // The source stays the caller's.
    RowGroup(ByteSource& source, std::span<const ColumnChunk> chunks, std::uint64_t num_rows);

    // The next rows, as many of all columns; how many: 0 at the end, nothing where Arrow must go on
    // from the rows that were given.
    //
    // Args: at most `max_rows`; fewer if the values of the column with the most bytes take
    // `max_bytes`, but at least one.
    [[nodiscard]] std::optional<std::size_t> next(std::size_t max_rows, std::size_t max_bytes);
    [[nodiscard]] const ChunkColumn& column(std::size_t place) const { return columns_.at(place); }
    [[nodiscard]] std::size_t num_columns() const noexcept { return columns_.size(); }

private:
    [[nodiscard]] bool structs_agree() const;

    std::vector<ColumnChunk> chunks_;
    std::vector<ChunkColumn> columns_;
    std::size_t largest_ = 0;
    std::uint64_t left_;
    bool failed_ = false;
};

}  // namespace omr
