#include "tokenizer/vocabulary_block.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <string>

namespace omr {

namespace {

constexpr char kMagic[8] = {'O', 'M', 'R', '-', 'B', 'P', 'E', '\n'};
constexpr std::uint32_t kVersion = 2;
constexpr std::uint32_t kByteOrder = 0x0102'0304;
constexpr std::size_t kLongEmpty = ~0ULL;
constexpr std::size_t kCharacters = 65536;

// Byte offsets of the tables, each on a cache line of its own.
struct Layout {
    std::uint64_t starts, text, tokens, long_tokens, byte_id, byte_pair, pairs, merged, filter, characters, end;

    explicit Layout(const BlockSizes& sizes) {
        std::uint64_t at = 0;
        const auto place = [&at](std::uint64_t count, std::uint64_t bytes) {
            const std::uint64_t here = at;
            at = (at + count * bytes + 63) / 64 * 64;
            return here;
        };
        place(1, sizeof(BlockHeader));
        starts = place(std::uint64_t{sizes.tokens} + 1, 4);
        text = place(sizes.text, 1);
        tokens = place(sizes.token_buckets, sizeof(TokenBucket));
        long_tokens = place(sizes.long_slots, 8);
        byte_id = place(256, 4);
        byte_pair = place(65536, 4);
        pairs = place(sizes.pair_buckets, sizeof(PairBucket));
        merged = place(sizes.merges, 4);
        filter = place(sizes.filter_words, 8);
        characters = place(kCharacters, 4);
        end = at;
    }
};

BlockSizes sizes_of(const BlockHeader& header) {
    return {header.text,          header.tokens,     header.merges,
            header.token_buckets, header.long_slots, header.pair_buckets,
            header.filter_words};
}

void require(bool holds, const char* reason) {
    if (!holds) throw std::runtime_error(reason);
}

// Header first: what it says is used as sizes.
void check_header(const BlockHeader& header, std::size_t size) {
    require(std::memcmp(header.magic, kMagic, sizeof kMagic) == 0, "it begins otherwise");
    require(header.byte_order == kByteOrder, "it was written on a processor of other byte order");
    if (header.version != kVersion) {
        throw std::runtime_error("its format is version " + std::to_string(header.version) +
                                 ", this program reads " + std::to_string(kVersion));
    }
    require(header.size == size, "it is shorter or longer than it says: written only in part?");
    require(header.text <= 0xFFFF'FFFFU && header.tokens > 0 && header.tokens <= kMaxIds &&
                header.merges <= kMaxIds && header.token_buckets > 0 &&
                header.pair_buckets > 0 && std::has_single_bit(header.long_slots) &&
                std::has_single_bit(header.filter_words) && header.ignore_merges <= 1 &&
                header.first_merged < header.tokens &&
                header.merges <= header.tokens - header.first_merged,
            "its sizes are impossible");
    require(block_size(sizes_of(header)) == size, "its sizes do not add up");
}

template <typename T, typename Holds>
void require_all(std::span<const T> values, const Holds& holds, const char* reason) {
    bool all = true;
    for (const T& value : values) all &= holds(value);  // no early end: the loop stays branch-free
    require(all, reason);
}

// A search goes on past each bucket that has overflowed, so one has to be there that has not.
template <typename Bucket, typename Overflows>
void require_end(std::span<const Bucket> buckets, const Overflows& overflows) {
    require(!std::all_of(buckets.begin(), buckets.end(), overflows), "a table is full");
}

void check_tables(const VocabularyTables& tables) {
    const std::uint32_t tokens = tables.header->tokens;
    const std::uint32_t merges = tables.header->merges;
    const auto is_value = [tokens](std::uint32_t value) { return (value & ~kNotWhole) < tokens; };
    bool ascending = tables.starts.front() == 0 && tables.starts.back() == tables.text.size();
    for (std::size_t i = 0; i < tokens; ++i) ascending &= tables.starts[i] <= tables.starts[i + 1];
    require(ascending, "its tokens overlap");
    require_all(
        tables.tokens,
        [&](const TokenBucket& bucket) {
            bool holds = true;
            for (const std::uint32_t value : bucket.value) holds &= is_value(value);
            return holds;
        },
        "a token is out of range");
    require_end(tables.tokens, [](const TokenBucket& bucket) { return bucket.overflow != 0; });
    bool empty = false;
    for (const std::uint64_t slot : tables.long_tokens) {
        require(slot == kLongEmpty || is_value(static_cast<std::uint32_t>(slot)),
                "a long token is out of range");
        empty |= slot == kLongEmpty;
    }
    require(empty, "a table is full");
    const auto is_rank = [merges](std::int32_t rank) {
        return rank == kNoRank || (rank >= 0 && static_cast<std::uint32_t>(rank) < merges);
    };
    const auto is_token = [tokens](std::uint32_t id) { return id < tokens; };
    require_all(tables.merges.byte_id, is_token, "a byte's token is out of range");
    require_all(tables.merges.byte_pair, is_rank, "a merge of bytes is out of range");
    require_all(
        tables.merges.pairs,
        [merges](const PairBucket& bucket) {
            bool holds = true;
            for (const std::uint64_t slot : bucket.slots) {
                const std::uint64_t rank = slot & PairBucket::kRank;
                holds &= rank < merges || rank == PairBucket::kRank;
            }
            return holds;
        },
        "a merge is out of range");
    require_end(tables.merges.pairs,
                [](const PairBucket& bucket) { return bucket.slots[0] >> 63U != 0; });
    require_all(tables.merges.merged, is_token, "a merge's token is out of range");
    require_all(
        tables.merges.characters, [&](std::uint32_t one) { return is_token(one & Character::kId); },
        "a character's token is out of range");
}

}  // namespace

std::uint64_t block_size(const BlockSizes& sizes) { return Layout(sizes).end; }

BlockHeader new_header() {
    BlockHeader header{};
    std::memcpy(header.magic, kMagic, sizeof kMagic);
    header.byte_order = kByteOrder;
    header.version = kVersion;
    return header;
}

// Eight lanes of rotate and multiply, as fast as memory. Each step can be undone, so a change
// within any single word changes the sum for certain, and others but for one in 2^64.
std::uint64_t block_checksum(std::span<const std::uint8_t> block) {
    constexpr std::uint64_t kOdd = 0x9E37'79B9'7F4A'7C15U;
    constexpr std::size_t kFrom = offsetof(BlockHeader, checksum) + sizeof(std::uint64_t);
    static_assert(kFrom == 32, "what follows the checksum is a whole number of words");
    std::uint64_t lanes[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    const std::uint8_t* at = block.data() + kFrom;
    const std::size_t words = (block.size() - kFrom) / 8;
    const auto step = [](std::uint64_t lane, std::uint64_t word) {
        return std::rotl(lane ^ word, 29) * kOdd;
    };
    std::size_t i = 0;
    for (; i + 8 <= words; i += 8) {
        std::uint64_t word[8];
        std::memcpy(word, at + i * 8, 64);
        for (std::size_t lane = 0; lane < 8; ++lane) lanes[lane] = step(lanes[lane], word[lane]);
    }
    std::uint64_t sum = words;
    for (; i < words; ++i) {
        std::uint64_t word;
        std::memcpy(&word, at + i * 8, 8);
        sum = step(sum, word);
    }
    for (const std::uint64_t lane : lanes) sum = step(sum, lane);
    return sum;
}

VocabularyTables block_tables(const std::uint8_t* bytes) {
    VocabularyTables tables;
    tables.header = reinterpret_cast<const BlockHeader*>(bytes);
    const BlockHeader& header = *tables.header;
    const Layout layout(sizes_of(header));
    const auto view = [bytes]<typename T>(std::span<const T>& span, std::uint64_t offset,
                                          std::size_t count) {
        span = {reinterpret_cast<const T*>(bytes + offset), count};
    };
    view(tables.starts, layout.starts, std::size_t{header.tokens} + 1);
    view(tables.text, layout.text, header.text);
    view(tables.tokens, layout.tokens, header.token_buckets);
    view(tables.long_tokens, layout.long_tokens, header.long_slots);
    view(tables.merges.byte_id, layout.byte_id, 256);
    view(tables.merges.byte_pair, layout.byte_pair, 65536);
    view(tables.merges.pairs, layout.pairs, header.pair_buckets);
    view(tables.merges.merged, layout.merged, header.merges);
    view(tables.merges.filter.words, layout.filter, header.filter_words);
    view(tables.merges.characters, layout.characters, kCharacters);
    tables.merges.first_merged = header.first_merged;
    return tables;
}

VocabularyTables check_block(std::span<const std::uint8_t> block) {
    require(block.size() >= sizeof(BlockHeader), "it is shorter than its header");
    const auto* header = reinterpret_cast<const BlockHeader*>(block.data());
    check_header(*header, block.size());
    require(header->checksum == block_checksum(block), "its checksum is wrong: it is damaged");
    const VocabularyTables tables = block_tables(block.data());
    check_tables(tables);
    return tables;
}

std::uint32_t VocabularyTables::find_long(std::string_view piece, std::uint64_t hash) const {
    const std::size_t mask = long_tokens.size() - 1;
    for (std::size_t at = hash & mask;; at = (at + 1) & mask) {
        const std::uint64_t slot = long_tokens[at];
        if (slot == kLongEmpty) return kNoToken;
        const auto value = static_cast<std::uint32_t>(slot);
        if (slot >> 32U == hash >> 32U && bytes_of(value & ~kNotWhole) == piece) return value;
    }
}

std::uint32_t VocabularyTables::find(std::string_view piece) const {
    if (piece.empty()) return kNoToken;
    if (piece.size() > kKeyBytes) return find_long(piece, hash_piece(piece));
    const PieceKey key = copy_key(piece.data(), piece.size());
    return find_short(key, key.hash());
}

}  // namespace omr
