#include "parquet_footer.hpp"

#include <algorithm>
#include <string_view>
#include <utility>

#include "parquet_headers.hpp"
#include "parquet_thrift.hpp"

namespace omr {
namespace {

constexpr std::int32_t kByteArray = 6;
constexpr std::int32_t kBitPackedEncoding = 4;
constexpr std::int32_t kUncompressed = 0;
constexpr std::int32_t kSnappy = 1;
constexpr std::size_t kMaxNesting = 64;

enum Repetition : std::int32_t { kRequired = 0, kOptional = 1, kRepeated = 2 };

struct SchemaElement {
    std::int32_t type = -1;
    std::int32_t repetition = kRequired;
    std::size_t children = 0;
    std::string_view name;
};

struct Chunk {
    std::int32_t type = -1;
    std::int32_t codec = -1;
    std::int64_t num_values = -1;
    std::int64_t size = -1;
    std::int64_t data_offset = -1;
    std::int64_t dictionary_offset = 0;
    bool is_usual = true;  // whether its encodings are known, and it is in this file and not encrypted
    std::vector<std::string_view> path;
};

SchemaElement read_element(ThriftReader& reader) {
    SchemaElement element;
    ThriftField field;
    while ((field = reader.field(field)).type != kThriftStop) {
        switch (field.id) {
            case 1: element.type = reader.i32(field); break;
            case 3: element.repetition = reader.i32(field); break;
            case 4: element.name = reader.binary(field); break;
            case 5: element.children = reader.count(field); break;
            default: reader.skip(field);
        }
    }
    return element;
}

// The values of a list's items, which have no fields of their own.
template <typename Item>
void read_list(ThriftReader& reader, const ThriftField& field, unsigned type, Item&& item) {
    const std::uint64_t size = reader.list(field, type);
    for (std::uint64_t i = 0; i < size && reader.is_good(); ++i) {
        item(ThriftField{0, type});
    }
}

void read_column_metadata(ThriftReader& reader, Chunk& chunk) {
    ThriftField field;
    while ((field = reader.field(field)).type != kThriftStop) {
        switch (field.id) {
            case 1: chunk.type = reader.i32(field); break;
            case 2:
                read_list(reader, field, kThriftI32, [&](const ThriftField& item) {
                    const std::int32_t encoding = reader.i32(item);
                    chunk.is_usual = chunk.is_usual &&
                                     (encoding == kPlainEncoding || encoding == kRleEncoding ||
                                      encoding == kPlainDictionaryEncoding ||
                                      encoding == kBitPackedEncoding ||
                                      encoding == kRleDictionaryEncoding);
                });
                break;
            case 3:
                read_list(reader, field, kThriftBinary, [&](const ThriftField& item) {
                    chunk.path.push_back(reader.binary(item));
                });
                break;
            case 4: chunk.codec = reader.i32(field); break;
            case 5: chunk.num_values = reader.i64(field); break;
            case 7: chunk.size = reader.i64(field); break;
            case 9: chunk.data_offset = reader.i64(field); break;
            case 11: chunk.dictionary_offset = reader.i64(field); break;
            default: reader.skip(field);
        }
    }
}

Chunk read_chunk(ThriftReader& reader) {
    Chunk chunk;
    ThriftField field;
    while ((field = reader.field(field)).type != kThriftStop) {
        switch (field.id) {
            case 3:
                reader.expect_struct(field);
                read_column_metadata(reader, chunk);
                break;
            case 1:  // in another file
            case 8:  // encrypted
            case 9:
                chunk.is_usual = false;
                reader.skip(field);
                break;
            default: reader.skip(field);
        }
    }
    return chunk;
}

struct RowGroupRead {
    std::vector<Chunk> chunks;
    std::int64_t num_rows = -1;
};

RowGroupRead read_row_group(ThriftReader& reader) {
    RowGroupRead group;
    ThriftField field;
    while ((field = reader.field(field)).type != kThriftStop) {
        switch (field.id) {
            case 1:
                read_list(reader, field, kThriftStruct, [&](const ThriftField&) {
                    group.chunks.push_back(read_chunk(reader));
                });
                break;
            case 3: group.num_rows = reader.i64(field); break;
            default: reader.skip(field);
        }
    }
    return group;
}

struct FileRead {
    std::vector<SchemaElement> schema;
    std::vector<RowGroupRead> groups;
    bool is_encrypted = false;
};

FileRead read_file(ThriftReader& reader) {
    FileRead file;
    ThriftField field;
    while ((field = reader.field(field)).type != kThriftStop) {
        switch (field.id) {
            case 2:
                read_list(reader, field, kThriftStruct, [&](const ThriftField&) {
                    file.schema.push_back(read_element(reader));
                });
                break;
            case 4:
                read_list(reader, field, kThriftStruct, [&](const ThriftField&) {
                    file.groups.push_back(read_row_group(reader));
                });
                break;
            case 8:
                file.is_encrypted = true;
                reader.skip(field);
                break;
            default: reader.skip(field);
        }
    }
    return file;
}

// The leaves below a schema's elements, which stand depth first.
class Leaves {
public:
    explicit Leaves(const std::vector<SchemaElement>& schema) : schema_(schema) {}

