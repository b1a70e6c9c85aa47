// From a span table to the integers of a batch: the twin of kernels/pack.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "pack/spans.hpp"

namespace omr {

inline constexpr std::int32_t kIgnoreIndex = -100;

// Each of num_positions elements, position_ids four times as many (text, t, h, w).
template <typename Id>
struct PackOutputs {
    Id* input_ids;
    Id* labels;
    Id* position_ids;
    Id* mm_token_type_ids;
    std::int32_t* segment_ids;
    float* loss_weights;
};

// Whether the spans cover all positions in order, without a gap, and stay within the tokens.
bool spans_are_sound(std::span<const Span> spans, std::size_t num_tokens,
                     std::size_t num_positions);

// Writes each element of each output once. The spans must be sound. Id: int32 or int64.
template <typename Id>
void pack_spans(std::span<const std::int32_t> tokens, std::span<const Span> spans,
                std::size_t num_positions, std::int32_t pad_id, const PackOutputs<Id>& out);

}  // namespace omr
