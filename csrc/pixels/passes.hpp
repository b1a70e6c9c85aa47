// The two passes of a resize. Lines of bytes: a pixel has 3.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "pixels/coefficients.hpp"
#include "pixels/resize.hpp"

namespace omr {

inline constexpr std::int32_t half = 1 << (precision_bits - 1);

inline std::uint8_t clip(std::int32_t sum) {
    const std::int32_t value = sum >> precision_bits;
    return static_cast<std::uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

// The vertical pass: a line from several.
class RowPass {
public:
    explicit RowPass(Coefficients of) : of_(std::move(of)) {}
    virtual ~RowPass() = default;

    // The input lines that output line y is made of: [first, last).
    std::size_t first(std::size_t y) const { return of_.first[y]; }
    std::size_t last(std::size_t y) const { return of_.first[y] + of_.count[y]; }

    // Output line y of `bytes` bytes. `lines` points to input line first(y); the others follow,
    // `stride` bytes apart.
    virtual void line(const std::uint8_t* lines, std::size_t stride, std::size_t bytes,
                      std::size_t y, std::uint8_t* out) = 0;

protected:
    Coefficients of_;
};

// The horizontal pass: each line by itself.
class ColumnPass {
public:
    virtual ~ColumnPass() = default;

    // `count` lines, `stride` bytes apart; `out` gets them without gaps.
    virtual void lines(const std::uint8_t* in, std::size_t stride, std::size_t count,
                       std::uint8_t* out) = 0;
};

std::unique_ptr<RowPass> row_pass_scalar(Coefficients of);
std::unique_ptr<ColumnPass> column_pass_scalar(Coefficients of, std::size_t width_in);
#if defined(__x86_64__)
std::unique_ptr<RowPass> row_pass_avx2(Coefficients of);
std::unique_ptr<ColumnPass> column_pass_avx2(Coefficients of, std::size_t width_in);
std::unique_ptr<RowPass> row_pass_avx512(Coefficients of);
std::unique_ptr<ColumnPass> column_pass_avx512(Coefficients of, std::size_t width_in);
#endif

}  // namespace omr
