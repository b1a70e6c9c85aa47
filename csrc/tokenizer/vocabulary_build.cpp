// Vocabulary::build: from tokens and merges to the compiled form.
#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "tokenizer/vocabulary.hpp"
#include "tokenizer/vocabulary_block.hpp"

namespace omr {

namespace {

[[noreturn]] void refuse(const std::string& reason) { throw std::invalid_argument(reason); }

// A token as it is shown in an error: ASCII as it is, other bytes as \xNN.
std::string shown(std::string_view token) {
    constexpr char kDigits[] = "0123456789abcdef";
    std::string text = "'";
    for (const char letter : token.substr(0, 80)) {
        const auto byte = static_cast<std::uint8_t>(letter);
        if (byte >= 0x20 && byte < 0x7F) {
            text += letter;
        } else {
            text += {'\\', 'x', kDigits[byte >> 4U], kDigits[byte & 15U]};
        }
    }
    return text + (token.size() > 80 ? "...'" : "'");
}

// Sizes of the tables: buckets about two thirds full, so that few overflow. Fuller tables are
// slower, emptier ones leave the caches. For the 151,643 tokens of Qwen they take 9.8 MB together.
BlockSizes sizes_for(const VocabularySource& source) {
    std::uint64_t text = 0;
    std::uint32_t long_tokens = 0;
    for (const std::string& token : source.tokens) {
        text += token.size();
        long_tokens += token.size() > kKeyBytes;
    }
    if (source.tokens.size() > kMaxIds || source.merges.size() > kMaxIds || text > 0xFFFF'FFFFU) {
        refuse("a vocabulary of " + std::to_string(source.tokens.size()) + " tokens, " +
               std::to_string(text) + " bytes and " + std::to_string(source.merges.size()) +
               " merges is too large: tokens and merges can be " + std::to_string(kMaxIds));
    }
    const auto tokens = static_cast<std::uint32_t>(source.tokens.size());
    const auto merges = static_cast<std::uint32_t>(source.merges.size());
    return {text,
            tokens,
            merges,
            (tokens - long_tokens) / 2 + 1,
            std::bit_ceil(long_tokens * 2 + 1),
            merges / 5 + 1,
            std::bit_ceil(merges / 5 + 1)};
}

template <typename T>
std::span<T> writable(std::span<const T> table) {
    return {const_cast<T*>(table.data()), table.size()};  // build's own memory
}

class Builder {
public:
    explicit Builder(const VocabularySource& source) : source_(source) {
        const BlockSizes sizes = sizes_for(source);
        size_ = block_size(sizes);
        memory_.reset(static_cast<std::uint8_t*>(std::aligned_alloc(64, size_)));
        if (!memory_) throw std::bad_alloc();
        std::memset(memory_.get(), 0, size_);
        BlockHeader header = new_header();
        header.size = size_;
        header.text = sizes.text;
        header.tokens = sizes.tokens;
        header.merges = sizes.merges;
        header.token_buckets = sizes.token_buckets;
        header.long_slots = sizes.long_slots;
        header.pair_buckets = sizes.pair_buckets;
        header.filter_words = sizes.filter_words;
        header.first_merged = first_merged();
        header.ignore_merges = source.ignore_merges;
        std::memcpy(memory_.get(), &header, sizeof header);
        tables_ = block_tables(memory_.get());
    }

    BlockMemory build() {
        put_text();
        put_tokens();
        put_bytes();
        put_merges();
        put_characters();
        if (!source_.ignore_merges) mark_unreachable();
        const std::uint64_t checksum = block_checksum({memory_.get(), size_});
        std::memcpy(memory_.get() + offsetof(BlockHeader, checksum), &checksum, sizeof checksum);
        return std::move(memory_);
    }

private:
    void put_text() {
        const auto starts = writable(tables_.starts);
        char* text = writable(tables_.text).data();
        std::uint32_t at = 0;
        for (std::size_t id = 0; id < source_.tokens.size(); ++id) {
            const std::string& token = source_.tokens[id];
            starts[id] = at;
            std::copy(token.begin(), token.end(), text + at);
            at += static_cast<std::uint32_t>(token.size());
        }
        starts[source_.tokens.size()] = at;
    }

    void put_tokens() {
        std::ranges::fill(writable(tables_.long_tokens), ~0ULL);
        for (std::uint32_t id = 0; id < source_.tokens.size(); ++id) {
            const std::string& token = source_.tokens[id];
            if (token.empty()) continue;
            if (const std::uint32_t other = tables_.find(token); other != kNoToken) {
                refuse("tokens " + std::to_string(other) + " and " + std::to_string(id) +
                       " are the same bytes: " + shown(token));
            }
            if (token.size() > kKeyBytes) {
                put_long(token, id);
            } else {
                put_short(token, id);
            }
        }
    }

