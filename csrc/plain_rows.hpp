// Rows of OpenMedReason as most of the corpus are, a batch at a time: from a file's columns to a
// sample's texts and bytes, without an object for each value.
//
// Plain C++ without Python. Python is the definition (omr_io.corpus.schemas, conversion.prepare,
// shards.tar_writer): a row about which there is any doubt is left to it, and the bytes are those
// that it would write.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "byte_view.hpp"

namespace omr {

// A column of texts or bytes, laid out as Arrow's: row i is data[offsets[first + i]] to
// data[offsets[first + i + 1]], unless bit first + i of `valid` is 0.
struct ArrowBytes {
    std::span<const std::uint8_t> valid;    // empty: no row is null
    std::span<const std::uint8_t> offsets;  // of 4 or 8 bytes each, little-endian
    std::span<const std::uint8_t> data;
    std::size_t first = 0;
    std::size_t width = 4;
};

// The same, each value wherever it is.
using ViewedBytes = std::span<const ByteView>;

using ByteColumn = std::variant<ArrowBytes, ViewedBytes>;

struct PlainColumns {
    const ByteColumn* image = nullptr;
    const ByteColumn* path = nullptr;
    const ByteColumn* question = nullptr;
    const ByteColumn* answer = nullptr;
    const ByteColumn* reasoning = nullptr;  // null: the file has no such column; so the next
    const ByteColumn* id = nullptr;
};

struct PlainRules {
    std::string_view file_name;
    std::string_view id_prefix;  // a row without an id of its own has this, "-" and its number
    std::uint64_t first_row = 0;
    std::uint64_t max_image_bytes = 0;
    std::uint64_t max_pixels = 0;
    std::uint64_t max_aspect = 0;
    bool check_trace = true;  // whether the trace must end in the answer
};

// Texts one after the other; text i is data[ends[i]] to data[ends[i + 1]].
struct TextList {
    std::string data;
    std::vector<std::int64_t> ends{0};

    void clear() {
        data.clear();
        ends.assign(1, 0);
    }
    void end() { ends.push_back(static_cast<std::int64_t>(data.size())); }
    std::string_view operator[](std::size_t i) const {
        const auto start = static_cast<std::size_t>(ends[i]);
        return std::string_view(data).substr(start, static_cast<std::size_t>(ends[i + 1]) - start);
    }
};

// Bytes one after the other, not set to zero first.
class ByteBuffer {
public:
    // No bytes; their memory is kept.
    void clear() { size_ = 0; }
    // Room for so many more bytes, which are then part of the buffer.
    [[nodiscard]] std::span<std::uint8_t> add(std::size_t size) {
        if (size > capacity_ - size_) {
            grow(size);
        }
        size_ += size;
        return {data_.get() + size_ - size, size};
    }
    void reserve(std::size_t size) {
        if (size > capacity_) {
            grow(size - size_);
        }
    }
    [[nodiscard]] const std::uint8_t* data() const { return data_.get(); }
    [[nodiscard]] std::size_t size() const { return size_; }

private:
    void grow(std::size_t more);

    std::unique_ptr<std::uint8_t[]> data_;
    std::size_t size_ = 0;
    std::size_t capacity_ = 0;
};

// What becomes of the rows. A row that is not plain has empty texts and zeros.
struct PlainBatch {
    std::vector<std::uint8_t> plain;
    TextList ids, keys, sources;
    TextList names;    // two a row: the image's in the tar, the JSON's
    TextList formats;  // "jpeg" or "jpeg-progressive"
    TextList modes;    // "L", "RGB", "CMYK"
    TextList answers;  // letters
    std::vector<std::int32_t> widths, heights, question_bytes, reasoning_bytes;
    std::vector<std::int16_t> num_options;
    // The rows' samples as they stand in a tar, one after the other; row i's is from starts[i] to
    // starts[i + 1].
    ByteBuffer tar;
    std::vector<std::int64_t> starts{0};
    // Two a row: of each part its data's place in `tar`, its size, and its CRC-32C.
    std::vector<std::int64_t> places, sizes;
    std::vector<std::uint32_t> crcs;

    [[nodiscard]] std::size_t size() const { return plain.size(); }
    // No rows; the memory is kept for the next ones.
    void clear();
};

// Rows take the place of those that `batch` had: fresh memory costs as much as what is done with
// it, since the kernel clears it first.
void plain_rows(const PlainColumns& columns, std::size_t count, const PlainRules& rules,
                PlainBatch& batch);

// The lines of DALI's index of rows first to last, all plain, that stand in a tar from `offset` on.
[[nodiscard]] std::string index_lines(const PlainBatch& batch, std::size_t first, std::size_t last,
                                      std::uint64_t offset);

}  // namespace omr
