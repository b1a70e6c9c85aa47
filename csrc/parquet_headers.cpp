#include "parquet_headers.hpp"

#include <limits>

namespace omr {
namespace {

// The compact protocol's types, as they stand in a field's or a list's header.
enum Type : unsigned {
    kStop = 0,
    kTrue = 1,
    kFalse = 2,
    kByte = 3,
    kI16 = 4,
    kI32 = 5,
    kI64 = 6,
    kDouble = 7,
    kBinary = 8,
    kList = 9,
    kSet = 10,
    kStruct = 12,
};

constexpr int kMaxDepth = 8;  // statistics nest once

struct Field {
    std::int32_t id = 0;
    unsigned type = kStop;
};

// Reads values; after the first one that is not there, `state` says why and all others are 0.
class Reader {
public:
    explicit Reader(std::span<const std::uint8_t> data) : data_(data) {}

    [[nodiscard]] HeaderState state() const { return state_; }
    [[nodiscard]] bool is_good() const { return state_ == HeaderState::whole; }
    [[nodiscard]] std::size_t place() const { return at_; }
    void refuse() { fail(HeaderState::malformed); }

    std::uint8_t byte() {
        if (!is_good()) {
            return 0;
        }
        if (at_ == data_.size()) {
            fail(HeaderState::cut_short);
            return 0;
        }
        return data_[at_++];
    }

    std::uint64_t varint() {
        std::uint64_t value = 0;
        for (unsigned shift = 0; shift < 64; shift += 7) {
            const std::uint8_t next = byte();
            value |= std::uint64_t{next & 0x7FU} << shift;
            if ((next & 0x80U) == 0) {
                return is_good() ? value : 0;
            }
        }
        refuse();
        return 0;
    }

    std::int64_t integer() {
        const std::uint64_t value = varint();
        return static_cast<std::int64_t>(value >> 1U) ^ -static_cast<std::int64_t>(value & 1U);
    }

    // One of 32 bits, of a field that must be of this type.
    std::int32_t number(const Field& field) {
        const std::int64_t value = field.type == kI32 ? integer() : (refuse(), 0);
        if (value < std::numeric_limits<std::int32_t>::min() ||
            value > std::numeric_limits<std::int32_t>::max()) {
            refuse();
            return 0;
        }
        return static_cast<std::int32_t>(value);
    }

    std::size_t count(const Field& field) {
        const std::int32_t value = number(field);
        if (value < 0) {
            refuse();
            return 0;
        }
        return static_cast<std::size_t>(value);
    }

    // The next field after one with this number. Numbers that do not grow are refused.
    Field field(std::int32_t last) {
        const std::uint8_t head = byte();
        Field found{last + (head >> 4U), head & 0xFU};
        if (found.type == kStop) {
            return found;
        }
        if (head >> 4U == 0) {
            const std::int64_t id = integer();
            if (id <= last || id > std::numeric_limits<std::int16_t>::max()) {
                refuse();
                return {};
            }
            found.id = static_cast<std::int32_t>(id);
        }
        return is_good() ? found : Field{};
    }

    void skip(std::uint64_t size) {
        if (!is_good()) {
            return;
        }
        if (size > data_.size() - at_) {
            fail(HeaderState::cut_short);
            return;
        }
        at_ += static_cast<std::size_t>(size);
    }

    void skip_value(unsigned type, int depth = 0) {
        if (depth > kMaxDepth) {
            return refuse();
        }
        switch (type) {
            case kTrue:
            case kFalse:
                return;
            case kByte:
                return skip(1);
            case kI16:
            case kI32:
            case kI64:
                (void)varint();
                return;
            case kDouble:
                return skip(8);
            case kBinary:
                return skip(varint());
            case kList:
            case kSet:
                return skip_list(depth);
            case kStruct: {
                Field next;
                while ((next = field(next.id)).type != kStop) {
                    skip_value(next.type, depth + 1);
                }
                return;
            }
            default:
                return refuse();
        }
    }

private:
    void fail(HeaderState state) {
        if (is_good()) {
            state_ = state;
        }
    }

    void skip_list(int depth) {
        const std::uint8_t head = byte();
        const unsigned type = head & 0xFU;
        const std::uint64_t items = head >> 4U == 0xFU ? varint() : head >> 4U;
        for (std::uint64_t item = 0; item < items && is_good(); ++item) {
            if (type == kTrue || type == kFalse) {
                skip(1);  // in a list a truth value is a byte
            } else {
                skip_value(type, depth + 1);
            }
        }
    }

