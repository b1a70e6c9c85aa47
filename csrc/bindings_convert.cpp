// Binds the conversion of plain rows, a batch at a time, and the pages that they are read from.
#include <fcntl.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "crc32c.hpp"
#include "parquet_footer.hpp"
#include "parquet_pages.hpp"
#include "plain_question.hpp"
#include "plain_rows.hpp"

namespace py = pybind11;

namespace {

// The exporters of a column's buffers; they stay as long as the views into them.
using Kept = std::vector<py::buffer_info>;

std::span<const std::uint8_t> bytes_of(const py::handle& object, Kept& kept) {
    if (object.is_none()) {
        return {};
    }
    kept.push_back(py::cast<py::buffer>(object).request());
    const py::buffer_info& info = kept.back();
    if (info.ndim != 1 || (info.size > 1 && info.strides[0] != info.itemsize)) {
        throw py::value_error("a column's buffer is not contiguous");
    }
    return {static_cast<const std::uint8_t*>(info.ptr),
            static_cast<std::size_t>(info.size * info.itemsize)};
}

std::optional<omr::ParquetFooter> footer_of(const py::bytes& data, std::uint64_t file_size) {
    const std::string_view view(data);
    const std::span<const std::uint8_t> bytes(reinterpret_cast<const std::uint8_t*>(view.data()),
                                              view.size());
    const py::gil_scoped_release release;
    return omr::parquet_footer(bytes, file_size);
}

// (path, definition level of a value, whether it is of bytes and not repeated) of each leaf.
py::list leaves(const omr::ParquetFooter& footer) {
    py::list made;
    for (const omr::ParquetLeaf& leaf : footer.leaves) {
        py::tuple path(leaf.path.size());
        for (std::size_t part = 0; part < leaf.path.size(); ++part) {
            path[part] = py::str(leaf.path[part]);
        }
        made.append(py::make_tuple(path, leaf.max_level, leaf.is_flat_bytes));
    }
    return made;
}

// (first byte, bytes, whether Snappy) of a leaf's pages in a row group.
py::object chunk(const omr::ParquetFooter& footer, std::size_t group, std::size_t leaf) {
    if (group >= footer.row_groups.size() || leaf >= footer.leaves.size()) {
        throw py::index_error("no such chunk");
    }
    const auto& found = footer.row_groups[group].chunks[leaf];
    if (!found) return py::none();
    return py::make_tuple(found->offset, found->size, found->snappy);
}

// Columns of a Parquet row group, and the file that they are read from.
class PageRows {
public:
    PageRows(int descriptor, const std::vector<omr::ColumnChunk>& chunks, std::uint64_t num_rows)
        : descriptor_(::fcntl(descriptor, F_DUPFD_CLOEXEC, 0)),
          source_(descriptor_),
          group_(source_, chunks, num_rows) {
        if (descriptor_ < 0) throw std::system_error(errno, std::generic_category());
    }
    PageRows(const PageRows&) = delete;
    PageRows& operator=(const PageRows&) = delete;
    ~PageRows() {
        if (descriptor_ >= 0) ::close(descriptor_);
    }

    std::optional<std::size_t> next(std::size_t max_rows, std::size_t max_bytes) {
        ++batch_;
        return group_.next(max_rows, max_bytes);
    }
    [[nodiscard]] const omr::RowGroup& group() const { return group_; }
    [[nodiscard]] std::uint64_t batch() const { return batch_; }

private:
    int descriptor_;
    omr::FileSource source_;
    omr::RowGroup group_;
    std::uint64_t batch_ = 0;
};

// A column of the rows that were read last.
struct PageColumn {
    std::shared_ptr<PageRows> rows;
    std::size_t place;
    std::uint64_t batch;

    [[nodiscard]] const omr::ChunkColumn& column() const {
        if (rows->batch() != batch) throw py::value_error("other rows have been read since");
        return rows->group().column(place);
    }
    [[nodiscard]] std::span<const omr::ByteView> values() const { return column().values(); }

