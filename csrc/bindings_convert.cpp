// Binds the conversion of plain rows, a batch at a time.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "crc32c.hpp"
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

// (validity or None, offsets, data or None, first row, bytes of an offset).
std::optional<omr::ArrowBytes> column_of(const py::object& object, Kept& kept) {
    if (object.is_none()) {
        return std::nullopt;
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

// A batch with the owners of what its images look into.
struct Batch {
    Kept kept;
    omr::PlainBatch rows;

    void check(std::size_t first, std::size_t last) const {
        if (first > last || last > rows.size()) throw py::index_error("no such rows");
    }
};

const omr::ArrowBytes* pointer(const std::optional<omr::ArrowBytes>& column) {
    return column ? &*column : nullptr;
}

std::unique_ptr<Batch> find_plain_rows(const py::object& image, const py::object& path,
                                  const py::object& question, const py::object& answer,
                                  const py::object& reasoning, const py::object& id,
                                  std::size_t count, const std::string& file_name,
                                  const std::string& id_prefix, std::uint64_t first_row,
                                  std::uint64_t max_image_bytes, std::uint64_t max_pixels,
                                  std::uint64_t max_aspect, bool check_trace) {
    auto batch = std::make_unique<Batch>();
    const auto images = column_of(image, batch->kept);
    const auto paths = column_of(path, batch->kept);
    const auto questions = column_of(question, batch->kept);
    const auto answers = column_of(answer, batch->kept);
    const auto traces = column_of(reasoning, batch->kept);
    const auto ids = column_of(id, batch->kept);
    if (!images || !paths || !questions || !answers) throw py::value_error("a column is missing");
    const omr::PlainRules rules{file_name,       id_prefix,  first_row,
                                max_image_bytes, max_pixels, max_aspect,
                                check_trace};
    const omr::PlainColumns columns{pointer(images),  pointer(paths),  pointer(questions),
                                    pointer(answers), pointer(traces), pointer(ids)};
    const py::gil_scoped_release release;
    batch->rows = omr::plain_rows(columns, count, rules);
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

void bind_convert(py::module_& m) {
    py::class_<Batch>(m, "PlainBatch", py::buffer_protocol(),
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
          py::arg("check_trace"), "Find the plain rows of a batch; see csrc/plain_rows.hpp.");
    m.def("crc32c", &crc_of, py::arg("data"), py::kw_only(), py::arg("by_table") = false,
          "CRC-32C of bytes.");
}

}  // namespace omr
