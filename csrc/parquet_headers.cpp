#include "parquet_headers.hpp"

#include "parquet_thrift.hpp"

namespace omr {
namespace {

constexpr unsigned bit(std::int32_t id) { return id < 16 ? 1U << static_cast<unsigned>(id) : 0; }

// Gives each field of a struct to `take`, which reads or skips it; which there were, as bits.
template <class Take>
unsigned read_fields(ThriftReader& reader, const Take& take) {
    unsigned seen = 0;
    ThriftField field;
    while ((field = reader.field(field)).type != kThriftStop) {
        take(field);
        seen |= bit(field.id);
    }
    return seen;
}

// The structs of a page's own kind.

unsigned read_data(ThriftReader& reader, PageHeader& header) {
    return read_fields(reader, [&](const ThriftField& field) {
        switch (field.id) {
            case 1: header.num_values = reader.count(field); break;
            case 2: header.encoding = reader.i32(field); break;
            case 3: header.level_encoding = reader.i32(field); break;
            case 4: (void)reader.i32(field); break;  // of repetition levels, which are not there
            default: reader.skip(field);
        }
    });
}

unsigned read_dictionary(ThriftReader& reader, PageHeader& header) {
    return read_fields(reader, [&](const ThriftField& field) {
        switch (field.id) {
            case 1: header.num_values = reader.count(field); break;
            case 2: header.encoding = reader.i32(field); break;
            default: reader.skip(field);
        }
    });
}

unsigned read_data_v2(ThriftReader& reader, PageHeader& header) {
    return read_fields(reader, [&](const ThriftField& field) {
        switch (field.id) {
            case 1: header.num_values = reader.count(field); break;
            case 2:
            case 3: (void)reader.count(field); break;  // nulls, rows
            case 4: header.encoding = reader.i32(field); break;
            case 5: header.definition_bytes = reader.count(field); break;
            case 6: header.repetition_bytes = reader.count(field); break;
            case 7:
                if (field.type != kThriftTrue && field.type != kThriftFalse) {
                    reader.refuse();
                }
                header.is_compressed = field.type == kThriftTrue;
                break;
            default: reader.skip(field);
        }
    });
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
    ThriftReader reader(data);
    FoundHeader found;
    PageHeader& header = found.header;
    std::int32_t type = -1;
    unsigned kinds = 0;
    unsigned inner = 0;
    const unsigned outer = read_fields(reader, [&](const ThriftField& field) {
        switch (field.id) {
            case 1: type = reader.i32(field); break;
            case 2: header.uncompressed_size = reader.count(field); break;
            case 3: header.compressed_size = reader.count(field); break;
            case 4: header.crc = static_cast<std::uint32_t>(reader.i32(field)); break;
            case 5:
            case 7:
            case 8:
                reader.expect_struct(field);
                if (++kinds > 1) {
                    reader.refuse();  // a page is of one kind
                }
                inner = field.id == 5   ? read_data(reader, header)
                        : field.id == 7 ? read_dictionary(reader, header)
                                        : read_data_v2(reader, header);
                break;
            default: reader.skip(field);
        }
    });
    found.state = reader.state();
    if (reader.is_good() && !is_complete(type, outer, inner, header)) {
        found.state = ThriftState::malformed;
    }
    found.size = reader.place();
    return found;
}

}  // namespace omr
