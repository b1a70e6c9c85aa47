// Binds the vocabulary: tokens and merges, its compiled form, pieces to ids.
#include "bindings.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/ids.hpp"
#include "tokenizer/piece_cache.hpp"
#include "tokenizer/vocabulary.hpp"

namespace py = pybind11;

namespace omr {

namespace {

using Array = py::array_t<std::uint32_t, py::array::c_style>;
using Holder = std::shared_ptr<Vocabulary>;

Holder held(std::shared_ptr<const Vocabulary> vocabulary) {
    return std::const_pointer_cast<Vocabulary>(std::move(vocabulary));  // it has no way to change
}

std::vector<std::string> tokens_of(const py::list& list) {
    std::vector<std::string> tokens(list.size());
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        PyObject* token = PyList_GET_ITEM(list.ptr(), static_cast<py::ssize_t>(i));
        if (!PyBytes_Check(token)) {
            throw py::type_error("token " + std::to_string(i) + " is no bytes");
        }
        tokens[i].assign(PyBytes_AS_STRING(token),
                         static_cast<std::size_t>(PyBytes_GET_SIZE(token)));
    }
    return tokens;
}

Holder build(const py::list& tokens, const Array& merges, bool ignore_merges) {
    if (merges.ndim() != 2 || merges.shape(1) != 3) {
        throw py::value_error("merges has to have the shape (n, 3): left, right, merged");
    }
    VocabularySource source{tokens_of(tokens), {}, ignore_merges};
    source.merges.resize(static_cast<std::size_t>(merges.shape(0)));
    static_assert(sizeof(Merge) == 3 * sizeof(std::uint32_t));
    if (!source.merges.empty()) {
        std::memcpy(source.merges.data(), merges.data(), source.merges.size() * sizeof(Merge));
    }
    const py::gil_scoped_release release;
    return held(Vocabulary::build(source));
}

py::bytes compiled(const Vocabulary& vocabulary) {
    const std::span<const std::uint8_t> block = vocabulary.compiled();
    return {reinterpret_cast<const char*>(block.data()), block.size()};
}

// Ends as `split` gives them, so nothing in C++ checks them again; what Python gives is checked.
std::span<const std::uint32_t> ends_of(const Array& ends, std::string_view text) {
    if (ends.ndim() != 1) throw py::value_error("ends has to have one dimension");
    const std::span<const std::uint32_t> view(ends.data(), static_cast<std::size_t>(ends.size()));
    std::uint32_t last = 0;
    for (const std::uint32_t end : view) {
        if (end < last || end > text.size()) {
            throw py::value_error("ends have to ascend, up to the length of the text");
        }
        last = end;
    }
    return view;
}

py::array_t<std::int32_t> array_of(const Ids& ids) {
    py::array_t<std::int32_t> array(static_cast<py::ssize_t>(ids.size()));
    if (ids.size() != 0) {
        std::memcpy(array.mutable_data(), ids.data(), ids.size() * sizeof(std::int32_t));
    }
    return array;
}

py::array_t<std::int32_t> encode_long(const Vocabulary& vocabulary, const py::bytes& piece,
                                      std::size_t window) {
    const std::string_view view(piece);
    Ids ids;
    {
        const py::gil_scoped_release release;
        vocabulary.encode_long(view, window, ids);
    }
    return array_of(ids);
}

py::array_t<std::int32_t> encode_pieces(const Vocabulary& vocabulary, const py::buffer& buffer,
                                        const Array& ends, PieceCache* given) {
    // buffer_info keeps the exporter (an mmap) from being closed while the GIL is released.
    const py::buffer_info info = buffer.request();
    if (info.ndim != 1 || info.itemsize != 1 || (info.size > 1 && info.strides[0] != 1)) {
        throw py::value_error("the text has to be a contiguous buffer of bytes");
    }
    const std::string_view text(static_cast<const char*>(info.ptr),
                                static_cast<std::size_t>(info.size));
    const std::span<const std::uint32_t> view = ends_of(ends, text);
    Ids ids;
    {
        const py::gil_scoped_release release;
        std::optional<PieceCache> own;
        PieceCache& cache = given != nullptr ? *given : own.emplace();
        vocabulary.encode(text, 0, view, cache, ids);
        if (vocabulary.count(text, 0, view, cache) != ids.size()) {
            throw std::logic_error("count and encode differ");
        }
    }
    return array_of(ids);
}

}  // namespace

void bind_vocabulary(py::module_& m) {
    py::class_<PieceCache>(m, "PieceCache", "What one thread remembers of pieces; for tests.")
        .def(py::init<>());
    py::class_<Vocabulary, Holder>(
        m, "Vocabulary", "A byte-level BPE vocabulary; immutable, shared by threads.")
        .def_static("build", &build, py::arg("tokens"), py::arg("merges"), py::kw_only(),
                    py::arg("ignore_merges") = false,
                    "Of tokens as bytes by id (b'' where there is none), and an (n, 3) uint32 "
                    "array of left, right and merged ids. Raises ValueError.")
        .def_static(
            "map", [](const std::string& path) { return held(Vocabulary::map(path)); },
            py::arg("path"), py::call_guard<py::gil_scoped_release>(),
            "Of a file that holds the compiled form. Raises RuntimeError: it is not one, or it is "
            "damaged.")
        .def("compiled", &compiled, "The compiled form, to be written to a file.")
        .def_property_readonly("size", &Vocabulary::size, "Ids are below this.")
        .def(
            "bytes_of",
            [](const Vocabulary& vocabulary, std::uint32_t id) {
                const std::string_view token = vocabulary.bytes_of(id);
                return py::bytes(token.data(), token.size());
            },
            py::arg("id"), "The token's bytes; b'' if there is none.")
        .def(
            "find",
            [](const Vocabulary& vocabulary, const py::bytes& token) {
                return vocabulary.find(std::string_view(token));
            },
            py::arg("token"), "The token's id, or -1.")
        .def("encode_pieces", &encode_pieces, py::arg("text"), py::arg("ends"),
             py::arg("cache") = nullptr,
             "int32 ids of the pieces of `text` that end at the uint32 offsets `ends`.")
        .def("encode_long", &encode_long, py::arg("piece"), py::arg("window") = 4096,
             "int32 ids of one piece, merged in windows of so many bytes.");
}

}  // namespace omr
