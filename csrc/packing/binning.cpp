#include "packing/binning.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <stdexcept>

#include "packing/number_set.hpp"

namespace omr {
namespace {

constexpr std::size_t kCandidates = 16;  // drawn lengths that are tried as one half of an ending

void check(std::span<const std::int64_t> lengths, std::int64_t capacity, std::int64_t least = 1) {
    if (capacity < 1 || capacity > kMaxCapacity || lengths.size() > kMaxSamples - 1) {
        throw std::invalid_argument("the capacity or the number of lengths is out of range");
    }
    for (const std::int64_t length : lengths) {
        if (length < least || length > capacity) {
            throw std::invalid_argument("a length is out of range for the capacity");
        }
    }
}

// The high half of a 64 by 64 bit product, without a type that ISO C++ does not know.
std::uint64_t high_product(std::uint64_t a, std::uint64_t b) {
    const std::uint64_t low = 0xffffffffU;
    const std::uint64_t ll = (a & low) * (b & low);
    const std::uint64_t lh = (a & low) * (b >> 32);
    const std::uint64_t hl = (a >> 32) * (b & low);
    const std::uint64_t middle = (ll >> 32) + (lh & low) + (hl & low);
    return (a >> 32) * (b >> 32) + (lh >> 32) + (hl >> 32) + (middle >> 32);
}

// Indices by length, equal lengths in index order: those of length l begin at starts[l].
struct ByLength {
    std::vector<std::size_t> starts;
    std::vector<std::int32_t> indices;

    explicit ByLength(std::span<const std::int64_t> lengths) {
        const std::int64_t longest =
            lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
        starts.assign(static_cast<std::size_t>(longest) + 2, 0);
        for (const std::int64_t length : lengths) {
            ++starts[static_cast<std::size_t>(length) + 1];
        }
        std::partial_sum(starts.begin(), starts.end(), starts.begin());
        indices.resize(lengths.size());
        std::vector<std::size_t> next(starts.begin(), starts.end() - 1);
        for (std::size_t i = 0; i < lengths.size(); ++i) {
            indices[next[static_cast<std::size_t>(lengths[i])]++] = static_cast<std::int32_t>(i);
        }
    }
};

// The lengths that are in no bin yet.
class Pool {
public:
    explicit Pool(std::span<const std::int64_t> lengths)
        : lengths_(lengths),
          by_length_(lengths),
          tops_(by_length_.starts.begin() + 1, by_length_.starts.end()),
          counts_(tops_.size()),
          taken_(lengths.size(), 0),
          present_(tops_.size()) {
        for (std::size_t length = 0; length < counts_.size(); ++length) {
            counts_[length] = tops_[length] - by_length_.starts[length];
            if (counts_[length] != 0) present_.insert(length);
        }
        left = lengths.size();
        total = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
    }

    std::size_t left = 0;    // lengths in the pool
    std::int64_t total = 0;  // their sum

    [[nodiscard]] bool has(std::int64_t length, std::size_t times = 1) const {
        return length > 0 && static_cast<std::size_t>(length) < counts_.size() &&
               counts_[static_cast<std::size_t>(length)] >= times;
    }
    [[nodiscard]] std::int64_t shortest() const {
        return static_cast<std::int64_t>(present_.at_least(0));
    }
    // The longest of at most `room`, which is at least the shortest.
    [[nodiscard]] std::int64_t longest(std::int64_t room) const {
        const std::size_t last = counts_.size() - 1;
        return static_cast<std::int64_t>(
            present_.at_most(std::min(static_cast<std::size_t>(room), last)));
    }

    // Up to kCandidates indices, the first in the order that are still there.
    std::span<const std::size_t> first() {
        const auto end = candidates_.begin() + static_cast<std::ptrdiff_t>(num_candidates_);
        const auto kept =
            std::remove_if(candidates_.begin(), end, [&](std::size_t i) { return taken_[i] != 0; });
        num_candidates_ = static_cast<std::size_t>(kept - candidates_.begin());
        for (; next_ < taken_.size() && num_candidates_ < kCandidates; ++next_) {
            if (taken_[next_] == 0) candidates_[num_candidates_++] = next_;
        }
        return {candidates_.data(), num_candidates_};
    }
    // The first index that is still there. left must not be 0.
    std::size_t front() {
        while (taken_[front_] != 0) ++front_;
        return front_;
    }

