// Thrift's compact protocol, as far as Parquet's footers and page headers need it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace omr {

enum class ThriftState : std::uint8_t { good, cut_short, malformed };

// A field's or an item's type.
enum ThriftType : unsigned {
    kThriftStop = 0,
    kThriftTrue = 1,
    kThriftFalse = 2,
    kThriftByte = 3,
    kThriftI16 = 4,
    kThriftI32 = 5,
    kThriftI64 = 6,
    kThriftDouble = 7,
    kThriftBinary = 8,
    kThriftList = 9,
    kThriftSet = 10,
    kThriftStruct = 12,
};

struct ThriftField {
    std::int32_t id = 0;
    unsigned type = kThriftStop;
};

// Reads values one after the other. After the first one that is not there or not as it must be,
// `state` says why, and all others are 0, empty or the end.
class ThriftReader {
public:
    explicit ThriftReader(std::span<const std::uint8_t> data) : data_(data) {}

    [[nodiscard]] ThriftState state() const { return state_; }
    [[nodiscard]] bool is_good() const { return state_ == ThriftState::good; }
    [[nodiscard]] std::size_t place() const { return at_; }
    void refuse() { fail(ThriftState::malformed); }

    // The next field of a struct, after `last`; its end is a field of type kThriftStop. Numbers that
    // do not grow are malformed.
    ThriftField field(const ThriftField& last);
    // The values of fields that must be of this type.
    std::int32_t i32(const ThriftField& field);
    std::int64_t i64(const ThriftField& field);
    std::string_view binary(const ThriftField& field);
    // Not below 0.
    std::size_t count(const ThriftField& field);
    // The number of items of a list, all of this type; they follow.
    std::uint64_t list(const ThriftField& field, unsigned item_type);
    void skip(const ThriftField& field) { skip_value(field.type, 0); }
    // Refuses a field that is no struct; else its fields follow.
    void expect_struct(const ThriftField& field);

private:
    void fail(ThriftState state) {
        if (is_good()) {
            state_ = state;
        }
    }
    std::uint8_t byte();
    std::uint64_t varint();
    std::int64_t integer();
    void skip_bytes(std::uint64_t size);
    void skip_value(unsigned type, int depth);
    void skip_list(int depth);
    std::uint64_t list_head(unsigned& item_type);

    std::span<const std::uint8_t> data_;
    std::size_t at_ = 0;
    ThriftState state_ = ThriftState::good;
};

}  // namespace omr
