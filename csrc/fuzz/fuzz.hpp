// What the fuzz targets share. Each aborts when a promise of the tokenizer's headers is broken.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/encoder.hpp"
#include "tokenizer/ids.hpp"
#include "tokenizer/split.hpp"
#include "tokenizer/unicode.hpp"
#include "tokenizer/vocabulary.hpp"

// Aborts, saying which promise it was: the driver keeps the input.
#define REQUIRE(condition)                                                              \
    do {                                                                                \
        if (!(condition)) {                                                             \
            std::fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #condition); \
            std::abort();                                                               \
        }                                                                               \
    } while (false)

namespace omr::fuzz {

// Bytes of exactly this size on the heap, so that the sanitizer sees any read past their end.
class Exact {
public:
    explicit Exact(std::string_view bytes) : data_(new char[bytes.size()]), size_(bytes.size()) {
        if (size_ > 0) std::memcpy(data_.get(), bytes.data(), size_);
    }
    const char* data() const { return data_.get(); }
    std::string_view view() const { return {data_.get(), size_}; }

private:
    std::unique_ptr<char[]> data_;
    std::size_t size_;
};

// A vocabulary made here, with what it was made of.
struct Made {
    VocabularySource source;
    std::shared_ptr<const Vocabulary> vocabulary;
};

// An encoder over a vocabulary made here.
struct Case {
    const Made* made;
    Pipeline pipeline;
    std::unique_ptr<Encoder> encoder;
    bool plain_added;  // no flag of an added token is set: they are cut out of the raw text
};

const std::vector<Made>& vocabularies();
const std::vector<Case>& cases();

// The bytes with what is no UTF-8 replaced by Latin-1 letters of those bytes.
std::string valid_utf8(std::span<const std::uint8_t> bytes);
std::u32string code_points(std::string_view utf8);
void append_utf8(std::string& out, char32_t code_point);

// Byte-pair encoding of one piece, as slow and plain as can be: the oracle of Vocabulary::encode.
std::vector<std::int32_t> merged(const VocabularySource& source, std::string_view piece);
// Ids of a text without added tokens in it: pieces by split_scalar, each by `merged`.
std::vector<std::int32_t> expected(const Case& one, std::string_view text);

void fuzz_split(std::span<const std::uint8_t> input);
void fuzz_encode(std::span<const std::uint8_t> input);
void fuzz_kinds(std::span<const std::uint8_t> input);
void fuzz_compiled(std::span<const std::uint8_t> input);

// Where a driver begins, and what it inserts.
std::vector<std::string> seeds();
std::vector<std::string> dictionary();

}  // namespace omr::fuzz
