// Byte-pair encoding of one piece by its merges, as Hugging Face `tokenizers` does it: of all
// neighbours that are a merge, the one of lowest rank, the leftmost among equals, until none is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "tokenizer/ids.hpp"
#include "tokenizer/piece_key.hpp"

namespace omr {

inline constexpr unsigned kIdBits = 21;  // of an id and of a rank: three of them make one word
inline constexpr std::size_t kMaxIds = (1U << kIdBits) - 1;
inline constexpr std::int32_t kNoRank = kMaxIds;  // of two neighbours that are no merge
inline constexpr std::size_t kShortPiece = 64;  // bytes; see merge_short

// One cache line of the pair table: eight words of left id, right id and rank, from bit 62 down to
// bit 0. It is searched without a branch, and one line decides almost any pair, of which most are
// no merge. Small matters more than few instructions: the merges of Qwen take 1.9 MB, of which a
// processor whose last-level cache is shared keeps more than of the 3.9 MB of a wider form.
struct alignas(64) PairBucket {
    static constexpr std::size_t kSlots = 8;
    static constexpr std::uint64_t kOverflow = 1ULL << 63U;  // of slot 0: pairs that belong here
                                                             // stand in a later bucket
    static constexpr std::uint64_t kRank = (1ULL << kIdBits) - 1;
    static constexpr std::uint64_t kPair = ~(kOverflow | kRank);
    static constexpr std::uint64_t kEmpty = kPair | kRank;  // no id has all its bits set; kNoRank

    std::uint64_t slots[kSlots];
};
static_assert(sizeof(PairBucket) == 64);

inline constexpr PairBucket kNoPairs{{PairBucket::kEmpty, PairBucket::kEmpty, PairBucket::kEmpty,
                                      PairBucket::kEmpty, PairBucket::kEmpty, PairBucket::kEmpty,
                                      PairBucket::kEmpty, PairBucket::kEmpty}};

// A set that is asked before a larger table: what is in it is found, and of what is not some 2% are.
// Two bits of one word, so that asking is one read, of memory that stays in the caches.
struct BitFilter {
    std::span<const std::uint64_t> words;  // a power of two of them

    static std::uint64_t bits(std::uint64_t hash) {
        return 1ULL << (hash & 63U) | 1ULL << (hash >> 6U & 63U);
    }
    std::size_t index(std::uint64_t hash) const { return hash >> 40U & (words.size() - 1); }
    const std::uint64_t* word(std::uint64_t hash) const { return &words[index(hash)]; }
    bool may_hold(std::uint64_t hash) const { return (~*word(hash) & bits(hash)) == 0; }
};

// A character of two or three bytes that may be a symbol from the start: its id, and beside what.
struct Character {
    static constexpr std::uint32_t kNone = 0;
    static constexpr std::uint32_t kId = (1U << kIdBits) - 1;
    static constexpr std::uint32_t kAfterAscii = 1U << 24U;
    static constexpr std::uint32_t kAfterOther = 1U << 25U;  // a character beyond ASCII
    static constexpr std::uint32_t kBeforeAscii = 1U << 26U;
    static constexpr std::uint32_t kBeforeOther = 1U << 27U;
    static constexpr std::uint32_t kEdge = kAfterAscii | kAfterOther | kBeforeAscii | kBeforeOther;
};

// Ids below kMaxIds, or both kMaxIds, which is a pair that no table holds but in its empty slots.
inline std::uint64_t pair_key(std::uint32_t left, std::uint32_t right) {
    return static_cast<std::uint64_t>(left) << (2 * kIdBits) |
           static_cast<std::uint64_t>(right) << kIdBits;
}

inline std::uint64_t pair_hash(std::uint64_t key) {
    return fold_multiply(key ^ 0x2545'F491'4F6C'DD1DU, 0x9E37'79B9'7F4A'7C15U);
}

// Views into the compiled vocabulary.
struct MergeTable {
    std::span<const std::uint32_t> byte_id;    // 256
    std::span<const std::int32_t> byte_pair;   // 65,536: rank of two bytes
    std::span<const PairBucket> pairs;
    std::span<const std::uint32_t> merged;     // by rank
    BitFilter filter;                          // of the pairs, by pair_hash
    // By code point below 65,536, for merge_short, which says what for.
    std::span<const std::uint32_t> characters;
    // What is added to a rank to make the id, or 0 where there is no such number. Nearly every
    // vocabulary has its tokens in the order of their merges, and `merged` is never read.
    std::uint32_t first_merged = 0;

