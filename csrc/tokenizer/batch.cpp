#include "tokenizer/batch.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <vector>

#include "tokenizer/piece_cache.hpp"

namespace omr {

namespace {

// Starting and joining a thread takes some 30 us, in which one thread encodes about 10 KiB: from
// 256 KiB a thread on it costs less than 5 %.
constexpr std::size_t least_bytes_a_thread = std::size_t{256} << 10;
constexpr std::size_t most_bytes_a_run = std::size_t{1} << 20;
constexpr std::size_t least_bytes_a_run = std::size_t{32} << 10;
constexpr std::size_t runs_a_thread = 8;  // so that no thread waits long for the slowest one
constexpr auto between_asking = std::chrono::milliseconds(50);

// Neighbouring texts, that one thread encodes; then which one did and where it put their ids.
struct Run {
    std::size_t first, last;  // texts [first, last)
    std::size_t thread = 0, begin = 0, size = 0;
};

std::size_t bytes_of(const TextView& text) { return text.length * text.kind; }

std::vector<Run> make_runs(std::span<const TextView> texts, std::size_t bytes,
                           std::size_t threads) {
    const std::size_t target = std::clamp(bytes / (threads * runs_a_thread), least_bytes_a_run,
                                          most_bytes_a_run);
    std::vector<Run> runs;
    std::size_t first = 0, held = 0;
    for (std::size_t i = 0; i < texts.size(); ++i) {
        held += bytes_of(texts[i]) + 16;  // an empty text costs something as well
        if (held >= target || i + 1 == texts.size()) {
            runs.push_back({first, i + 1});
            first = i + 1;
            held = 0;
        }
    }
    return runs;
}

}  // namespace

// One call: runs are taken in order by whichever thread is free. Since they are taken in order, all
// texts before a failing one are taken as well, and the first failure is found by any schedule.
class BatchWork {
public:
    BatchWork(const Encoder& encoder, std::span<const TextView> texts,
              const BatchOptions& options, std::int64_t* counts)
        : encoder_(encoder), texts_(texts), options_(options), counts_(counts) {
        std::size_t bytes = 0;
        for (const TextView& text : texts) bytes += bytes_of(text);
        bytes_ = bytes;
        threads_ = std::clamp<std::size_t>(bytes / least_bytes_a_thread, 1,
                                           std::max<std::size_t>(options.threads, 1));
        runs_ = make_runs(texts, bytes, threads_);
        workers_.resize(threads_);
    }

    void count() {
        in_threads([this](std::size_t thread, Worker& worker) {
            take_runs(thread, [&](Run&, std::size_t text) {
                counts_[text] = static_cast<std::int64_t>(encoder_.count(texts_[text], worker));
            }, [](Run&) {});
        });
    }

    // counts_ are those of the texts; then `offsets` of them are made, and the ids copied.
    BatchIds encode(std::span<std::int32_t> room) {
        made_.resize(threads_);
        if (threads_ == 1) return encode_alone(room);
        in_threads([this](std::size_t thread, Worker& worker) { encode_runs(thread, worker); },
                   [this, room] {
                       place(room);
                       sharing_ = Encoder::to_share(workers_);
                   },
                   [this](std::size_t thread) {
                       copy_runs(thread);
                       PieceCache::share(sharing_, thread, running_);
                   });
        return std::move(result_);
    }

private:
    using Stage = std::function<void(std::size_t, Worker&)>;

    // What a thread's ids take at first; more is made where it is needed. English has 4.6 bytes a
    // token, mixed scripts 3.2, and what is not written to costs nothing.
    std::size_t room_for_ids() const { return bytes_ / threads_ / 3; }

    void encode_one(std::size_t text, Worker& worker, Ids& out) {
        encoder_.encode_later(texts_[text], worker, out, counts_[text]);
    }

    void encode_runs(std::size_t thread, Worker& worker) {
        Ids& out = made_[thread];
        out.reserve(room_for_ids());
        take_runs(
            thread,
            [&](Run& run, std::size_t text) {
                if (text == run.first) run.begin = out.size();
                encode_one(text, worker, out);
            },
            [&](Run& run) {
                encoder_.finish(worker, out);
                run.thread = thread;
                run.size = out.size() - run.begin;
            });
    }

    // One thread: straight into memory of their own, or run by run (in the cache) into the room.
    BatchIds encode_alone(std::span<std::int32_t> room) {
        BatchIds result;
        in_threads([&](std::size_t thread, Worker& worker) {
            Ids scratch;
            Ids& out = room.data() == nullptr ? result.own : scratch;
            if (room.data() == nullptr) out.reserve(room_for_ids());
            take_runs(thread, [&](Run&, std::size_t text) { encode_one(text, worker, out); },
                      [&](Run&) {
                          encoder_.finish(worker, out);
                          if (room.data() == nullptr) return;
                          if (result.size + out.size() <= room.size()) {
                              std::copy_n(out.data(), out.size(), room.data() + result.size);
                          }
                          result.size += out.size();
                          out.clear();
                      });
        });
        if (room.data() == nullptr) result.size = result.own.size();
        return result;
    }

