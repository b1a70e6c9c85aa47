#include "tokenizer/encoder.hpp"

#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <mutex>
#include <utility>

#include "tokenizer/piece_cache.hpp"
#include "tokenizer/unicode.hpp"

namespace omr {

namespace {

// Ends of pieces found at a time: they stay in the L1 cache (2 KiB) until they are looked up.
constexpr std::size_t ends_at_a_time = 512;

constexpr std::size_t max_idle_workers = 64;  // kept for the next call; each may hold some MB

struct ToIds {
    Ids& out;

    void token(std::uint32_t id) { out.push(static_cast<std::int32_t>(id)); }
    void pieces(const Vocabulary& vocabulary, std::string_view text, std::size_t start,
                std::span<const std::uint32_t> ends, PieceCache& cache) {
        vocabulary.encode(text, start, ends, cache, out);
    }
};

// Pieces of short texts that wait for more. They are copied, to stand one after the other.
class Waiting {
public:
    // A text that is longer fills a block by itself.
    static constexpr std::size_t most_bytes = 4096;

    bool has_room(std::size_t bytes, std::size_t pieces) const {
        return size_ + bytes <= sizeof text_ && pieces_ + pieces <= std::size(ends_);
    }
    void add(std::string_view text, std::span<const std::uint32_t> ends, std::size_t start,
             std::int64_t* count) {
        std::memcpy(text_ + size_, text.data() + start, ends.back() - start);
        const auto shift = static_cast<std::uint32_t>(size_ - start);
        for (const std::uint32_t end : ends) ends_[pieces_++] = end + shift;
        size_ += ends.back() - start;
        parts_.push_back({ends.size(), count});
    }
    void flush(const Vocabulary& vocabulary, PieceCache& cache, Ids& out) {
        if (pieces_ == 0) return;
        vocabulary.encode({text_, size_}, {ends_, pieces_}, parts_, cache, out);
        clear();
    }
    void clear() {
        size_ = 0;
        pieces_ = 0;
        parts_.clear();
    }

private:
    std::size_t size_ = 0, pieces_ = 0;
    std::vector<Vocabulary::Part> parts_;
    std::uint32_t ends_[2 * ends_at_a_time];
    char text_[8 * most_bytes];
};

struct ToWait {
    Waiting& waiting;
    const Vocabulary& vocabulary;
    PieceCache& cache;
    Ids& out;
    std::int64_t& count;

    void token(std::uint32_t id) {
        waiting.flush(vocabulary, cache, out);
        out.push(static_cast<std::int32_t>(id));
        ++count;
    }
    void pieces(const Vocabulary&, std::string_view text, std::size_t start,
                std::span<const std::uint32_t> ends, PieceCache&) {
        const std::size_t bytes = ends.back() - start;
        if (text.size() <= Waiting::most_bytes) {
            if (!waiting.has_room(bytes, ends.size())) waiting.flush(vocabulary, cache, out);
            waiting.add(text, ends, start, &count);
            return;
        }
        waiting.flush(vocabulary, cache, out);
        const std::size_t before = out.size();
        vocabulary.encode(text, start, ends, cache, out);
        count += static_cast<std::int64_t>(out.size() - before);
    }
};

struct ToCount {
    std::size_t count = 0;

