// The merges of a vocabulary of which only the ranks are known (a tiktoken file).
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace omr {

// For each token, by rank, the two tokens that are left when it is encoded with lower ranks only:
// its merge. None for a single byte, and for a token that lower ranks do not lead to.
//
// Byte-pair encoding by ranks joins the two neighbours that make the lowest-ranked token, as long as
// there are such. Neighbours that make a token T always stand as T alone would have become by then
// (a merge across T's ends would have used up its bytes), so the pair of each T is always the same
// one, and encoding by these merges equals encoding by ranks.
//
// Throws std::invalid_argument: two tokens are equal, or one is empty.
std::vector<std::optional<std::pair<std::uint32_t, std::uint32_t>>> last_pairs(
    const std::vector<std::string_view>& tokens);

}  // namespace omr
