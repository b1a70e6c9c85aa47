#include "pixels/patches.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace omr {
namespace {

// Rows that go through all stages at once: those of a patch, or some of a tall one.
constexpr std::size_t band_rows = 32;

// Output of at least so many bytes goes past the cache: it would not stay there until it is read, and
// reading a line before it is written doubles the traffic. Into new memory an image of 5.8 MB (patch
// 16, float32) took 0.80 ms and takes 0.55. Short runs gain nothing, since lines broken at their
// ends are written in the usual way.
constexpr std::size_t stream_bytes = std::size_t{8} << 20, stream_run_bytes = 512;

// Makes the patches of one image after the other; not shared by threads.
template <typename Value>
class Patcher {
public:
    Patcher(const PatchLayout& layout, const ValueTables<Value>& tables, PixelInstructions with,
            bool stream)
        : layout_(layout), tables_(tables), with_(with), stream_(stream) {}

    void image(const PatchJob& job, Value* out) {
        const PatchTarget& target = job.target;
        const std::size_t stride = target.width * 3;
        Resize resize(job.in, target.height, target.width, target.filter, target.vertical_first,
                      with_);
        const std::size_t most = std::min(layout_.height, band_rows);
        strip_.resize(most * stride);
        bytes_.resize(most * stride + run_slack);
        patches_.resize(target.width / layout_.width);
        for (std::size_t row = 0; row * layout_.height < target.height; ++row) {
            place(row, out);
            for (std::size_t y = 0; y < layout_.height; y += most) {
                const std::size_t rows = std::min(layout_.height - y, most);
                const std::size_t top = row * layout_.height + y;
                resize.strip(top, top + rows, strip_.data());
                if (layout_.channels_last) pixels_in_order(y, rows, stride);
                else channel_by_channel(y, rows, stride);
            }
        }
#if defined(__x86_64__)
        if (stream_) stream_end();
#endif
    }

private:
    // Where the patches of row `row` go.
    void place(std::size_t row, Value* out) {
        const std::size_t merge = layout_.merge, group_row = row / merge;
        const std::size_t groups = patches_.size() / merge;
        for (std::size_t column = 0; column < patches_.size(); ++column) {
            const std::size_t group = group_row * groups + column / merge;
            const std::size_t patch =
                (group * merge + row % merge) * merge + column % merge;
            patches_[column] = out + patch * layout_.values();
        }
    }

    // Rows y to y + rows - 1 of a row of patches, whose pixels are in strip_.
    void channel_by_channel(std::size_t y, std::size_t rows, std::size_t stride) {
        const std::size_t width = layout_.width, run = rows * width, whole = layout_.height * width;
        const std::size_t plane = run * patches_.size();
        std::uint8_t* to = bytes_.data();
        for (std::size_t column = 0; column < patches_.size(); ++column) {
            const std::uint8_t* from = strip_.data() + column * width * 3;
            for (std::size_t line = 0; line < rows; ++line, from += stride, to += width) {
                split(from, width, plane, to);
            }
        }
        for (std::size_t channel = 0; channel < 3; ++channel) {
            const std::size_t at = channel * whole * layout_.frames + y * width;
            values(bytes_.data() + channel * plane, channel,
                   {patches_, run, at, layout_.frames, whole, stream_});
        }
    }