    void take(std::size_t index) {
        const auto length = static_cast<std::size_t>(lengths_[index]);
        taken_[index] = 1;
        --left;
        total -= lengths_[index];
        if (--counts_[length] == 0) present_.erase(length);
    }
    // Takes the last in the order of this length, which must be there; returns its index.
    std::size_t take_length(std::int64_t length) {
        std::size_t& top = tops_[static_cast<std::size_t>(length)];
        const auto last = [&] { return static_cast<std::size_t>(by_length_.indices[top - 1]); };
        while (taken_[last()] != 0) --top;
        const std::size_t index = last();
        --top;
        take(index);
        return index;
    }

private:
    std::span<const std::int64_t> lengths_;
    ByLength by_length_;
    std::vector<std::size_t> tops_;  // the stack of a length ends here
    std::vector<std::size_t> counts_;
    std::vector<std::uint8_t> taken_;
    NumberSet present_;
    std::size_t front_ = 0;  // nothing before it is left
    std::size_t next_ = 0;   // the first index that was never a candidate
    std::size_t num_candidates_ = 0;
    std::array<std::size_t, kCandidates> candidates_{};
};

// One bin at work.
class Filling {
public:
    Filling(std::span<const std::int64_t> lengths, std::int64_t capacity, std::int64_t halves)
        : lengths_(lengths),
          capacity_(capacity),
          halves_(halves),
          waste_(std::max(capacity / 512, std::int64_t{1})),
          pool_(lengths) {
        bins_.bin_of.resize(lengths.size());
    }

    Bins run() {
        for (; pool_.left != 0; ++bins_.count) {
            room_ = capacity_;
            while (pool_.left != 0 && room_ >= pool_.shortest()) {
                if (!draw() && (end_with_drawn() || end_with_one())) break;
            }
        }
        return std::move(bins_);
    }

private:
    void put(std::size_t index) {
        bins_.bin_of[index] = bins_.count;
        room_ -= lengths_[index];
    }
    void put_length(std::int64_t length) { put(pool_.take_length(length)); }

    // The next of the order, while the room is more than halves / 2 of the mean.
    bool draw() {
        const std::size_t index = pool_.front();
        if (lengths_[index] > room_ ||
            2 * room_ * static_cast<std::int64_t>(pool_.left) <= halves_ * pool_.total) {
            return false;
        }
        pool_.take(index);
        put(index);
        return true;
    }

    // One of the next in the order, with a second length or alone, so that less than waste_ is left.
    bool end_with_drawn() {
        const auto candidates = pool_.first();
        for (std::int64_t sum = room_; sum > std::max(room_ - waste_, std::int64_t{0}); --sum) {
            for (const std::size_t index : candidates) {
                const std::int64_t partner = sum - lengths_[index];
                if (partner != 0 && !pool_.has(partner, partner == lengths_[index] ? 2 : 1)) {
                    continue;
                }
                pool_.take(index);
                put(index);
                if (partner != 0) put_length(partner);
                return true;
            }
        }
        return false;
    }

    // The longest length that fits: an end if it leaves less than waste_.
    bool end_with_one() {
        put_length(pool_.longest(room_));
        return room_ < waste_;
    }

