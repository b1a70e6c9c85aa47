// What one thread remembers of the pieces it met. Fixed memory, no lock, no eviction policy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string_view>

#include "tokenizer/piece_key.hpp"

namespace omr {

// A piece of 1 to 15 bytes that is 1 to 4 ids.
struct alignas(32) CachedPiece {
    std::uint64_t low;
    std::uint64_t high;  // the key's, with the number of ids in bits 60 to 63
    std::int32_t ids[4];

    bool holds(const PieceKey& key) const {
        return ((low ^ key.low) | ((high ^ key.high) << 4U)) == 0;
    }
    PieceKey key() const { return {low, high & (~0ULL >> 4U)}; }
    std::size_t count() const { return static_cast<std::size_t>(high >> 60U); }
};
static_assert(sizeof(CachedPiece) == 32);

// A longer piece, or one of more ids.
struct alignas(64) CachedLongPiece {
    static constexpr std::size_t kBytes = 30;
    static constexpr std::size_t kIds = 8;

    std::uint8_t length;  // 0: nothing is here
    std::uint8_t count;
    char bytes[kBytes];
    std::int32_t ids[kIds];

    bool holds(std::string_view piece) const {
        return length == piece.size() && std::memcmp(bytes, piece.data(), piece.size()) == 0;
    }
    // Only if there is room for it.
    void put(std::string_view piece, const std::int32_t* found, std::size_t found_count) {
        if (piece.size() > kBytes || found_count > kIds) return;
        length = static_cast<std::uint8_t>(piece.size());
        count = static_cast<std::uint8_t>(found_count);
        std::memcpy(bytes, piece.data(), piece.size());
        std::memcpy(ids, found, found_count * sizeof *ids);
    }
};
static_assert(sizeof(CachedLongPiece) == 64);

class PieceCache {
public:
    // One cache line. What comes goes to the front; what was at the back goes.
    struct alignas(64) Set {
        CachedPiece pieces[2];

        // The piece, or if it is not here, one that it is not: no branch.
        const CachedPiece* find(const PieceKey& key) const {
            return &pieces[pieces[0].holds(key) ? 0 : 1];
        }
        void put(const CachedPiece& piece) {
            if (find(piece.key())->holds(piece.key())) return;  // twice in a block
            pieces[1] = pieces[0];
            pieces[0] = piece;
        }
    };

    static constexpr unsigned kBits = 15;
    static constexpr std::size_t kSets = std::size_t{1} << kBits;
    static constexpr std::size_t kLongPieces = 8192;

    PieceCache() : sets_(allocate<Set>(kSets)),
                   long_pieces_(allocate<CachedLongPiece>(kLongPieces)) {}

    // Forgets all if what is remembered belongs to another vocabulary.
    void serve(std::uint64_t vocabulary) {
        if (vocabulary == vocabulary_) [[likely]] return;
        if (vocabulary_ != 0) clear();
        vocabulary_ = vocabulary;
    }
    Set& set(std::uint64_t hash) { return sets_.get()[hash >> (64U - kBits)]; }
    CachedLongPiece& long_piece(std::uint64_t hash) {
        return long_pieces_.get()[hash >> 32U & (kLongPieces - 1)];
    }

private:
    void clear() {
        std::memset(static_cast<void*>(sets_.get()), 0, kSets * sizeof(Set));
        std::memset(static_cast<void*>(long_pieces_.get()), 0,
                    kLongPieces * sizeof(CachedLongPiece));
    }

    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    template <typename T>
    static std::unique_ptr<T[], Free> allocate(std::size_t count) {
        void* memory = std::aligned_alloc(64, count * sizeof(T));
        if (memory == nullptr) throw std::bad_alloc();
        std::memset(memory, 0, count * sizeof(T));
        return std::unique_ptr<T[], Free>(static_cast<T*>(memory));
    }

    std::unique_ptr<Set[], Free> sets_;
    std::unique_ptr<CachedLongPiece[], Free> long_pieces_;
    std::uint64_t vocabulary_ = 0;  // checksum of the vocabulary whose pieces these are; 0: none yet
};

}  // namespace omr
