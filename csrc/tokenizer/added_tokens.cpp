#include "tokenizer/added_tokens.hpp"

#include <algorithm>
#include <cstring>
#include <map>

#include "tokenizer/unicode.hpp"
#include "tokenizer/words.hpp"

namespace omr {

namespace {

constexpr std::size_t none = static_cast<std::size_t>(-1);

std::size_t find_byte(std::string_view text, std::size_t from, std::uint8_t byte) {
    if (from >= text.size()) return none;
    const void* found = std::memchr(text.data() + from, byte, text.size() - from);
    if (found == nullptr) return none;
    return static_cast<std::size_t>(static_cast<const char*>(found) - text.data());
}

// Where the whitespace that ends the text begins.
std::size_t begin_of_trailing_space(std::string_view text) {
    std::size_t end = text.size();
    while (end > 0) {
        const std::size_t at = previous_code_point(text, end);
        if (!is_whitespace(code_point_at(text, at))) break;
        end = at;
    }
    return end;
}

// How many bytes of whitespace the text begins with.
std::size_t leading_space(std::string_view text) {
    std::size_t at = 0;
    while (at < text.size()) {
        const std::size_t width = utf8_width(static_cast<unsigned char>(text[at]));
        if (!is_whitespace(code_point_at(text, at))) break;
        at += width;
    }
    return at;
}

bool inside_word(std::string_view text, std::size_t begin, std::size_t end) {
    return (begin > 0 && is_word(code_point_at(text, previous_code_point(text, begin)))) ||
           (end < text.size() && is_word(code_point_at(text, end)));
}

}  // namespace

StringMatcher::StringMatcher(const std::vector<std::string>& strings) {
    std::vector<std::map<std::uint8_t, std::uint32_t>> children(1);
    std::vector<std::int32_t> ends(1, -1);
    for (std::size_t i = 0; i < strings.size(); ++i) {
        std::uint32_t node = 0;
        for (const char letter : strings[i]) {
            const auto byte = static_cast<std::uint8_t>(letter);
            const auto fresh = static_cast<std::uint32_t>(children.size());
            const auto [child, added] = children[node].try_emplace(byte, fresh);
            node = child->second;  // before `children` grows and moves
            if (added) {
                children.emplace_back();
                ends.push_back(-1);
            }
        }
        if (node != 0 && ends[node] < 0) ends[node] = static_cast<std::int32_t>(i);
    }
    for (std::size_t node = 0; node < children.size(); ++node) {
        const auto begin = static_cast<std::uint32_t>(edges_.size());
        for (const auto& [byte, child] : children[node]) edges_.push_back({byte, child});
        nodes_.push_back({begin, static_cast<std::uint32_t>(edges_.size()), ends[node]});
    }
    for (const auto& [byte, child] : children[0]) {
        firsts_.push_back(byte);
        is_first_[byte] = true;
        root_[byte] = child;
    }
}

std::size_t StringMatcher::next_candidate(std::string_view text, std::size_t from,
                                          Ahead& ahead) const {
    if (firsts_.size() > ahead.next.size()) {
        for (std::size_t at = from; at < text.size(); ++at) {
            if (is_first_[static_cast<std::uint8_t>(text[at])]) return at;
        }
        return none;
    }
    // One search a byte, each remembered until it is passed: plain text is read at memchr's speed.
    std::size_t nearest = none;
    for (std::size_t i = 0; i < firsts_.size(); ++i) {
        std::size_t& next = ahead.next[i];
        if (next != none && (next == 0 || next - 1 < from)) {
            const std::size_t found = find_byte(text, from, firsts_[i]);
            next = found == none ? none : found + 1;
        }
        if (next != none) nearest = std::min(nearest, next - 1);
    }
    return nearest;
}

bool StringMatcher::match_at(std::string_view text, std::size_t at, Match& match) const {
    std::uint32_t node = root_[static_cast<std::uint8_t>(text[at])];
    std::size_t end = at + 1;
    bool found = false;
    for (;;) {
        if (nodes_[node].string >= 0) {
            match = {at, end, static_cast<std::size_t>(nodes_[node].string)};
            found = true;
        }
        if (end == text.size()) return found;
        const auto byte = static_cast<std::uint8_t>(text[end]);
        const Edge* edge = edges_.data() + nodes_[node].edges_begin;
        const Edge* const last = edges_.data() + nodes_[node].edges_end;
        while (edge != last && edge->byte != byte) ++edge;
        if (edge == last) return found;
        node = edge->node;
        ++end;
    }
}

bool StringMatcher::find(std::string_view text, std::size_t from, Ahead& ahead,
                         Match& match) const {
    for (;;) {
        const std::size_t at = next_candidate(text, from, ahead);
        if (at == none) return false;
        if (match_at(text, at, match)) return true;
        from = at + 1;
    }
}

AddedTokens::AddedTokens(const std::vector<AddedToken>& tokens, bool nfc)
    : raw_(make(tokens, false, nfc)), normalized_(make(tokens, true, nfc)) {}

AddedTokens::Search AddedTokens::make(const std::vector<AddedToken>& tokens, bool normalized,
                                      bool nfc) {
    std::vector<AddedToken> chosen;
    // Hugging Face's order, which decides between tokens that become equal: special ones first.
    for (const bool special : {true, false}) {
        for (const AddedToken& token : tokens) {
            if (token.normalized == normalized && token.special == special) chosen.push_back(token);
        }
    }
    std::vector<std::string> strings;
    for (const AddedToken& token : chosen) {
        strings.emplace_back();
        if (normalized && nfc) to_nfc(token.content, strings.back());
        else strings.back() = token.content;
    }
    const bool idle = std::all_of(chosen.begin(), chosen.end(),
                                  [](const AddedToken& token) { return token.special; });
    return {StringMatcher(strings), std::move(chosen), idle};
}

bool AddedTokens::cut(Stage stage, std::string_view text, std::vector<Part>& parts) const {
    const Search& search = of(stage);
    if (search.idle) return false;
    StringMatcher::Ahead ahead;
    StringMatcher::Match match{};
    std::size_t done = 0, from = 0;
    bool any = false;
    while (search.matcher.find(text, from, ahead, match)) {
        from = match.end;
        const AddedToken& token = search.tokens[match.string];
        if (token.special) continue;
        if (token.single_word && inside_word(text, match.begin, match.end)) continue;
        if (token.lstrip) {
            match.begin = std::max(done, begin_of_trailing_space(text.substr(0, match.begin)));
        }
        if (token.rstrip) match.end += leading_space(text.substr(match.end));
        if (done < match.begin) parts.push_back({done, match.begin, -1});
        // Nothing is left of a match that an earlier token's rstrip reached over.
        if (match.begin < match.end) parts.push_back({match.begin, match.end, token.id});
        done = match.end;
        any = true;
    }
    if (any && done < text.size()) parts.push_back({done, text.size(), -1});
    return any;
}

}  // namespace omr