    std::span<const std::uint8_t> data_;
    std::size_t at_ = 0;
    HeaderState state_ = HeaderState::whole;
};

constexpr unsigned bit(std::int32_t id) { return 1U << static_cast<unsigned>(id); }

// The struct of a page's own kind: which fields it had, as bits.
unsigned read_data(Reader& reader, PageHeader& header) {
    unsigned seen = 0;
    Field field;
    while ((field = reader.field(field.id)).type != kStop) {
        switch (field.id) {
            case 1: header.num_values = reader.count(field); break;
            case 2: header.encoding = reader.number(field); break;
            case 3: header.level_encoding = reader.number(field); break;
            case 4: (void)reader.number(field); break;
            default: reader.skip_value(field.type);
        }
        seen |= field.id < 16 ? bit(field.id) : 0;
    }
    return seen;
}

unsigned read_dictionary(Reader& reader, PageHeader& header) {
    unsigned seen = 0;
    Field field;
    while ((field = reader.field(field.id)).type != kStop) {
        switch (field.id) {
            case 1: header.num_values = reader.count(field); break;
            case 2: header.encoding = reader.number(field); break;
            default: reader.skip_value(field.type);
        }
        seen |= field.id < 16 ? bit(field.id) : 0;
    }
    return seen;
}

unsigned read_data_v2(Reader& reader, PageHeader& header) {
    unsigned seen = 0;
    Field field;
    while ((field = reader.field(field.id)).type != kStop) {
        switch (field.id) {
            case 1: header.num_values = reader.count(field); break;
            case 2:
            case 3: (void)reader.count(field); break;  // nulls, rows
            case 4: header.encoding = reader.number(field); break;
            case 5: header.definition_bytes = reader.count(field); break;
            case 6: header.repetition_bytes = reader.count(field); break;
            case 7:
                if (field.type != kTrue && field.type != kFalse) {
                    reader.refuse();
                }
                header.is_compressed = field.type == kTrue;
                break;
            default: reader.skip_value(field.type);
        }
        seen |= field.id < 16 ? bit(field.id) : 0;
    }
    return seen;
}

// Whether the struct that belongs to the kind was there, with all that it must have.
bool is_complete(std::int32_t type, unsigned outer, unsigned inner, PageHeader& header) {
    constexpr unsigned kSizes = bit(1) | bit(2) | bit(3);
    if ((outer & kSizes) != kSizes) {
        return false;
    }
    if (type == 0) {
        header.kind = PageKind::data;
        return (outer & bit(5)) != 0 && (inner & 0x1EU) == 0x1EU;  // fields 1 to 4
    }
    if (type == 2) {
        header.kind = PageKind::dictionary;
        return (outer & bit(7)) != 0 && (inner & 0x6U) == 0x6U;  // 1 and 2
    }
    header.kind = PageKind::data_v2;
    return type == 3 && (outer & bit(8)) != 0 && (inner & 0x7EU) == 0x7EU;  // 1 to 6
}

}  // namespace

FoundHeader page_header(std::span<const std::uint8_t> data) noexcept {
    Reader reader(data);
    FoundHeader found;
    PageHeader& header = found.header;
    std::int32_t type = -1;
    unsigned outer = 0;
    unsigned inner = 0;
    Field field;
    while ((field = reader.field(field.id)).type != kStop) {
        const bool is_struct = field.type == kStruct;
        switch (field.id) {
            case 1: type = reader.number(field); break;
            case 2: header.uncompressed_size = reader.count(field); break;
            case 3: header.compressed_size = reader.count(field); break;
            case 4: header.crc = static_cast<std::uint32_t>(reader.number(field)); break;
            case 5:
            case 7:
            case 8:
                // One page is of one kind.
                if (!is_struct || (outer & (bit(5) | bit(7) | bit(8))) != 0) {
                    reader.refuse();
                }
                inner = field.id == 5   ? read_data(reader, header)
                        : field.id == 7 ? read_dictionary(reader, header)
                                        : read_data_v2(reader, header);
                break;
            default: reader.skip_value(field.type);
        }
        outer |= field.id < 16 ? bit(field.id) : 0;
    }
    found.state = reader.state();
    if (reader.is_good() && !is_complete(type, outer, inner, header)) {
        found.state = HeaderState::malformed;
    }
    found.size = reader.place();
    return found;
}

}  // namespace omr
