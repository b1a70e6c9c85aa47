#include "tar_header.hpp"

#include <algorithm>
#include <cstddef>

namespace omr {
namespace {

constexpr std::size_t kMaxName = 100;
constexpr std::size_t kSize = 124;
constexpr std::size_t kChecksum = 148;
constexpr std::uint64_t kMaxSize = (std::uint64_t{1} << 33U) - 1;

// Digits of a field, in octal, from the left.
void put_octal(TarHeader& header, std::size_t at, std::size_t digits, std::uint64_t value) {
    for (std::size_t i = digits; i-- > 0; value >>= 3U) {
        header[at + i] = static_cast<char>('0' + (value & 7U));
    }
}

// All but the name, the size and the checksum, which counts itself as spaces.
constexpr TarHeader make_blank() {
    TarHeader header{};
    constexpr auto put = [](TarHeader& into, std::size_t at, std::string_view text) {
        std::copy(text.begin(), text.end(), into.begin() + static_cast<std::ptrdiff_t>(at));
    };
    put(header, 100, "0000644");
    put(header, 108, "0000000");
    put(header, 116, "0000000");
    put(header, 136, "00000000000");
    put(header, kChecksum, "        ");
    put(header, 156, "0");
    put(header, 257, std::string_view("ustar\00000", 8));
    return header;
}
constexpr TarHeader kBlank = make_blank();

}  // namespace

std::optional<TarHeader> tar_header(std::string_view name, std::uint64_t size) {
    const bool plain = std::all_of(name.begin(), name.end(), [](char c) {
        return c != '\0' && static_cast<unsigned char>(c) < 0x80;
    });
    if (name.empty() || name.size() > kMaxName || !plain || size > kMaxSize) {
        return std::nullopt;
    }
    TarHeader header = kBlank;
    std::copy(name.begin(), name.end(), header.begin());
    put_octal(header, kSize, 11, size);
    std::uint64_t sum = 0;
    for (const char c : header) {
        sum += static_cast<unsigned char>(c);
    }
    put_octal(header, kChecksum, 6, sum);
    header[kChecksum + 6] = '\0';
    return header;
}

}  // namespace omr
