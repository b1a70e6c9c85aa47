// RGB pixels to another size, equal to Pillow's Image.resize to the bit, a strip of rows at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "pixels/coefficients.hpp"

namespace omr {

// Lines of 3 bytes a pixel, `stride` bytes apart.
struct ConstPixels {
    const std::uint8_t* data;
    std::size_t height, width, stride;
};

// What the processor can do; `best_pixel_instructions` is what this one does.
enum class PixelInstructions : std::uint8_t {
    scalar,
    avx2,
    avx512,  // with VBMI (byte permutation) and VNNI (sums of byte products)
};
PixelInstructions best_pixel_instructions();

// The passes of a resize; see passes.hpp.
class RowPass;
class ColumnPass;

// Makes the rows of one image's resize in order, a strip at a time, so that what lies between the
// passes stays in the processor's cache. Not shared by threads.
class Resize {
public:
    // vertical_first: the order of the passes. A direction whose size stays is left out.
    Resize(ConstPixels in, std::size_t height, std::size_t width, Filter filter,
           bool vertical_first, PixelInstructions with);
    ~Resize();
    Resize(const Resize&) = delete;
    Resize& operator=(const Resize&) = delete;

    // Writes output rows top to bottom - 1, each width * 3 bytes, without gaps. `top` is where the
    // last strip ended.
    void strip(std::size_t top, std::size_t bottom, std::uint8_t* out);

private:
    const std::uint8_t* across(std::size_t first, std::size_t last);

    ConstPixels in_;
    std::size_t width_;
    bool vertical_first_;
    std::unique_ptr<RowPass> rows_;
    std::unique_ptr<ColumnPass> columns_;
    std::vector<std::uint8_t> between_;           // lines between the passes
    std::size_t kept_first_ = 0, kept_last_ = 0;  // of the input, that `between_` holds
};

}  // namespace omr