    void pixels_in_order(std::size_t y, std::size_t rows, std::size_t stride) {
        const std::size_t width = layout_.width * 3, run = rows * width;
        const Runs<Value> runs{patches_, run, y * width, layout_.frames, layout_.height * width,
                               stream_};
        std::uint8_t* to = bytes_.data();
        for (std::size_t column = 0; column < patches_.size(); ++column) {
            const std::uint8_t* from = strip_.data() + column * width;
            for (std::size_t line = 0; line < rows; ++line, from += stride, to += width) {
                std::memcpy(to, from, width);
            }
        }
        if (tables_.equal) return values(bytes_.data(), 0, runs);
        const std::uint8_t* from = bytes_.data();
        for (Value* patch : patches_) {
            Value* first = patch + runs.at;
            for (std::size_t i = 0; i < run; i += 3, from += 3) {
                first[i] = tables_.of[0][from[0]];
                first[i + 1] = tables_.of[1][from[1]];
                first[i + 2] = tables_.of[2][from[2]];
            }
            for (std::size_t frame = 1; frame < runs.frames; ++frame) {
                std::memcpy(first + frame * runs.frame_stride, first, run * sizeof(Value));
            }
        }
    }

    void split(const std::uint8_t* from, std::size_t count, std::size_t plane, std::uint8_t* to) {
#if defined(__x86_64__)
        if (with_ == PixelInstructions::avx512) return split_channels_avx512(from, count, plane, to);
#endif
        split_channels(from, count, plane, to);
    }

    void values(const std::uint8_t* bytes, std::size_t channel, const Runs<Value>& runs) {
#if defined(__x86_64__)
        if (with_ == PixelInstructions::avx512) return look_up_avx512(bytes, tables_, channel, runs);
#endif
        look_up(bytes, tables_, channel, runs);
    }

    const PatchLayout& layout_;
    const ValueTables<Value>& tables_;
    PixelInstructions with_;
    bool stream_;
    std::vector<std::uint8_t> strip_, bytes_;
    std::vector<Value*> patches_;  // of one row
};

// Runs `work` on up to `threads` threads, the calling one among them, and waits for all. The first
// exception is thrown again.
template <typename Work>
void on_threads(std::size_t threads, const Work& work) {
    std::mutex lock;
    std::exception_ptr failed;
    const auto guarded = [&] {
        try {
            work();
        } catch (...) {
            const std::scoped_lock held(lock);
            if (!failed) failed = std::current_exception();
        }
    };
    std::vector<std::thread> others;
    try {
        others.reserve(threads - 1);
        while (others.size() + 1 < threads) others.emplace_back(guarded);
    } catch (const std::exception&) {
        // The system gives no more threads: those there are do the work.
    }
    guarded();
    for (std::thread& other : others) other.join();
    if (failed) std::rethrow_exception(failed);
}

}  // namespace

template <typename Value>
void to_patches(std::span<const PatchJob> jobs, const PatchLayout& layout,
                const ValueTables<Value>& tables, Value* out, PixelInstructions with,
                std::size_t threads, std::size_t whole_bytes) {
    std::vector<Value*> begins;
    begins.reserve(jobs.size());
    Value* const first = out;
    for (const PatchJob& job : jobs) {
        begins.push_back(out);
        out += job.target.height * job.target.width * 3 * layout.frames;
    }
    const std::size_t channels = layout.channels_last ? 3 : 1;
    const bool stream =
        std::max(static_cast<std::size_t>(out - first) * sizeof(Value), whole_bytes) >=
            stream_bytes &&
        layout.height * layout.width * channels * sizeof(Value) >= stream_run_bytes &&
        reinterpret_cast<std::uintptr_t>(first) % sizeof(Value) == 0;
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
        Patcher<Value> patcher(layout, tables, with, stream);
        for (std::size_t i; (i = next.fetch_add(1)) < jobs.size();) patcher.image(jobs[i], begins[i]);
    };
    on_threads(std::clamp<std::size_t>(threads, 1, std::max<std::size_t>(jobs.size(), 1)), work);
}

template void to_patches(std::span<const PatchJob>, const PatchLayout&,
                         const ValueTables<std::uint32_t>&, std::uint32_t*, PixelInstructions,
                         std::size_t, std::size_t);
template void to_patches(std::span<const PatchJob>, const PatchLayout&,
                         const ValueTables<std::uint16_t>&, std::uint16_t*, PixelInstructions,
                         std::size_t, std::size_t);

}  // namespace omr
