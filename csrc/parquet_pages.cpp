#include "parquet_pages.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace omr {
namespace {

// What is held as a whole: levels, places in a dictionary, a dictionary. Larger ones are Arrow's.
constexpr std::size_t kMaxWhole = std::size_t{64} << 20U;
constexpr std::size_t kReadAhead = std::size_t{128} << 10U;

// What an empty value points to.
constexpr std::uint8_t kNothing = 0;

std::uint32_t word_at(const std::uint8_t* at) noexcept {
    return std::uint32_t{at[0]} | std::uint32_t{at[1]} << 8U | std::uint32_t{at[2]} << 16U |
           std::uint32_t{at[3]} << 24U;
}

ByteView view_of(const std::uint8_t* data, std::size_t size) noexcept {
    return size == 0 ? ByteView{&kNothing, 0} : ByteView{data, size};
}

}  // namespace

ChunkColumn::ChunkColumn(ByteSource& source, const ColumnChunk& chunk)
    : chunk_(chunk), reader_(source, chunk.offset, chunk.size), rows_left_(chunk.num_rows) {}

bool ChunkColumn::read(std::size_t max_rows, std::size_t max_bytes) {
    forget_rows();
    std::size_t num_bytes = 0;
    while (values_.size() < max_rows && (num_bytes < max_bytes || values_.empty())) {
        if (!read_row(num_bytes)) {
            return false;
        }
    }
    if (values_left_ == 0 && !is_body_done()) {
        return false;  // bytes behind the last value: a mistake of ours or of the file's
    }
    for (const auto& [row, place] : places_) {
        values_[row] = view_of(window_.data() + place, values_[row].size);
    }
    return true;
}

// The window's bytes before those that wait go, but for what copies may look back at.
void ChunkColumn::forget_rows() {
    values_.clear();
    places_.clear();
    levels_.clear();
    const std::size_t kept = snappy_ && !stream_.is_done() ? SnappyStream::kHistory : 0;
    const std::size_t place = begin_ - std::min(kept, begin_);
    if (place >= window_.end() - place) {  // else moving costs more than it saves
        window_.drop(place);
        begin_ -= place;
    }
}

bool ChunkColumn::read_row(std::size_t& num_bytes) {
    while (values_left_ == 0) {
        if (!next_page()) {
            return false;
        }
    }
    --values_left_;
    std::uint32_t level = chunk_.max_level;
    if (level != 0 && (!level_reader_.next(level) || level > chunk_.max_level)) {
        return false;
    }
    levels_.push_back(static_cast<std::uint8_t>(level));
    values_.emplace_back();
    if (level != chunk_.max_level) {
        return true;
    }
    if (kind_ == Values::dictionary) {
        std::uint32_t index = 0;
        if (!index_reader_.next(index) || index >= entries_.size()) {
            return false;
        }
        values_.back() = entries_[index];
    } else {
        if (!need(4)) {
            return false;
        }
        const std::size_t size = word_at(window_.data() + begin_);
        if (size > body_left_ - 4 || !need(4 + size)) {
            return false;
        }
        places_.emplace_back(values_.size() - 1, begin_ + 4);
        values_.back().size = size;
        begin_ += 4 + size;
        body_left_ -= 4 + size;
    }
    num_bytes += values_.back().size;
    return true;
}

bool ChunkColumn::next_page() {
    PageHeader header;
    if (!is_body_done() || !read_header(header)) {
        return false;
    }
    if (header.kind == PageKind::dictionary) {
        return is_first_page_ && read_dictionary(header) && is_body_done();
    }
    is_first_page_ = false;
    if (header.num_values > rows_left_) {
        return false;
    }
    rows_left_ -= header.num_values;
    values_left_ = header.num_values;
    return begin_page(header);
}

bool ChunkColumn::read_header(PageHeader& header) {
    FoundHeader found;
    for (std::size_t wanted = 256;; wanted *= 4) {
        const auto data = reader_.peek(wanted);
        found = page_header(data);
        if (found.state == ThriftState::good) {
            break;
        }
        if (found.state == ThriftState::malformed || data.size() < wanted ||
            wanted * 4 > ChunkReader::kMaxPeek) {
            return false;
        }
    }
    reader_.skip(found.size);
    header = found.header;
    if (header.compressed_size > reader_.left()) {
        return false;
    }
    if (!header.crc) {
        return true;
    }
    bool ok = false;
    return reader_.crc_of_next(header.compressed_size, ok) == *header.crc && ok;
}

bool ChunkColumn::begin_page(const PageHeader& header) {
    std::size_t compressed = header.compressed_size;
    std::size_t uncompressed = header.uncompressed_size;
    const bool has_levels = chunk_.max_level != 0;
    if (header.kind == PageKind::data_v2) {
        // Levels stand before the body, and are not compressed.
        const std::size_t size = header.definition_bytes;
        if (header.repetition_bytes != 0 || size > kMaxWhole || size > compressed ||
            size > uncompressed || (size != 0 && !has_levels)) {
            return false;
        }
        level_bytes_.resize(size);
        if (!reader_.read(level_bytes_)) {
            return false;
        }
        compressed -= size;
        uncompressed -= size;
    }
    const bool snappy = chunk_.snappy && header.is_compressed;
    if (!begin_body(compressed, uncompressed, snappy)) {
        return false;
    }
    if (has_levels && header.kind == PageKind::data) {
        if (header.level_encoding != kRleEncoding || !need(4)) {
            return false;
        }
        const std::size_t size = word_at(window_.data() + begin_);
        begin_ += 4;
        body_left_ -= 4;
        if (!take(size, level_bytes_)) {
            return false;
        }
    }
    if (has_levels) {
        level_reader_ = {level_bytes_, static_cast<unsigned>(std::bit_width(chunk_.max_level))};
    }
    return begin_values(header);
}

