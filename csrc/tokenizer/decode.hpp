// Ids → bytes of text, as Hugging Face's ByteLevel decoder makes them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "tokenizer/vocabulary.hpp"

namespace omr {

// A token that no merge makes: an added one, or one of the vocabulary that no text can become.
struct ExtraToken {
    std::uint32_t id;
    std::string bytes;  // what it decodes to
    bool special;
};

class UnknownId : public std::exception {
public:
    explicit UnknownId(std::int64_t id) : id_(id) {}

    const char* what() const noexcept override { return "an id that is not in the vocabulary"; }
    std::int64_t id() const { return id_; }

private:
    std::int64_t id_;
};

class Decoder {
public:
    Decoder(std::shared_ptr<const Vocabulary> vocabulary, std::vector<ExtraToken> extra);

    bool knows(std::int64_t id) const;
    // Appends the bytes of the ids, which need not be valid UTF-8. Throws UnknownId.
    void decode(std::span<const std::int64_t> ids, bool skip_special, std::string& out) const;

private:
    const ExtraToken* extra(std::int64_t id) const;

    std::shared_ptr<const Vocabulary> vocabulary_;
    std::vector<ExtraToken> extra_;  // by id
};

}  // namespace omr
