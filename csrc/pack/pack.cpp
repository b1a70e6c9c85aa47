#include "pack/pack.hpp"

#include <algorithm>
#include <bit>

namespace omr {
namespace {

// Rows are written one after the other: plain loops over neighbouring elements, which the compiler
// vectorises, and few streams of stores at a time.
template <typename Id>
void count_up(Id* out, std::size_t size, std::int32_t first) {
    for (std::size_t i = 0; i < size; ++i) {
        out[i] = static_cast<Id>(first) + static_cast<Id>(i);
    }
}

template <typename Id>
void copy(Id* out, const std::int32_t* tokens, std::size_t size) {
    for (std::size_t i = 0; i < size; ++i) {
        out[i] = static_cast<Id>(tokens[i]);
    }
}

template <typename Id>
void write_image(const Span& span, std::size_t size, Id* t, Id* h, Id* w) {
    const auto rows = static_cast<std::size_t>(span.rows);
    const auto columns = static_cast<std::size_t>(span.columns);
    const std::size_t frame_size = rows * columns;
    for (std::size_t at = 0; at < size; at += columns) {
        const auto frame = static_cast<std::int32_t>(at / frame_size);
        const auto row = static_cast<std::int32_t>(at % frame_size / columns);
        std::fill_n(t + at, columns, static_cast<Id>(span.mrope_position + frame));
        std::fill_n(h + at, columns, static_cast<Id>(span.mrope_position + row));
        count_up(w + at, columns, span.mrope_position);
    }
}

template <typename Id>
void write(const Span& span, std::size_t stop, const std::int32_t* tokens,
           std::size_t num_positions, std::int32_t pad_id, const PackOutputs<Id>& out) {
    const auto at = static_cast<std::size_t>(span.destination);
    const auto from = static_cast<std::size_t>(span.label_from);
    const auto to = static_cast<std::size_t>(span.label_to);
    const std::size_t size = stop - at;
    const bool image = span.columns != 0;
    if (span.source < 0) {
        std::fill_n(out.input_ids + at, size, static_cast<Id>(pad_id));
    } else {
        copy(out.input_ids + at, tokens + span.source, size);
    }
    std::fill_n(out.labels + at, from - at, static_cast<Id>(kIgnoreIndex));
    if (from < to) {
        copy(out.labels + from, tokens + (span.source + (span.label_from - span.destination)),
             to - from);
    }
    std::fill_n(out.labels + to, stop - to, static_cast<Id>(kIgnoreIndex));
    Id* positions = out.position_ids + at;
    count_up(positions, size, span.text_position);
    Id* t = positions + num_positions;
    Id* h = t + num_positions;
    Id* w = h + num_positions;
    if (image) {
        write_image(span, size, t, h, w);
    } else {
        count_up(t, size, span.mrope_position);
        count_up(h, size, span.mrope_position);
        count_up(w, size, span.mrope_position);
    }
    std::fill_n(out.mm_token_type_ids + at, size, static_cast<Id>(image ? 1 : 0));
    std::fill_n(out.segment_ids + at, size, span.segment);
    std::fill_n(out.loss_weights + at, from - at, 0.0F);
    std::fill_n(out.loss_weights + from, to - from, std::bit_cast<float>(span.weight));
    std::fill_n(out.loss_weights + to, stop - to, 0.0F);
}

bool is_position(std::int32_t value) { return value >= 0 && value <= kMaxPositions; }

std::int64_t stop_of(std::span<const Span> spans, std::size_t i, std::size_t num_positions) {
    return i + 1 < spans.size() ? std::int64_t{spans[i + 1].destination}
                                : static_cast<std::int64_t>(num_positions);
}

}  // namespace

bool spans_are_sound(std::span<const Span> spans, std::size_t num_tokens,
                     std::size_t num_positions) {
    if (spans.empty()) {
        return num_positions == 0;
    }
    if (spans[0].destination != 0) {
        return false;
    }
    for (std::size_t i = 0; i < spans.size(); ++i) {
        const Span& span = spans[i];
        const std::int64_t stop = stop_of(spans, i, num_positions);
        const std::int64_t size = stop - span.destination;
        const std::int64_t area = std::int64_t{span.rows} * span.columns;
        const bool labelled = span.label_from < span.label_to;
        const bool within = span.destination <= span.label_from &&
                            span.label_from <= span.label_to && span.label_to <= stop;
        const bool padding = span.source < 0;
        if (size < 1 || !within || !is_position(span.text_position) ||
            !is_position(span.mrope_position) || (padding && labelled) || span.rows < 0 || span.columns < 0 ||
            (span.columns != 0 && (area == 0 || size % area != 0)) ||
            (!padding && span.source + size > static_cast<std::int64_t>(num_tokens))) {
            return false;
        }
    }
    return true;
}

template <typename Id>
void pack_spans(std::span<const std::int32_t> tokens, std::span<const Span> spans,
                std::size_t num_positions, std::int32_t pad_id, const PackOutputs<Id>& out) {
    for (std::size_t i = 0; i < spans.size(); ++i) {
        const auto stop = static_cast<std::size_t>(stop_of(spans, i, num_positions));
        write(spans[i], stop, tokens.data(), num_positions, pad_id, out);
    }
}

template void pack_spans(std::span<const std::int32_t>, std::span<const Span>, std::size_t,
                         std::int32_t, const PackOutputs<std::int32_t>&);
template void pack_spans(std::span<const std::int32_t>, std::span<const Span>, std::size_t,
                         std::int32_t, const PackOutputs<std::int64_t>&);

}  // namespace omr