bool ChunkColumn::begin_values(const PageHeader& header) {
    if (header.encoding == kPlainEncoding) {
        kind_ = Values::plain;
        return true;
    }
    if (header.encoding != kPlainDictionaryEncoding && header.encoding != kRleDictionaryEncoding) {
        return false;
    }
    kind_ = Values::dictionary;
    if (!has_dictionary_ || !take(body_left_, index_bytes_)) {
        return false;
    }
    index_reader_ = {};
    if (index_bytes_.empty()) {
        return true;  // all are null
    }
    const unsigned bits = index_bytes_[0];
    index_reader_ = {std::span<const std::uint8_t>(index_bytes_).subspan(1), bits};
    return bits <= 32;
}

bool ChunkColumn::read_dictionary(const PageHeader& header) {
    is_first_page_ = false;
    has_dictionary_ = true;
    const bool is_plain =
        header.encoding == kPlainEncoding || header.encoding == kPlainDictionaryEncoding;
    if (!is_plain || !begin_body(header.compressed_size, header.uncompressed_size, chunk_.snappy) ||
        !take(body_left_, dictionary_) || header.num_values > dictionary_.size() / 4) {
        return false;
    }
    std::size_t at = 0;
    for (std::size_t entry = 0; entry < header.num_values; ++entry) {
        if (dictionary_.size() - at < 4) {
            return false;
        }
        const std::size_t size = word_at(dictionary_.data() + at);
        at += 4;
        if (size > dictionary_.size() - at) {
            return false;
        }
        entries_.push_back(view_of(dictionary_.data() + at, size));
        at += size;
    }
    return at == dictionary_.size();
}

bool ChunkColumn::begin_body(std::size_t compressed, std::size_t uncompressed, bool snappy) {
    snappy_ = snappy && compressed != 0;
    body_left_ = uncompressed;
    body_unread_ = 0;
    if (snappy_) {
        return stream_.begin(reader_, compressed, uncompressed);
    }
    body_unread_ = uncompressed;
    return compressed == uncompressed;
}

bool ChunkColumn::need(std::size_t size) {
    if (size > body_left_) {
        return false;
    }
    while (waiting() < size) {
        const std::size_t missing = size - waiting();
        if (snappy_) {
            if (!stream_.decode(reader_, window_, missing)) {
                return false;
            }
            continue;
        }
        const std::size_t more = std::min(body_unread_, std::max(missing, kReadAhead));
        if (!reader_.read({window_.room(more), more})) {
            return false;
        }
        window_.add(more);
        body_unread_ -= more;
    }
    return true;
}

bool ChunkColumn::take(std::size_t size, std::vector<std::uint8_t>& out) {
    if (size > kMaxWhole || !need(size)) {
        return false;
    }
    out.assign(window_.data() + begin_, window_.data() + begin_ + size);
    begin_ += size;
    body_left_ -= size;
    return true;
}

bool ChunkColumn::is_body_done() const noexcept {
    return body_left_ == 0 && (!snappy_ || stream_.is_done());
}

RowGroup::RowGroup(ByteSource& source, std::span<const ColumnChunk> chunks, std::uint64_t num_rows)
    : chunks_(chunks.begin(), chunks.end()), left_(num_rows) {
    columns_.reserve(chunks.size());
    for (const ColumnChunk& chunk : chunks) {
        if (chunk.size > chunks[largest_].size) {
            largest_ = columns_.size();
        }
        columns_.emplace_back(source, chunk);
        failed_ = failed_ || chunk.num_rows != num_rows || chunk.max_level > 255 ||
                  chunk.first_field >= chunks.size();
    }
}

std::optional<std::size_t> RowGroup::next(std::size_t max_rows, std::size_t max_bytes) {
    if (left_ == 0 && !failed_) {
        return 0;
    }
    const std::size_t most = static_cast<std::size_t>(std::min<std::uint64_t>(left_, max_rows));
    failed_ = failed_ || columns_.empty() || most == 0 ||
              !columns_[largest_].read(most, max_bytes);
    if (failed_) {
        return std::nullopt;
    }
    const std::size_t rows = columns_[largest_].values().size();
    for (std::size_t place = 0; place < columns_.size(); ++place) {
        if (place != largest_ && !columns_[place].read(rows, SIZE_MAX)) {
            failed_ = true;
            return std::nullopt;
        }
    }
    failed_ = !structs_agree();
    if (failed_) {
        return std::nullopt;
    }
    left_ -= rows;
    return rows;
}

// Whether a struct's fields say the same of which structs are there: they do unless damaged.
bool RowGroup::structs_agree() const {
    for (std::size_t place = 0; place < columns_.size(); ++place) {
        const std::uint32_t there = chunks_[place].struct_level;
        if (there == 0) {
            continue;
        }
        const auto levels = columns_[place].levels();
        const auto firsts = columns_[chunks_[place].first_field].levels();
        const auto agree = [there](std::uint8_t level, std::uint8_t first) {
            return (level >= there) == (first >= there);
        };
        if (!std::equal(levels.begin(), levels.end(), firsts.begin(), firsts.end(), agree)) {
            return false;
        }
    }
    return true;
}

}  // namespace omr
