// A strict tar scanner: every member of a tar held in memory, or the byte offset of what is wrong.
//
// Readers that "recover" lose samples: Python's tarfile takes a damaged header for the end of the
// archive. Here the end is two zero blocks and nothing else, and anything malformed throws.
// Plain C++ without Python, so that it can be fuzzed (tests/csrc/fuzz_tar.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace omr {

// A regular file in the tar. Offsets and size are in bytes; header_offset is that of the member's
// own header, after any extended headers that belong to it.
struct TarMember {
    std::string name;
    std::uint64_t header_offset;
    std::uint64_t data_offset;
    std::uint64_t size;
};

// Caps on what a tar may make the scanner allocate.
struct TarLimits {
    std::size_t max_name = 4096;           // bytes of a member's name
    std::size_t max_extended = 1U << 20U;  // bytes of one PAX or GNU long-name payload
};

// The tar is malformed at byte `offset`; what() says how.
class TarFormatError : public std::runtime_error {
public:
    TarFormatError(const std::string& reason, std::uint64_t offset)
        : std::runtime_error(reason), offset_(offset) {}
    [[nodiscard]] std::uint64_t offset() const noexcept { return offset_; }

private:
    std::uint64_t offset_;
};

// Lists the regular files of `tar` in order. Directories are skipped; links, devices, sparse files
// and unknown types are errors. Understands ustar, GNU (base-256 sizes, long names) and PAX
// (path, size and linkpath, local and global).
//
// Throws TarFormatError for any malformed header, wrong checksum, data past the end, missing or
// non-zero trailer, and anything but zeros after the trailer. What tar itself does not protect, the
// payload of files and of extended headers, is left to the hashes of whoever calls.
[[nodiscard]] std::vector<TarMember> scan_tar(std::span<const std::uint8_t> tar,
                                              const TarLimits& limits = {});

}  // namespace omr
