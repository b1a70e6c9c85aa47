#include "tokenizer/merge.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace omr {

namespace {

constexpr std::uint32_t kNoSymbol = kMaxIds;  // no id

// Rank and position in one number, so that one minimum tells both. kNoRank comes behind all ranks.
constexpr std::int32_t order_of(std::int32_t rank, std::uint32_t position) {
    return rank << 6U | static_cast<std::int32_t>(position);
}
constexpr std::int32_t kNoOrder = order_of(kNoRank, 0);  // from here on

// A hint, so that any rank will do.
void prefetch_merged(const MergeTable& table, std::int32_t rank) {
    if (table.first_merged != 0) return;
    const auto address = reinterpret_cast<std::uintptr_t>(table.merged.data()) +
                         static_cast<std::uintptr_t>(rank) * sizeof(std::uint32_t);
    __builtin_prefetch(reinterpret_cast<const void*>(address));
}

// The character at `at` if it may be a symbol from the start, else 0; and its bytes.
std::uint32_t whole_character(const MergeTable& table, std::string_view piece, std::size_t at,
                              std::size_t& bytes) {
    const std::uint32_t code_point = character_at(piece.substr(at));
    const std::uint32_t found = table.characters[code_point];
    if (found == Character::kNone) return found;
    const std::size_t end = at + (code_point < 0x800 ? 2 : 3);
    const auto byte = [piece](std::size_t i) { return static_cast<std::uint8_t>(piece[i]); };
    std::uint32_t needed = 0;
    if (at != 0) {
        if (byte(at - 1) >= 0xC0) return Character::kNone;  // no UTF-8
        needed |= byte(at - 1) < 0x80 ? Character::kAfterAscii : Character::kAfterOther;
    }
    if (end != piece.size()) {
        if ((byte(end) & 0xC0U) == 0x80U) return Character::kNone;  // no UTF-8
        needed |= byte(end) < 0x80 ? Character::kBeforeAscii : Character::kBeforeOther;
    }
    if ((needed & ~found) != 0) return Character::kNone;
    bytes = end - at;
    return found;
}

// The symbols that a piece is merged from, and for all but the last the order of it and the next,
// positions counted from `first`. 0 if they are more than `most`.
std::size_t begin_symbols(const MergeTable& table, std::string_view piece, unsigned first,
                          std::size_t most, std::uint32_t* id, std::int32_t* order) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(piece.data());
    unsigned count = 0;
    bool was_byte = false;
    for (std::size_t at = 0; at < piece.size(); ++count) {
        if (count == most) return 0;
        std::size_t size = 1;
        std::uint32_t whole = Character::kNone;
        if (bytes[at] >= 0xC2) whole = whole_character(table, piece, at, size);
        const bool is_byte = size == 1;
        id[count] = is_byte ? table.byte_id[bytes[at]] : whole & Character::kId;
        if (count != 0) {
            const std::int32_t rank =
                is_byte && was_byte
                    ? table.byte_pair[static_cast<std::size_t>(bytes[at - 1] << 8U | bytes[at])]
                    : table.rank_of(id[count - 1], id[count]);
            order[count - 1] = order_of(rank, count - 1 + first);
        }
        at += size;
        was_byte = is_byte;
    }
    return count;
}

}  // namespace

// Symbols stay where they stand at first, in an array that a bit mask says is alive. Each slot of
// `order` holds rank << 6 | position, so that one minimum over the array, which compilers turn into
// SIMD, gives the merge to do and where: for up to 64 symbols it beats any heap.
//
// It begins with bytes, but for characters that are sure to be whole before anything else can be
// made of their bytes: Chinese takes a third of the symbols, and few merges. A character may be
// taken whole if it is a token that its own merges arrive at in the order of their ranks, and
//   - every merge of a part of it that stands at its edge with what may stand beside it comes later
//     than the merge that ends this part,
//   - every merge of the whole character with what may stand beside it comes later than the one
//     that makes it.
// What may stand beside it is told apart by its side and by whether it is ASCII, since a space
// often merges with the first bytes of a character.
// Then no merge can reach into it before it is whole, since one of its own would come first; and of
// the merges beside it none comes before another because it is whole too early, since those with
// it come after all that may still be done within it.
std::size_t merge_short(const MergeTable& table, std::string_view piece, std::int32_t* out) {
    alignas(64) std::int32_t order[kShortPiece];
    std::uint32_t id[kShortPiece];
    const std::size_t length = begin_symbols(table, piece, 0, kShortPiece, id, order);
    const std::size_t scanned = (length + 3) / 4 * 4;
    std::fill(order + length - 1, order + scanned, kNoOrder);
    std::uint64_t alive = ~0ULL >> (kShortPiece - length);
    for (;;) {
        std::int32_t least = kNoOrder;
        for (std::size_t i = 0; i < scanned; ++i) least = std::min(least, order[i]);
        if (least == kNoOrder) break;
        const auto at = static_cast<unsigned>(least & 63);
        const std::uint64_t behind = alive & (~1ULL << at);
        const auto next = static_cast<unsigned>(std::countr_zero(behind));
        const std::uint32_t merged = table.merged_by(least >> 6U);
        id[at] = merged;
        order[next] = kNoOrder;
        alive &= ~(1ULL << next);
        const std::uint64_t rest = behind & (behind - 1);
        order[at] = kNoOrder;
        if (rest != 0) {
            order[at] = order_of(table.rank_of(merged, id[std::countr_zero(rest)]), at);
        }
        const std::uint64_t front = alive & ~(~0ULL << at);
        if (front != 0) {
            const auto previous = static_cast<unsigned>(63 - std::countl_zero(front));
            order[previous] = order_of(table.rank_of(id[previous], merged), previous);
        }
    }
    std::size_t count = 0;
    for (; alive != 0; alive &= alive - 1) {
        out[count++] = static_cast<std::int32_t>(id[std::countr_zero(alive)]);
    }
    return count;
}

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
        state.order[i] = i + 1 < length ? order : kNoOrder;
    }
    state.order[15] = kNoOrder;
    state.wide = false;
    state.id[length + 1] = kNoSymbol;
    state.alive = (4U << length) - 1;
}

