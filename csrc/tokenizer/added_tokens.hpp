// Tokens that are cut out of a text before it is split into pieces, as Hugging Face finds them.
//
// What `AddedVocabulary` of tokenizers 0.23.3 does, found by experiment (tests/tokenizer/
// test_added_tokens.py): tokens with normalized=false are searched in the raw text, then those with
// normalized=true, themselves normalised, in each normalised part between. Matches are leftmost and
// longest and do not overlap. A match that is not taken (a special one, or one inside a word with
// single_word) still uses up its bytes: no other token is found in them. What lstrip and rstrip add
// to a match is not used up in this sense, so a later match may lie in it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace omr {

struct AddedToken {
    std::string content;  // UTF-8
    std::uint32_t id;
    bool special;  // a control token: text never becomes one
    bool normalized, lstrip, rstrip, single_word;
};

// Finds the leftmost-longest occurrences of a set of strings.
class StringMatcher {
public:
    struct Match {
        std::size_t begin, end;
        std::size_t string;  // its index
    };

    // Of equal strings the first is the one that is found. Empty strings are never found.
    explicit StringMatcher(const std::vector<std::string>& strings);

    bool empty() const { return firsts_.empty(); }
    // The next match that begins at `from` or later; false if there is none. `ahead` is the
    // caller's memory of where each first byte comes next: `Ahead{}` at the text's start.
    struct Ahead {
        std::array<std::size_t, 4> next{};  // 0: not looked up yet, else 1 + position
    };
    bool find(std::string_view text, std::size_t from, Ahead& ahead, Match& match) const;

private:
    struct Node {
        std::uint32_t edges_begin, edges_end;
        std::int32_t string;  // -1: no string ends here
    };
    struct Edge {
        std::uint8_t byte;
        std::uint32_t node;
    };

    std::size_t next_candidate(std::string_view text, std::size_t from, Ahead& ahead) const;
    bool match_at(std::string_view text, std::size_t at, Match& match) const;

    std::vector<Node> nodes_;
    std::vector<Edge> edges_;
    std::vector<std::uint8_t> firsts_;     // the bytes that strings begin with
    std::array<bool, 256> is_first_{};
    std::array<std::uint32_t, 256> root_{};  // the node of each first byte
};

class AddedTokens {
public:
    enum class Stage : std::uint8_t { raw, normalized };

    // A run of text, or a token (id >= 0). Parts cover the text in order; only by rstrip may
    // tokens overlap.
    struct Part {
        std::size_t begin, end;
        std::int64_t id;  // -1: text
    };

    AddedTokens(const std::vector<AddedToken>& tokens, bool nfc);

    // False: `cut` would find nothing in any text.
    bool active(Stage stage) const { return !of(stage).idle; }
    // Appends the parts of `text` and returns true; or leaves `parts` as it is and returns false
    // if there is nothing but text. Valid UTF-8.
    bool cut(Stage stage, std::string_view text, std::vector<Part>& parts) const;

private:
    struct Search {
        StringMatcher matcher;
        std::vector<AddedToken> tokens;  // by the matcher's indices
        bool idle;                       // all special: nothing is ever taken
    };

    const Search& of(Stage stage) const { return stage == Stage::raw ? raw_ : normalized_; }
    static Search make(const std::vector<AddedToken>& tokens, bool normalized, bool nfc);

    Search raw_, normalized_;
};

}  // namespace omr
