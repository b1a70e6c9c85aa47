#include "tokenizer/vocabulary.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>

#include "tokenizer/piece_cache.hpp"
#include "tokenizer/vocabulary_block.hpp"

namespace omr {

namespace {

// Pieces at a time. What is kept of them stays in the first-level cache; the more there are, the
// more missed ones are merged side by side (512 against 128: some 10% faster).
constexpr std::size_t kBlock = 512;

struct Lookup {
    PieceKey key;
    std::uint64_t hash;
};

// What becomes of a piece: ids to store, or only their number.
struct Store {
    Ids& out;

    std::size_t size() const { return out.size(); }
    // Where the next id goes; there is room for `count` of them.
    std::int32_t* room(std::size_t count) { return out.reserve(count); }
    // Ids were stored up to `at`.
    void stored(std::int32_t* at) {
        out.commit(static_cast<std::size_t>(at - (out.data() + out.size())));
    }
    static std::int32_t* four(std::int32_t* at, const std::int32_t* ids, std::size_t count) {
        std::memcpy(at, ids, 4 * sizeof *ids);
        return at + count;
    }
    void some(const std::int32_t* ids, std::size_t count) {
        std::memcpy(out.reserve(count), ids, count * sizeof *ids);
        out.commit(count);
    }
    // Returns the ids too.
    std::span<const std::int32_t> merged(const MergeTable& table, std::string_view piece) {
        const std::size_t begun = out.size();
        merge_long(table, piece, out);
        return {out.data() + begun, out.size() - begun};
    }
};

struct Count {
    std::size_t total = 0;
    Ids ids = {};

    std::size_t size() const { return total; }
    std::size_t room(std::size_t) const { return total; }
    void stored(std::size_t at) { total = at; }
    static std::size_t four(std::size_t at, const std::int32_t*, std::size_t count) {
        return at + count;
    }
    void some(const std::int32_t*, std::size_t count) { total += count; }
    std::span<const std::int32_t> merged(const MergeTable& table, std::string_view piece) {
        ids.clear();
        merge_long(table, piece, ids);
        total += ids.size();
        return {ids.data(), ids.size()};
    }
};

// Pieces → ids, a block at a time in four passes, each a plain loop over the block:
//   1. key and hash of each piece; its line of the cache is asked for;
//   2. the cache's entry, or else the piece goes to the list of the missed;
//   3. the missed are looked up in the table of tokens and merged together;
//   4. ids are stored, and the missed put into the cache.
// A processor runs far ahead within such loops, and there is no branch in them that is hard to
// foretell: 5 ns a piece with all in the cache.
template <typename Sink>
class Walk {
public:
    Walk(const VocabularyTables& tables, PieceCache& cache, std::string_view text, Sink& sink)
        : tables_(tables), cache_(cache), text_(text), sink_(sink), batch_(tables.merges) {}

    // From now on the ids are counted by parts. Only where ids are stored.
    void count(std::span<const Vocabulary::Part> parts) {
        parts_ = parts;
        left_ = parts.empty() ? 0 : parts.front().pieces;
    }

    // Pieces of one block, at most kBlock.
    void block(std::size_t start, std::span<const std::uint32_t> ends) {
        start_ = start;
        ends_ = ends;
        make_keys(start, ends);
        look_up(ends.size());
        if (missed_ != 0) resolve();
        if (parts_.empty()) {
            store(0, ends.size());
        } else {
            store_parts(ends.size());
        }
        for (std::size_t i = 0; i < resolved_; ++i) {
            cache_.set(local_[i].key().hash()).put(local_[i]);
        }
        cache_.note_fresh(resolved_);
    }

private:
    void make_keys(std::size_t start, std::span<const std::uint32_t> ends) {
        std::size_t i = 0;
        for (; i < ends.size() && start + 16 <= text_.size(); ++i) {
            const PieceKey key = load_key(text_.data() + start, ends[i] - start);
            lookups_[i] = {key, key.hash()};
            __builtin_prefetch(&cache_.set(lookups_[i].hash));
            start = ends[i];
        }
        for (; i < ends.size(); ++i) {
            const PieceKey key = copy_key(text_.data() + start, ends[i] - start);
            lookups_[i] = {key, key.hash()};
            start = ends[i];
        }
    }

    void look_up(std::size_t pieces) {
        missed_ = 0;
        resolved_ = 0;
        for (std::size_t i = 0; i < pieces; ++i) {
            const CachedPiece* piece = cache_.set(lookups_[i].hash).find(lookups_[i].key);
            found_[i] = piece;
            misses_[missed_] = static_cast<std::uint16_t>(i);
            missed_ += !piece->holds(lookups_[i].key);
        }
    }

