#include "plain_rows.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <optional>
#include <stdexcept>

#include "crc32c.hpp"
#include "jpeg_segments.hpp"
#include "plain_question.hpp"
#include "tar_header.hpp"
#include "texts.hpp"

namespace omr {
namespace {

constexpr std::size_t kBlock = 512;
constexpr std::size_t kMaxKey = 80;
constexpr std::size_t kMaxJson = std::size_t{64} << 20U;
constexpr std::size_t kMaxReserve = std::size_t{8} << 20U;
constexpr std::string_view kImageName = "jpg";

constexpr std::size_t padded(std::size_t size) { return (size + kBlock - 1) / kBlock * kBlock; }

std::optional<std::uint64_t> offset_at(const ArrowBytes& column, std::size_t place) {
    if ((place + 1) * column.width > column.offsets.size()) {
        return std::nullopt;
    }
    if (column.width == 4) {
        std::int32_t value = 0;
        std::memcpy(&value, column.offsets.data() + place * 4, 4);
        return value < 0 ? std::nullopt : std::optional(static_cast<std::uint64_t>(value));
    }
    std::int64_t value = 0;
    std::memcpy(&value, column.offsets.data() + place * 8, 8);
    return value < 0 ? std::nullopt : std::optional(static_cast<std::uint64_t>(value));
}

bool is_null(const ArrowBytes& column, std::size_t row) {
    const std::size_t place = column.first + row;
    return !column.valid.empty() &&
           (place / 8 >= column.valid.size() || (column.valid[place / 8] >> place % 8 & 1U) == 0);
}

bool is_null(const ViewedBytes& column, std::size_t row) {
    return row < column.size() && column[row].data == nullptr;
}

bool is_null(const ByteColumn& column, std::size_t row) {
    return std::visit([row](const auto& values) { return is_null(values, row); }, column);
}

std::optional<std::span<const std::uint8_t>> bytes_at(const ViewedBytes& column, std::size_t row) {
    if (row >= column.size() || column[row].data == nullptr) {
        return std::nullopt;
    }
    return std::span(column[row].data, column[row].size);
}

std::optional<std::span<const std::uint8_t>> bytes_at(const ArrowBytes& column, std::size_t row) {
    const auto start = offset_at(column, column.first + row);
    const auto end = offset_at(column, column.first + row + 1);
    if (is_null(column, row) || !start || !end || *start > *end || *end > column.data.size()) {
        return std::nullopt;
    }
    return column.data.subspan(*start, *end - *start);
}

// Nothing for a null, and for places outside the data.
std::optional<std::span<const std::uint8_t>> bytes_at(const ByteColumn& column, std::size_t row) {
    return std::visit([row](const auto& values) { return bytes_at(values, row); }, column);
}

std::optional<std::string_view> text_at(const ByteColumn& column, std::size_t row) {
    const auto bytes = bytes_at(column, row);
    if (!bytes) {
        return std::nullopt;
    }
    return std::string_view(reinterpret_cast<const char*>(bytes->data()), bytes->size());
}

// A null is "".
std::optional<std::string_view> optional_text_at(const ByteColumn* column, std::size_t row) {
    if (column == nullptr || is_null(*column, row)) {
        return std::string_view();
    }
    return text_at(*column, row);
}

void append_number(std::string& out, std::uint64_t number, std::size_t digits = 1) {
    std::array<char, 20> text{};
    const auto result = std::to_chars(text.data(), text.data() + text.size(), number);
    const auto size = static_cast<std::size_t>(result.ptr - text.data());
    out.append(size < digits ? digits - size : 0, '0');
    out.append(text.data(), size);
}

// omr_io.shards.keys.key_for, for keys that need not be cut; "" for others.
std::string key_of(std::string_view id) {
    constexpr std::string_view kDigits = "0123456789ABCDEF";
    std::string key;
    for (const char c : id) {
        const bool is_word = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
                             (c >= '0' && c <= '9') || c == '-' || (c == '_' && !key.empty());
        if (is_word) {
            key += c;
        } else {
            key += '%';
            key += kDigits[static_cast<unsigned char>(c) >> 4U];
            key += kDigits[static_cast<unsigned char>(c) & 0xFU];
        }
        if (key.size() > kMaxKey) {
            return {};
        }
    }
    return key;
}

struct Row {
    std::span<const std::uint8_t> image;
    PlainJpeg frame{};
    std::string_view path, question, reasoning;
    char answer = 0;
    std::string id, key, source;
};

bool read_image(const PlainColumns& columns, const PlainRules& rules, std::size_t at, Row& row) {
    const auto data = bytes_at(*columns.image, at);
    const auto path = optional_text_at(columns.path, at);
    if (!data || data->size() > rules.max_image_bytes || !path ||
        text_kind(*path) == TextKind::refused) {
        return false;
    }
    const auto frame = plain_jpeg(*data);
    if (!frame) {
        return false;
    }
    const std::uint64_t longer = std::max(frame->width, frame->height);
    const std::uint64_t shorter = std::min(frame->width, frame->height);
    row.image = *data;
    row.path = *path;
    row.frame = *frame;
    return longer * shorter <= rules.max_pixels && longer <= rules.max_aspect * shorter;
}

bool read_texts(const PlainColumns& columns, const PlainRules& rules, std::size_t at, Row& row,
                std::vector<std::string_view>& options) {
    const auto question = text_at(*columns.question, at);
    const auto answer = text_at(*columns.answer, at);
    const auto reasoning = optional_text_at(columns.reasoning, at);
    if (!question || !answer || !reasoning || text_kind(*answer) != TextKind::ascii ||
        text_kind(*reasoning) == TextKind::refused) {
        return false;
    }
    const TextKind kind = text_kind(*question);
    if (kind == TextKind::refused || kind == TextKind::spaced ||
        !plain_options(*question, options)) {
        return false;
    }
    row.question = *question;
    row.reasoning = *reasoning;
    row.answer = plain_letter(*answer);
    if (row.answer == 0 || static_cast<std::size_t>(row.answer - 'A') >= options.size()) {
        return false;
    }
    if (!rules.check_trace) {
        return true;
    }
    const auto traced = plain_trace_letter(*reasoning);
    return traced && (*traced == 0 || *traced == row.answer);
}

bool read_names(const PlainColumns& columns, const PlainRules& rules, std::size_t at, Row& row) {
    const std::uint64_t number = rules.first_row + at;
    if (columns.id == nullptr) {
        row.id = rules.id_prefix;
        row.id += '-';
        append_number(row.id, number, 8);
    } else {
        const auto id = text_at(*columns.id, at);
        const TextKind kind = id ? text_kind(*id) : TextKind::refused;
        if (kind == TextKind::refused || kind == TextKind::spaced ||
            id->find_first_not_of(" \t\n\r") == id->npos) {
            return false;
        }
        row.id = *id;
    }
    row.key = key_of(row.id);
    row.source = rules.file_name;
    row.source += '#';
    append_number(row.source, number);
    return !row.key.empty();
}

// omr_io.shards.sample_json.encode_record.
void append_json(std::string& out, const Row& row, const std::vector<std::string_view>& options) {
    out += "{\"id\":";
    append_json_string(out, row.id);
    out += ",\"question\":";
    append_json_string(out, row.question);
    out += ",\"options\":[";
    for (std::size_t i = 0; i < options.size(); ++i) {
        out += i == 0 ? "{\"letter\":\"" : ",{\"letter\":\"";
        out += static_cast<char>('A' + static_cast<char>(i));
        out += "\",\"text\":";
        append_json_string(out, options[i]);
        out += '}';
    }
    out += "],\"answer\":\"";
    out += row.answer;
    out += "\",\"reasoning\":";
    append_json_string(out, row.reasoning);
    out += ",\"rubric\":[],\"images\":[{\"part\":\"";
    out += kImageName;
    out += "\",\"name\":";
    append_json_string(out, row.path);
    out += "}],\"source\":";
    append_json_string(out, row.source);
    out += ",\"extra\":\"{}\"}";
}

void put(std::span<std::uint8_t>& out, const void* data, std::size_t size) {
    if (size != 0) {
        std::memcpy(out.data(), data, size);
    }
    out = out.subspan(size);
}

// Header, data and padding; the name in the tar is the key with an extension.
void append_member(PlainBatch& batch, std::string_view key, std::string_view extension,
                   std::span<const std::uint8_t> data) {
    const std::size_t before = batch.names.data.size();
    (((batch.names.data += key) += '.') += extension);
    batch.names.end();
    const auto header =
        tar_header(std::string_view(batch.names.data).substr(before), data.size());
    if (!header) {
        throw std::logic_error("a plain row's name does not fit a tar's header");
    }
    std::span<std::uint8_t> out = batch.tar.add(kBlock + padded(data.size()));
    put(out, header->data(), header->size());
    batch.places.push_back(out.data() - batch.tar.data());
    put(out, data.data(), data.size());
    std::fill(out.begin(), out.end(), std::uint8_t{0});
    batch.sizes.push_back(static_cast<std::int64_t>(data.size()));
    batch.crcs.push_back(crc32c(data));
}

void append_row(PlainBatch& batch, const Row& row, std::string_view json, std::size_t options) {
    const std::array<std::pair<TextList*, std::string_view>, 6> texts{{
        {&batch.ids, row.id},
        {&batch.keys, row.key},
        {&batch.sources, row.source},
        {&batch.formats, row.frame.progressive ? "jpeg-progressive" : "jpeg"},
        {&batch.modes, row.frame.components == 1   ? "L"
                       : row.frame.components == 3 ? "RGB"
                                                   : "CMYK"},
        {&batch.answers, std::string_view(&row.answer, 1)},
    }};
    for (const auto& [list, text] : texts) {
        list->data += text;
        list->end();
    }
    // The image is still in the processor's cache from having been looked at.
    append_member(batch, row.key, kImageName, row.image);
    append_member(batch, row.key, "json",
                  {reinterpret_cast<const std::uint8_t*>(json.data()), json.size()});
    batch.widths.push_back(row.frame.width);
    batch.heights.push_back(row.frame.height);
    batch.question_bytes.push_back(static_cast<std::int32_t>(row.question.size()));
    batch.reasoning_bytes.push_back(static_cast<std::int32_t>(row.reasoning.size()));
    batch.num_options.push_back(static_cast<std::int16_t>(options));
}

void append_nothing(PlainBatch& batch) {
    for (TextList* list : {&batch.ids, &batch.keys, &batch.sources, &batch.names, &batch.names,
                           &batch.formats, &batch.modes, &batch.answers}) {
        list->end();
    }
    batch.places.insert(batch.places.end(), 2, 0);
    batch.sizes.insert(batch.sizes.end(), 2, 0);
    batch.crcs.insert(batch.crcs.end(), 2, 0);
    for (auto* numbers :
         {&batch.widths, &batch.heights, &batch.question_bytes, &batch.reasoning_bytes}) {
        numbers->push_back(0);
    }
    batch.num_options.push_back(0);
}

}  // namespace

void ByteBuffer::grow(std::size_t more) {
    const std::size_t capacity = std::max(size_ + more, capacity_ + capacity_ / 2);
    auto data = std::make_unique_for_overwrite<std::uint8_t[]>(capacity);
    if (size_ != 0) {
        std::memcpy(data.get(), data_.get(), size_);
    }
    data_ = std::move(data);
    capacity_ = capacity;
}

void PlainBatch::clear() {
    for (TextList* list : {&ids, &keys, &sources, &names, &formats, &modes, &answers}) {
        list->clear();
    }
    for (auto* numbers : {&widths, &heights, &question_bytes, &reasoning_bytes}) {
        numbers->clear();
    }
    for (auto* numbers : {&places, &sizes}) {
        numbers->clear();
    }
    plain.clear();
    num_options.clear();
    crcs.clear();
    tar.clear();
    starts.assign(1, 0);
}

void plain_rows(const PlainColumns& columns, std::size_t count, const PlainRules& rules,
                PlainBatch& batch) {
    batch.clear();
    std::vector<std::string_view> options;
    std::string json;
    for (std::size_t at = 0; at < count; ++at) {
        Row row;
        bool is_plain = read_image(columns, rules, at, row) &&
                        read_texts(columns, rules, at, row, options) &&
                        read_names(columns, rules, at, row);
        if (is_plain) {
            json.clear();
            append_json(json, row, options);
            is_plain = json.size() <= kMaxJson;
        }
        if (is_plain) {
            if (batch.tar.size() == 0) {
                const std::size_t sample = 2 * kBlock + padded(row.image.size()) + padded(json.size());
                batch.tar.reserve(std::min((count - at) * sample * 9 / 8, kMaxReserve));
            }
            append_row(batch, row, json, options.size());
        } else {
            append_nothing(batch);
        }
        batch.plain.push_back(is_plain ? 1 : 0);
        batch.starts.push_back(static_cast<std::int64_t>(batch.tar.size()));
    }
}

std::string index_lines(const PlainBatch& batch, std::size_t first, std::size_t last,
                        std::uint64_t offset) {
    std::string lines;
    const std::uint64_t start = static_cast<std::uint64_t>(batch.starts[first]);
    for (std::size_t place = 2 * first; place < 2 * last; ++place) {
        const bool is_image = place % 2 == 0;
        lines += is_image ? kImageName : " json";
        lines += ' ';
        append_number(lines, offset + static_cast<std::uint64_t>(batch.places[place]) - start);
        lines += ' ';
        append_number(lines, static_cast<std::uint64_t>(batch.sizes[place]));
        lines += ' ';
        lines += batch.names[place];
        if (!is_image) {
            lines += '\n';
        }
    }
    return lines;
}

}  // namespace omr
