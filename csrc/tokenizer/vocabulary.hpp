// A byte-level BPE vocabulary: tables that turn a piece into ids. Immutable, shared by threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/ids.hpp"

namespace omr {

// left and right merge into the token `merged`; their order in the list is their rank.
struct Merge {
    std::uint32_t left, right, merged;
};

// What a vocabulary is made of. Tokens are raw bytes, not letters that stand for bytes.
struct VocabularySource {
    std::vector<std::string> tokens;  // by id; "" where an id has no token that text can become
    std::vector<Merge> merges;
    bool ignore_merges = false;  // a piece that is a token becomes it, whatever the merges say
};

class PieceCache;  // of one thread; bounded

class Vocabulary {
public:
    // Throws std::invalid_argument: one of the 256 bytes has no token, or a merge names no token.
    static std::shared_ptr<const Vocabulary> build(const VocabularySource& source);

    // The compiled form: one block that can be mapped from a file and used as it lies there.
    static std::shared_ptr<const Vocabulary> map(const std::string& path);  // throws if not valid
    std::span<const std::uint8_t> compiled() const;

    // Ids of pieces, appended. text and ends are as `split` has them; the first piece begins at
    // `start`. Nothing beyond the text's end is read.
    void encode(std::string_view text, std::size_t start, std::span<const std::uint32_t> ends,
                PieceCache& cache, Ids& out) const;
    // How many ids `encode` would append.
    std::size_t count(std::string_view text, std::size_t start,
                      std::span<const std::uint32_t> ends, PieceCache& cache) const;

    std::size_t size() const;                       // ids are below this
    std::string_view bytes_of(std::uint32_t id) const;  // "" for an id that has no token
    std::int64_t find(std::string_view token) const;    // its id, or -1
    // (vocabulary.cpp defines the rest; ~Vocabulary, members, as its author sees fit)
};

}  // namespace omr
