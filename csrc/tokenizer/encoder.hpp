// The whole way from text to ids: added tokens, normalisation, pieces, vocabulary; and back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/ids.hpp"
#include "tokenizer/split.hpp"
#include "tokenizer/vocabulary.hpp"

namespace omr {

struct AddedToken {
    std::string content;  // UTF-8
    std::uint32_t id;
    bool special;  // a control token: text never becomes one
    bool normalized, lstrip, rstrip, single_word;
};

struct Pipeline {
    Pattern pattern;
    bool nfc;
    std::vector<AddedToken> added;
};

// A str as CPython holds it: `kind` bytes a code point (1: Latin-1 or ASCII, 2, 4).
struct TextView {
    const void* data;
    std::size_t length;  // code points
    std::uint8_t kind;
    bool ascii;
};

class Worker;  // what one thread needs: buffers and a PieceCache. Made and kept by the Encoder.

class Encoder {
public:
    Encoder(std::shared_ptr<const Vocabulary> vocabulary, Pipeline pipeline);

    // Lends a Worker to the calling thread; given back at the end of its life. Safe after a fork.
    std::shared_ptr<Worker> borrow() const;

    // Ids of one text, appended; control tokens spelt in it stay text.
    // Throws TextError (a lone surrogate, more than max_text bytes).
    void encode(const TextView& text, Worker& worker, Ids& out) const;
    void encode(std::string_view utf8, Worker& worker, Ids& out) const;  // valid UTF-8
    std::size_t count(const TextView& text, Worker& worker) const;
    std::size_t count(std::string_view utf8, Worker& worker) const;
};

}  // namespace omr
