#include "parquet_thrift.hpp"

#include <limits>

namespace omr {
namespace {

constexpr int kMaxDepth = 16;

}  // namespace

std::uint8_t ThriftReader::byte() {
    if (!is_good()) {
        return 0;
    }
    if (at_ == data_.size()) {
        fail(ThriftState::cut_short);
        return 0;
    }
    return data_[at_++];
}

std::uint64_t ThriftReader::varint() {
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

std::int64_t ThriftReader::integer() {
    const std::uint64_t value = varint();
    return static_cast<std::int64_t>(value >> 1U) ^ -static_cast<std::int64_t>(value & 1U);
}

ThriftField ThriftReader::field(const ThriftField& last) {
    const std::uint8_t head = byte();
    ThriftField found{last.id + (head >> 4U), head & 0xFU};
    if (found.type == kThriftStop) {
        return {};
    }
    std::int64_t id = found.id;
    if (head >> 4U == 0) {
        id = integer();
    }
    if (id <= last.id || id > std::numeric_limits<std::int16_t>::max()) {
        refuse();
    }
    found.id = static_cast<std::int32_t>(id);
    return is_good() ? found : ThriftField{};
}

std::int32_t ThriftReader::i32(const ThriftField& field) {
    if (field.type != kThriftI32) {
        refuse();
    }
    const std::int64_t value = integer();
    if (value < std::numeric_limits<std::int32_t>::min() ||
        value > std::numeric_limits<std::int32_t>::max()) {
        refuse();
        return 0;
    }
    return static_cast<std::int32_t>(value);
}

std::int64_t ThriftReader::i64(const ThriftField& field) {
    if (field.type != kThriftI64) {
        refuse();
    }
    return integer();
}

std::string_view ThriftReader::binary(const ThriftField& field) {
    if (field.type != kThriftBinary) {
        refuse();
    }
    const std::uint64_t size = varint();
    const std::size_t start = at_;
    skip_bytes(size);
    if (!is_good()) {
        return {};
    }
    return {reinterpret_cast<const char*>(data_.data()) + start, at_ - start};
}

std::size_t ThriftReader::count(const ThriftField& field) {
    const std::int32_t value = i32(field);
    if (value < 0) {
        refuse();
        return 0;
    }
    return static_cast<std::size_t>(value);
}

std::uint64_t ThriftReader::list(const ThriftField& field, unsigned item_type) {
    if (field.type != kThriftList) {
        refuse();
    }
    unsigned found = 0;
    const std::uint64_t size = list_head(found);
    // Every item takes a byte or more.
    if (size != 0 && (found != item_type || size > data_.size() - at_)) {
        refuse();
    }
    return is_good() ? size : 0;
}

void ThriftReader::expect_struct(const ThriftField& field) {
    if (field.type != kThriftStruct) {
        refuse();
    }
}

void ThriftReader::skip_bytes(std::uint64_t size) {
    if (!is_good()) {
        return;
    }
    if (size > data_.size() - at_) {
        fail(ThriftState::cut_short);
        return;
    }
    at_ += static_cast<std::size_t>(size);
}

void ThriftReader::skip_value(unsigned type, int depth) {
    if (depth > kMaxDepth) {
        return refuse();
    }
    switch (type) {
        case kThriftTrue:
        case kThriftFalse:
            return;
        case kThriftByte:
            return skip_bytes(1);
        case kThriftI16:
        case kThriftI32:
        case kThriftI64:
            (void)varint();
            return;
        case kThriftDouble:
            return skip_bytes(8);
        case kThriftBinary:
            return skip_bytes(varint());
        case kThriftList:
        case kThriftSet:
            return skip_list(depth);
        case kThriftStruct: {
            ThriftField next;
            while ((next = field(next)).type != kThriftStop) {
                skip_value(next.type, depth + 1);
            }
            return;
        }
        default:
            return refuse();
    }
}

std::uint64_t ThriftReader::list_head(unsigned& item_type) {
    const std::uint8_t head = byte();
    item_type = head & 0xFU;
    return head >> 4U == 0xFU ? varint() : head >> 4U;
}

void ThriftReader::skip_list(int depth) {
    unsigned type = 0;
    const std::uint64_t items = list_head(type);
    for (std::uint64_t item = 0; item < items && is_good(); ++item) {
        if (type == kThriftTrue || type == kThriftFalse) {
            skip_bytes(1);  // in a list a truth value is a byte
        } else {
            skip_value(type, depth + 1);
        }
    }
}

}  // namespace omr
