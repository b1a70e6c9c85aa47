// The ustar header of a regular file (POSIX.1-2017, pax): mode 644, owner 0, time 0.
//
// Plain C++ without Python. Its oracle is Python's tarfile.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace omr {

using TarHeader = std::array<char, 512>;

// The header, or nothing if the name is not 1 to 100 bytes of ASCII without NUL, or the size is
// more than eleven octal digits hold.
[[nodiscard]] std::optional<TarHeader> tar_header(std::string_view name, std::uint64_t size);

}  // namespace omr