    void place(std::span<std::int32_t> room) {
        std::size_t total = 0;
        for (const Run& run : runs_) total += run.size;
        result_.size = total;
        if (room.data() == nullptr) {
            target_ = result_.own.reserve(total);
            result_.own.commit(total);
        } else if (total <= room.size()) {
            target_ = room.data();
        }
    }

    void copy_runs(std::size_t thread) {
        if (target_ == nullptr) return;
        std::size_t at = 0;
        for (const Run& run : runs_) {
            if (run.thread == thread && run.size > 0) {
                std::memcpy(target_ + at, made_[thread].data() + run.begin,
                            run.size * sizeof(std::int32_t));
            }
            at += run.size;
        }
    }

    template <typename One, typename Finished>
    void take_runs(std::size_t thread, One one, Finished finished) {
        auto asked = std::chrono::steady_clock::now();
        while (!stop_.load(std::memory_order_relaxed)) {
            const std::size_t taken = next_.fetch_add(1, std::memory_order_relaxed);
            if (taken >= runs_.size()) return;
            Run& run = runs_[taken];
            for (std::size_t text = run.first; text < run.last; ++text) {
                try {
                    one(run, text);
                } catch (const TextError& error) {
                    fail(text, error);
                    return;
                }
            }
            finished(run);
            if (thread == 0) ask(asked);
        }
    }

    void ask(std::chrono::steady_clock::time_point& asked) {
        if (!options_.interrupted) return;
        const auto now = std::chrono::steady_clock::now();
        if (now - asked < between_asking) return;
        if (options_.interrupted()) throw Interrupted();
        asked = std::chrono::steady_clock::now();
    }

    void fail(std::size_t text, const TextError& error) {
        const std::lock_guard lock(mutex_);
        stop_ = true;
        if (!failure_ || text < failure_->index()) failure_.emplace(text, error);
    }

    // The stage with its exceptions kept for the caller.
    void guarded(std::size_t thread, const Stage& stage) noexcept {
        try {
            workers_[thread] = encoder_.borrow();
            Encoder::give_up(*workers_[thread]);
            stage(thread, *workers_[thread]);
        } catch (...) {
            const std::lock_guard lock(mutex_);
            stop_ = true;
            if (!other_) other_ = std::current_exception();
        }
    }

    // `stage` in all threads; when all are done with it `between` in this one; then `last` in all.
    // A thread that cannot be started is done without.
    void in_threads(const Stage& stage, const std::function<void()>& between = {},
                    const std::function<void(std::size_t)>& last = {}) {
        std::vector<std::thread> others;
        others.reserve(threads_ - 1);
        for (std::size_t thread = 1; thread < threads_; ++thread) {
            try {
                others.emplace_back([this, thread, &stage, &last] {
                    guarded(thread, stage);
                    if (arrive()) last(thread);
                });
            } catch (const std::system_error&) {
                break;
            }
        }
        running_ = others.size() + 1;
        guarded(0, stage);
        gather(others.size());
        bool going_on = last != nullptr && !failure_ && !other_;
        if (going_on) {
            try {
                between();
            } catch (...) {
                other_ = std::current_exception();
                going_on = false;
            }
        }
        release(going_on);
        if (going_on) last(0);
        for (std::thread& other : others) other.join();
        if (other_) std::rethrow_exception(other_);
        if (failure_) throw BatchError(*failure_);
    }

    bool arrive() {
        std::unique_lock lock(mutex_);
        ++arrived_;
        changed_.notify_all();
        changed_.wait(lock, [this] { return released_; });
        return going_on_;
    }
    void gather(std::size_t others) {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this, others] { return arrived_ == others; });
    }
    void release(bool going_on) {
        const std::lock_guard lock(mutex_);
        released_ = true;
        going_on_ = going_on;
        changed_.notify_all();
    }

    const Encoder& encoder_;
    std::span<const TextView> texts_;
    const BatchOptions& options_;
    std::int64_t* counts_;
    std::size_t bytes_ = 0;
    std::size_t threads_ = 1;
    std::vector<Run> runs_;
    std::vector<Ids> made_;  // by thread
    std::vector<std::shared_ptr<Worker>> workers_;  // by thread
    std::vector<PieceCache*> sharing_;
    std::size_t running_ = 1;  // threads that were started, this one among them
    BatchIds result_;
    std::int32_t* target_ = nullptr;

    std::atomic<std::size_t> next_{0};
    std::atomic<bool> stop_{false};
    std::mutex mutex_;
    std::condition_variable changed_;
    std::size_t arrived_ = 0;
    bool released_ = false, going_on_ = false;
    std::optional<BatchError> failure_;
    std::exception_ptr other_;
};

BatchIds encode_batch(const Encoder& encoder, std::span<const TextView> texts,
                      const BatchOptions& options, std::span<std::int32_t> room,
                      std::int64_t* offsets) {
    offsets[0] = 0;
    BatchIds result = BatchWork(encoder, texts, options, offsets + 1).encode(room);
    for (std::size_t i = 0; i < texts.size(); ++i) offsets[i + 1] += offsets[i];
    return result;
}

void count_batch(const Encoder& encoder, std::span<const TextView> texts,
                 const BatchOptions& options, std::int64_t* counts) {
    BatchWork(encoder, texts, options, counts).count();
}

}  // namespace omr
