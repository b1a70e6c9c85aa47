// The whole way from text to ids: added tokens, normalisation, pieces, vocabulary; and back.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/added_tokens.hpp"
#include "tokenizer/ids.hpp"
#include "tokenizer/split.hpp"
#include "tokenizer/text_view.hpp"
#include "tokenizer/vocabulary.hpp"

namespace omr {

// What text that spells a control token is.
enum class SpecialText : std::uint8_t {
    text,   // text like any other
    error,  // refused: TextError::Kind::control_text
};

struct Pipeline {
    Pattern pattern;
    bool nfc;
    std::vector<AddedToken> added;
    SpecialText special_text = SpecialText::text;
};

class PieceCache;
class Worker;  // what one thread needs: buffers and a PieceCache. Made and kept by the Encoder.

class Encoder {
public:
    Encoder(std::shared_ptr<const Vocabulary> vocabulary, Pipeline pipeline);
    ~Encoder();
    Encoder(const Encoder&) = delete;
    Encoder& operator=(const Encoder&) = delete;

    // Lends a Worker to the calling thread; given back at the end of its life. Safe after a fork.
    std::shared_ptr<Worker> borrow() const;

    // Ids of one text, appended; control tokens spelt in it stay text, or are an error.
    // Throws TextError; what it appended by then is still there.
    void encode(const TextView& text, Worker& worker, Ids& out) const;
    void encode(std::string_view utf8, Worker& worker, Ids& out) const;  // valid UTF-8
    std::size_t count(const TextView& text, Worker& worker) const;

    // The same for many texts: `count` is set to 0, and when `finish` has been called for the
    // worker it is how many ids the text has. Short texts wait for each other, so that enough of
    // their pieces are looked up side by side. All texts up to `finish` go to the same `out`; after
    // a TextError `give_up` has to be called instead.
    void encode_later(const TextView& text, Worker& worker, Ids& out, std::int64_t& count) const;
    void finish(Worker& worker, Ids& out) const;
    static void give_up(Worker& worker);

    // The caches of workers that have learnt enough since they last told each other to do so now
    // (PieceCache::share); none if not.
    static std::vector<PieceCache*> to_share(std::span<const std::shared_ptr<Worker>> workers);
    std::size_t count(std::string_view utf8, Worker& worker) const;

    const Vocabulary& vocabulary() const { return *vocabulary_; }
    const Pipeline& pipeline() const { return pipeline_; }

private:
    struct Pool;
    struct Pools;

    template <typename Sink>
    void run(std::string_view text, Worker& worker, Sink& sink) const;
    template <typename Sink>
    void run_part(std::string_view raw, Worker& worker, Sink& sink) const;
    template <typename Sink>
    void run_pieces(std::string_view text, Worker& worker, Sink& sink) const;
    void refuse_control_text(std::string_view text, Worker& worker) const;
    void refuse_control_ids(std::span<const std::int32_t> ids) const;

    std::shared_ptr<const Vocabulary> vocabulary_;
    Pipeline pipeline_;
    AddedTokens added_;
    std::vector<std::uint32_t> special_ids_;  // by the index of special_'s strings
    StringMatcher special_;
    // Control tokens that the vocabulary's own pieces or merges can yield: usually none.
    std::vector<std::uint32_t> yieldable_;
    Instructions instructions_;
    mutable std::atomic<Pools*> pools_{nullptr};
};

}  // namespace omr
