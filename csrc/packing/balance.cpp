#include "packing/balance.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <vector>

namespace omr {
namespace {

constexpr std::size_t kSwapsPerRank = 16;

void check(std::span<const std::int64_t> costs, std::size_t num_ranks) {
    if (num_ranks < 1 || costs.size() % num_ranks != 0 ||
        costs.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
        throw std::invalid_argument("num_ranks does not divide the number of costs");
    }
    std::int64_t left = std::int64_t{1} << 62;
    for (const std::int64_t cost : costs) {
        if (cost < 0 || cost > left) {
            throw std::invalid_argument("a cost is negative, or their sum passes 2^62");
        }
        left -= cost;
    }
}

// Where each rank's cost of each round stands: at [round * num_ranks + rank].
struct Deal {
    std::span<const std::int64_t> costs;
    std::size_t num_ranks;
    std::vector<std::size_t> dealt;
    std::vector<std::int64_t> loads;

    [[nodiscard]] std::int64_t cost(std::size_t round, std::size_t rank) const {
        return costs[dealt[round * num_ranks + rank]];
    }
};

Deal deal_rounds(std::span<const std::int64_t> costs, std::size_t num_ranks) {
    std::vector<std::size_t> dearest(costs.size());
    std::iota(dearest.begin(), dearest.end(), std::size_t{0});
    std::stable_sort(dearest.begin(), dearest.end(),
                     [&](std::size_t a, std::size_t b) { return costs[a] > costs[b]; });
    Deal deal{costs, num_ranks, std::vector<std::size_t>(costs.size()),
              std::vector<std::int64_t>(num_ranks, 0)};
    std::vector<std::size_t> lightest(num_ranks);
    for (std::size_t begin = 0; begin < costs.size(); begin += num_ranks) {
        std::iota(lightest.begin(), lightest.end(), std::size_t{0});
        std::stable_sort(lightest.begin(), lightest.end(), [&](std::size_t a, std::size_t b) {
            return deal.loads[a] < deal.loads[b];
        });
        for (std::size_t place = 0; place < num_ranks; ++place) {
            deal.dealt[begin + lightest[place]] = dearest[begin + place];
        }
        for (std::size_t rank = 0; rank < num_ranks; ++rank) {
            deal.loads[rank] += costs[deal.dealt[begin + rank]];
        }
    }
    return deal;
}

// One swap that lightens the heaviest rank most; false if there is none.
bool improve(Deal& deal) {
    const auto heaviest = static_cast<std::size_t>(
        std::max_element(deal.loads.begin(), deal.loads.end()) - deal.loads.begin());
    const std::int64_t load = deal.loads[heaviest];
    const std::size_t rounds = deal.dealt.size() / deal.num_ranks;
    std::int64_t best = load;
    std::size_t best_rank = 0;
    std::size_t best_round = 0;
    for (std::size_t rank = 0; rank < deal.num_ranks; ++rank) {
        for (std::size_t round = 0; round < rounds; ++round) {
            const std::int64_t moved = deal.cost(round, heaviest) - deal.cost(round, rank);
            const std::int64_t reached = std::max(load - moved, deal.loads[rank] + moved);
            if (reached < best && rank != heaviest) {
                best = reached;
                best_rank = rank;
                best_round = round;
            }
        }
    }
    if (best == load) return false;
    const std::int64_t moved = deal.cost(best_round, heaviest) - deal.cost(best_round, best_rank);
    deal.loads[heaviest] -= moved;
    deal.loads[best_rank] += moved;
    std::swap(deal.dealt[best_round * deal.num_ranks + heaviest],
              deal.dealt[best_round * deal.num_ranks + best_rank]);
    return true;
}

}  // namespace

void balance(std::span<const std::int64_t> costs, std::size_t num_ranks,
             std::span<std::int32_t> rank_of) {
    check(costs, num_ranks);
    Deal deal = deal_rounds(costs, num_ranks);
    for (std::size_t swaps = 0; swaps < kSwapsPerRank * num_ranks && improve(deal); ++swaps) {
    }
    for (std::size_t place = 0; place < deal.dealt.size(); ++place) {
        rank_of[deal.dealt[place]] = static_cast<std::int32_t>(place % num_ranks);
    }
}

}  // namespace omr