    void check(std::size_t first, std::size_t last) const {
        if (first > last || last > values().size()) throw py::index_error("no such rows");
    }
};

std::shared_ptr<PageRows> page_rows(int descriptor, const py::list& given, std::uint64_t num_rows) {
    std::vector<omr::ColumnChunk> chunks;
    for (const py::handle& item : given) {
        const auto [offset, size, max_level, snappy, struct_level, first_field] =
            item.cast<std::tuple<std::uint64_t, std::uint64_t, std::uint32_t, bool, std::uint32_t,
                                 std::size_t>>();
        chunks.push_back({offset, size, num_rows, max_level, snappy, struct_level, first_field});
    }
    return std::make_shared<PageRows>(descriptor, chunks, num_rows);
}

// Bits of rows, the first one the lowest of the first byte, as Arrow has them.
template <typename IsSet>
py::bytes bits(std::size_t first, std::size_t last, IsSet&& is_set) {
    std::string made((last - first + 7) / 8, '\0');
    for (std::size_t row = first; row < last; ++row) {
        if (is_set(row)) {
            char& byte = made[(row - first) / 8];
            byte = static_cast<char>(byte | 1 << (row - first) % 8);
        }
    }
    return py::bytes(made);
}

py::bytes present(const PageColumn& column, std::size_t first, std::size_t last,
                  std::uint32_t level) {
    column.check(first, last);
    const auto levels = column.column().levels();
    return bits(first, last, [&](std::size_t row) { return levels[row] >= level; });
}

// (validity, offsets of 8 bytes, data), as Arrow lays them out.
py::tuple copied(const PageColumn& column, std::size_t first, std::size_t last) {
    column.check(first, last);
    const auto values = column.values().subspan(first, last - first);
    py::array_t<std::int64_t> offsets(static_cast<py::ssize_t>(values.size() + 1));
    std::int64_t* end = offsets.mutable_data();
    *end = 0;
    for (const omr::ByteView& value : values) {
        end[1] = *end + static_cast<std::int64_t>(value.size);
        ++end;
    }
    auto data = py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, *end));
    if (!data) throw py::error_already_set();
    char* out = PyBytes_AS_STRING(data.ptr());
    for (const omr::ByteView& value : values) {
        if (value.size != 0) std::memcpy(out, value.data, value.size);
        out += value.size;
    }
    auto valid = bits(0, values.size(), [&](std::size_t row) { return values[row].data != nullptr; });
    return py::make_tuple(valid, offsets, data);
}

// (validity or None, offsets, data or None, first row, bytes of an offset), or a PageColumn.
std::optional<omr::ByteColumn> column_of(const py::object& object, Kept& kept, std::size_t count) {
    if (object.is_none()) {
        return std::nullopt;
    }
    if (py::isinstance<PageColumn>(object)) {
        const auto values = object.cast<const PageColumn&>().values();
        if (values.size() != count) throw py::value_error("a column of another number of rows");
        return values;
    }
    const auto fields = object.cast<py::tuple>();
    if (fields.size() != 5) throw py::value_error("a column has 5 fields");
    omr::ArrowBytes column;
    column.valid = bytes_of(fields[0], kept);
    column.offsets = bytes_of(fields[1], kept);
    column.data = bytes_of(fields[2], kept);
    column.first = fields[3].cast<std::size_t>();
    column.width = fields[4].cast<std::size_t>();
    if (column.width != 4 && column.width != 8) throw py::value_error("offsets of other widths");
    return column;
}

struct Batch {
    omr::PlainBatch rows;

    void check(std::size_t first, std::size_t last) const {
        if (first > last || last > rows.size()) throw py::index_error("no such rows");
    }
};

const omr::ByteColumn* pointer(const std::optional<omr::ByteColumn>& column) {
    return column ? &*column : nullptr;
}

std::shared_ptr<Batch> find_plain_rows(
    const py::object& image, const py::object& path, const py::object& question,
    const py::object& answer, const py::object& reasoning, const py::object& id, std::size_t count,
    const std::string& file_name, const std::string& id_prefix, std::uint64_t first_row,
    std::uint64_t max_image_bytes, std::uint64_t max_pixels, std::uint64_t max_aspect,
    bool check_trace, std::shared_ptr<Batch> batch) {
    Kept kept;
    const auto images = column_of(image, kept, count);
    const auto paths = column_of(path, kept, count);
    const auto questions = column_of(question, kept, count);
    const auto answers = column_of(answer, kept, count);
    const auto traces = column_of(reasoning, kept, count);
    const auto ids = column_of(id, kept, count);
    if (!images || !paths || !questions || !answers) throw py::value_error("a column is missing");
    const omr::PlainRules rules{file_name,       id_prefix,  first_row,
                                max_image_bytes, max_pixels, max_aspect,
                                check_trace};
    const omr::PlainColumns columns{pointer(images),  pointer(paths),  pointer(questions),
                                    pointer(answers), pointer(traces), pointer(ids)};
    if (!batch) batch = std::make_shared<Batch>();
    const py::gil_scoped_release release;
    omr::plain_rows(columns, count, rules, batch->rows);
    return batch;
}