    void store_parts(std::size_t pieces) {
        for (std::size_t from = 0; from < pieces;) {
            const std::size_t some = std::min(left_, pieces - from);
            const std::size_t before = sink_.size();
            store(from, from + some);
            *parts_.front().count += static_cast<std::int64_t>(sink_.size() - before);
            from += some;
            left_ -= some;
            if (left_ == 0) count(parts_.subspan(1));
        }
    }

    void store(std::size_t from, std::size_t to) {
        auto at = sink_.room((to - from) * 4);
        for (std::size_t i = from; i < to; ++i) {
            const CachedPiece* piece = found_[i];
            if (piece != nullptr) [[likely]] {
                at = Sink::four(at, piece->ids, piece->count());
                continue;
            }
            sink_.stored(at);
            single(text_of(i), lookups_[i].hash);
            at = sink_.room((to - i) * 4);
        }
        sink_.stored(at);
    }

    std::string_view text_of(std::size_t index) const {
        const std::size_t from = index == 0 ? start_ : ends_[index - 1];
        return text_.substr(from, ends_[index] - from);
    }

    // The missed of at most 15 bytes that are at most 4 ids get an entry in local_; the others are
    // left to `single`, which finds most in the cache, where they are put here.
    void resolve() {
        for (std::size_t i = 0; i < missed_; ++i) {
            Lookup& lookup = lookups_[misses_[i]];
            if (lookup.key.is_long()) {
                lookup.hash = hash_piece(text_of(misses_[i]));
                cache_.prefetch(lookup.hash);
            } else {
                __builtin_prefetch(tables_.bucket_of(lookup.hash));
            }
        }
        std::uint16_t merging[MergeBatch::kPieces];
        for (std::size_t i = 0; i < missed_; ++i) {
            const std::uint16_t index = misses_[i];
            const Lookup& lookup = lookups_[index];
            found_[index] = nullptr;
            const std::string_view text = text_of(index);
            if (text.empty() || text.size() > kShortPiece) continue;
            const bool is_long = lookup.key.is_long();
            const std::uint32_t token = is_long ? tables_.find_long(text, lookup.hash)
                                                : tables_.find_short(lookup.key, lookup.hash);
            if (token < kNotWhole) {
                const auto id = static_cast<std::int32_t>(token);
                found(index, &id, 1);
                continue;
            }
            if (!cache_.recall(text, lookup.hash).empty()) continue;
            if (batch_.full()) merge(merging);
            merging[batch_.size()] = index;
            if (is_long || lookup.key.is_foreign()) {
                batch_.add(text);
            } else {
                batch_.add(lookup.key);
            }
        }
        if (batch_.size() != 0) merge(merging);
    }

    void merge(const std::uint16_t* indices) {
        batch_.run();
        for (std::size_t i = 0; i < batch_.size(); ++i) {
            std::int32_t ids[MergeBatch::kSymbols];
            found(indices[i], ids, batch_.take(i, ids));
        }
        batch_.clear();
    }

    void found(std::size_t index, const std::int32_t* ids, std::size_t count) {
        const Lookup& lookup = lookups_[index];
        if (count <= 4 && !lookup.key.is_long()) {
            found_[index] = keep(lookup.key, ids, count);
        } else {
            cache_.remember(text_of(index), lookup.hash, {ids, count});
        }
    }

    const CachedPiece* keep(const PieceKey& key, const std::int32_t* ids, std::size_t count) {
        CachedPiece& piece = local_[resolved_++];
        piece.low = key.low;
        piece.high = key.high | static_cast<std::uint64_t>(count) << 60U;
        std::copy_n(ids, count, piece.ids);
        return &piece;
    }

    // A piece of more than 15 bytes, or of more than 4 ids.
    [[gnu::noinline]] void single(std::string_view piece, std::uint64_t hash) {
        if (piece.empty()) return;
        const bool is_short = piece.size() <= kKeyBytes;
        if (const auto known = cache_.recall(piece, hash); !known.empty()) {
            sink_.some(known.data(), known.size());
            return;
        }
        const std::uint32_t token = is_short ? kNoToken : tables_.find_long(piece, hash);
        std::int32_t ids[kShortPiece];
        std::size_t count = 1;
        if (token < kNotWhole) {
            ids[0] = static_cast<std::int32_t>(token);
        } else if (piece.size() <= kShortPiece) {
            count = merge_short(tables_.merges, piece, ids);
        } else {
            cache_.remember(piece, hash, sink_.merged(tables_.merges, piece));
            return;
        }
        sink_.some(ids, count);
        cache_.remember(piece, hash, {ids, count});
    }