    void put_short(std::string_view token, std::uint32_t id) {
        const PieceKey key = copy_key(token.data(), token.size());
        const auto buckets = writable(tables_.tokens);
        std::size_t at = below(key.hash(), static_cast<std::uint32_t>(buckets.size()));
        for (;; at = at + 1 == buckets.size() ? 0 : at + 1) {
            TokenBucket& bucket = buckets[at];
            for (std::size_t i = 0; i < TokenBucket::kSlots; ++i) {
                if (bucket.high[i] != 0) continue;
                bucket.low[i] = key.low;
                bucket.high[i] = key.high;
                bucket.value[i] = id;
                return;
            }
            bucket.overflow = 1;
        }
    }

    void put_long(std::string_view token, std::uint32_t id) {
        const std::uint64_t hash = hash_piece(token);
        const auto slots = writable(tables_.long_tokens);
        std::size_t at = hash & (slots.size() - 1);
        while (slots[at] != ~0ULL) at = (at + 1) & (slots.size() - 1);
        slots[at] = hash >> 32U << 32U | id;
    }

    void put_bytes() {
        for (unsigned byte = 0; byte < 256; ++byte) {
            const char letter = static_cast<char>(byte);
            const std::uint32_t id = tables_.find({&letter, 1});
            if (id == kNoToken) refuse("no token is the byte " + shown({&letter, 1}));
            writable(tables_.merges.byte_id)[byte] = id;
        }
    }

    void put_merges() {
        std::ranges::fill(writable(tables_.merges.byte_pair), kNoRank);
        for (PairBucket& bucket : writable(tables_.merges.pairs)) {
            std::ranges::fill(bucket.slots, PairBucket::kEmpty);
        }
        for (std::size_t rank = 0; rank < source_.merges.size(); ++rank) {
            const Merge& merge = source_.merges[rank];
            check_merge(merge, rank);
            writable(tables_.merges.merged)[rank] = merge.merged;
            put_pair(merge, static_cast<std::int32_t>(rank));
            const std::uint64_t hash = pair_hash(pair_key(merge.left, merge.right));
            const BitFilter& filter = tables_.merges.filter;
            writable(filter.words)[filter.index(hash)] |= BitFilter::bits(hash);
            const std::string_view token = tables_.bytes_of(merge.merged);
            if (token.size() == 2) {
                const auto first = static_cast<std::uint8_t>(token[0]);
                const auto second = static_cast<std::uint8_t>(token[1]);
                writable(tables_.merges.byte_pair)[static_cast<std::size_t>(first << 8U | second)] =
                    static_cast<std::int32_t>(rank);
            }
        }
    }

    // The number that each merge's token is its rank plus, or 0.
    std::uint32_t first_merged() const {
        if (source_.merges.empty()) return 0;
        const std::uint32_t first = source_.merges[0].merged;
        for (std::size_t rank = 0; rank < source_.merges.size(); ++rank) {
            if (source_.merges[rank].merged != first + rank) return 0;
        }
        return first;
    }

    void check_merge(const Merge& merge, std::size_t rank) const {
        const auto where = [&] { return "merge " + std::to_string(rank) + " "; };
        for (const std::uint32_t id : {merge.left, merge.right, merge.merged}) {
            if (id >= source_.tokens.size() || source_.tokens[id].empty()) {
                refuse(where() + "names id " + std::to_string(id) + ", which has no token");
            }
        }
        const std::string_view left = tables_.bytes_of(merge.left);
        const std::string_view right = tables_.bytes_of(merge.right);
        const std::string_view merged = tables_.bytes_of(merge.merged);
        if (merged.size() != left.size() + right.size() || !merged.starts_with(left) ||
            !merged.ends_with(right)) {
            refuse(where() + "makes " + shown(merged) + " of " + shown(left) + " and " +
                   shown(right) + ", which is not the two together");
        }
    }

    // Of a pair that is listed twice the later rank holds, as in Hugging Face's map of merges.
    void put_pair(const Merge& merge, std::int32_t rank) {
        const std::uint64_t key = pair_key(merge.left, merge.right);
        const auto buckets = writable(tables_.merges.pairs);
        std::size_t at = below(pair_hash(key), static_cast<std::uint32_t>(buckets.size()));
        for (;; at = at + 1 == buckets.size() ? 0 : at + 1) {
            PairBucket& bucket = buckets[at];
            for (std::uint64_t& slot : bucket.slots) {
                const std::uint64_t there = slot & ~PairBucket::kOverflow;
                const bool equal = ((there ^ key) & PairBucket::kPair) == 0;
                if (!equal && there != PairBucket::kEmpty) continue;
                slot = (slot & PairBucket::kOverflow) | key | static_cast<std::uint64_t>(rank);
                return;
            }
            bucket.slots[0] |= PairBucket::kOverflow;
        }
    }