// (first, last, whether they are plain) of each run of rows.
py::list runs(const Batch& batch) {
    py::list found;
    const auto& plain = batch.rows.plain;
    for (std::size_t first = 0; first < plain.size();) {
        std::size_t last = first;
        while (last < plain.size() && plain[last] == plain[first]) ++last;
        found.append(py::make_tuple(first, last, plain[first] != 0));
        first = last;
    }
    return found;
}

template <typename Value>
py::array_t<Value> numbers(const std::vector<Value>& values, std::size_t first, std::size_t last) {
    return py::array_t<Value>(static_cast<py::ssize_t>(last - first), values.data() + first);
}

py::list strings(const omr::TextList& texts, std::size_t first, std::size_t last) {
    py::list made(last - first);
    for (std::size_t at = first; at < last; ++at) {
        const std::string_view text = texts[at];
        made[at - first] = py::str(text.data(), text.size());
    }
    return made;
}

// (lengths, the texts one after the other).
py::tuple texts(const omr::TextList& list, std::size_t first, std::size_t last) {
    py::array_t<std::int32_t> lengths(static_cast<py::ssize_t>(last - first));
    std::int32_t* out = lengths.mutable_data();
    for (std::size_t at = first; at < last; ++at) {
        *out++ = static_cast<std::int32_t>(list.ends[at + 1] - list.ends[at]);
    }
    const auto start = static_cast<std::size_t>(list.ends[first]);
    const auto size = static_cast<std::size_t>(list.ends[last]) - start;
    return py::make_tuple(lengths, py::bytes(list.data.data() + start, size));
}

py::tuple names(const Batch& batch, std::size_t first, std::size_t last) {
    batch.check(first, last);
    const omr::PlainBatch& rows = batch.rows;
    return py::make_tuple(strings(rows.keys, first, last), strings(rows.ids, first, last),
                          strings(rows.sources, first, last));
}

py::dict columns(const Batch& batch, std::size_t first, std::size_t last) {
    batch.check(first, last);
    const omr::PlainBatch& rows = batch.rows;
    py::dict made;
    made["keys"] = texts(rows.keys, first, last);
    made["ids"] = texts(rows.ids, first, last);
    made["sources"] = texts(rows.sources, first, last);
    made["names"] = texts(rows.names, 2 * first, 2 * last);
    made["formats"] = texts(rows.formats, first, last);
    made["modes"] = texts(rows.modes, first, last);
    made["answers"] = texts(rows.answers, first, last);
    made["widths"] = numbers(rows.widths, first, last);
    made["heights"] = numbers(rows.heights, first, last);
    made["question_bytes"] = numbers(rows.question_bytes, first, last);
    made["reasoning_bytes"] = numbers(rows.reasoning_bytes, first, last);
    made["num_options"] = numbers(rows.num_options, first, last);
    made["places"] = numbers(rows.places, 2 * first, 2 * last);
    made["sizes"] = numbers(rows.sizes, 2 * first, 2 * last);
    made["crcs"] = numbers(rows.crcs, 2 * first, 2 * last);
    return made;
}

// (slices of `tar` that are images, lines of DALI's index).
py::tuple place(const Batch& batch, std::size_t first, std::size_t last, std::uint64_t offset) {
    batch.check(first, last);
    py::list images(last - first);
    for (std::size_t at = first; at < last; ++at) {
        if (batch.rows.plain[at] == 0) throw py::value_error("a row is not plain");
        const std::int64_t start = batch.rows.places[2 * at];
        images[at - first] = py::slice(start, start + batch.rows.sizes[2 * at], 1);
    }
    return py::make_tuple(images, py::str(omr::index_lines(batch.rows, first, last, offset)));
}