    const VocabularyTables& tables_;
    PieceCache& cache_;
    std::string_view text_;
    Sink& sink_;
    std::span<const Vocabulary::Part> parts_;
    std::size_t left_ = 0;  // pieces of the first of them
    std::size_t start_ = 0;
    std::span<const std::uint32_t> ends_;
    std::size_t missed_ = 0;
    std::size_t resolved_ = 0;
    Lookup lookups_[kBlock];
    const CachedPiece* found_[kBlock];
    CachedPiece local_[kBlock];
    std::uint16_t misses_[kBlock];
    MergeBatch batch_;
};

template <typename Sink>
void walk(const VocabularyTables& tables, std::string_view text, std::size_t start,
          std::span<const std::uint32_t> ends, PieceCache& cache, Sink& sink,
          std::span<const Vocabulary::Part> parts = {}) {
    cache.serve(tables.header->checksum);
    Walk<Sink> walk(tables, cache, text, sink);
    walk.count(parts);
    while (!ends.empty()) {
        const auto block = ends.first(std::min(ends.size(), kBlock));
        walk.block(start, block);
        start = block.back();
        ends = ends.subspan(block.size());
    }
}

// A file descriptor that closes itself.
class File {
public:
    explicit File(const std::string& path)
        : descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
    ~File() {
        if (descriptor_ >= 0) ::close(descriptor_);
    }
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    int get() const { return descriptor_; }

private:
    int descriptor_;
};

}  // namespace

Vocabulary::Vocabulary(Made, const VocabularyTables& tables,
                       std::shared_ptr<const std::uint8_t> block)
    : tables_(std::make_unique<const VocabularyTables>(tables)), block_(std::move(block)) {}

Vocabulary::~Vocabulary() = default;

std::shared_ptr<const Vocabulary> Vocabulary::map(const std::string& path) {
    const auto fail = [&path] {
        throw std::system_error(errno, std::generic_category(), "cannot read " + path);
    };
    const File file(path);
    struct stat status {};
    if (file.get() < 0 || ::fstat(file.get(), &status) != 0) fail();
    const auto size = static_cast<std::size_t>(status.st_size);
    const auto refuse = [&path](const std::string& reason) {
        throw std::runtime_error(path + " is no compiled vocabulary: " + reason);
    };
    if (!S_ISREG(status.st_mode) || size == 0) refuse("not a file, or an empty one");
    int flags = MAP_PRIVATE;
#ifdef MAP_POPULATE
    flags |= MAP_POPULATE;  // all of it is read at once for the checksum: one call, no page faults
#endif
    void* memory = ::mmap(nullptr, size, PROT_READ, flags, file.get(), 0);
    if (memory == MAP_FAILED) fail();
    std::shared_ptr<const std::uint8_t> block(
        static_cast<const std::uint8_t*>(memory),
        [size](const std::uint8_t* bytes) { ::munmap(const_cast<std::uint8_t*>(bytes), size); });
    VocabularyTables tables;
    try {
        tables = check_block({block.get(), size});
    } catch (const std::runtime_error& error) {
        refuse(error.what());
    }
    return std::make_shared<const Vocabulary>(Made{}, tables, std::move(block));
}

std::span<const std::uint8_t> Vocabulary::compiled() const {
    return {block_.get(), tables_->header->size};
}

void Vocabulary::encode(std::string_view text, std::size_t start,
                        std::span<const std::uint32_t> ends, PieceCache& cache, Ids& out) const {
    Store sink{out};
    walk(*tables_, text, start, ends, cache, sink);
}

void Vocabulary::encode(std::string_view text, std::span<const std::uint32_t> ends,
                        std::span<const Part> parts, PieceCache& cache, Ids& out) const {
    Store sink{out};
    walk(*tables_, text, 0, ends, cache, sink, parts);
}

std::size_t Vocabulary::count(std::string_view text, std::size_t start,
                              std::span<const std::uint32_t> ends, PieceCache& cache) const {
    Count sink;
    walk(*tables_, text, start, ends, cache, sink);
    return sink.total;
}

void Vocabulary::encode_long(std::string_view piece, std::size_t window, Ids& out) const {
    if (!piece.empty()) merge_long(tables_->merges, piece, out, std::max<std::size_t>(window, 1));
}

std::size_t Vocabulary::size() const { return tables_->header->tokens; }

std::string_view Vocabulary::bytes_of(std::uint32_t id) const {
    return id < size() ? tables_->bytes_of(id) : std::string_view();
}

std::int64_t Vocabulary::find(std::string_view token) const {
    const std::uint32_t value = tables_->find(token);
    return value == kNoToken ? -1 : std::int64_t{value & ~kNotWhole};
}

}  // namespace omr
