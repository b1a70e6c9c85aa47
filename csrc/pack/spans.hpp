// The span table of a batch: which run of tokens goes where, and by which rule.
// omr_io.types.SpanTable says what it holds; omr_io.reference.spans is its definition.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <vector>

namespace omr {

// B x T is at most this: MAX_PACKED_TOKENS of omr_io.types.
inline constexpr std::int64_t kMaxPositions = (std::int64_t{1} << 27) - 1;

// One row of the table: SPAN_FIELDS int32.
struct Span {
    std::int32_t destination;    // first position in the flattened B x T
    std::int32_t source;         // first token, or -1: padding
    std::int32_t text_position;  // of its first token
    std::int32_t mrope_position;
    std::int32_t label_from, label_to;  // destinations
    std::int32_t rows, columns;         // of merged patches; 0: no image
    std::int32_t segment;
    std::int32_t weight;  // the bits of a float32
};
inline constexpr std::size_t kSpanFields = 10;
static_assert(sizeof(Span) == kSpanFields * sizeof(std::int32_t));

struct PackSample {
    std::span<const std::int32_t> ids;
    const std::uint8_t* trained;                         // as many as ids; 0 or not
    std::span<const std::array<std::int64_t, 3>> grids;  // frames, height, width in patches
    std::int32_t weight;                                 // the bits of a finite float32
};

struct PackOptions {
    std::int64_t seq_len;  // times the packs: at most kMaxPositions
    std::int32_t image_token_id;
    std::int64_t merge_size;
};

struct SpanPlan {
    std::vector<Span> spans;
    std::vector<std::int32_t> cu_seqlens;
    std::int32_t max_seqlen = 0;
    std::int64_t num_tokens = 0;
    std::int64_t num_label_tokens = 0;
};

// A sample that cannot be packed: its number among all, and why.
class PackError : public std::runtime_error {
  public:
    enum class Kind { wrong, too_long, mismatch };
    PackError(Kind kind, std::size_t sample, const char* what);
    [[nodiscard]] Kind kind() const { return kind_; }
    [[nodiscard]] std::size_t sample() const { return sample_; }

  private:
    Kind kind_;
    std::size_t sample_;
};

// samples: of all packs, one after the other; pack_sizes: how many are in each.
// Throws PackError for the first sample that cannot be packed.
SpanPlan plan_spans(std::span<const PackSample> samples, std::span<const std::size_t> pack_sizes,
                    const PackOptions& options);

}  // namespace omr
