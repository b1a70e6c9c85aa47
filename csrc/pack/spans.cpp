#include "pack/spans.hpp"

#include <algorithm>
#include <cstring>

namespace omr {
namespace {

// Blocks of this many are compared without a branch, which the compiler turns into SIMD; a search
// that may stop at each element it does not.
constexpr std::size_t kBlock = 32;

template <typename Value, typename Wanted>
std::size_t find(const Value* values, std::size_t from, std::size_t to, Wanted wanted) {
    std::size_t at = from;
    for (; at + kBlock <= to; at += kBlock) {
        unsigned found = 0;
        for (std::size_t i = 0; i < kBlock; ++i) {
            found |= static_cast<unsigned>(wanted(values[at + i]));
        }
        if (found != 0) {
            break;
        }
    }
    while (at < to && !wanted(values[at])) {
        ++at;
    }
    return at;
}

// Where a sample's runs are written.
struct Place {
    std::int64_t destination;  // of its first token
    std::int64_t source;
    std::size_t segment;
    std::size_t sample;
};

[[noreturn]] void refuse(const Place& place) {
    throw PackError(PackError::Kind::mismatch, place.sample, "placeholders and grids differ");
}

class Planner {
  public:
    Planner(const PackOptions& options, SpanPlan& plan) : options_(options), plan_(plan) {}

    void add(const PackSample& sample, const Place& place) {
        const std::int32_t image = options_.image_token_id;
        const auto is_image = [image](std::int32_t id) { return id == image; };
        const std::size_t size = sample.ids.size();
        std::size_t first = 0;
        std::size_t grid = 0;
        std::int64_t position = 0;  // M-RoPE's, of the next text token
        while (first < size) {
            const std::size_t stop = find(sample.ids.data(), first, size, is_image);
            if (stop > first) {
                add_text(sample, place, first, stop, position);
                position += static_cast<std::int64_t>(stop - first);
                first = stop;
            }
            while (first < size && is_image(sample.ids[first])) {
                if (grid == sample.grids.size()) {
                    refuse(place);
                }
                position += add_image(sample, place, first, sample.grids[grid++], position);
            }
        }
        if (grid != sample.grids.size()) {
            refuse(place);
        }
    }

  private:
    // Text without an image: a row up to each second stretch of labels.
    void add_text(const PackSample& sample, const Place& place, std::size_t first,
                  std::size_t stop, std::int64_t position) {
        const auto is_set = [](std::uint8_t byte) { return byte != 0; };
        const auto is_clear = [](std::uint8_t byte) { return byte == 0; };
        // A sample's first token has nothing to be predicted from.
        std::size_t from = find(sample.trained, std::max<std::size_t>(first, 1), stop, is_set);
        while (first < stop) {
            const std::size_t to = find(sample.trained, from, stop, is_clear);
            const std::size_t next = find(sample.trained, to, stop, is_set);
            Span span = start(sample, place, first, position);
            if (from < to) {
                span.label_from = static_cast<std::int32_t>(place.destination) +
                                  static_cast<std::int32_t>(from);
                span.label_to =
                    static_cast<std::int32_t>(place.destination) + static_cast<std::int32_t>(to);
                plan_.num_label_tokens += static_cast<std::int64_t>(to - from);
            }
            plan_.spans.push_back(span);
            position += static_cast<std::int64_t>(next - first);
            first = from = next;
        }
    }

    // Moves `first` behind the image; how far M-RoPE's position moves.
    std::int64_t add_image(const PackSample& sample, const Place& place, std::size_t& first,
                           const std::array<std::int64_t, 3>& grid, std::int64_t position) {
        const std::int64_t frames = grid[0];
        const std::int64_t rows = grid[1] / options_.merge_size;
        const std::int64_t columns = grid[2] / options_.merge_size;
        const auto left = static_cast<std::int64_t>(sample.ids.size() - first);
        // Each is at most 2^27 before they are multiplied.
        if (frames < 1 || rows < 1 || columns < 1 || frames > left || rows > left ||
            columns > left || frames * rows > left || frames * rows * columns > left) {
            refuse(place);
        }
        const std::size_t stop = first + static_cast<std::size_t>(frames * rows * columns);
        const std::int32_t image = options_.image_token_id;
        const auto is_other = [image](std::int32_t id) { return id != image; };
        if (find(sample.ids.data(), first, stop, is_other) != stop) {
            refuse(place);
        }
        Span span = start(sample, place, first, position);
        span.rows = static_cast<std::int32_t>(rows);
        span.columns = static_cast<std::int32_t>(columns);
        plan_.spans.push_back(span);
        first = stop;
        return std::max(rows, columns);
    }

    static Span start(const PackSample& sample, const Place& place, std::size_t first,
                      std::int64_t position) {
        const auto offset = static_cast<std::int32_t>(first);
        const std::int32_t at = static_cast<std::int32_t>(place.destination) + offset;
        return {at,
                static_cast<std::int32_t>(place.source) + offset,
                offset,
                static_cast<std::int32_t>(position),
                at,
                at,
                0,
                0,
                static_cast<std::int32_t>(place.segment),
                sample.weight};
    }

    const PackOptions& options_;
    SpanPlan& plan_;
};

std::int32_t longest(const std::vector<std::int32_t>& bounds) {
    std::int32_t most = 0;
    for (std::size_t i = 1; i < bounds.size(); ++i) {
        most = std::max(most, bounds[i] - bounds[i - 1]);
    }
    return most;
}

}  // namespace

PackError::PackError(Kind kind, std::size_t sample, const char* what)
    : std::runtime_error(what), kind_(kind), sample_(sample) {}

SpanPlan plan_spans(std::span<const PackSample> samples, std::span<const std::size_t> pack_sizes,
                    const PackOptions& options) {
    SpanPlan plan;
    plan.spans.reserve(4 * samples.size() + pack_sizes.size());
    plan.cu_seqlens.reserve(samples.size() + pack_sizes.size() + 1);
    plan.cu_seqlens.push_back(0);
    Planner planner(options, plan);
    const auto negative = [](std::int32_t id) { return id < 0; };
    std::size_t sample = 0;
    std::int64_t start = 0;
    for (const std::size_t pack_size : pack_sizes) {
        const std::int64_t full = start + options.seq_len;
        for (const std::size_t end = sample + pack_size; sample < end; ++sample) {
            const PackSample& one = samples[sample];
            if (find(one.ids.data(), 0, one.ids.size(), negative) != one.ids.size()) {
                throw PackError(PackError::Kind::wrong, sample, "input_ids has a negative id");
            }
            const auto size = static_cast<std::int64_t>(one.ids.size());
            if (size > full - start) {
                throw PackError(PackError::Kind::too_long, sample, "the pack is full");
            }
            planner.add(one, {start, plan.num_tokens, plan.cu_seqlens.size() - 1, sample});
            plan.num_tokens += size;
            start += size;
            plan.cu_seqlens.push_back(static_cast<std::int32_t>(start));
        }
        if (start < full) {
            const auto at = static_cast<std::int32_t>(start);
            const auto segment = static_cast<std::int32_t>(plan.cu_seqlens.size() - 1);
            plan.spans.push_back({at, -1, 0, 0, at, at, 0, 0, segment, 0});
            plan.cu_seqlens.push_back(static_cast<std::int32_t>(full));
        }
        start = full;
    }
    plan.max_seqlen = longest(plan.cu_seqlens);
    return plan;
}

}  // namespace omr