py::buffer_info tar_of(const Batch& batch) {
    // A pointer to nothing is not NULL: memoryview takes no other.
    static std::uint8_t nothing = 0;
    const std::uint8_t* data = batch.rows.tar.size() == 0 ? &nothing : batch.rows.tar.data();
    return {data, static_cast<py::ssize_t>(batch.rows.tar.size()), true};
}

std::uint32_t crc_of(const py::bytes& data, bool by_table) {
    const std::string_view view(data);
    const std::span<const std::uint8_t> bytes(reinterpret_cast<const std::uint8_t*>(view.data()),
                                              view.size());
    const py::gil_scoped_release release;
    return by_table ? omr::crc32c_by_table(bytes) : omr::crc32c(bytes);
}

}  // namespace

namespace omr {

static void bind_pages(py::module_& m) {
    py::class_<omr::ParquetFooter>(m, "ParquetFooter", "Where pages are: csrc/parquet_footer.hpp.")
        .def("leaves", &leaves, "(path, definition level, whether flat bytes) of each leaf.")
        .def("chunk", &chunk, py::arg("group"), py::arg("leaf"), "Where a leaf's pages are.");
    m.def("parquet_footer", &footer_of, py::arg("data"), py::arg("file_size"),
          "Read a footer; None if it is malformed or of an encrypted file.");
    py::class_<PageColumn>(m, "PageColumn", "A column of the rows that were read last.")
        .def("present", &present, py::arg("first"), py::arg("last"), py::arg("level"),
             "Bits: whether rows have at least this definition level.")
        .def("copied", &copied, py::arg("first"), py::arg("last"),
             "Values as Arrow has them: (validity, offsets of 8 bytes, data).");
    py::class_<PageRows, std::shared_ptr<PageRows>>(
        m, "PageRows", "Columns of a Parquet row group: csrc/parquet_pages.hpp.")
        .def(py::init(&page_rows), py::arg("descriptor"), py::arg("chunks"), py::arg("num_rows"))
        .def("next", &PageRows::next, py::arg("max_rows"), py::arg("max_bytes"),
             py::call_guard<py::gil_scoped_release>(),
             "Read rows; how many, 0 at the end, None where Arrow must go on.")
        .def(
            "column",
            [](const std::shared_ptr<PageRows>& rows, std::size_t place) {
                if (place >= rows->group().num_columns()) throw py::index_error("no such column");
                return PageColumn{rows, place, rows->batch()};
            },
            py::arg("place"), "A column of the rows that were read last.");
}

void bind_convert(py::module_& m) {
    bind_pages(m);
    py::class_<Batch, std::shared_ptr<Batch>>(m, "PlainBatch", py::buffer_protocol(),
                      "Rows of a batch that are plain: csrc/plain_rows.hpp. As a buffer, their "
                      "samples as they stand in a tar.")
        .def_buffer(&tar_of)
        .def("runs", &runs, "(first, last, whether they are plain) of each run of rows.")
        .def_property_readonly(
            "starts",
            [](const Batch& batch) { return numbers(batch.rows.starts, 0, batch.rows.starts.size()); },
            "Where each row's sample begins in the buffer, and the end, int64.")
        .def("names", &names, py::arg("first"), py::arg("last"),
             "The keys, ids and sources of rows.")
        .def("columns", &columns, py::arg("first"), py::arg("last"),
             "What the index says of rows, but for their places and checksums.")
        .def("place", &place, py::arg("first"), py::arg("last"), py::arg("offset"),
             "Of rows, all plain, at a place in a tar: (the images' places in the buffer, the lines "
             "of DALI's index).");
    m.def("plain_rows", &find_plain_rows, py::arg("image"), py::arg("path"), py::arg("question"),
          py::arg("answer"), py::arg("reasoning"), py::arg("id"), py::kw_only(), py::arg("count"),
          py::arg("file_name"), py::arg("id_prefix"), py::arg("first_row"),
          py::arg("max_image_bytes"), py::arg("max_pixels"), py::arg("max_aspect"),
          py::arg("check_trace"), py::arg("into") = nullptr, "Find the plain rows of a batch; see csrc/plain_rows.hpp.");
    m.def("crc32c", &crc_of, py::arg("data"), py::kw_only(), py::arg("by_table") = false,
          "CRC-32C of bytes.");
}

}  // namespace omr
