// Which rank takes which pack of a step. Integers only; equal to omr_io/reference/balance.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace omr {

// The rank of each cost, equally many each. Costs, dearest first, are dealt in rounds of num_ranks:
// the dearest of a round to the lightest rank so far. Then, as long as that lightens the heaviest
// rank, it swaps its cost of one round with another rank's of that round. Ties: the earlier cost,
// the lower rank, the earlier round.
//
// Throws std::invalid_argument where num_ranks does not divide the number of costs, a cost is
// negative or their sum passes 2^62.
void balance(std::span<const std::int64_t> costs, std::size_t num_ranks,
             std::span<std::int32_t> rank_of);

}  // namespace omr
