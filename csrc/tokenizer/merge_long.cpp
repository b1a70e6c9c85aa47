// merge_long: pieces of any length.
#include <algorithm>
#include <bit>
#include <functional>
#include <utility>
#include <vector>

#include "tokenizer/merge.hpp"

namespace omr {

namespace {

// A stretch of a piece, merged with a heap of rank << 32 | position. Nothing is taken out of the
// heap but its top: an entry is void when the pair that begins at its position has another rank
// now.
class Window {
public:
    explicit Window(const MergeTable& table) : table_(&table) {}

    void run(std::string_view bytes);

    std::uint32_t length() const { return length_; }
    std::uint32_t id(std::uint32_t position) const { return id_[position]; }
    // Positions of the symbols beside the one at `position`; behind the last it is length().
    std::uint32_t after(std::uint32_t position) const;
    std::uint32_t before(std::uint32_t position) const;  // position > 0
    bool begins(std::uint32_t position) const {
        return (begins_[position / 64] >> (position % 64) & 1U) != 0;
    }

private:
    void start(std::string_view bytes);
    void update(std::uint32_t position, std::int32_t rank);

    const MergeTable* table_;
    std::uint32_t length_ = 0;
    std::vector<std::uint32_t> id_;      // of the symbol that begins at a position
    std::vector<std::int32_t> rank_;     // of it and the next
    std::vector<std::uint64_t> begins_;  // a bit a position; all are set from length() on
    std::vector<std::uint64_t> heap_;
};

std::uint32_t Window::after(std::uint32_t position) const {
    const std::uint32_t from = position + 1;
    if (from >= length_) return length_;
    std::size_t word = from / 64;
    std::uint64_t bits = begins_[word] & (~0ULL << (from % 64));
    while (bits == 0) bits = begins_[++word];
    return static_cast<std::uint32_t>(word * 64 + static_cast<unsigned>(std::countr_zero(bits)));
}

std::uint32_t Window::before(std::uint32_t position) const {
    std::size_t word = position / 64;
    std::uint64_t bits = begins_[word] & ~(~0ULL << (position % 64));
    while (bits == 0) bits = begins_[--word];  // a symbol always begins at 0
    return static_cast<std::uint32_t>(word * 64 + 63 -
                                      static_cast<unsigned>(std::countl_zero(bits)));
}

void Window::start(std::string_view bytes) {
    length_ = static_cast<std::uint32_t>(bytes.size());
    id_.resize(length_);
    rank_.resize(length_);
    begins_.assign(length_ / 64 + 1, ~0ULL);
    heap_.clear();
    const auto byte = [&bytes](std::size_t i) { return static_cast<std::uint8_t>(bytes[i]); };
    for (std::uint32_t i = 0; i < length_; ++i) {
        id_[i] = table_->byte_id[byte(i)];
        const std::int32_t rank =
            i + 1 == length_
                ? kNoRank
                : table_->byte_pair[static_cast<std::size_t>(byte(i) << 8U | byte(i + 1))];
        rank_[i] = rank;
        if (rank != kNoRank) heap_.push_back(static_cast<std::uint64_t>(rank) << 32U | i);
    }
    std::make_heap(heap_.begin(), heap_.end(), std::greater<>());
}

void Window::update(std::uint32_t position, std::int32_t rank) {
    rank_[position] = rank;
    if (rank == kNoRank) return;
    heap_.push_back(static_cast<std::uint64_t>(rank) << 32U | position);
    std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
}

void Window::run(std::string_view bytes) {
    start(bytes);
    while (!heap_.empty()) {
        const std::uint64_t top = heap_.front();
        std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
        heap_.pop_back();
        const auto at = static_cast<std::uint32_t>(top);
        const auto rank = static_cast<std::int32_t>(top >> 32U);
        if (rank_[at] != rank) continue;
        const std::uint32_t right = after(at);
        const std::uint32_t next = after(right);
        const std::uint32_t merged = table_->merged_by(rank);
        id_[at] = merged;
        begins_[right / 64] &= ~(1ULL << (right % 64));
        rank_[right] = kNoRank;
        update(at, next == length_ ? kNoRank : table_->rank_of(merged, id_[next]));
        if (at != 0) {
            const std::uint32_t previous = before(at);
            update(previous, table_->rank_of(id_[previous], merged));
        }
    }
}

// The first symbol that both windows have, the second beginning at `shift` in the first: its
// position in the first, or the first's length if there is none.
std::uint32_t common_symbol(const Window& first, const Window& second, std::uint32_t shift) {
    for (std::uint32_t at = shift; at < first.length(); at = first.after(at)) {
        const std::uint32_t end = first.after(at);
        if (second.begins(at - shift) && second.after(at - shift) == end - shift) return at;
    }
    return first.length();
}

void append(const Window& window, std::uint32_t from, std::uint32_t to, Ids& out) {
    for (std::uint32_t at = from; at < to; at = window.after(at)) {
        out.push(static_cast<std::int32_t>(window.id(at)));
    }
}

// False if two windows share no token, or none behind the one that was shared before.
bool merge_in_windows(const MergeTable& table, std::string_view piece, std::size_t window,
                      Ids& out) {
    Window first(table);
    Window second(table);
    std::size_t start = 0;   // of the first window, in the piece
    std::uint32_t done = 0;  // bytes of the first window whose ids are out
    first.run(piece.substr(0, window));
    while (start + first.length() < piece.size()) {
        const std::uint32_t shift = first.before(first.length() - first.length() / 8);
        if (shift == 0 || shift < done) return false;
        second.run(piece.substr(start + shift, window));
        const std::uint32_t shared = common_symbol(first, second, shift);
        if (shared == first.length()) return false;
        append(first, done, shared, out);
        done = shared - shift;
        start += shift;
        std::swap(first, second);
    }
    append(first, done, first.length(), out);
    return true;
}

}  // namespace

// One heap over 10 MB misses every cache, so a long piece is merged in windows that overlap. It is
// exact, for any list of merges:
//
// A. Any run of neighbours in the result of a text is the result of the run's own bytes. No merge
//    ever crossed the run's ends; each merge within it was the least of all by (rank, position), so
//    the least of the run, and the run alone goes through the same merges in the same order.
// B. Let every two neighbours in a sequence of tokens be the result of their bytes. Then the
//    sequence is the result of its bytes. Else take the first merge that crosses a boundary of it:
//    until then the two tokens beside that boundary went through what they go through alone (as in
//    A), where that merge would be the least as well, but alone they are never merged across.
//
// So where the results of two windows that overlap share a token, the first up to it and the second
// from it on are, by A and B, the result of both together; and so on, as long as each shared token
// stands behind the one before. A window begins at a token of the one before it, so that they
// nearly always share one at once. Where they do not, all is done again with longer windows, the
// last of which is the whole piece.
void merge_long(const MergeTable& table, std::string_view piece, Ids& out, std::size_t window) {
    const std::size_t begun = out.size();
    while (!merge_in_windows(table, piece, window, out)) {
        out.truncate(begun);
        window *= 4;
    }
}

}  // namespace omr