    std::span<const std::int64_t> lengths_;
    std::int64_t capacity_;
    std::int64_t halves_;
    std::int64_t waste_;
    Pool pool_;
    Bins bins_;
    std::int64_t room_ = 0;
};

Bins place_best_fit(std::span<const std::int64_t> lengths, std::int64_t capacity) {
    constexpr std::int32_t end = -1;
    const auto size = static_cast<std::size_t>(capacity) + 1;
    std::vector<std::int32_t> head(size, end);  // of the bins with a room, the last to come there
    std::vector<std::int32_t> next;             // in that list
    NumberSet rooms(size);
    Bins bins;
    bins.bin_of.reserve(lengths.size());
    for (const std::int64_t length : lengths) {
        const std::size_t fitting = rooms.at_least(static_cast<std::size_t>(length));
        std::int32_t bin = bins.count;
        std::int64_t room = capacity;
        if (fitting == NumberSet::none) {
            ++bins.count;
            next.push_back(end);
        } else {
            bin = head[fitting];
            room = static_cast<std::int64_t>(fitting);
            head[fitting] = next[static_cast<std::size_t>(bin)];
            if (head[fitting] == end) rooms.erase(fitting);
        }
        const auto left = static_cast<std::size_t>(room - length);
        next[static_cast<std::size_t>(bin)] = head[left];
        head[left] = bin;
        rooms.insert(left);
        bins.bin_of.push_back(bin);
    }
    return bins;
}

Bins best_fit_decreasing(std::span<const std::int64_t> lengths, std::int64_t capacity) {
    const ByLength sorted(lengths);
    std::vector<std::int32_t> indices;
    std::vector<std::int64_t> decreasing;
    indices.reserve(lengths.size());
    decreasing.reserve(lengths.size());
    for (std::size_t length = sorted.starts.size() - 1; length-- > 0;) {
        for (std::size_t i = sorted.starts[length]; i < sorted.starts[length + 1]; ++i) {
            indices.push_back(sorted.indices[i]);
            decreasing.push_back(static_cast<std::int64_t>(length));
        }
    }
    Bins placed = place_best_fit(decreasing, capacity);
    Bins bins{std::vector<std::int32_t>(lengths.size()), placed.count};
    for (std::size_t i = 0; i < indices.size(); ++i) {
        bins.bin_of[static_cast<std::size_t>(indices[i])] = placed.bin_of[i];
    }
    return bins;
}

}  // namespace

Bins best_fit(std::span<const std::int64_t> lengths, std::int64_t capacity) {
    check(lengths, capacity, 0);
    return place_best_fit(lengths, capacity);
}

Bins drawn_fill(std::span<const std::int64_t> lengths, std::int64_t capacity,
                std::int64_t halves) {
    check(lengths, capacity);
    if (halves < 0 || halves > 16) {
        throw std::invalid_argument("halves is out of range");
    }
    return Filling(lengths, capacity, halves).run();
}

Bins fewest_bins(std::span<const std::int64_t> lengths, std::int64_t capacity) {
    check(lengths, capacity);
    const std::int64_t total =
        std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
    const std::int64_t least = (total + capacity - 1) / capacity;
    Bins best = Filling(lengths, capacity, 5).run();
    if (best.count > least) {
        Bins other = Filling(lengths, capacity, 6).run();
        if (other.count < best.count) best = std::move(other);
    }
    if (best.count > least) {
        Bins other = best_fit_decreasing(lengths, capacity);
        if (other.count < best.count) best = std::move(other);
    }
    return best;
}

void shuffle(std::span<const std::uint64_t> words, std::span<std::int64_t> order) {
    std::iota(order.begin(), order.end(), std::int64_t{0});
    for (std::size_t i = order.size(); i-- > 1;) {
        std::swap(order[i], order[high_product(words[i], i + 1)]);
    }
}

void group(std::span<const std::int32_t> group_of, std::span<std::int64_t> indices,
           std::span<std::int64_t> sizes) {
    std::fill(sizes.begin(), sizes.end(), 0);
    for (const std::int32_t number : group_of) {
        if (number < 0 || static_cast<std::size_t>(number) >= sizes.size()) {
            throw std::invalid_argument("a group is out of range");
        }
        ++sizes[static_cast<std::size_t>(number)];
    }
    std::vector<std::size_t> next(sizes.size(), 0);
    for (std::size_t i = 1; i < next.size(); ++i) {
        next[i] = next[i - 1] + static_cast<std::size_t>(sizes[i - 1]);
    }
    for (std::size_t i = 0; i < group_of.size(); ++i) {
        indices[next[static_cast<std::size_t>(group_of[i])]++] = static_cast<std::int64_t>(i);
    }
}

}  // namespace omr