    void token(std::uint32_t) { ++count; }
    void pieces(const Vocabulary& vocabulary, std::string_view text, std::size_t start,
                std::span<const std::uint32_t> ends, PieceCache& cache) {
        count += vocabulary.count(text, start, ends, cache);
    }
};

std::size_t code_points(std::string_view utf8) {
    return static_cast<std::size_t>(std::count_if(utf8.begin(), utf8.end(), [](char letter) {
        return (static_cast<unsigned char>(letter) & 0xC0) != 0x80;
    }));
}

std::vector<AddedToken> special_tokens(const std::vector<AddedToken>& added) {
    std::vector<AddedToken> special;
    std::copy_if(added.begin(), added.end(), std::back_inserter(special),
                 [](const AddedToken& token) { return token.special; });
    return special;
}

// What spells a control token: its content and the NFC of it, in this order for each.
std::vector<std::string> spellings(const std::vector<AddedToken>& added, bool nfc) {
    std::vector<std::string> strings;
    for (const AddedToken& token : special_tokens(added)) {
        strings.push_back(token.content);
        strings.emplace_back();
        if (nfc) to_nfc(token.content, strings.back());
    }
    return strings;
}

}  // namespace

class Worker {
public:
    Buffer utf8;
    std::string normal;
    std::vector<AddedTokens::Part> raw_parts, normal_parts;
    std::array<std::uint32_t, ends_at_a_time> ends;
    PieceCache cache;
    Waiting waiting;
    Ids scratch;
};

// The idle workers of one process.
struct Encoder::Pool {
    std::mutex mutex;
    std::vector<std::unique_ptr<Worker>> idle;
};

// A fork copies a pool whose mutex another thread may hold, and that thread is not in the child. So
// a child never touches its parent's pool: it makes its own (and leaves the other one unfreed).
struct Encoder::Pools {
    pid_t process;
    std::shared_ptr<Pool> pool;
};

Encoder::Encoder(std::shared_ptr<const Vocabulary> vocabulary, Pipeline pipeline)
    : vocabulary_(std::move(vocabulary)),
      pipeline_(std::move(pipeline)),
      added_(pipeline_.added, pipeline_.nfc),
      special_(spellings(pipeline_.added, pipeline_.nfc)),
      instructions_(best_instructions()) {
    for (const AddedToken& token : special_tokens(pipeline_.added)) {
        special_ids_.push_back(token.id);
        if (!vocabulary_->bytes_of(token.id).empty()) yieldable_.push_back(token.id);
    }
}

Encoder::~Encoder() {
    const std::unique_ptr<Pools> last(pools_.load());
    if (last != nullptr && last->process != getpid()) new std::shared_ptr<Pool>(last->pool);
}

std::shared_ptr<Worker> Encoder::borrow() const {
    const pid_t process = getpid();
    Pools* pools = pools_.load(std::memory_order_acquire);
    if (pools == nullptr || pools->process != process) {
        auto fresh = std::make_unique<Pools>(Pools{process, std::make_shared<Pool>()});
        // If another thread of this process was first, `pools` becomes what it made.
        if (pools_.compare_exchange_strong(pools, fresh.get())) pools = fresh.release();
    }
    std::unique_ptr<Worker> worker;
    {
        const std::lock_guard lock(pools->pool->mutex);
        if (!pools->pool->idle.empty()) {
            worker = std::move(pools->pool->idle.back());
            pools->pool->idle.pop_back();
        }
    }
    if (worker == nullptr) worker = std::make_unique<Worker>();
    return {worker.release(), [pool = pools->pool, process](Worker* lent) {
                std::unique_ptr<Worker> back(lent);
                if (process != getpid()) return;
                back->utf8.shrink();
                const std::lock_guard lock(pool->mutex);
                if (pool->idle.size() < max_idle_workers) pool->idle.push_back(std::move(back));
            }};
}

template <typename Sink>
void Encoder::run_pieces(std::string_view text, Worker& worker, Sink& sink) const {
    std::size_t start = 0;
    while (start < text.size()) {
        const std::size_t count = split(pipeline_.pattern, text, start, worker.ends.data(),
                                        worker.ends.size(), instructions_);
        sink.pieces(*vocabulary_, text, start, {worker.ends.data(), count}, worker.cache);
        start = worker.ends[count - 1];
    }
}

template <typename Sink>
void Encoder::run_part(std::string_view raw, Worker& worker, Sink& sink) const {
    std::string_view text = raw;
    if (pipeline_.nfc && may_need_nfc(raw)) {
        worker.normal.clear();
        to_nfc(raw, worker.normal);
        text = worker.normal;
        if (text.size() > max_text) throw TextError(TextError::Kind::too_long, 0, text.size());
    }
    auto& parts = worker.normal_parts;
    parts.clear();
    if (!added_.cut(AddedTokens::Stage::normalized, text, parts)) {
        run_pieces(text, worker, sink);
        return;
    }
    for (const AddedTokens::Part& part : parts) {
        if (part.id >= 0) {
            sink.token(static_cast<std::uint32_t>(part.id));
        } else {
            run_pieces(text.substr(part.begin, part.end - part.begin), worker, sink);
        }
    }
}

template <typename Sink>
void Encoder::run(std::string_view text, Worker& worker, Sink& sink) const {
    if (pipeline_.special_text == SpecialText::error) refuse_control_text(text, worker);
    auto& parts = worker.raw_parts;
    parts.clear();
    if (!added_.cut(AddedTokens::Stage::raw, text, parts)) {
        run_part(text, worker, sink);
        return;
    }
    for (const AddedTokens::Part& part : parts) {
        if (part.id >= 0) {
            sink.token(static_cast<std::uint32_t>(part.id));
        } else {
            run_part(text.substr(part.begin, part.end - part.begin), worker, sink);
        }
    }
}

void Encoder::refuse_control_text(std::string_view text, Worker& worker) const {
    const auto look = [this](std::string_view where) {
        StringMatcher::Ahead ahead;
        StringMatcher::Match match{};
        if (!special_.find(where, 0, ahead, match)) return;
        throw TextError(TextError::Kind::control_text, code_points(where.substr(0, match.begin)),
                        special_ids_[match.string / 2]);
    };
    look(text);
    // Also what becomes such a spelling by NFC; its position is then that in the NFC of the text.
    if (pipeline_.nfc && may_need_nfc(text)) {
        worker.normal.clear();
        to_nfc(text, worker.normal);
        look(worker.normal);
    }
}

void Encoder::refuse_control_ids(std::span<const std::int32_t> ids) const {
    for (const std::int32_t id : ids) {
        const auto token = static_cast<std::uint32_t>(id);
        if (std::find(yieldable_.begin(), yieldable_.end(), token) != yieldable_.end()) {
            throw TextError(TextError::Kind::control_id, 0, token);
        }
    }
}

void Encoder::encode(std::string_view utf8, Worker& worker, Ids& out) const {
    if (utf8.size() > max_text) throw TextError(TextError::Kind::too_long, 0, utf8.size());
    const std::size_t before = out.size();
    ToIds sink{out};
    run(utf8, worker, sink);
    if (!yieldable_.empty()) refuse_control_ids({out.data() + before, out.size() - before});
}

void Encoder::encode(const TextView& text, Worker& worker, Ids& out) const {
    encode(to_utf8(text, worker.utf8), worker, out);
}

void Encoder::encode_later(const TextView& text, Worker& worker, Ids& out,
                           std::int64_t& count) const {
    count = 0;
    if (!yieldable_.empty()) {  // the ids must be seen at once
        const std::size_t before = out.size();
        encode(text, worker, out);
        count = static_cast<std::int64_t>(out.size() - before);
        return;
    }
    ToWait sink{worker.waiting, *vocabulary_, worker.cache, out, count};
    run(to_utf8(text, worker.utf8), worker, sink);
}

void Encoder::finish(Worker& worker, Ids& out) const {
    worker.waiting.flush(*vocabulary_, worker.cache, out);
}

void Encoder::give_up(Worker& worker) { worker.waiting.clear(); }

std::vector<PieceCache*> Encoder::to_share(std::span<const std::shared_ptr<Worker>> workers) {
    std::vector<PieceCache*> caches;
    std::size_t fresh = 0;
    for (const std::shared_ptr<Worker>& worker : workers) {
        if (worker == nullptr) continue;
        caches.push_back(&worker->cache);
        fresh += worker->cache.fresh();
    }
    // Telling takes 0.5 ms, what a thread needs for 200 KB: after half a cache's worth of pieces.
    if (caches.size() < 2 || fresh < PieceCache::kSets) return {};
    for (PieceCache* cache : caches) cache->note_shared();
    return caches;
}

std::size_t Encoder::count(std::string_view utf8, Worker& worker) const {
    if (!yieldable_.empty()) {  // the ids must be seen
        worker.scratch.clear();
        encode(utf8, worker, worker.scratch);
        return worker.scratch.size();
    }
    if (utf8.size() > max_text) throw TextError(TextError::Kind::too_long, 0, utf8.size());
    ToCount sink;
    run(utf8, worker, sink);
    return sink.count;
}

std::size_t Encoder::count(const TextView& text, Worker& worker) const {
    return count(to_utf8(text, worker.utf8), worker);
}

}  // namespace omr
