#include "parquet_raw.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "parquet_crc32.hpp"

namespace omr {
namespace {

// Where values are large, what stands between them is read in small pieces: the rest of a value
// that comes along with them must be copied once more.
constexpr std::size_t kSmallFill = std::size_t{4} << 10U;

}  // namespace

std::size_t FileSource::read(std::uint64_t offset, std::span<std::uint8_t> out) noexcept {
    std::size_t done = 0;
    while (done < out.size()) {
        const ssize_t got = ::pread(descriptor_, out.data() + done, out.size() - done,
                                    static_cast<off_t>(offset + done));
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            break;
        }
        done += static_cast<std::size_t>(got);
    }
    return done;
}

ChunkReader::ChunkReader(ByteSource& source, std::uint64_t offset, std::uint64_t size)
    : source_(&source),
      next_(offset),
      unread_(size),
      buffer_(std::make_unique_for_overwrite<std::uint8_t[]>(kMaxPeek)) {}

std::span<const std::uint8_t> ChunkReader::fill(std::size_t wanted) {
    const std::size_t there = end_ - begin_;
    if (begin_ != 0 && there != 0) {
        std::memmove(buffer_.get(), buffer_.get() + begin_, there);
    }
    begin_ = 0;
    end_ = there;
    const std::size_t most = went_past_ ? std::max(kSmallFill, wanted) : kMaxPeek;
    went_past_ = false;
    const std::size_t size =
        static_cast<std::size_t>(std::min<std::uint64_t>(unread_, most - std::min(most, there)));
    const std::size_t got = source_->read(next_, {buffer_.get() + there, size});
    end_ += got;
    next_ += got;
    unread_ = got < size ? 0 : unread_ - got;  // the file ends here
    return {buffer_.get(), end_};
}

bool ChunkReader::read(std::span<std::uint8_t> out) noexcept {
    const std::size_t here = std::min(out.size(), end_ - begin_);
    if (here != 0) {
        std::memcpy(out.data(), buffer_.get() + begin_, here);
        begin_ += here;
        out = out.subspan(here);
    }
    if (out.empty()) {
        return true;
    }
    went_past_ = true;
    if (out.size() > unread_ || source_->read(next_, out) != out.size()) {
        unread_ = 0;
        return false;
    }
    next_ += out.size();
    unread_ -= out.size();
    return true;
}

std::uint32_t ChunkReader::crc_of_next(std::uint64_t size, bool& ok) {
    ok = size <= left();
    if (!ok) {
        return 0;
    }
    const std::size_t here =
        static_cast<std::size_t>(std::min<std::uint64_t>(size, end_ - begin_));
    std::uint32_t crc = crc32({buffer_.get() + begin_, here});
    std::uint64_t rest = size - here;
    if (rest == 0) {
        return crc;
    }
    const auto block = std::make_unique_for_overwrite<std::uint8_t[]>(kMaxPeek);
    for (std::uint64_t place = next_; rest > 0;) {
        const std::span<std::uint8_t> part(
            block.get(), static_cast<std::size_t>(std::min<std::uint64_t>(rest, kMaxPeek)));
        if (source_->read(place, part) != part.size()) {
            ok = false;
            return 0;
        }
        crc = crc32(part, crc);
        place += part.size();
        rest -= part.size();
    }
    return crc;
}

}  // namespace omr
