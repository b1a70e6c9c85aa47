// The compiled form of a vocabulary: a header, then tables that are used as they lie there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string_view>

#include "tokenizer/merge.hpp"
#include "tokenizer/piece_key.hpp"

namespace omr {

// What tables hold of a token: its id, and whether a piece that equals it becomes it.
inline constexpr std::uint32_t kNoToken = 0xFFFF'FFFF;
inline constexpr std::uint32_t kNotWhole = 0x8000'0000;  // its merges do not arrive at it

// One cache line of the table of tokens of 1 to 15 bytes. An empty slot's key is zero, which no
// piece has.
struct alignas(64) TokenBucket {
    static constexpr std::size_t kSlots = 3;

    std::uint64_t low[kSlots];
    std::uint64_t high[kSlots];
    std::uint32_t value[kSlots];
    std::uint32_t overflow;  // 1: tokens that belong here stand in a later bucket
};
static_assert(sizeof(TokenBucket) == 64);

struct BlockHeader {
    char magic[8];
    std::uint32_t byte_order;  // 0x01020304 as the writer's processor stores it
    std::uint32_t version;
    std::uint64_t size;      // of the whole block, in bytes
    std::uint64_t checksum;  // of what follows this field
    std::uint64_t text;      // bytes of all tokens together
    std::uint32_t tokens, merges;
    std::uint32_t token_buckets, long_slots, pair_buckets;
    std::uint32_t ignore_merges;
    std::uint32_t filter_words;  // of the filter of pairs
    std::uint32_t first_merged;  // see MergeTable
};

// Views of a block's tables.
struct VocabularyTables {
    const BlockHeader* header = nullptr;
    std::span<const std::uint32_t> starts;  // of each token in `text`; one more than tokens
    std::span<const char> text;
    std::span<const TokenBucket> tokens;       // of 1 to 15 bytes
    std::span<const std::uint64_t> long_tokens;  // hash's high half << 32 | value; ~0: empty
    MergeTable merges;

    std::string_view bytes_of(std::uint32_t id) const {
        return {text.data() + starts[id], starts[id + 1] - starts[id]};
    }

    const TokenBucket* bucket_of(std::uint64_t hash) const {
        return &tokens[below(hash, static_cast<std::uint32_t>(tokens.size()))];
    }
    // The token's id and its kNotWhole bit, or kNoToken.
    std::uint32_t find_short(const PieceKey& key, std::uint64_t hash) const {
        const auto count = static_cast<std::uint32_t>(tokens.size());
        std::uint32_t at = below(hash, count);
        for (;;) {
            const TokenBucket& bucket = tokens[at];
            std::uint32_t value = kNoToken;
            for (std::size_t i = 0; i < TokenBucket::kSlots; ++i) {
                const bool equal = ((bucket.low[i] ^ key.low) | (bucket.high[i] ^ key.high)) == 0;
                value = equal ? bucket.value[i] : value;
            }
            if (((value == kNoToken) & (bucket.overflow != 0)) == 0) [[likely]] return value;
            at = at + 1 == count ? 0 : at + 1;
        }
    }
    std::uint32_t find_long(std::string_view piece, std::uint64_t hash) const;  // by hash_piece
    std::uint32_t find(std::string_view piece) const;
};

struct FreeBytes {
    void operator()(std::uint8_t* bytes) const { std::free(bytes); }
};
using BlockMemory = std::unique_ptr<std::uint8_t, FreeBytes>;

// The sizes that decide where each table lies.
struct BlockSizes {
    std::uint64_t text;
    std::uint32_t tokens, merges, token_buckets, long_slots, pair_buckets, filter_words;
};

std::uint64_t block_size(const BlockSizes& sizes);

// Views of the block that begins at `bytes`; its header has to be true.
VocabularyTables block_tables(const std::uint8_t* bytes);

// Throws std::runtime_error, saying why, unless the block is whole and every number in it that is
// used as an index is in range: not even a forged block leads to a read out of bounds.
VocabularyTables check_block(std::span<const std::uint8_t> block);

// The checksum that belongs into the block's header.
std::uint64_t block_checksum(std::span<const std::uint8_t> block);

// The header's constant part.
BlockHeader new_header();

}  // namespace omr
