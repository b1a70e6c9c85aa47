// The segments of a whole JPEG file, strictly: bytes that belong to nothing are an error.
//
// Plain C++ without Python. The slow, obvious twin is omr_io/reference/jpeg.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace omr {

// A segment's place in the file, in bytes, fill bytes before its marker included. A scan's
// entropy-coded data belongs to its SOS segment.
struct JpegSegment {
    std::size_t start;
    std::size_t stop;
    std::uint8_t marker;
};

// The file is not laid out as a JPEG is; what() says how and where.
class JpegFormatError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// Lists the segments after SOI, without a gap, to EOI and with it; what follows EOI is left out.
// `tables`: the stream may hold tables alone and no scan, as a TIFF's do.
//
// Throws JpegFormatError for stray bytes, markers that no 8-bit Huffman or arithmetic JPEG has,
// segments of a wrong length, and a file that ends before EOI.
[[nodiscard]] std::vector<JpegSegment> jpeg_segments(std::span<const std::uint8_t> data,
                                                     bool tables);

// What the frame header of a plain JPEG says.
struct PlainJpeg {
    std::uint16_t width;
    std::uint16_t height;
    std::uint8_t components;  // 1, 3 or 4
    bool progressive;
};

// Recognises, in one pass, a JPEG of which nothing needs to be said or done: as most of a corpus
// are. It is a file of 8 bits a sample that `jpeg_segments` takes, with one frame header and that
// before the first scan, no byte of fill, and no byte behind EOI; it has no APPn or COM segment but
// JFIF's without a thumbnail and Adobe's, in their usual lengths and before the first scan.
// So it has no metadata, no orientation and no second picture.
//
// Nothing for any other file, whether good or broken.
[[nodiscard]] std::optional<PlainJpeg> plain_jpeg(std::span<const std::uint8_t> data);

}  // namespace omr
