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

constexpr std::size_t kBlock = 128;  // pieces at a time: their keys stay in the first-level cache

struct Lookup {
    PieceKey key;
    std::uint64_t hash;
};

// What becomes of a piece: ids to store, or only their number.
struct Store {
    Ids& out;
    std::int32_t* at = nullptr;


    // Room for `count` more from here on.
    void reserve(std::size_t count) {
        finish();
        at = out.reserve(count);
    }
    void finish() {
        if (at != nullptr) out.commit(static_cast<std::size_t>(at - (out.data() + out.size())));
    }
    void four(const std::int32_t* ids, std::size_t count) {
        std::memcpy(at, ids, 4 * sizeof *ids);
        at += count;
    }
    void some(const std::int32_t* ids, std::size_t count, std::size_t pieces_left) {
        reserve(count + pieces_left * 4);
        std::memcpy(at, ids, count * sizeof *ids);
        at += count;
    }
    void merged(const LongMerge& merge, std::size_t pieces_left) {
        reserve(merge.size() + pieces_left * 4);
        merge.copy_to(at);
        at += merge.size();
    }
};

struct Count {
    std::size_t total = 0;

    void reserve(std::size_t) {}
    void finish() {}
    void four(const std::int32_t*, std::size_t count) { total += count; }
    void some(const std::int32_t*, std::size_t count, std::size_t) { total += count; }
    void merged(const LongMerge& merge, std::size_t) { total += merge.size(); }
};

template <typename Sink>
class Walk {
public:
    Walk(const VocabularyTables& tables, PieceCache& cache, std::string_view text, Sink& sink)
        : tables_(tables), cache_(cache), text_(text), sink_(sink) {}

    // Pieces of one block, at most kBlock.
    void block(std::size_t start, std::span<const std::uint32_t> ends) {
        sink_.reserve(ends.size() * 4);
        Lookup lookups[kBlock];
        look_up(start, ends, lookups);
        const CachedPiece* pieces = cache_.pieces();
        for (std::size_t i = 0; i < ends.size(); ++i) {
            const CachedPiece& piece = pieces[PieceCache::slot(lookups[i].hash)];
            if (piece.holds(lookups[i].key)) [[likely]] {
                sink_.four(piece.ids, piece.count());
            } else {
                const std::size_t from = i == 0 ? start : ends[i - 1];
                miss(text_.substr(from, ends[i] - from), lookups[i], ends.size() - i - 1);
            }
        }
    }

private:
    void look_up(std::size_t start, std::span<const std::uint32_t> ends, Lookup* lookups) const {
        const CachedPiece* pieces = cache_.pieces();
        std::size_t i = 0;
        for (; i < ends.size() && start + 16 <= text_.size(); ++i) {
            const PieceKey key = load_key(text_.data() + start, ends[i] - start);
            const std::uint64_t hash = key.hash();
            lookups[i] = {key, hash};
            __builtin_prefetch(&pieces[PieceCache::slot(hash)]);
            start = ends[i];
        }
        for (; i < ends.size(); ++i) {
            const PieceKey key = copy_key(text_.data() + start, ends[i] - start);
            lookups[i] = {key, key.hash()};
            start = ends[i];
        }
    }

    [[gnu::noinline]] void miss(std::string_view piece, const Lookup& lookup, std::size_t left) {
        if (piece.empty()) return;
        std::int32_t ids[kShortPiece];
        std::uint32_t found = kNoToken;
        std::uint64_t hash = lookup.hash;
        const bool is_short = piece.size() <= kKeyBytes;
        if (is_short) {
            found = tables_.find_short(lookup.key, hash);
        } else {
            hash = hash_piece(piece);
        }
        if (found >= kNotWhole) {
            CachedLongPiece& cached = cache_.long_piece(hash);
            if (cached.length == piece.size() &&
                std::memcmp(cached.bytes, piece.data(), piece.size()) == 0) {
                sink_.some(cached.ids, cached.count, left);
                return;
            }
            if (!is_short) found = tables_.find_long(piece);
        }
        std::size_t count = 1;
        if (found < kNotWhole) {
            ids[0] = static_cast<std::int32_t>(found);
        } else if (piece.size() <= kShortPiece) {
            count = merge_short(tables_.merges, piece, ids);
        } else {
            sink_.merged(LongMerge(tables_.merges, piece), left);
            return;
        }
        sink_.some(ids, count, left);
        remember(piece, is_short ? lookup.key : PieceKey{}, hash, ids, count);
    }

    void remember(std::string_view piece, const PieceKey& key, std::uint64_t hash,
                  const std::int32_t* ids, std::size_t count) {
        if (piece.size() <= kKeyBytes && count <= 4) {
            CachedPiece& slot = cache_.pieces()[PieceCache::slot(hash)];
            slot.low = key.low;
            slot.high = key.high | static_cast<std::uint64_t>(count) << 60U;
            std::copy_n(ids, count, slot.ids);
        } else if (piece.size() <= CachedLongPiece::kBytes && count <= CachedLongPiece::kIds) {
            CachedLongPiece& slot = cache_.long_piece(hash);
            slot.length = static_cast<std::uint8_t>(piece.size());
            slot.count = static_cast<std::uint8_t>(count);
            std::copy_n(piece.data(), piece.size(), slot.bytes);
            std::copy_n(ids, count, slot.ids);
        }
    }

    const VocabularyTables& tables_;
    PieceCache& cache_;
    std::string_view text_;
    Sink& sink_;
};

template <typename Sink>
void walk(const VocabularyTables& tables, std::string_view text, std::size_t start,
          std::span<const std::uint32_t> ends, PieceCache& cache, Sink& sink) {
    cache.serve(tables.header->checksum);
    Walk<Sink> walk(tables, cache, text, sink);
    while (!ends.empty()) {
        const auto block = ends.first(std::min(ends.size(), kBlock));
        walk.block(start, block);
        start = block.back();
        ends = ends.subspan(block.size());
    }
    sink.finish();
}

// A file descriptor that closes itself.
class File {
public:
    explicit File(const std::string& path) : descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
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
    if (!S_ISREG(status.st_mode) || size == 0) {
        throw std::runtime_error("not a compiled vocabulary: not a file, or an empty one");
    }
    int flags = MAP_PRIVATE;
#ifdef MAP_POPULATE
    flags |= MAP_POPULATE;  // all of it is read at once for the checksum: one call, no page faults
#endif
    void* memory = ::mmap(nullptr, size, PROT_READ, flags, file.get(), 0);
    if (memory == MAP_FAILED) fail();
    std::shared_ptr<const std::uint8_t> block(
        static_cast<const std::uint8_t*>(memory),
        [size](const std::uint8_t* bytes) { ::munmap(const_cast<std::uint8_t*>(bytes), size); });
    const VocabularyTables tables = check_block({block.get(), size});
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

std::size_t Vocabulary::count(std::string_view text, std::size_t start,
                              std::span<const std::uint32_t> ends, PieceCache& cache) const {
    Count sink;
    walk(*tables_, text, start, ends, cache, sink);
    return sink.total;
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