    [[nodiscard]] bool read(std::vector<ParquetLeaf>& out) {
        const bool ok = !schema_.empty() && read_children(schema_[0].children, {}, true, out);
        return ok && at_ == schema_.size();
    }

private:
    [[nodiscard]] bool read_children(std::size_t count, const ParquetLeaf& outer, bool is_flat,
                                     std::vector<ParquetLeaf>& out) {
        if (outer.path.size() > kMaxNesting) {
            return false;
        }
        for (std::size_t child = 0; child < count; ++child) {
            if (at_ == schema_.size()) {
                return false;
            }
            const SchemaElement& element = schema_[at_++];
            if (element.repetition < kRequired || element.repetition > kRepeated) {
                return false;
            }
            ParquetLeaf leaf = outer;
            leaf.path.emplace_back(element.name);
            leaf.max_level += element.repetition == kRequired ? 0 : 1;
            const bool flat = is_flat && element.repetition != kRepeated;
            if (element.children != 0) {
                if (!read_children(element.children, leaf, flat, out)) {
                    return false;
                }
                continue;
            }
            leaf.is_flat_bytes = flat && element.type == kByteArray;
            out.push_back(std::move(leaf));
        }
        return true;
    }

    const std::vector<SchemaElement>& schema_;
    std::size_t at_ = 1;  // the root is not one of its own leaves
};

std::optional<LeafChunk> usual_chunk(const Chunk& chunk, const ParquetLeaf& leaf,
                                     std::int64_t num_rows, std::uint64_t file_size) {
    const bool is_same = std::equal(chunk.path.begin(), chunk.path.end(), leaf.path.begin(),
                                    leaf.path.end());
    if (!leaf.is_flat_bytes || !chunk.is_usual || !is_same || chunk.type != kByteArray ||
        chunk.num_values != num_rows || (chunk.codec != kUncompressed && chunk.codec != kSnappy)) {
        return std::nullopt;
    }
    // Some writers say 0 where there is no dictionary.
    const bool has_dictionary = chunk.dictionary_offset != 0;
    const std::int64_t start = has_dictionary ? chunk.dictionary_offset : chunk.data_offset;
    if (start < 4 || start > chunk.data_offset || chunk.size < 0 ||
        (has_dictionary && start == chunk.data_offset)) {
        return std::nullopt;
    }
    const LeafChunk found{static_cast<std::uint64_t>(start), static_cast<std::uint64_t>(chunk.size),
                          chunk.codec == kSnappy};
    if (found.offset > file_size || found.size > file_size - found.offset) {
        return std::nullopt;
    }
    return found;
}

}  // namespace

std::optional<ParquetFooter> parquet_footer(std::span<const std::uint8_t> data,
                                            std::uint64_t file_size) {
    ThriftReader reader(data);
    const FileRead file = read_file(reader);
    ParquetFooter footer;
    if (!reader.is_good() || file.is_encrypted || !Leaves(file.schema).read(footer.leaves)) {
        return std::nullopt;
    }
    for (const RowGroupRead& read : file.groups) {
        if (read.num_rows < 0 || read.chunks.size() != footer.leaves.size()) {
            return std::nullopt;
        }
        ParquetRowGroup group;
        group.num_rows = static_cast<std::uint64_t>(read.num_rows);
        for (std::size_t place = 0; place < read.chunks.size(); ++place) {
            group.chunks.push_back(usual_chunk(read.chunks[place], footer.leaves[place],
                                               read.num_rows, file_size));
        }
        footer.row_groups.push_back(std::move(group));
    }
    return footer;
}

}  // namespace omr
