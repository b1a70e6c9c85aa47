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

class PieceCache;         // of one thread; bounded: see piece_cache.hpp
struct VocabularyTables;  // see vocabulary_block.hpp

class Vocabulary {
    struct Made {};  // only build and map make one


public:
    // Throws std::invalid_argument: one of the 256 bytes has no token, two ids have the same bytes,
    // a merge names no token or makes other bytes than its two sides, or a table would be too
    // large.
    static std::shared_ptr<const Vocabulary> build(const VocabularySource& source);

    // The compiled form: one block that can be mapped from a file and used as it lies there.
    // map throws std::system_error (the file cannot be opened or mapped) or std::runtime_error
    // (what is in it is no compiled vocabulary, is damaged or of another version).
    static std::shared_ptr<const Vocabulary> map(const std::string& path);
    std::span<const std::uint8_t> compiled() const;

    // Ids of pieces, appended. text and ends are as `split` has them; the first piece begins at
    // `start`. Nothing beyond the text's end is read. The cache may have served another vocabulary.
    void encode(std::string_view text, std::size_t start, std::span<const std::uint32_t> ends,
                PieceCache& cache, Ids& out) const;
    // Pieces of several texts that stand one after the other in `text`: how many ids a part has is
    // added to its count. The parts' pieces are all of them, in order.
    struct Part {
        std::size_t pieces;
        std::int64_t* count;
    };
    void encode(std::string_view text, std::span<const std::uint32_t> ends,
                std::span<const Part> parts, PieceCache& cache, Ids& out) const;
    // How many ids `encode` would append.
    std::size_t count(std::string_view text, std::size_t start,
                      std::span<const std::uint32_t> ends, PieceCache& cache) const;

    // Merges one piece as long ones are, whatever its length and whether it is a token; for tests.
    void encode_long(std::string_view piece, std::size_t window, Ids& out) const;

    std::size_t size() const;                       // ids are below this
    std::string_view bytes_of(std::uint32_t id) const;  // "" for an id without a token
    std::int64_t find(std::string_view token) const;    // its id, or -1

    Vocabulary(Made, const VocabularyTables& tables, std::shared_ptr<const std::uint8_t> block);
    ~Vocabulary();
    Vocabulary(const Vocabulary&) = delete;
    Vocabulary& operator=(const Vocabulary&) = delete;

private:
    std::unique_ptr<const VocabularyTables> tables_;
    std::shared_ptr<const std::uint8_t> block_;  // what the tables lie in
};

}  // namespace omr
