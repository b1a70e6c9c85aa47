// Rows of OpenMedReason as most of the corpus are, a batch at a time: from Arrow's columns to a
// sample's texts and bytes, without an object for each value.
//
// Plain C++ without Python. Python is the definition (omr_io.corpus.schemas, conversion.prepare,
// shards.tar_writer): a row about which there is any doubt is left to it, and the bytes are those
// that it would write.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

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

struct PlainColumns {
    const ArrowBytes* image = nullptr;
    const ArrowBytes* path = nullptr;
    const ArrowBytes* question = nullptr;
    const ArrowBytes* answer = nullptr;
    const ArrowBytes* reasoning = nullptr;  // null: the file has no such column; so the next
    const ArrowBytes* id = nullptr;
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

    void end() { ends.push_back(static_cast<std::int64_t>(data.size())); }
    std::string_view operator[](std::size_t i) const {
        const auto start = static_cast<std::size_t>(ends[i]);
        return std::string_view(data).substr(start, static_cast<std::size_t>(ends[i + 1]) - start);
    }
};

// What becomes of the rows. A row that is not plain has empty texts and zeros.
struct PlainBatch {
    std::vector<std::uint8_t> plain;
    TextList ids, keys, sources, json;
    TextList names;    // two a row: the image's in the tar, the JSON's
    TextList formats;  // "jpeg" or "jpeg-progressive"
    TextList modes;    // "L", "RGB", "CMYK"
    TextList answers;  // letters
    std::vector<std::span<const std::uint8_t>> images;
    std::vector<std::int32_t> widths, heights, question_bytes, reasoning_bytes;
    std::vector<std::int16_t> num_options;
    std::vector<std::int64_t> tar_bytes;  // of the sample: headers, data and padding
    // Two a row, and 0 until `write_tar`: of each part its data's place and size in the tar, and
    // its CRC-32C.
    std::vector<std::int64_t> offsets, sizes;
    std::vector<std::uint32_t> crcs;

    [[nodiscard]] std::size_t size() const { return plain.size(); }
};

// The images of the batch are views into the column.
[[nodiscard]] PlainBatch plain_rows(const PlainColumns& columns, std::size_t count,
                                    const PlainRules& rules);

// Writes rows first to last of a batch, all plain, as they stand in a tar from `offset` on.
//
// `out` has the size of them all. Adds the rows' lines of DALI's index to `lines`.
void write_tar(PlainBatch& batch, std::size_t first, std::size_t last, std::uint64_t offset,
               std::span<std::uint8_t> out, std::string& lines);

}  // namespace omr