    std::uint32_t merged_by(std::int32_t rank) const {
        const auto number = static_cast<std::uint32_t>(rank);
        return first_merged != 0 ? number + first_merged : merged[number];
    }

    // The bucket where the search for a pair begins; where the filter knows better, an empty one.
    const PairBucket* bucket_of(std::uint64_t hash) const {
        const PairBucket* const some[2] = {
            &kNoPairs, &pairs[below(hash, static_cast<std::uint32_t>(pairs.size()))]};
        return some[filter.may_hold(hash)];  // no branch: it would be hard to foretell
    }

    // The rank of a merge, or kNoRank.
    std::int32_t rank_in(const PairBucket* bucket, std::uint64_t key) const {
        for (;;) {
            std::uint64_t found = PairBucket::kRank;
            for (const std::uint64_t slot : bucket->slots) {  // at most one is equal
                found = ((slot ^ key) & PairBucket::kPair) == 0 ? slot & PairBucket::kRank : found;
            }
            const bool none = found == PairBucket::kRank;
            if ((none & (bucket->slots[0] >> 63U)) == 0) [[likely]] {
                return static_cast<std::int32_t>(found);
            }
            if (++bucket == pairs.data() + pairs.size()) bucket = pairs.data();
        }
    }
    std::int32_t rank_of(std::uint32_t left, std::uint32_t right) const {
        const std::uint64_t key = pair_key(left, right);
        return rank_in(bucket_of(pair_hash(key)), key);
    }
};

// Pieces merged step by step in turn, so that while one waits for a line of the pair table the
// others go on.
class MergeBatch {
public:
    static constexpr std::size_t kPieces = 16;
    static constexpr std::size_t kSymbols = 30;  // of one piece, at the start

    explicit MergeBatch(const MergeTable& table) : table_(table) {}

    bool full() const { return count_ == kPieces; }
    std::size_t size() const { return count_; }
    void clear() { count_ = 0; }
    void add(const PieceKey& piece);
    // False, and nothing is added, if the piece begins with more than kSymbols symbols. It has 1 to
    // kShortPiece bytes.
    bool add(std::string_view piece);
    void run();
    // Ids of the piece that was added as number `index`, after run; `out` has room for kSymbols.
    std::size_t take(std::size_t index, std::int32_t* out) const;

private:
    // Symbols stand at 1 plus the position of what they began with; at 0 and behind the last stands
    // a symbol that merges with none, so that every symbol has two neighbours.
    struct State {
        std::int32_t order[32];  // rank << 6 | position; [i] belongs to position i + 1
        std::uint32_t id[32];
        bool wide;            // whether more than the first half of `order` is in use
        std::uint32_t alive;  // a bit a position
        std::uint32_t at, previous;
        const PairBucket* right_bucket;
        const PairBucket* left_bucket;
        std::uint64_t right_key, left_key;
        std::uint64_t right_hash, left_hash;
    };

    bool begin_step(State& state) const;
    void go_on(State& state) const;
    void end_step(State& state) const;

    const MergeTable& table_;
    std::size_t count_ = 0;
    State states_[kPieces];
};

// The code point of the character of two or three bytes that `bytes` begin with, or 0. No two
// spellings give the same one; whether it is a surrogate is not asked.
inline std::uint32_t character_at(std::string_view bytes) {
    const auto byte = [bytes](std::size_t i) { return static_cast<std::uint8_t>(bytes[i]); };
    const auto follows = [&byte](std::size_t i) { return (byte(i) & 0xC0U) == 0x80U; };
    if (bytes.size() < 2 || byte(0) < 0xC2 || byte(0) >= 0xF0 || !follows(1)) return 0;
    if (byte(0) < 0xE0) return (byte(0) & 0x1FU) << 6U | (byte(1) & 0x3FU);
    if (bytes.size() < 3 || !follows(2)) return 0;
    const std::uint32_t found =
        (byte(0) & 0x0FU) << 12U | (byte(1) & 0x3FU) << 6U | (byte(2) & 0x3FU);
    return found < 0x800 ? 0 : found;
}

// Writes the ids of a piece of 1 to kShortPiece bytes; returns how many. `out` has room for as many
// as the piece has bytes.
std::size_t merge_short(const MergeTable& table, std::string_view piece, std::int32_t* out);

// Appends the ids of a piece of any length, in O(n log n) time and some 200 KB of memory beyond
// them unless the piece is made to resist: see merge_long.cpp. `window`, in bytes, is for tests.
void merge_long(const MergeTable& table, std::string_view piece, Ids& out,
                std::size_t window = 4096);

}  // namespace omr