bool MergeBatch::add(std::string_view piece) {
    State& state = states_[count_];
    const std::size_t length =
        begin_symbols(table_, piece, 1, kSymbols, state.id + 1, state.order);
    if (length == 0) return false;
    ++count_;
    state.wide = length > 16;
    std::fill(state.order + length - 1, state.order + (state.wide ? 32 : 16), kNoOrder);
    state.id[0] = kNoSymbol;
    state.id[length + 1] = kNoSymbol;
    state.alive = (4U << length) - 1;
    return true;
}

// Does the merge of lowest rank and asks for the ranks of the two pairs that it makes.
bool MergeBatch::begin_step(State& state) const {
    std::int32_t least = kNoOrder;
    for (std::size_t i = 0; i < 16; ++i) least = std::min(least, state.order[i]);
    if (state.wide) {
        for (std::size_t i = 16; i < 32; ++i) least = std::min(least, state.order[i]);
    }
    if (least == kNoOrder) return false;
    const auto at = static_cast<std::uint32_t>(least & 63);
    const std::uint32_t merged = table_.merged_by(least >> 6U);
    std::uint32_t behind = state.alive & (~1U << at);
    const auto right = static_cast<std::uint32_t>(std::countr_zero(behind));
    behind &= behind - 1;
    const std::uint32_t front = state.alive & ~(~0U << at);
    state.at = at;
    state.previous = 31U - static_cast<std::uint32_t>(std::countl_zero(front));
    state.alive &= ~(1U << right);
    state.id[at] = merged;
    state.order[right - 1] = kNoOrder;
    state.right_key = pair_key(merged, state.id[std::countr_zero(behind)]);
    state.left_key = pair_key(state.id[state.previous], merged);
    state.right_hash = pair_hash(state.right_key);
    state.left_hash = pair_hash(state.left_key);
    __builtin_prefetch(table_.filter.word(state.right_hash));
    __builtin_prefetch(table_.filter.word(state.left_hash));
    return true;
}

void MergeBatch::go_on(State& state) const {
    state.right_bucket = table_.bucket_of(state.right_hash);
    state.left_bucket = table_.bucket_of(state.left_hash);
    __builtin_prefetch(state.right_bucket);
    __builtin_prefetch(state.left_bucket);
}

void MergeBatch::end_step(State& state) const {
    const std::int32_t right = table_.rank_in(state.right_bucket, state.right_key);
    const std::int32_t left = table_.rank_in(state.left_bucket, state.left_key);
    prefetch_merged(table_, right);
    prefetch_merged(table_, left);
    state.order[state.at - 1] = order_of(right, state.at);
    // The symbol before the first has no slot of its own; it takes the last, which stays void.
    state.order[(state.previous - 1) & 31U] = order_of(left, state.previous);
}

void MergeBatch::run() {
    std::uint8_t active[kPieces];
    std::size_t left = 0;
    for (std::size_t i = 0; i < count_; ++i) {
        active[left] = static_cast<std::uint8_t>(i);
        left += begin_step(states_[i]);
    }
    while (left != 0) {
        for (std::size_t i = 0; i < left; ++i) go_on(states_[active[i]]);
        for (std::size_t i = 0; i < left; ++i) end_step(states_[active[i]]);
        std::size_t kept = 0;
        for (std::size_t i = 0; i < left; ++i) {
            active[kept] = active[i];
            kept += begin_step(states_[active[i]]);
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

}  // namespace omr
