#include "tokenizer/merge.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>

namespace omr {

// Symbols stay where their first byte stands, in an array that a bit mask says is alive. Each slot
// of `order` holds rank << 6 | position, so that one minimum over the array, which compilers turn
// into SIMD, gives the merge to do and where: for up to 64 symbols it beats any heap.
std::size_t merge_short(const MergeTable& table, std::string_view piece, std::int32_t* out) {
    alignas(64) std::int32_t order[kShortPiece];
    std::uint32_t id[kShortPiece];
    const std::size_t length = piece.size();
    const std::size_t scanned = (length + 3) / 4 * 4;
    const auto slot = [](std::int32_t rank, unsigned position) {
        return rank == kNoRank ? kNoRank : rank << 6U | static_cast<std::int32_t>(position);
    };
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(piece.data());
    for (unsigned i = 0; i < length; ++i) id[i] = table.byte_id[bytes[i]];
    for (unsigned i = 0; i + 1 < length; ++i) {
        order[i] = slot(table.byte_pair[static_cast<std::size_t>(bytes[i] << 8U | bytes[i + 1])], i);
    }
    std::fill(order + length - 1, order + scanned, kNoRank);
    std::uint64_t alive = ~0ULL >> (kShortPiece - length);
    for (;;) {
        std::int32_t least = kNoRank;
        for (std::size_t i = 0; i < scanned; ++i) least = std::min(least, order[i]);
        if (least == kNoRank) break;
        const auto at = static_cast<unsigned>(least & 63);
        const std::uint64_t behind = alive & (~1ULL << at);
        const auto next = static_cast<unsigned>(std::countr_zero(behind));
        const std::uint32_t merged = table.merged[static_cast<std::size_t>(least >> 6U)];
        id[at] = merged;
        order[next] = kNoRank;
        alive &= ~(1ULL << next);
        const std::uint64_t rest = behind & (behind - 1);
        order[at] = kNoRank;
        if (rest != 0) {
            order[at] = slot(table.rank_of(merged, id[std::countr_zero(rest)]), at);
        }
        const std::uint64_t front = alive & ~(~0ULL << at);
        if (front != 0) {
            const auto previous = static_cast<unsigned>(63 - std::countl_zero(front));
            order[previous] = slot(table.rank_of(id[previous], merged), previous);
        }
    }
    std::size_t count = 0;
    for (; alive != 0; alive &= alive - 1) {
        out[count++] = static_cast<std::int32_t>(id[std::countr_zero(alive)]);
    }
    return count;
}

namespace {

constexpr std::uint32_t kNoSymbol = 0xFFFF'FFFE;  // no id, and no part of an empty slot's key

// All pairs that cannot merge share one key, whose bucket stays in the cache.
std::uint64_t key_or_none(std::uint32_t left, std::uint32_t right) {
    const bool none = (left == kNoSymbol) | (right == kNoSymbol);
    return none ? pair_key(kNoSymbol, kNoSymbol) : pair_key(left, right);
}

std::int32_t order_of(std::int32_t rank, std::uint32_t position) {
    return rank == kNoRank ? kNoRank : rank << 6U | static_cast<std::int32_t>(position);
}

}  // namespace

void MergeBatch::add(const PieceKey& piece) {
    State& state = states_[count_++];
    std::uint8_t bytes[16];
    std::memcpy(bytes, &piece.low, 8);
    std::memcpy(bytes + 8, &piece.high, 8);
    const std::uint32_t length = bytes[15];
    state.id[0] = kNoSymbol;
    // Always fifteen rounds: cheaper than a branch on the length, which is hard to foretell.
    for (std::uint32_t i = 0; i < kKeyBytes; ++i) {
        state.id[i + 1] = table_.byte_id[bytes[i]];
        const auto pair = static_cast<std::size_t>(bytes[i] << 8U | bytes[i + 1]);
        const std::int32_t order = order_of(table_.byte_pair[pair], i + 1);
        state.order[i] = i + 1 < length ? order : kNoRank;
    }
    state.order[15] = kNoRank;
    state.id[length + 1] = kNoSymbol;
    state.alive = (4U << length) - 1;
}

// Does the merge of lowest rank and asks for the ranks of the two pairs that it makes.
bool MergeBatch::begin_step(State& state) const {
    std::int32_t least = kNoRank;
    for (const std::int32_t order : state.order) least = std::min(least, order);
    if (least == kNoRank) return false;
    const auto at = static_cast<std::uint32_t>(least & 63);
    const std::uint32_t merged = table_.merged[static_cast<std::size_t>(least >> 6U)];
    std::uint32_t behind = state.alive & (~1U << at);
    const auto right = static_cast<std::uint32_t>(std::countr_zero(behind));
    behind &= behind - 1;
    const std::uint32_t front = state.alive & ~(~0U << at);
    state.at = at;
    state.previous = 31U - static_cast<std::uint32_t>(std::countl_zero(front));
    state.alive &= ~(1U << right);
    state.id[at] = merged;
    state.order[right - 1] = kNoRank;
    state.right_key = key_or_none(merged, state.id[std::countr_zero(behind)]);
    state.left_key = key_or_none(state.id[state.previous], merged);
    state.right_bucket = table_.bucket_of(state.right_key);
    state.left_bucket = table_.bucket_of(state.left_key);
    __builtin_prefetch(state.right_bucket);
    __builtin_prefetch(state.left_bucket);
    return true;
}

void MergeBatch::end_step(State& state) const {
    state.order[state.at - 1] =
        order_of(table_.rank_in(state.right_bucket, state.right_key), state.at);
    const std::int32_t rank = table_.rank_in(state.left_bucket, state.left_key);
    // The symbol before the first has no slot of its own; it takes the last, which stays void.
    state.order[(state.previous - 1) & 15U] = order_of(rank, state.previous);
}

void MergeBatch::run() {
    std::uint8_t active[kPieces];
    std::size_t left = 0;
    for (std::size_t i = 0; i < count_; ++i) {
        active[left] = static_cast<std::uint8_t>(i);
        left += begin_step(states_[i]);
    }
    while (left != 0) {
        std::size_t kept = 0;
        for (std::size_t i = 0; i < left; ++i) {
            State& state = states_[active[i]];
            end_step(state);
            active[kept] = active[i];
            kept += begin_step(state);
        }
        left = kept;
    }
}

std::size_t MergeBatch::take(std::size_t index, std::int32_t* out) const {
    const State& state = states_[index];
    std::uint32_t alive = state.alive & ~1U;
    std::size_t count = 0;
    for (; (alive & (alive - 1)) != 0; alive &= alive - 1) {  // all but the symbol at the end
        out[count++] = static_cast<std::int32_t>(state.id[std::countr_zero(alive)]);
    }
    return count;
}

std::uint32_t LongMerge::after(std::uint32_t position) const {
    const std::uint32_t from = position + 1;
    if (from >= length_) return length_;
    std::size_t word = from / 64;
    std::uint64_t bits = begins_[word] & (~0ULL << (from % 64));
    while (bits == 0) bits = begins_[++word];  // ends at the bit that stands at length_
    return static_cast<std::uint32_t>(word * 64 + static_cast<unsigned>(std::countr_zero(bits)));
}

std::uint32_t LongMerge::before(std::uint32_t position) const {
    std::size_t word = position / 64;
    std::uint64_t bits = begins_[word] & ~(~0ULL << (position % 64));
    while (bits == 0) bits = begins_[--word];  // position 0 always begins a symbol
    return static_cast<std::uint32_t>(word * 64 + 63 -
                                      static_cast<unsigned>(std::countl_zero(bits)));
}

// A heap of rank << 32 | position. Nothing is taken out of it but its top: an entry is void when the
// pair that now begins at its position has another rank.
LongMerge::LongMerge(const MergeTable& table, std::string_view piece)
    : length_(static_cast<std::uint32_t>(piece.size())),
      count_(piece.size()),
      id_(std::make_unique_for_overwrite<std::uint32_t[]>(piece.size())),
      begins_(piece.size() / 64 + 1, ~0ULL) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(piece.data());
    const auto ranks = std::make_unique_for_overwrite<std::int32_t[]>(piece.size());
    std::vector<std::uint64_t> heap;
    const auto entry = [](std::int32_t rank, std::uint32_t position) {
        return static_cast<std::uint64_t>(rank) << 32U | position;
    };
    for (std::uint32_t i = 0; i < length_; ++i) {
        id_[i] = table.byte_id[bytes[i]];
        ranks[i] = i + 1 == length_
                       ? kNoRank
                       : table.byte_pair[static_cast<std::size_t>(bytes[i] << 8U | bytes[i + 1])];
    }
    heap.reserve(piece.size());
    for (std::uint32_t i = 0; i < length_; ++i) {
        if (ranks[i] != kNoRank) heap.push_back(entry(ranks[i], i));
    }
    std::make_heap(heap.begin(), heap.end(), std::greater<>());
    const auto update = [&](std::uint32_t position, std::int32_t rank) {
        ranks[position] = rank;
        if (rank == kNoRank) return;
        heap.push_back(entry(rank, position));
        std::push_heap(heap.begin(), heap.end(), std::greater<>());
    };
    while (!heap.empty()) {
        const std::uint64_t top = heap.front();
        std::pop_heap(heap.begin(), heap.end(), std::greater<>());
        heap.pop_back();
        const auto at = static_cast<std::uint32_t>(top);
        const auto rank = static_cast<std::int32_t>(top >> 32U);
        if (ranks[at] != rank) continue;
        const std::uint32_t right = after(at);
        const std::uint32_t merged = table.merged[static_cast<std::size_t>(rank)];
        id_[at] = merged;
        begins_[right / 64] &= ~(1ULL << (right % 64));
        ranks[right] = kNoRank;
        --count_;
        const std::uint32_t next = after(at);
        update(at, next == length_ ? kNoRank : table.rank_of(merged, id_[next]));
        if (at != 0) {
            const std::uint32_t previous = before(at);
            update(previous, table.rank_of(id_[previous], merged));
        }
    }
}

void LongMerge::copy_to(std::int32_t* out) const {
    for (std::uint32_t at = 0; at < length_; at = after(at)) {
        *out++ = static_cast<std::int32_t>(id_[at]);
    }
}

}  // namespace omr