    // Characters that merge_short may begin with: see there.
    void put_characters() {
        const auto characters = writable(tables_.merges.characters);
        std::ranges::fill(characters, Character::kNone);
        const Beside beside = first_merges_beside();
        for (std::uint32_t id = 0; id < source_.tokens.size(); ++id) {
            const std::string_view token = tables_.bytes_of(id);
            const std::uint32_t code_point = character_at(token);
            if (code_point == 0 || token.size() != (code_point < 0x800 ? 2U : 3U)) continue;
            characters[code_point] = character(id, token, beside);
        }
    }

    // By what stands beside (0: ASCII, 1: another character), then by token: the rank of the first
    // merge with it. A merge with something that cannot stand beside a whole character is left out.
    struct Beside {
        std::vector<std::int32_t> before[2], after[2];
    };

    Beside first_merges_beside() const {
        Beside found;
        for (int kind = 0; kind < 2; ++kind) {
            found.before[kind].assign(source_.tokens.size(), kNoRank);
            found.after[kind].assign(source_.tokens.size(), kNoRank);
        }
        for (std::size_t i = source_.merges.size(); i-- > 0;) {
            const Merge& merge = source_.merges[i];
            const auto rank = static_cast<std::int32_t>(i);
            const auto end = static_cast<std::uint8_t>(tables_.bytes_of(merge.left).back());
            const auto begin = static_cast<std::uint8_t>(tables_.bytes_of(merge.right).front());
            if (end < 0xC0) found.before[end >= 0x80][merge.right] = rank;
            if (begin < 0x80 || begin >= 0xC0) found.after[begin >= 0x80][merge.left] = rank;
        }
        return found;
    }

    std::uint32_t character(std::uint32_t id, std::string_view token, const Beside& beside) const {
        const MergeTable& merges = tables_.merges;
        const auto byte = [&](std::size_t i) {
            return merges.byte_id[static_cast<std::uint8_t>(token[i])];
        };
        // A part at an edge, or all of it, and the rank of the merge that ends it (of all of it:
        // that makes it).
        struct Part {
            std::uint32_t id;
            std::int32_t rank;
        };
        std::uint32_t left = byte(0);
        std::uint32_t right = byte(token.size() - 1);
        std::vector<Part> lefts, rights;
        std::int32_t before = -1;
        if (token.size() == 3) {
            const std::int32_t front = merges.rank_of(left, byte(1));
            const std::int32_t back = merges.rank_of(byte(1), right);
            before = std::min(front, back);
            if (before == kNoRank) return Character::kNone;
            if (front < back) {
                lefts.push_back({left, front});
                left = merges.merged_by(front);
            } else {
                rights.push_back({right, back});
                right = merges.merged_by(back);
            }
        }
        const std::int32_t made = merges.rank_of(left, right);
        if (made == kNoRank || made <= before) return Character::kNone;
        lefts.insert(lefts.end(), {{left, made}, {id, made}});
        rights.insert(rights.end(), {{right, made}, {id, made}});
        const auto later = [](const std::vector<Part>& parts,
                              const std::vector<std::int32_t>& first) {
            return std::ranges::all_of(
                parts, [&](const Part& part) { return first[part.id] > part.rank; });
        };
        return id | (later(lefts, beside.before[0]) ? Character::kAfterAscii : 0) |
               (later(lefts, beside.before[1]) ? Character::kAfterOther : 0) |
               (later(rights, beside.after[0]) ? Character::kBeforeAscii : 0) |
               (later(rights, beside.after[1]) ? Character::kBeforeOther : 0);
    }

    // A piece that equals a token becomes that token only if its merges arrive at it, which is
    // found out by merging each.
    void mark_unreachable() {
        for (TokenBucket& bucket : writable(tables_.tokens)) {
            for (std::size_t i = 0; i < TokenBucket::kSlots; ++i) {
                if (bucket.high[i] != 0 && !reachable(bucket.value[i])) {
                    bucket.value[i] |= kNotWhole;
                }
            }
        }
        for (std::uint64_t& slot : writable(tables_.long_tokens)) {
            if (slot != ~0ULL && !reachable(static_cast<std::uint32_t>(slot))) slot |= kNotWhole;
        }
    }

    bool reachable(std::uint32_t id) const {
        const std::string_view token = tables_.bytes_of(id);
        if (token.size() > kShortPiece) {
            Ids ids;
            merge_long(tables_.merges, token, ids);
            return ids.size() == 1;
        }
        std::int32_t ids[kShortPiece];
        return merge_short(tables_.merges, token, ids) == 1;
    }

    const VocabularySource& source_;
    std::size_t size_ = 0;
    BlockMemory memory_;
    VocabularyTables tables_;
};

}  // namespace

std::shared_ptr<const Vocabulary> Vocabulary::build(const VocabularySource& source) {
    BlockMemory block = Builder(source).build();
    const VocabularyTables tables = block_tables(block.get());
    std::shared_ptr<const std::uint8_t> shared = std::move(block);
    return std::make_shared<const Vocabulary>(Made{}, tables, std::move(shared));
}

}  // namespace omr
