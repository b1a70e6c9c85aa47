// A chat template, compiled: conversations → ids and which of them are trained, nothing in between.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "tokenizer/encoder.hpp"
#include "tokenizer/ids.hpp"

namespace omr {

// One step in writing a turn.
struct ChatPart {
    enum class Kind : std::uint8_t {
        ids,     // `ids`, which were encoded once and for all
        text,    // `before`, the turn's text and `after`, encoded as one text
        images,  // for each image: ids before it, its placeholders, ids after it
    };
    Kind kind = Kind::ids;
    bool trained = false;
    std::vector<std::int32_t> ids;
    std::string before, after;  // UTF-8
};

// How a turn of a role is written, with images and without.
struct ChatRole {
    std::vector<ChatPart> plain, with_images;
};

// What stands for an image.
struct ImageBlock {
    std::vector<std::int32_t> before, after;
    std::int32_t pad = 0;
};

// Views of what the caller keeps alive.
struct ChatTurn {
    std::uint32_t role = 0;
    TextView text{};
    std::span<const std::int64_t> images{};  // placeholders of each image
};

// What to do with conversations of more than `max_tokens` (0: there is no such limit).
struct ChatLimit {
    std::size_t max_tokens = 0;
    bool cut = false;  // cut the end of the last turn, if it is trained; else refuse
};

struct ChatBatch {
    struct Span {
        std::size_t begin, end;
    };
    Ids ids;
    std::vector<Span> trained;         // of `ids`, in order
    std::vector<std::int64_t> ends;    // of each conversation in `ids`
    std::vector<std::int64_t> prompts; // tokens before the first trained one; all, if none is
    std::vector<std::int64_t> cut;     // tokens cut off each
};

struct ChatCounts {
    std::vector<std::int64_t> text;    // tokens of each conversation but for image placeholders
    std::vector<std::int64_t> labels;  // trained ones
};

// A conversation that cannot be encoded, and which turn is to blame.
class ChatTextError : public std::runtime_error {
public:
    ChatTextError(const char* what, std::size_t row, std::size_t turn)
        : std::runtime_error(what), row_(row), turn_(turn) {}
    std::size_t row() const { return row_; }
    std::size_t turn() const { return turn_; }

private:
    std::size_t row_, turn_;
};

// A conversation that is longer than the limit.
class ChatLengthError : public std::runtime_error {
public:
    ChatLengthError(std::size_t row, std::size_t tokens, std::size_t prompt)
        : std::runtime_error("a conversation is too long"),
          row_(row),
          tokens_(tokens),
          prompt_(prompt) {}
    std::size_t row() const { return row_; }
    std::size_t tokens() const { return tokens_; }
    std::size_t prompt() const { return prompt_; }  // tokens that cutting cannot take away

private:
    std::size_t row_, tokens_, prompt_;
};

class ChatTemplate {
public:
    // The encoder must outlive it. Throws std::invalid_argument: images in a turn without them.
    ChatTemplate(const Encoder& encoder, std::vector<ChatRole> roles, ImageBlock image);

    // row_ends[i]: where conversation i ends in `turns`. Conversations are shared out to `threads`
    // threads, the calling one among them. The result does not depend on their number.
    // Throws ChatTextError and ChatLengthError for the first conversation that is to blame,
    // std::invalid_argument for a role or a count of placeholders that does not exist.
    ChatBatch encode(std::span<const ChatTurn> turns, std::span<const std::size_t> row_ends,
                     ChatLimit limit, std::size_t threads) const;

    // The lengths of what `encode` gives without a limit.
    ChatCounts count(std::span<const ChatTurn> turns, std::span<const std::size_t> row_ends,
                     std::size_t threads) const;

private:
    struct Scratch;
    void check(std::span<const ChatTurn> turns, std::span<const std::size_t> row_ends) const;
    std::size_t encode_turn(const ChatTurn& turn, Scratch& scratch, ChatBatch& out) const;
    void encode_rows(std::span<const ChatTurn> turns, std::span<const std::size_t> row_ends,
                     std::size_t first, std::size_t last, ChatLimit limit, ChatBatch& out) const;
    void count_rows(std::span<const ChatTurn> turns, std::span<const std::size_t> row_ends,
                    std::size_t first, std::size_t last, ChatCounts& out) const;

    const Encoder& encoder_;
    std::vector<ChatRole> roles_;
    ImageBlock image_;
};

}  // namespace omr
