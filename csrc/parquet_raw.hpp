// Bytes of a column chunk, read through a small buffer, or past it where there are many.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace omr {

class ByteSource {
public:
    ByteSource() = default;
    ByteSource(const ByteSource&) = delete;
    ByteSource& operator=(const ByteSource&) = delete;
    virtual ~ByteSource() = default;

    // Fills `out` with the bytes from a place on; how many there are. Fewer than asked: the end,
    // or reading failed.
    [[nodiscard]] virtual std::size_t read(std::uint64_t offset,
                                           std::span<std::uint8_t> out) noexcept = 0;
};

// A file by its descriptor, which stays the caller's.
class FileSource final : public ByteSource {
public:
    explicit FileSource(int descriptor) : descriptor_(descriptor) {}
    [[nodiscard]] std::size_t read(std::uint64_t offset,
                                   std::span<std::uint8_t> out) noexcept override;

private:
    int descriptor_;
};

// Reads from `offset` to `offset + size`, forwards.
class ChunkReader {
public:
    static constexpr std::size_t kMaxPeek = std::size_t{64} << 10U;

    ChunkReader(ByteSource& source, std::uint64_t offset, std::uint64_t size);

    // The bytes that come next: at least `wanted` (at most kMaxPeek) unless the chunk ends before.
    [[nodiscard]] std::span<const std::uint8_t> peek(std::size_t wanted) {
        return end_ - begin_ >= wanted ? std::span(buffer_.get() + begin_, end_ - begin_)
                                       : fill(wanted);
    }
    // Leaves out bytes of those that `peek` gave.
    void skip(std::size_t size) noexcept { begin_ += size; }
    // Fills `out`, all of it; false if the chunk or the file ends before.
    [[nodiscard]] bool read(std::span<std::uint8_t> out) noexcept;
    // CRC-32 of the next bytes, which are still to be read; 0 with `ok` false if they are not there.
    [[nodiscard]] std::uint32_t crc_of_next(std::uint64_t size, bool& ok);
    // Bytes of the chunk that are not read yet.
    [[nodiscard]] std::uint64_t left() const noexcept { return unread_ + (end_ - begin_); }

private:
    std::span<const std::uint8_t> fill(std::size_t wanted);

    ByteSource* source_;
    std::uint64_t next_;    // place of the first byte that is not in the buffer
    std::uint64_t unread_;  // bytes of the chunk from there on
    std::unique_ptr<std::uint8_t[]> buffer_;
    std::size_t begin_ = 0;
    std::size_t end_ = 0;
    bool went_past_ = false;  // the buffer, since it was filled last
};

}  // namespace omr
