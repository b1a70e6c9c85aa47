#include "pixels/resize.hpp"

#include <cstring>

#include "pixels/passes.hpp"

namespace omr {

PixelInstructions best_pixel_instructions() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni")) {
        return PixelInstructions::avx512;
    }
    if (__builtin_cpu_supports("avx2")) return PixelInstructions::avx2;
#endif
    return PixelInstructions::scalar;
}

namespace {

std::unique_ptr<RowPass> row_pass(Coefficients of, PixelInstructions with) {
#if defined(__x86_64__)
    if (with == PixelInstructions::avx512) return row_pass_avx512(std::move(of));
    if (with == PixelInstructions::avx2) return row_pass_avx2(std::move(of));
#endif
    static_cast<void>(with);
    return row_pass_scalar(std::move(of));
}

std::unique_ptr<ColumnPass> column_pass(Coefficients of, std::size_t width_in,
                                        PixelInstructions with) {
#if defined(__x86_64__)
    if (with == PixelInstructions::avx512) return column_pass_avx512(std::move(of), width_in);
    if (with == PixelInstructions::avx2) return column_pass_avx2(std::move(of), width_in);
#endif
    static_cast<void>(with);
    return column_pass_scalar(std::move(of), width_in);
}

}  // namespace

Resize::Resize(ConstPixels in, std::size_t height, std::size_t width, Filter filter,
               bool vertical_first, PixelInstructions with)
    : in_(in), width_(width), vertical_first_(vertical_first) {
    if (height != in.height) rows_ = row_pass(coefficients(in.height, height, filter), with);
    if (width != in.width) {
        columns_ = column_pass(coefficients(in.width, width, filter), in.width, with);
    }
}

Resize::~Resize() = default;

void Resize::strip(std::size_t top, std::size_t bottom, std::uint8_t* out) {
    const std::size_t bytes = in_.width * 3, out_bytes = width_ * 3;
    if (!rows_) {
        const std::uint8_t* from = in_.data + top * in_.stride;
        if (columns_) return columns_->lines(from, in_.stride, bottom - top, out);
        for (std::size_t y = top; y < bottom; ++y, from += in_.stride, out += bytes) {
            std::memcpy(out, from, bytes);
        }
        return;
    }
    if (columns_ && !vertical_first_) {
        const std::uint8_t* lines = across(rows_->first(top), rows_->last(bottom - 1));
        for (std::size_t y = top; y < bottom; ++y, out += out_bytes) {
            const std::size_t at = (rows_->first(y) - kept_first_) * out_bytes;
            rows_->line(lines + at, out_bytes, out_bytes, y, out);
        }
        return;
    }
    if (columns_ && between_.size() < (bottom - top) * bytes) {
        between_.resize((bottom - top) * bytes);
    }
    std::uint8_t* to = columns_ ? between_.data() : out;
    for (std::size_t y = top; y < bottom; ++y) {
        rows_->line(in_.data + rows_->first(y) * in_.stride, in_.stride, bytes, y,
                    to + (y - top) * bytes);
    }
    if (columns_) columns_->lines(between_.data(), bytes, bottom - top, out);
}

// Input lines first to last - 1 after the horizontal pass: `between_` begins with line first.
const std::uint8_t* Resize::across(std::size_t first, std::size_t last) {
    const std::size_t bytes = width_ * 3;
    if (between_.size() < (last - first) * bytes) between_.resize((last - first) * bytes);
    std::size_t kept = 0;
    if (kept_last_ > first) {  // the last strip's last lines are this one's first
        kept = kept_last_ - first;
        std::memmove(between_.data(), between_.data() + (first - kept_first_) * bytes,
                     kept * bytes);
    }
    if (first + kept < last) {
        columns_->lines(in_.data + (first + kept) * in_.stride, in_.stride, last - first - kept,
                        between_.data() + kept * bytes);
    }
    kept_first_ = first;
    kept_last_ = last > first + kept ? last : first + kept;
    return between_.data();
}

namespace {

class ScalarRows final : public RowPass {
public:
    using RowPass::RowPass;

    void line(const std::uint8_t* lines, std::size_t stride, std::size_t bytes, std::size_t y,
              std::uint8_t* out) override {
        sums_.assign(bytes, half);
        for (std::size_t t = 0; t < of_.count[y]; ++t, lines += stride) {
            const std::int32_t weight = of_.weights[y * of_.taps + t];
            for (std::size_t x = 0; x < bytes; ++x) sums_[x] += weight * lines[x];
        }
        for (std::size_t x = 0; x < bytes; ++x) out[x] = clip(sums_[x]);
    }

private:
    std::vector<std::int32_t> sums_;
};

class ScalarColumns final : public ColumnPass {
public:
    explicit ScalarColumns(Coefficients of) : of_(std::move(of)) {}

    void lines(const std::uint8_t* in, std::size_t stride, std::size_t count,
               std::uint8_t* out) override {
        for (; count > 0; --count, in += stride) {
            for (std::size_t x = 0; x < of_.first.size(); ++x, out += 3) pixel(in, x, out);
        }
    }

private:
    void pixel(const std::uint8_t* line, std::size_t x, std::uint8_t* out) const {
        std::int32_t red = half, green = half, blue = half;
        const std::uint8_t* from = line + of_.first[x] * std::size_t{3};
        const std::int32_t* weights = of_.weights.data() + x * of_.taps;
        for (std::size_t t = 0; t < of_.count[x]; ++t, from += 3) {
            red += weights[t] * from[0];
            green += weights[t] * from[1];
            blue += weights[t] * from[2];
        }
        out[0] = clip(red);
        out[1] = clip(green);
        out[2] = clip(blue);
    }

    Coefficients of_;
};

}  // namespace

std::unique_ptr<RowPass> row_pass_scalar(Coefficients of) {
    return std::make_unique<ScalarRows>(std::move(of));
}

std::unique_ptr<ColumnPass> column_pass_scalar(Coefficients of, std::size_t) {
    return std::make_unique<ScalarColumns>(std::move(of));
}

}  // namespace omr
