#include "tokenizer/ranks.hpp"

#include <stdexcept>
#include <unordered_map>

namespace omr {

namespace {

using Ranks = std::unordered_map<std::string_view, std::uint32_t>;
constexpr std::uint32_t never = 0xFFFF'FFFF;

std::uint32_t rank_of(const Ranks& ranks, std::string_view token) {
    const auto found = ranks.find(token);
    return found == ranks.end() ? never : found->second;
}

}  // namespace

std::vector<std::optional<std::pair<std::uint32_t, std::uint32_t>>> last_pairs(
    const std::vector<std::string_view>& tokens) {
    Ranks ranks;
    ranks.reserve(tokens.size());
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        if (tokens[i].empty()) throw std::invalid_argument("a token is empty");
        if (!ranks.emplace(tokens[i], static_cast<std::uint32_t>(i)).second) {
            throw std::invalid_argument("a token occurs twice");
        }
    }
    std::vector<std::optional<std::pair<std::uint32_t, std::uint32_t>>> pairs(tokens.size());
    std::vector<std::size_t> begins;         // where the parts begin, and the end of the last
    std::vector<std::uint32_t> joined;       // the rank of part i with part i + 1
    for (std::size_t t = 0; t < tokens.size(); ++t) {
        const std::string_view token = tokens[t];
        if (token.size() < 2) continue;
        const auto rank = static_cast<std::uint32_t>(t);
        const auto join = [&](std::size_t i) {
            return rank_of(ranks, token.substr(begins[i], begins[i + 2] - begins[i]));
        };
        begins.clear();
        joined.clear();
        for (std::size_t i = 0; i <= token.size(); ++i) begins.push_back(i);
        for (std::size_t i = 0; i + 2 < begins.size(); ++i) joined.push_back(join(i));
        bool stuck = false;
        while (joined.size() > 1 && !stuck) {
            std::size_t best = 0;
            for (std::size_t i = 1; i < joined.size(); ++i) {
                if (joined[i] < joined[best]) best = i;
            }
            stuck = joined[best] >= rank;
            if (stuck) break;
            begins.erase(begins.begin() + static_cast<std::ptrdiff_t>(best) + 1);
            joined.erase(joined.begin() + static_cast<std::ptrdiff_t>(best));
            if (best > 0) joined[best - 1] = join(best - 1);
            if (best < joined.size()) joined[best] = join(best);
        }
        if (stuck) continue;
        const std::uint32_t left = rank_of(ranks, token.substr(0, begins[1]));
        const std::uint32_t right = rank_of(ranks, token.substr(begins[1]));
        if (left != never && right != never) pairs[t].emplace(left, right);
    }
    return pairs;
}

}  // namespace omr
