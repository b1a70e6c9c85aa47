#include "tar_scanner.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

namespace omr {
namespace {

constexpr std::uint64_t kBlock = 512;
constexpr std::uint64_t kMaxSize = std::numeric_limits<std::int64_t>::max();

using Bytes = std::span<const std::uint8_t>;

// Fields of a header block (POSIX.1-2017, pax, "ustar Interchange Format").
struct Field {
    std::size_t offset;
    std::size_t width;
    const char* name;
};
constexpr Field kName{0, 100, "name"};
constexpr Field kSize{124, 12, "size"};
constexpr Field kChecksum{148, 8, "checksum"};
constexpr std::size_t kTypeflag = 156;
constexpr Field kMagic{257, 8, "magic"};
constexpr Field kPrefix{345, 155, "prefix"};

std::string_view view(Bytes bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string_view field(Bytes header, const Field& f) {
    return view(header.subspan(f.offset, f.width));
}

// A field of text ends at its first NUL or fills its width.
std::string_view text(Bytes header, const Field& f) {
    const std::string_view raw = field(header, f);
    return raw.substr(0, std::min(raw.find('\0'), raw.size()));
}

bool all_zero(Bytes bytes) {
    return std::all_of(bytes.begin(), bytes.end(), [](std::uint8_t b) { return b == 0; });
}

[[noreturn]] void fail(const std::string& reason, std::uint64_t offset) {
    throw TarFormatError(reason, offset);
}

// Octal digits, after spaces at most, ended by NULs or spaces or the field's width.
std::uint64_t parse_octal(std::string_view raw, const Field& f, std::uint64_t at) {
    const std::size_t begin = std::min(raw.find_first_not_of(' '), raw.size());
    std::size_t end = begin;
    std::uint64_t value = 0;
    while (end < raw.size() && raw[end] >= '0' && raw[end] <= '7') {
        value = value * 8 + static_cast<std::uint64_t>(raw[end] - '0');  // <= 12 digits: 36 bits
        ++end;
    }
    const bool clean = raw.find_first_not_of(std::string_view("\0 ", 2), end) == raw.npos;
    if (end == begin || !clean) {
        fail(std::string("the header's ") + f.name + " is not an octal number", at + f.offset);
    }
    return value;
}

// GNU's base-256: a first byte of 0x80, then a big-endian integer in the rest of the field.
std::uint64_t parse_base256(std::string_view raw, const Field& f, std::uint64_t at) {
    std::uint64_t value = 0;
    bool fits = static_cast<std::uint8_t>(raw[0]) == 0x80;  // 0xff would be a negative number
    for (const char c : raw.substr(1)) {
        fits = fits && value <= (kMaxSize >> 8U);
        value = (value << 8U) | static_cast<std::uint8_t>(c);
    }
    if (!fits) {
        fail(std::string("the header's ") + f.name + " is a base-256 number out of range",
             at + f.offset);
    }
    return value;
}

std::uint64_t parse_size(Bytes header, std::uint64_t at) {
    const std::string_view raw = field(header, kSize);
    const bool binary = (static_cast<std::uint8_t>(raw[0]) & 0x80U) != 0;
    return binary ? parse_base256(raw, kSize, at) : parse_octal(raw, kSize, at);
}

// The sum of the header's bytes, the checksum's own taken as spaces. Historical tars summed signed
// chars. No one-bit flip outside the checksum's field turns either sum into the other: it moves a
// sum by at most 128, and the two differ by 256 for each byte >= 0x80.
void check_checksum(Bytes header, std::uint64_t at) {
    std::int64_t unsigned_sum = 0;
    std::int64_t high = 0;
    for (std::size_t i = 0; i < kBlock; ++i) {
        const bool own = i >= kChecksum.offset && i < kChecksum.offset + kChecksum.width;
        const std::uint8_t byte = own ? std::uint8_t{' '} : header[i];
        unsigned_sum += byte;
        high += byte >> 7U;
    }
    const auto stored =
        static_cast<std::int64_t>(parse_octal(field(header, kChecksum), kChecksum, at));
    if (stored != unsigned_sum && stored != unsigned_sum - 256 * high) {
        fail("the header's checksum is " + std::to_string(stored) + ", its bytes sum to " +
                 std::to_string(unsigned_sum),
             at);
    }
}

enum class Dialect { v7, ustar, gnu };

Dialect parse_magic(Bytes header, std::uint64_t at) {
    const std::string_view magic = field(header, kMagic);
    if (magic == std::string_view("ustar\00000", 8)) return Dialect::ustar;
    if (magic == std::string_view("ustar  \0", 8)) return Dialect::gnu;
    if (magic == std::string_view("\0\0\0\0\0\0\0\0", 8)) return Dialect::v7;
    fail("the header's magic is neither ustar, GNU nor empty", at + kMagic.offset);
}

std::string header_name(Bytes header, Dialect dialect) {
    const std::string_view name = text(header, kName);
    // GNU keeps times where ustar has the prefix.
    const std::string_view prefix =
        dialect == Dialect::ustar ? text(header, kPrefix) : std::string_view();
    return prefix.empty() ? std::string(name) : std::string(prefix) + "/" + std::string(name);
}

std::string refused_type(char type) {
    constexpr std::array<std::pair<char, const char*>, 11> kTypes{{
        {'1', "a hard link"},
        {'2', "a symbolic link"},
        {'3', "a character device"},
        {'4', "a block device"},
        {'6', "a named pipe"},
        {'7', "a contiguous file"},
        {'S', "a GNU sparse file"},
        {'M', "a continuation of another volume"},
        {'V', "a volume label"},
        {'D', "a GNU dump folder"},
        {'X', "a Solaris extended header"},
    }};
    for (const auto& [flag, what] : kTypes) {
        if (flag == type) return what;
    }
    return "of unknown type " + std::to_string(static_cast<int>(static_cast<std::uint8_t>(type)));
}

// What extended headers say about a member; an empty optional leaves it to the member's header.
struct Extended {
    std::optional<std::string> path;
    std::optional<std::uint64_t> size;
};

std::optional<std::uint64_t> parse_decimal(std::string_view digits) {
    if (digits.empty() || digits.size() > 19) return std::nullopt;
    std::uint64_t value = 0;
    for (const char c : digits) {
        if (c < '0' || c > '9') return std::nullopt;
        value = value * 10 + static_cast<std::uint64_t>(c - '0');
    }
    return value <= kMaxSize ? std::optional(value) : std::nullopt;
}

void apply_pax(std::string_view key, std::string_view value, std::uint64_t at, Extended& into) {
    if (key.starts_with("GNU.sparse")) fail("a PAX record makes the member a sparse file", at);
    if (key == "path") {
        if (value.find('\0') != value.npos) fail("a PAX path holds a NUL", at);
        // An empty value takes back what a global header said.
        into.path = value.empty() ? std::nullopt : std::optional(std::string(value));
    } else if (key == "size") {
        into.size = parse_decimal(value);
        if (!value.empty() && !into.size) fail("a PAX size is not a decimal number", at);
    }
    // linkpath belongs to links, which are refused by type; other keys do not change the content.
}

// Records of the form "LENGTH KEY=VALUE\n", where LENGTH counts the whole record.
void parse_pax(std::string_view payload, std::uint64_t at, Extended& into) {
    while (!payload.empty()) {
        const std::size_t space = payload.substr(0, 21).find(' ');
        const std::optional<std::uint64_t> length =
            space == payload.npos ? std::nullopt : parse_decimal(payload.substr(0, space));
        if (!length || *length > payload.size() || *length < space + 3) {
            fail("a PAX record's length is wrong", at);
        }
        const std::string_view record = payload.substr(0, static_cast<std::size_t>(*length));
        if (record.back() != '\n') fail("a PAX record does not end where its length says", at);
        const std::string_view body = record.substr(space + 1, record.size() - space - 2);
        const std::size_t equals = body.find('=');
        if (equals == body.npos || equals == 0) fail("a PAX record has no key", at);
        apply_pax(body.substr(0, equals), body.substr(equals + 1), at, into);
        payload.remove_prefix(record.size());
        at += record.size();
    }
}

// The payload of a GNU long name: the name and at least one NUL.
std::string parse_long_name(std::string_view payload, std::uint64_t at) {
    const std::size_t end = payload.find('\0');
    if (end == payload.npos || end == 0) fail("a GNU long name is empty or does not end", at);
    if (payload.find_first_not_of('\0', end) != payload.npos) {
        fail("a GNU long name holds a NUL", at + end);
    }
    return std::string(payload.substr(0, end));
}

class Scanner {
public:
    Scanner(Bytes tar, const TarLimits& limits) : tar_(tar), limits_(limits) {}

    std::vector<TarMember> run() {
        while (true) {
            const Bytes header = block("a header or the trailer");
            if (all_zero(header)) {
                check_trailer();
                return std::move(members_);
            }
            read_entry(header);
        }
    }

private:
    Bytes block(const char* expected) const {
        if (tar_.size() - at_ < kBlock) {
            fail(std::string("the tar ends where ") + expected + " is expected", at_);
        }
        return tar_.subspan(at_, kBlock);
    }

    void check_trailer() {
        if (pending()) fail("the trailer follows an extended header that lacks its member", at_);
        at_ += kBlock;
        if (!all_zero(block("the second block of the trailer"))) {
            fail("the second block of the trailer is not zero", at_);
        }
        const Bytes rest = tar_.subspan(at_ + kBlock);
        const auto stray =
            std::find_if(rest.begin(), rest.end(), [](std::uint8_t b) { return b != 0; });
        if (stray != rest.end()) {
            fail("the trailer is followed by bytes that are not zero",
                 at_ + kBlock + static_cast<std::uint64_t>(stray - rest.begin()));
        }
        if (rest.size() % kBlock != 0) fail("the tar's length is no multiple of 512", tar_.size());
    }

    void read_entry(Bytes header) {
        check_checksum(header, at_);
        const Dialect dialect = parse_magic(header, at_);
        const std::uint64_t size = parse_size(header, at_);
        const char type = static_cast<char>(header[kTypeflag]);
        switch (type) {
            case 'x':
            case 'g':
                read_pax(type, size);
                break;
            case 'L':
            case 'K':
                read_gnu_long(type, size);
                break;
            case '0':
            case '5':
            case '\0':
                read_member(header, dialect, type, size);
                break;
            default:
                fail("the member is " + refused_type(type), at_);
        }
    }

    // Checks that `size` bytes of data follow the header and moves to the next header.
    Bytes take_data(std::uint64_t size) {
        const std::uint64_t begin = at_ + kBlock;
        const std::uint64_t left = tar_.size() - begin;
        if (size > left || (kBlock - size % kBlock) % kBlock > left - size) {
            fail("the data of " + std::to_string(size) + " bytes runs past the end of the tar",
                 at_);
        }
        at_ = begin + (size + kBlock - 1) / kBlock * kBlock;
        return tar_.subspan(begin, size);
    }

    Bytes take_extended(std::uint64_t size) {
        if (size == 0 || size > limits_.max_extended) {
            fail("an extended header of " + std::to_string(size) + " bytes is empty or over " +
                     std::to_string(limits_.max_extended),
                 at_);
        }
        return take_data(size);
    }

    void read_pax(char type, std::uint64_t size) {
        const bool global = type == 'g';
        if (global ? pending() : local_.has_value()) {
            fail("an extended header follows one that lacks its member", at_);
        }
        const std::uint64_t data = at_ + kBlock;
        const std::string_view payload = view(take_extended(size));
        parse_pax(payload, data, global ? global_ : local_.emplace(global_));
    }

    void read_gnu_long(char type, std::uint64_t size) {
        std::optional<std::string>& name = type == 'L' ? long_name_ : long_link_;
        if (name) fail("a member has two GNU long names", at_);
        const std::uint64_t data = at_ + kBlock;
        name = parse_long_name(view(take_extended(size)), data);
    }

    void read_member(Bytes header, Dialect dialect, char type, std::uint64_t size) {
        const std::uint64_t at = at_;
        const Extended said = local_.value_or(global_);
        if (local_ && local_->path && long_name_) fail("a member has a PAX and a GNU name", at);
        if (long_link_) fail("a GNU long link belongs to a member that is no link", at);
        std::string name = said.path ? *said.path : header_name(header, dialect);
        if (long_name_) name = *long_name_;
        if (name.empty()) fail("the member has no name", at);
        if (name.size() > limits_.max_name) {
            fail("the member's name is over " + std::to_string(limits_.max_name) + " bytes", at);
        }
        local_.reset();
        long_name_.reset();
        const std::uint64_t real_size = said.size.value_or(size);
        const bool folder = type == '5' || (type == '\0' && name.back() == '/');
        if (folder ? real_size != 0 : name.back() == '/') {
            fail(folder ? "a directory has data" : "a file's name ends in a slash", at);
        }
        take_data(real_size);
        if (!folder) members_.push_back({std::move(name), at, at + kBlock, real_size});
    }

    [[nodiscard]] bool pending() const { return local_ || long_name_ || long_link_; }

    Bytes tar_;
    TarLimits limits_;
    std::uint64_t at_ = 0;  // never past the end of tar_
    Extended global_;
    std::optional<Extended> local_;
    std::optional<std::string> long_name_;
    std::optional<std::string> long_link_;
    std::vector<TarMember> members_;
};

}  // namespace

std::vector<TarMember> scan_tar(std::span<const std::uint8_t> tar, const TarLimits& limits) {
    return Scanner(tar, limits).run();
}

}  // namespace omr
